"""What bounds the kernels' loops: instructions and port pressure from llvm-mca: `python -m benchmarks.instructions`.

Numba compiles the kernels for each CPU, with LLVM preferring vectors of 256 and of 512 bits. llvm-mca simulates the
loops, and says how many cycles they take if every load hits the first cache. It belongs to LLVM (Debian: `apt install
llvm-19`); its path is `LLVM_MCA`, by default `llvm-mca`. Versions before 16 do not know these CPUs.
LLVM 19 simulates Zen 5 (znver5) as Zen 4. It overstates the cycles there: roots and divisions take half as long.

    CPU, bits       CPU that is simulated, preferred width
    instructions    per 16 elements
    cycles          per 16 elements
    busiest         the execution units with the highest pressure: cycles per 16 elements
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

from benchmarks.report import aligned

_CPUS = "znver4", "sapphirerapids"
_WIDTHS = 256, 512
_LOOPS = {  # kernel: the function with its loop, and the module of the compiled kernel
    "float32": ("adam_bare", "update"),
    "bfloat16": ("_update_pairs", "mixed_formats"),
    "bfloat16, stochastic": ("adam_pairs_stochastic", "mixed_formats"),
    "8-bit state": ("_finish_begin_encode", "mixed_formats"),
}
_LANES = {"xmm": 4, "ymm": 8, "zmm": 16}
_ITERATIONS = 100
_BUSIEST = 4


class _Loop(NamedTuple):
    """A loop in assembly."""

    body: str
    elements: int  # of an iteration


def _assembly() -> dict[str, str]:
    """Return the assembly of the kernels, by module."""
    import numpy as np
    from numba import typeof

    from numba_adam.cpu.kernels import mixed_formats, update

    arrays = np.zeros((1, 2), np.uint64), np.zeros((1, 1), np.float32), np.zeros(1, np.int64)
    signature = tuple(typeof(argument) for argument in (*arrays, 0, 0, 1))
    found = {}
    for module in (update, mixed_formats):
        module.update.compile(signature)
        found[module.__name__.rpartition(".")[2]] = module.update.inspect_asm(signature)
    return found


def _compiled(cpu: str, width: int) -> dict[str, str]:
    """Return the assembly for a CPU, made in a process of its own with an empty cache."""
    features = f"{'+' if width == _WIDTHS[0] else '-'}prefer-256-bit"
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": cache,
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.instructions", "assembly"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout))


def _loop_of(assembly: str, function: str) -> _Loop:
    """Return the innermost loop of a function with the most vector square roots; the shortest of these."""
    lines = assembly.splitlines()
    begin = next(i for i, line in enumerate(lines) if re.match(rf"_ZN.*\d{function}B\w+:$", line))
    end = next(i for i in range(begin, len(lines)) if lines[i].strip().startswith(".size"))
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.L\w+:", line)}
    loops = []
    for i in range(begin, end):
        jump = re.match(r"\s+j\w+\s+(\.L\w+)", lines[i])
        if jump and begin <= labels.get(jump[1], i) < i:
            loops.append((labels[jump[1]] + 1, i + 1))
    found = []
    for first, last in loops:
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in loops):
            body = "\n".join(line for line in lines[first:last] if re.match(r"\s+[a-z]", line))
            roots = re.findall(r"vsqrtps\s.*%([xyz]mm)\d+\s*$", body, re.MULTILINE)
            found.append((sum(_LANES[name] for name in roots), -len(body), body))
    elements, _, body = max(found)
    return _Loop(body, elements)


def _simulated(loop: _Loop, cpu: str) -> tuple[str, str, str]:
    """Return the instructions, the cycles and the busiest units of a loop."""
    command = [os.environ.get("LLVM_MCA", "llvm-mca"), f"-mcpu={cpu}", f"-iterations={_ITERATIONS}", "-json"]
    run = subprocess.run(command, input=loop.body, capture_output=True, text=True, check=True)
    text = run.stdout
    report = json.loads(text[text.index("{") :])
    region, units = report["CodeRegions"][0], report["TargetInfo"]["Resources"]
    summary, share = region["SummaryView"], 16 / loop.elements
    pressure: dict[str, float] = {}
    for entry in region["ResourcePressureView"]["ResourcePressureInfo"]:
        if entry["InstructionIndex"] == len(region["Instructions"]):  # the sum of all instructions
            pressure[units[entry["ResourceIndex"]].rstrip("\0")] = entry["ResourceUsage"] * share
    busiest = sorted(pressure.items(), key=lambda item: -item[1])[:_BUSIEST]
    cycles = summary["TotalCycles"] / summary["Iterations"] * share
    instructions = summary["Instructions"] / summary["Iterations"] * share
    return f"{instructions:.0f}", f"{cycles:.1f}", ", ".join(f"{name} {value:.1f}" for name, value in busiest)


def main() -> None:
    """Print a line for each CPU, width and kernel."""
    rows = [("CPU", "bits", "kernel", "instructions", "cycles", "busiest")]
    for cpu in _CPUS:
        for width in _WIDTHS:
            assembly = _compiled(cpu, width)
            for kernel, (function, module) in _LOOPS.items():
                simulated = _simulated(_loop_of(assembly[module], function), cpu)
                rows.append((cpu, str(width), kernel, *simulated))
    version = subprocess.run(
        [os.environ.get("LLVM_MCA", "llvm-mca"), "--version"], capture_output=True, text=True, check=True
    )
    print(" ".join(re.findall(r"LLVM version \S+", version.stdout)), "- instructions and cycles per 16 elements")
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    if sys.argv[1:] == ["assembly"]:
        print(json.dumps(_assembly()))
    else:
        main()
