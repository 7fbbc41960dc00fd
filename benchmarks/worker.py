"""Runs one case in a process of its own: `python -m benchmarks.worker NAME SETTINGS`, one line of JSON to stdout.

The parent half (`run`) starts that process with every library's thread count fixed, confined to as many CPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.case import Measurement, MissingError, Settings

_SPARE_SECONDS = 900.0  # for preparing a case: DeepSpeed compiles C++ at its first use


def run(name: str, settings: Settings) -> dict[str, Any]:
    """Run a case in a new process.

    Returns:
        {"pairs": [[ours, peer], ...], "notes": {...}}, {"missing": why} or {"failed": why}.
    """
    command = [sys.executable, "-m", "benchmarks.worker", name, json.dumps(asdict(settings))]
    try:
        process = subprocess.run(
            command,
            env=environment(settings.threads),
            capture_output=True,
            text=True,
            check=False,
            timeout=_SPARE_SECONDS + 20 * settings.seconds,
        )
    except subprocess.TimeoutExpired as expired:
        return {"failed": f"it took longer than {expired.timeout:.0f} seconds"}
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"failed": f"exit status {process.returncode}: {last}"}
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


def environment(threads: int) -> dict[str, str]:
    """Return the environment in which every library takes so many threads."""
    counted = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    return {
        **os.environ,
        **dict.fromkeys(counted, str(threads)),  # NPROC is XLA's
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true",
        "JAX_PLATFORMS": "cpu",
        "DS_ACCELERATOR": "cpu",
    }


def _confine(threads: int) -> None:
    """Keep this process and its children on as many CPUs as it may use threads, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _measure(name: str, settings: Settings) -> dict[str, Any]:
    from benchmarks.registry import named

    try:
        measurement: Measurement = named(name).run(settings)
    except MissingError as reason:
        return {"missing": str(reason)}
    return {"pairs": measurement.pairs, "notes": measurement.notes}


def main() -> None:
    """Run the case that the arguments name, with whatever libraries print sent to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, text = sys.argv[1:]
    settings = Settings(**json.loads(text))
    _confine(settings.threads)
    json.dump(_measure(name, settings), answers)
    answers.close()


if __name__ == "__main__":
    main()
