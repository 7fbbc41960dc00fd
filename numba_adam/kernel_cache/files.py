"""Adapts the caches of Numba and of the CUDA packages: they use our folder, and never fail.

A file that cannot be read or written costs one compilation, never an error. Imports its neighbours alone.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

from numba_adam.kernel_cache import private_folder
from numba_adam.kernel_cache.sources import Sources

_log = logging.getLogger("numba_adam")
_why_unsafe = functools.partial(private_folder.why_unsafe, may_be_of_root=True)


class Locator:
    """A locator, in Numba's terms: a folder, and the sources that its files are valid for.

    Args:
        folder: from `location.folder`.
        sources: the kernels' source files.
    """

    def __init__(self, folder: Path | None, sources: Sources) -> None:
        self._folder, self._sources = folder, sources

    def get_cache_path(self) -> str:
        """Return the folder."""
        return str(self._folder)

    def get_source_stamp(self) -> str | None:
        """Return the fingerprint of the sources that a file must be compiled from."""
        return self._sources.fingerprint

    def ensure_cache_path(self) -> None:
        """Create the folder again if it was removed since it was chosen.

        Raises:
            OSError: it cannot be created, or another user may write to it by now.
        """
        assert self._folder is not None
        private_folder.make(self._folder)
        reason = _why_unsafe(self._folder.parent) or _why_unsafe(self._folder)
        if reason:
            raise PermissionError(reason)

    def is_current(self) -> bool:
        """Return whether kernels that are compiled now come from the folder's sources."""
        return self._sources.are_unchanged()


class FaultTolerant:
    """A cache that never raises: a mixin for Numba's cache classes."""

    cache_path: Any
    flush: Any
    _impl: Any

    def load_overload(self, sig: object, target_context: object) -> object:
        """Return a cached kernel; None if there is no usable one."""
        if not self._impl.locator.is_current():
            return None
        try:
            self._impl.locator.ensure_cache_path()
            return super().load_overload(sig, target_context)  # type: ignore[misc]
        except Exception as error:  # unpickling a damaged file can raise anything
            _log.warning("a kernel could not be read from %s (%s): compiling it again", self.cache_path, error)
            _log.debug("the error in full", exc_info=True)
            return None

    def save_overload(self, sig: object, data: object) -> None:
        """Cache a kernel if it was compiled from the folder's sources."""
        if not self._impl.locator.is_current():
            _log.info("a kernel is not cached: sources were edited after this process started")
            return
        try:
            self._save(sig, data)
        except Exception as error:
            _log.warning("a kernel could not be cached in %s: %s", self.cache_path, error)

    def _save(self, sig: object, data: object) -> None:
        try:
            super().save_overload(sig, data)  # type: ignore[misc]
        except OSError:
            raise
        except Exception:  # Numba reads the index before it writes one: replace a damaged index
            self.flush()
            super().save_overload(sig, data)  # type: ignore[misc]
