"""Runs one case in a separate process: `python -m benchmarks.worker NAME SETTINGS`, one line of JSON to stdout.

The parent half (`run`) starts that process with every library's thread count fixed, confined to as many CPUs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.case import Measurement, MissingError, Settings

_SPARE_SECONDS = 900.0  # to prepare a case: DeepSpeed compiles C++ at its first use


def run(name: str, settings: Settings) -> dict[str, Any]:
    """Run a case in a new process.

    Returns:
        {"pairs": [[ours, peer], ...], "notes": {...}, "curves": {...}}, {"missing": why} or {"failed": why}.
    """
    command = [sys.executable, "-m", "benchmarks.worker", name, json.dumps(asdict(settings))]
    # A new session, so that the servers of the case can be ended with it.
    process = subprocess.Popen(
        command,
        env=environment(settings.threads),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=_SPARE_SECONDS + 20 * settings.seconds)
    except BaseException as error:  # Ctrl-C too: end all processes of the case
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return {"failed": f"it took longer than {error.timeout:.0f} seconds"}
    if process.returncode:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        return {"failed": f"exit status {process.returncode}: {last}"}
    answer: dict[str, Any] = json.loads(output)
    return answer


def environment(threads: int) -> dict[str, str]:
    """Return environment variables that give every library this number of threads.

    Clients of the parameter server use the network, unless a case says otherwise.
    """
    counted = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    return {
        **os.environ,
        **dict.fromkeys(counted, str(threads)),  # NPROC is XLA's
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true",
        "JAX_PLATFORMS": "cpu",
        "DS_ACCELERATOR": "cpu",
        "NUMBA_ADAM_TRANSPORT": "network",
    }


def _confine(threads: int) -> None:
    """Limit this process and its children to as many CPUs as threads, if the system supports it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, _apart(sorted(os.sched_getaffinity(0)))[:threads])


def _apart(cpus: list[int]) -> list[int]:
    """Return the CPUs sorted: first one CPU of each core, then the others."""
    siblings = Path("/sys/devices/system/cpu")
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for cpu in cpus:
        path = siblings / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        core = path.read_text() if path.exists() else str(cpu)
        (second if core in seen else first).append(cpu)
        seen.add(core)
    return first + second


def _measure(name: str, settings: Settings) -> dict[str, Any]:
    from benchmarks.registry import named

    try:
        measurement: Measurement = named(name).run(settings)
    except MissingError as reason:
        return {"missing": str(reason)}
    return {"pairs": measurement.pairs, "notes": measurement.notes, "curves": measurement.curves}


def main() -> None:
    """Run the case that the arguments name. Redirect the output of libraries to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, text = sys.argv[1:]
    settings = Settings(**json.loads(text))
    _confine(settings.threads)
    json.dump(_measure(name, settings), answers)
    answers.close()


if __name__ == "__main__":
    main()
