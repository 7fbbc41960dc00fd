"""How fast and how lean numba-adam is, against others who do the same on the same machine.

    python -m benchmarks                          every case; prints, and writes results/DATE.json and .txt
    python -m benchmarks --only flat,many         the cases whose names begin so
    python -m benchmarks --quick                  a short try with smaller arrays, not fit for publishing
    python -m benchmarks --list                   the cases and what is asked of each
    python -m benchmarks.table --write            the newest results as the tables of README.md and benchmarks/README.md
    python -m benchmarks.plot                     the newest results as a plot, docs/scaling-*.svg

A timing is a ratio: two contestants take turns (A B A B ...) in one process that runs nothing else, and what counts is
the median of the ratios of neighbouring turns, with its quartiles. Every case runs in a process of its own, so that no
library's idle threads disturb a comparison that it has no part in.

    registry.py     the cases, all of them
    case.py         what a case is: its name, its peer, the quantity measured, the bar
    themes/         the cases, one file for each theme
    contestants/    one optimizer each, ours and the peers', behind one face
    workload.py     shapes, parameters and gradients; no zeros, no subnormal numbers
    measure.py      taking turns
    statistics.py   medians and quartiles
    worker.py       runs one case in a process of its own
    machine.py      what everything ran on
    results.py      a run as a file
    report.py       a run as text
    table.py        a run as the tables of the two READMEs
    plot.py         a run's curves as a plot

Where a step uses up what it is given, as PyTorch's unscaling does, what it is given is made anew before every step of
both contestants, and not timed. Contestants that work in formats of their own cannot agree to the last digit: there the
check is that both went the same way (contestants/contestant.py).

Peers are named in requirements.txt. One that is not installed, or does not run here, is reported as missing.
"""
