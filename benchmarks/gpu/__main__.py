"""python -m benchmarks.gpu: kernels between processes, bits against the CPU, times against PyTorch; printed and saved.

The exit status is 1 if a bit differs or a kernel is not cached for the next process, and 2 without a GPU. The folder is
benchmarks/results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from numba_adam.cuda import CudaUnavailableError


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, help="folder for the report; default: benchmarks/results")
    parser.add_argument("--correctness-only", action="store_true", help="compare bits, and measure nothing")
    arguments = parser.parse_args()
    try:
        from numba_adam.cuda import seam

        seam.require_gpu()
    except CudaUnavailableError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    return run(arguments.output, measure=not arguments.correctness_only)


def run(folder: Path | None, *, measure: bool) -> int:
    """Compare, measure, print and save; return the exit status."""
    from benchmarks.gpu import correctness, kept, report, speed
    from numba_adam.cuda import seam

    kernels = []
    if seam.SIMULATED:
        kept.first_launches()  # checks that they can be launched; compiles nothing
    else:
        kernels = kept.in_two_processes()
    for kernel in kernels:
        print(f"{'kept' if kernel.is_kept else 'NOT KEPT':10} {kernel.kernel}", flush=True)
    findings = []
    for finding in correctness.findings():
        print(f"{'same bits' if not finding.differing else 'DIFFERENT':10} {finding.what}", flush=True)
        findings.append(finding)
    timings = [timing for case in (speed.cases() if measure else []) for timing in speed.timings(case)]
    made = report.made_of(kernels, findings, timings)
    print(report.text(made))
    if folder is not None or not seam.SIMULATED:
        print(f"saved: {report.save(made, folder or report.RESULTS)}")
    return 1 if any(finding.differing for finding in findings) or not all(kernel.is_kept for kernel in kernels) else 0


if __name__ == "__main__":
    sys.exit(main())
