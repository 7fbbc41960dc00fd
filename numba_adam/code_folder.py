"""Where compiled kernels are kept between processes, when they are valid, and that nobody else can put any there.

Numba's own cache looks at the one file in which a kernel stands, so a kernel that calls into another file keeps running
the old machine code after that file has changed. Here the folder's name is a fingerprint of every source that a kernel
can be made of, and of the compiler: an edit or an upgrade is another folder, and nothing stale can be found. The CPU's
kernels and a GPU's are made of different things, so each have a folder, side by side.

Imports neither Numba nor a CUDA package; what the folder's files are, `code_files` says.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

_log = logging.getLogger("numba_adam")
_PACKAGE = Path(__file__).resolve().parent
_FINGERPRINT = re.compile("[0-9a-f]{32}")
_UNUSED_AFTER_SECONDS = 60 * 24 * 3600


def fingerprint(patterns: Iterable[str], *versions: str) -> str:
    """Return a digest, 32 hexadecimal digits, of what machine code depends on beside the processor.

    Args:
        patterns: of the sources' paths within the package.
        versions: of what compiles them; Python's is added.
    """
    digest = hashlib.sha256(" ".join((*versions, sys.version)).encode())
    for path in sorted(path for pattern in patterns for path in _PACKAGE.glob(pattern)):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE)} {len(source)} ".encode() + source)
    return digest.hexdigest()[:32]


def folder(name: str, chosen: str) -> Path | None:
    """Return the folder for a fingerprint, made if need be; None where no safe place can be written to.

    Args:
        name: the fingerprint.
        chosen: the folder in which the user wants it to be, NUMBA_CACHE_DIR; "" for the usual one.
    """
    for base in _bases(chosen):
        path = base / name
        if _usable(base) and _usable(path):
            _remove_unused(base, keep=path)
            return path
    _log.warning("no cache folder can be written to: kernels are compiled in every process (set NUMBA_CACHE_DIR)")
    return None


def _bases(chosen: str) -> list[Path]:
    """Return candidate folders, best first."""
    if chosen:
        return [Path(chosen) / "numba-adam"]
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
    return is_ours_alone(status)


def is_ours_alone(status: os.stat_result) -> bool:
    """Return whether a file or folder belongs to this user and nobody else may write to it; data folders ask it too."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _remove_unused(base: Path, keep: Path) -> None:
    """Mark `keep` as used and remove the folders of fingerprints that nobody has used for two months."""
    try:
        os.utime(keep)
        for path in base.iterdir():
            if _FINGERPRINT.fullmatch(path.name) and time.time() - path.stat().st_mtime > _UNUSED_AFTER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass  # another process may be cleaning too; a folder too many does no harm
