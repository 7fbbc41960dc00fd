"""Where the kernels' machine code is kept between processes, and when it is valid. Imports Numba.

Numba's own cache looks at the one file in which a kernel stands, so a kernel that calls into another file keeps running
the old machine code after that file has changed. Here the folder's name is a fingerprint of every source that a kernel
can be made of, and of the compiler: an edit or an upgrade is another folder, and nothing stale can be found.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numba.core import caching, config

_log = logging.getLogger("numba_adam")
_PACKAGE = Path(__file__).resolve().parent.parent
_SOURCES = ("element.py", "folding.py", "codecs.py", "formats.py", "eight_bit.py", "binding.py", "kernels/*.py")
_UNUSED_AFTER_SECONDS = 60 * 24 * 3600


@functools.cache
def fingerprint() -> str:
    """Return a digest of all that the machine code depends on beside the CPU, which Numba's index adds itself."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {np.__version__} {sys.version}".encode())
    for path in sorted(path for pattern in _SOURCES for path in _PACKAGE.glob(pattern)):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE)} {len(source)} ".encode() + source)
    return digest.hexdigest()[:32]


@functools.cache
def folder() -> Path | None:
    """Return the folder for this fingerprint, made if need be; None where no safe place can be written to."""
    for base in _bases():
        path = base / fingerprint()
        if _usable(base) and _usable(path):
            _remove_unused(base, keep=path)
            return path
    _log.warning("no cache folder can be written to: kernels are compiled in every process (set NUMBA_CACHE_DIR)")
    return None


def _bases() -> list[Path]:
    """Return candidate folders, best first."""
    if config.CACHE_DIR:
        return [Path(config.CACHE_DIR) / "numba-adam"]
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return [home / "numba-adam", Path(tempfile.gettempdir()) / f"numba-adam-{user}"]


def _usable(path: Path) -> bool:
    """Make `path` and say whether it is ours alone to write: what lies there is executed."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return False
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _remove_unused(base: Path, keep: Path) -> None:
    """Mark `keep` as used and remove the folders of versions that nobody has used for two months."""
    try:
        os.utime(keep)
        for path in base.iterdir():
            if path.is_dir() and time.time() - path.stat().st_mtime > _UNUSED_AFTER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass  # another process may be cleaning too; a folder too many does no harm


class _Locator(caching._CacheLocator):  # type: ignore[misc]
    """Points Numba's cache at our folder."""

    def __init__(self, py_func: object, py_file: str) -> None:
        self._py_file = py_file

    @classmethod
    def from_function(cls, py_func: object, py_file: str) -> _Locator:
        return cls(py_func, py_file)

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return fingerprint()

    def get_disambiguator(self) -> str:
        return Path(self._py_file).stem


class _Implementation(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)


class KernelCache(caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache in our folder. A file that cannot be read or written costs a compilation, never a failure."""

    _impl_class = _Implementation

    def load_overload(self, sig: object, target_context: object) -> object:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file can fail in any way that unpickling can
            _log.warning("a kernel could not be read from %s: compiling it again", self.cache_path, exc_info=True)
            return None

    def save_overload(self, sig: object, data: object) -> None:
        try:
            self._save(sig, data)
        except OSError as error:
            _log.warning("a compiled kernel could not be kept in %s: %s", self.cache_path, error)

    def _save(self, sig: object, data: object) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            raise
        except Exception:  # Numba reads the index before it writes: a damaged one is written anew
            self.flush()
            super().save_overload(sig, data)
