"""`numba-adam warmup`: compile kernels ahead of the first step. May import the standard library; the rest on use."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_KINDS = ("float32", "float64", "formats", "rows", "bfloat16", "float16", "8bit", "cuda")
_SIZES = ("small", "large")
_DESCRIPTION = """\
Compile the kernels that steps need, and keep them on disk. Without this command, the first step that needs a kernel
compiles it, once on a machine; that step takes some seconds. Run it after an installation or an upgrade, when a
container image is built, or before a measurement.

kinds:
  float32, float64        plain arrays of one dtype, and a parameter server's models
  bfloat16, float16       parameters of this dtype, with any state
  8bit                    float32 parameters with moments in 8 bits
  formats                 these three, and mixtures with float64
  rows                    rows of embedding tables
  cuda                    arrays on the current GPU

Without a kind it compiles float32, float64, formats and rows. NUMBA_CACHE_DIR chooses another folder. docs/warmup.md
says how to put the kernels into a container image.
"""
_EPILOG = """\
examples:
  numba-adam warmup                                 everything but cuda
  numba-adam warmup float32                         what most programs need
  numba-adam warmup float32 8bit --sizes large      steps of 32,768 elements and more
  NUMBA_CACHE_DIR=/opt/kernels numba-adam warmup    in a folder of a container image
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("kinds", nargs="*", metavar="KIND", type=_kind, help="what to compile; see above")
    parser.add_argument("--sizes", nargs="+", choices=_SIZES, default=_SIZES, help="sizes of steps (default: both)")


def _kind(word: str) -> str:
    """Return the word if it names a kind."""
    if word not in _KINDS:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(_KINDS)}")
    return word


def run(arguments: argparse.Namespace) -> int:
    """Compile each kind, with a line for it, and say what was made and where it is."""
    from numba_adam import warmup
    from numba_adam.cpu.kernels.cache import folder

    kinds = arguments.kinds or ("float32", "float64", "formats", "rows")
    place = folder()
    before = _files(place)
    for number, kind in enumerate(kinds, 1):
        print(f"{number}/{len(kinds)} {kind} ... ", end="", flush=True)
        print(f"{warmup(kind, sizes=arguments.sizes)[kind]:.1f} s", flush=True)
    if place is None:
        print("numba-adam warmup: no folder can keep the kernels; set NUMBA_CACHE_DIR", file=sys.stderr)
        return 1
    after = _files(place)
    new = len(after.keys() - before.keys())
    size = sum(after.values()) / 1e6
    print(f"{new} kernel{'' if new == 1 else 's'} compiled, {len(after) - new} were there: {size:.1f} MB in {place}")
    return 0


def _files(folder: Path | None) -> dict[str, int]:
    """Return the size of each kernel's file in the folder."""
    return {} if folder is None else {path.name: path.stat().st_size for path in folder.glob("*.nbc")}
