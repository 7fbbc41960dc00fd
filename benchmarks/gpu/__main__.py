"""python -m benchmarks.gpu: kernels between processes, bits against the CPU, times against PyTorch; printed and saved.

Each finding is on disk when it is made, so the run may be cut at any moment. The exit status is 1 if something is not
as it must be, and 2 without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.stages import BY_NAME, Stage, chosen
from numba_adam.cuda import CudaUnavailableError

RESULTS = Path(__file__).resolve().parent.parent / "results"
_BUDGET_SECONDS = 1800.0


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder for the journal and the text; default: one for this GPU"
    )
    parser.add_argument(
        "--budget-seconds",
        type=float,
        default=_BUDGET_SECONDS,
        metavar="SECONDS",
        help="begin nothing after this time; each stage has its share of it (default: %(default)g)",
    )
    parser.add_argument(
        "--stages",
        metavar="NAMES",
        help=f"only these, by comma: {', '.join(BY_NAME)}. Default: all but the long ones "
        f"({', '.join(stage.name for stage in BY_NAME.values() if stage.is_long)})",
    )
    arguments = parser.parse_args()
    try:
        stages = chosen(arguments.stages)
    except ValueError as error:
        parser.error(str(error))
    if not arguments.budget_seconds > 0:
        parser.error(f"--budget-seconds must be above 0, got {arguments.budget_seconds:g}")
    try:
        from numba_adam.cuda import seam

        seam.require_gpu()
    except CudaUnavailableError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    return run(arguments.output or _folder(), stages, arguments.budget_seconds)


def _folder() -> Path:
    from benchmarks.gpu.device import description

    return RESULTS / ("gpu-" + re.sub(r"[^a-z0-9]+", "-", description()["GPU"].lower()).strip("-")[:40])


def run(folder: Path, stages: list[Stage], budget_seconds: float) -> int:
    """Run stages within a budget, print and save; return the exit status."""
    from benchmarks.gpu.journal import Journal
    from benchmarks.gpu.report import is_bad, text
    from benchmarks.gpu.runner import Runner
    from numba_adam.cuda import seam

    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M%S}.jsonl")
    try:
        with tempfile.TemporaryDirectory() as cache:
            # The simulator compiles nothing for a GPU, and the CPU's kernels are not in question.
            folder_of_kernels = None if seam.SIMULATED else Path(cache)
            Runner(journal, budget_seconds, folder_of_kernels, lambda said: print(said, flush=True)).run(stages)
    finally:  # Ctrl-C too: what was found is kept
        records = journal.records()
        journal.path.with_suffix(".txt").write_text(text(records))
        print(text(records).splitlines()[-1] if records else "nothing was found", flush=True)
        print(f"saved: {journal.path.with_suffix('.txt')}", flush=True)
    return 1 if is_bad(records) else 0


if __name__ == "__main__":
    sys.exit(main())
