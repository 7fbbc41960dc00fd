"""Benchmarks of numba-adam against its peers: time and memory, on the same machine.

    python -m benchmarks                          run all cases but the long ones; write results/CPU/DATE.json and .txt
    python -m benchmarks --only flat,many         run the cases with these prefixes
    python -m benchmarks --quick                  a short run with smaller arrays; not for publishing
    python -m benchmarks --list                   list the cases and their bars
    python -m benchmarks.table --write            write the tables of README.md and benchmarks/README.md
    python -m benchmarks.plot                     draw the newest results as docs/scaling-*.svg

A timing is a ratio. Two contestants take turns (A B A B ...) in one process that runs nothing else. The result is the
median of the ratios of neighbouring turns, with quartiles. Every case runs in a separate process, so that the idle
threads of other libraries do not disturb it.

    registry.py     the list of all cases
    case.py         what a case is: its name, its peer, the quantity measured, the bar
    themes/         the cases, one file for each theme
    contestants/    one optimizer each, ours and the peers', with one interface
    workload.py     shapes, parameters and gradients; no zeros, no subnormal numbers
    measure.py      taking turns
    torch_rpc.py    a peer: tensors sent by torch.distributed.rpc
    statistics.py   medians and quartiles
    worker.py       runs one case in a separate process
    machine.py      the hardware and the versions
    results.py      a run as a file
    report.py       a run as text
    table.py        a run as the tables of the two READMEs
    plot.py         a run's curves as a plot

Some steps change their inputs, such as PyTorch's unscaling. Then both contestants get new inputs before every step, and
making them is not timed. Contestants with different formats cannot agree to the last digit. For them the check compares
the direction of the updates (contestants/contestant.py).

requirements.txt names the peers. A peer that is not installed, or does not run here, is reported as missing.
"""
