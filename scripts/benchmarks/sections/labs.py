"""A star of hosts on a bridge, made and removed by a shell script: by files, and by ip."""

from functools import partial

from benchmarks.mounts import MNT, netnsfs
from benchmarks.programs import run, tool
from benchmarks.race import Curves, Side, race, repeat
from benchmarks.report import heading, table, targets
from benchmarks.scale import Scale

NAMES = "names=$(seq -f h%g {hosts})\n"

FILES = """\
mkdir hub $names
mkdir hub/links/br0
echo 1 > hub/links/br0/up
ln -s -t hub/links $(printf '%s\\n' $names | sed 's|.*|&/links/&|')
for name in $names; do
    ln -s br0 hub/links/$name/master
    echo +10.0.0.${name#h}/24 > $name/links/$name/addresses
    echo 1 > $name/links/$name/up
    echo 1 > hub/links/$name/up
done
rmdir hub $names
"""

COMMANDS = """\
ip netns add hub
ip -n hub link add br0 up type bridge
for name in $names; do
    ip netns add $name
    ip -n hub link add $name type veth peer name $name netns $name
    ip -n hub link set $name master br0 up
    ip -n $name addr add 10.0.0.${name#h}/24 dev $name
    ip -n $name link set $name up
done
for name in hub $names; do
    ip netns del $name
done
"""

# A batch is in one namespace: that of each host takes a program of its own.
BATCH = """\
{
    echo netns add hub
    printf 'netns add %s\\n' $names
} | ip -batch -
{
    echo link add br0 up type bridge
    for name in $names; do
        echo link add $name type veth peer name $name netns $name
        echo link set $name master br0 up
    done
} | ip -n hub -batch -
for name in $names; do
    {
        echo addr add 10.0.0.${name#h}/24 dev $name
        echo link set $name up
    } | ip -n $name -batch -
done
printf 'netns del %s\\n' hub $names | ip -batch -
"""


def measure(scale: Scale) -> Curves:
    begin = f"set -eu\ncd {MNT}\n" + NAMES.format(hosts=scale.asked)
    scripts = {"files": FILES, "ip, one by one": COMMANDS, "ip -batch": BATCH}
    sides = [
        Side(label, repeat(partial(run, tool("sh"), "-c", begin + script)), 1)
        for label, script in scripts.items()
    ]
    with netnsfs():
        result = race(sides, max(scale.rounds // 3, 3), pause=0.3)
    heading(
        f"A star of {scale.asked} hosts",
        "A shell script makes a bridge with so many hosts that have addresses, and removes it.",
    )
    lines = [str(len(script.splitlines())) for script in scripts.values()]
    rows = result.rows("ip, one by one", "ip -batch")
    table(
        ["by", "lines", "median", "to ip, one by one", "to ip -batch"],
        [[row[0], count, *row[1:]] for row, count in zip(rows, lines, strict=True)],
    )
    targets(("star", result.ratio("files", "ip, one by one"), 0.8, "of ip one by one"))
    return result.curves()
