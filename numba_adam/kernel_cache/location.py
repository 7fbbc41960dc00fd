"""Where compiled kernels are kept between processes, when they are valid, and that nobody else can put any there.

Numba's own cache looks at the one file in which a kernel stands, so a kernel that calls into another file keeps running
the old machine code after that file has changed. Here the folder's name is a fingerprint of every source that a kernel
can be made of, and of the compiler: an edit or an upgrade is another folder, and nothing stale can be found. Where the
sources cannot be read, an edit could not be seen, and nothing is kept. The CPU's kernels and a GPU's are made of
different things, so each have a folder, side by side.

Imports neither Numba nor a CUDA package; what the folder's files are, `code_files` says.
"""

from __future__ import annotations

import _imp
import hashlib
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.util import cache_from_source
from pathlib import Path

from numba_adam.kernel_cache import private_folder

_log = logging.getLogger("numba_adam")
_PACKAGE = Path(__file__).resolve().parents[1]
_FINGERPRINT = re.compile("[0-9a-f]{32}")
_UNUSED_AFTER_SECONDS = 60 * 24 * 3600
# The flags of .pyc files (PEP 552) that Python runs without a look at their sources: always; where it is told never to.
_UNCHECKED, _CHECKED = b"\x01\x00\x00\x00", b"\x03\x00\x00\x00"


class Sources:
    """The files that kernels are made of, as they were when they were read.

    Args:
        patterns: of the files' paths within the package.
        versions: of what compiles them; Python's is added.
    """

    def __init__(self, patterns: Iterable[str], *versions: str) -> None:
        self._paths = _readable(patterns)
        self._seen = self._stamps()
        self.fingerprint = self._digest(versions) if self._paths else None
        """A digest, 32 hexadecimal digits, of what machine code depends on beside the processor; None where the
        sources cannot be read: in a zip file, or where only their .pyc files are."""

    def are_unchanged(self) -> bool:
        """Say whether the files are still as they were read; a module imported later is made of what is there then."""
        return self._seen == self._stamps()

    def _digest(self, versions: Iterable[str]) -> str:
        digest = hashlib.sha256(" ".join((*versions, sys.version)).encode())
        for path in self._paths:
            source = path.read_bytes()
            digest.update(f"{path.relative_to(_PACKAGE)} {len(source)} ".encode() + source)
        return digest.hexdigest()[:32]

    def _stamps(self) -> list[tuple[int, ...]] | None:
        """Return what changes when a file does; the time of its last change cannot be set by hand."""
        try:
            return [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, self._paths)]
        except OSError:
            return None


def folder(sources: Sources, chosen: str) -> Path | None:
    """Return the folder for some sources, made if need be; None where there is none that can be trusted.

    Args:
        sources: what the kernels are made of.
        chosen: the folder in which the user wants it to be, NUMBA_CACHE_DIR; "" for the usual one.
    """
    if sources.fingerprint is None:
        _log.warning(
            "kernels are compiled in every process: their sources cannot be read in %s, so nothing kept of them could "
            "be known to be valid (install numba-adam unpacked, with its .py files)",
            _PACKAGE,
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


def _readable(patterns: Iterable[str]) -> list[Path]:
    """Return the files, sorted; none at all where one of them is not what Python runs."""
    found: list[Path] = []
    for pattern in patterns:
        paths = list(_PACKAGE.glob(pattern))
        without_source = {path.with_suffix(".py") for path in _PACKAGE.glob(f"{pattern}c")} - set(paths)
        if not paths or without_source or any(map(_runs_unchecked, paths)):
            return []
        found += paths
    return sorted(found)


def _runs_unchecked(source: Path) -> bool:
    """Say whether Python runs a compiled file whatever its source says."""
    try:
        with open(cache_from_source(str(source)), "rb") as compiled:
            flags = compiled.read(8)[4:]
    except (OSError, RuntimeError):  # there is none, or this Python keeps none
        return False
    return flags == _UNCHECKED or (flags == _CHECKED and _imp.check_hash_based_pycs == "never")


def _made(base: Path, name: str) -> tuple[Path | None, str]:
    """Make a folder in a base folder; return it, or None and why it cannot be used."""
    try:
        private_folder.make(base / name)
        path = (base / name).resolve()  # what is checked is what is used, wherever links or the process may go later
        reason = private_folder.why_unsafe(path.parent) or private_folder.why_unsafe(path)
        if reason is None:
            tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        return None, str(error)
    return (None, reason) if reason else (path, "")


def _bases(chosen: str) -> list[Path]:
    """Return candidate folders, best first, as absolute paths."""
    if chosen:
        path = _expanded(chosen)
        return [] if path is None else [Path(os.path.abspath(path)) / "numba-adam"]
    cache = _expanded(os.environ.get("XDG_CACHE_HOME", ""))
    if cache is None or not cache.is_absolute():  # the specification of XDG_CACHE_HOME: such a path is ignored
        cache = _expanded("~/.cache")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    usual = [] if cache is None else [cache / "numba-adam"]
    return [*usual, Path(tempfile.gettempdir()) / f"numba-adam-{user}"]


def _expanded(path: str) -> Path | None:
    """Return a path with ~ made a folder of a user's; None for none, and where that cannot be told."""
    if not path.startswith("~"):
        return Path(path) if path else None
    user, _, rest = path.partition("/")
    is_own = user == "~" and hasattr(os, "getuid")
    expanded = os.path.join(_home(), rest) if is_own else os.path.expanduser(path)
    return Path(expanded) if os.path.isabs(expanded) else None


def _home() -> str:
    """Return the user's home folder: HOME, or where that is no absolute path what the system's list of users has."""
    home = os.environ.get("HOME", "")
    if os.path.isabs(home):
        return home
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container's user may be in no list
        return ""


def _remove_unused(base: Path, keep: Path) -> None:
    """Mark `keep` as used and remove the folders of fingerprints that nobody has used for two months."""
    try:
        os.utime(keep)
        for path in base.iterdir():
            if _FINGERPRINT.fullmatch(path.name) and time.time() - path.stat().st_mtime > _UNUSED_AFTER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass  # another process may be cleaning too; a folder too many does no harm
