"""Chooses the folder of the kernel cache, and checks who may write to it.

Numba's own cache checks only the file that contains a kernel, so a kernel that calls into another file keeps running
old machine code after that file has changed. Here the folder's name is a fingerprint of the compiler and of all source
files of kernels. So an edit or an upgrade uses a new folder, and no stale kernel is found. If the sources cannot be
read, an edit would go unnoticed, so nothing is cached. The kernels of the CPU and of GPUs have separate folders.

Imports neither Numba nor a CUDA package; `files` is about the files in the folder.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from numba_adam.kernel_cache import private_folder
from numba_adam.kernel_cache.sources import PACKAGE, Sources

_log = logging.getLogger("numba_adam")
_why_unsafe = functools.partial(private_folder.why_unsafe, may_be_of_root=True)
_FINGERPRINT = re.compile("[0-9a-f]{32}")
_UNUSED_AFTER_SECONDS = 60 * 24 * 3600


def folder(sources: Sources, chosen: str) -> Path | None:
    """Return the folder for some sources, created if necessary; None if no folder can be trusted.

    Args:
        sources: the kernels' source files.
        chosen: the parent folder that the user chose, NUMBA_CACHE_DIR; "" for the default.
    """
    if sources.fingerprint is None:
        _log.warning(
            "kernels are compiled in every process: their sources cannot be read in %s, so nothing kept of them could "
            "be known to be valid (install numba-adam unpacked, with its .py files)",
            PACKAGE,
        )
        return None
    reasons = []
    for base in _bases(chosen):
        path, reason = _made(base, sources.fingerprint)
        if path is not None:
            _remove_unused(path.parent, keep=path)
            return path
        reasons.append(reason)
    _log.warning(
        "no cache folder can be written to: kernels are compiled in every process (set NUMBA_CACHE_DIR): %s",
        "; ".join(reasons) or f"NUMBA_CACHE_DIR={chosen!r} names no folder",
    )
    return None


def _made(base: Path, name: str) -> tuple[Path | None, str]:
    """Create a folder in a base folder; return it, or None and why it cannot be used."""
    try:
        private_folder.make(base / name)
        path = (base / name).resolve()  # the path that is checked stays the path that is used, even if links change
        reason = _why_unsafe(path.parent) or _why_unsafe(path)
        if reason is None:
            _try_to_write(path)
    except OSError as error:
        return None, str(error)
    return (None, reason) if reason else (path, "")


def _try_to_write(path: Path) -> None:
    """Make a file in a folder, and remove it. A folder that has kernels may be read-only.

    Raises:
        OSError: the folder can neither be written to nor has it kernels to read.
    """
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        if not any(path.iterdir()):
            raise
        _log.debug("kernels are read from %s; new ones cannot be kept there", path)


def _bases(chosen: str) -> list[Path]:
    """Return the candidate folders, best first, as absolute paths."""
    if chosen:
        path = _expanded(chosen)
        return [] if path is None else [Path(os.path.abspath(path)) / "numba-adam"]
    cache = _expanded(os.environ.get("XDG_CACHE_HOME", ""))
    if cache is None or not cache.is_absolute():  # the XDG specification ignores relative paths
        cache = _expanded("~/.cache")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    usual = [] if cache is None else [cache / "numba-adam"]
    return [*usual, Path(tempfile.gettempdir()) / f"numba-adam-{user}"]


def _expanded(path: str) -> Path | None:
    """Return a path with its ~ replaced by a home folder; None for an empty path, or if the home is unknown."""
    if not path.startswith("~"):
        return Path(path) if path else None
    user, _, rest = path.partition("/")
    is_own = user == "~" and hasattr(os, "getuid")
    expanded = os.path.join(_home(), rest) if is_own else os.path.expanduser(path)
    return Path(expanded) if os.path.isabs(expanded) else None


def _home() -> str:
    """Return the user's home folder: HOME if it is an absolute path, else the entry in the system's list of users."""
    home = os.environ.get("HOME", "")
    if os.path.isabs(home):
        return home
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # the user of a container may be in no list
        return ""


def _remove_unused(base: Path, keep: Path) -> None:
    """Mark `keep` as used now, and remove the folders that no process has used for two months."""
    try:
        os.utime(keep)
        for path in base.iterdir():
            if _FINGERPRINT.fullmatch(path.name) and time.time() - path.stat().st_mtime > _UNUSED_AFTER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass  # another process may clean up at the same time; a folder that stays does no harm
