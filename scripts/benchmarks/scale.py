"""How much is measured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        rounds: of each comparison.
        calls: calls of a microsecond operation in a round.
        pairs: namespaces made and removed in a round, by what needs no process for each.
        commands: the same for what does, and the scans of /proc in a round.
        paced: changes by as many processes, with a pause before each.
        stats: calls of each of eight clients in a round.
        sleepers: processes on the machine besides its own.
        members: how many of them are in the namespace that is asked for.
        asked: namespaces that are asked for one after another.
        threads, sockets, duplicates, mounts: of a crowd of each.
        scraped: namespaces to read all counters of.
        contained: namespaces without a name to do the same with.
        sizes: numbers of namespaces to list.
        bursts: rounds of bursts.
        listings: rounds at each size.
        growth: numbers of namespaces at which single operations are measured.
        clients: numbers of clients.
        idle: seconds without a request.
        strangers: threads of a crowd that may do nothing.
        storm: seconds beside each such crowd.
    """

    rounds: int = 30
    calls: int = 250
    pairs: int = 25
    commands: int = 5
    paced: int = 200
    stats: int = 2000
    sleepers: int = 2000
    members: int = 100
    asked: int = 50
    threads: int = 20_000
    sockets: int = 100_000
    duplicates: int = 19_900
    mounts: int = 30_000
    scraped: int = 200
    contained: int = 1000
    sizes: tuple[int, ...] = (10, 1000, 5000)
    bursts: int = 12
    listings: int = 10
    growth: tuple[int, ...] = (10, 1000, 5000, 10000)
    clients: tuple[int, ...] = (1, 2, 4, 8, 16)
    idle: float = 60.0
    strangers: int = 1000
    storm: float = 5.0


QUICK = Scale(
    rounds=3,
    calls=200,
    pairs=10,
    commands=3,
    paced=20,
    stats=100,
    sleepers=200,
    members=10,
    asked=5,
    threads=1000,
    sockets=1000,
    duplicates=1000,
    mounts=1000,
    scraped=20,
    contained=20,
    sizes=(10, 200),
    bursts=3,
    listings=4,
    growth=(10, 100),
    clients=(1, 4),
    idle=5.0,
    strangers=100,
    storm=1.0,
)
