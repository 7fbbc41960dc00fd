"""The source files of kernels, and their fingerprint. Imports only the standard library."""

from __future__ import annotations

import _imp
import hashlib
import os
import sys
from collections.abc import Iterable
from importlib.util import cache_from_source
from pathlib import Path

# Patterns of paths within the package: the folders that hold nothing but sources of kernels, whole.
_MATHEMATICS = ("numerics/*.py",)
CPU_KERNELS = (*_MATHEMATICS, "cpu/kernels/*.py", "rows/kernels/*.py")
GPU_KERNELS = (*_MATHEMATICS, "cuda/kernels/*.py", "cuda/seam.py", "cuda/cache.py")

PACKAGE = Path(__file__).resolve().parents[1]
# Flags of .pyc files (PEP 552). Python runs the first kind without comparing it with its source. It does the same with
# the second kind if it was started with --check-hash-based-pycs=never.
_UNCHECKED, _CHECKED = b"\x01\x00\x00\x00", b"\x03\x00\x00\x00"


class Sources:
    """The source files of kernels, as they were when this object read them.

    Args:
        patterns: CPU_KERNELS or GPU_KERNELS.
        versions: of the packages that compile them; Python's is added.
    """

    def __init__(self, patterns: Iterable[str], *versions: str) -> None:
        self._paths = _readable(patterns)
        self._seen = self._stamps()
        self.fingerprint = self._digest(versions) if self._paths else None
        """A digest, 32 hexadecimal digits, of all that determines machine code but the processor. None if the sources
        cannot be read, because they are in a zip file or only their .pyc files exist."""

    def are_unchanged(self) -> bool:
        """Say whether the files are unchanged; modules that are imported later run what the files contain then."""
        return self._seen == self._stamps()

    def _digest(self, versions: Iterable[str]) -> str:
        digest = hashlib.sha256(" ".join((*versions, sys.version)).encode())
        for path in self._paths:
            source = path.read_bytes()
            digest.update(f"{path.relative_to(PACKAGE)} {len(source)} ".encode() + source)
        return digest.hexdigest()[:32]

    def _stamps(self) -> list[tuple[int, ...]] | None:
        """Return numbers that change when a file does. No program can set the time of the last change of status."""
        try:
            return [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, self._paths)]
        except OSError:
            return None


def _readable(patterns: Iterable[str]) -> list[Path]:
    """Return the files, sorted; an empty list if Python may run something else than one of them contains."""
    found: list[Path] = []
    for pattern in patterns:
        paths = list(PACKAGE.glob(pattern))
        without_source = {path.with_suffix(".py") for path in PACKAGE.glob(f"{pattern}c")} - set(paths)
        if not paths or without_source or any(map(_runs_unchecked, paths)):
            return []
        found += paths
    return sorted(found)


def _runs_unchecked(source: Path) -> bool:
    """Say whether Python runs the compiled file of a source without comparing the two."""
    try:
        with open(cache_from_source(str(source)), "rb") as compiled:
            flags = compiled.read(8)[4:]
    except (OSError, RuntimeError):  # there is no compiled file, or this Python writes none
        return False
    return flags == _UNCHECKED or (flags == _CHECKED and _imp.check_hash_based_pycs == "never")
