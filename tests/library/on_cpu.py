"""Runs a program as on a CPU that LLVM calls by another name: `python on_cpu.py NAME PROGRAM ARGUMENT...`.

The kernels make their choices for that CPU, and LLVM schedules for it; the instructions are those of this CPU.
"""

from __future__ import annotations

import runpy
import sys

from llvmlite import binding

WITH_ESTIMATED_ROOTS, WITH_ROOTS = "sapphirerapids", "znver5"  # if they have AVX-512


def main(name: str, program: str, *arguments: str) -> None:
    """Run the program."""
    binding.get_host_cpu_name = lambda: name
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
