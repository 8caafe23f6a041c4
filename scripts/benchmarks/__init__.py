"""What `scripts/bench` measures, and how.

    main                    the command line, and the sections in their order
    scale                   how much is measured
    sections/               what is measured: a module a section
    race                    sides take turns, and are compared
    report, plot            what is printed, written and drawn
    mounts, floor           netnsfs, and what is mounted beside it
    namespaces, programs    what sections do again and again
    crowds, processors      many at once; the machine

A section is a module of `benchmarks.sections`. Its function `measure` is told how much, prints
its tables, and returns what the plot needs of it. `main.SECTIONS` names it.
"""
