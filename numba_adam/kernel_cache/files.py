"""What Numba's caches, the CPU's and a GPU's, are mixed with to be ours: our folder, and no failure.

A file that cannot be read or written costs a compilation. Imports what guards folders.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from numba_adam.kernel_cache import private_folder
from numba_adam.kernel_cache.location import Sources

_log = logging.getLogger("numba_adam")


class Place:
    """What Numba calls a locator: which folder, and what its files are valid for.

    Args:
        folder: from `location.folder`.
        sources: what its kernels are made of.
    """

    def __init__(self, folder: Path | None, sources: Sources) -> None:
        self._folder, self._sources = folder, sources

    def get_cache_path(self) -> str:
        """Return the folder."""
        return str(self._folder)

    def get_source_stamp(self) -> str | None:
        """Return what a file must have been made for."""
        return self._sources.fingerprint

    def ensure_cache_path(self) -> None:
        """Make the folder again, should it have been removed since it was found.

        Raises:
            OSError: it cannot be made, or somebody else may write to it by now.
        """
        assert self._folder is not None
        private_folder.make(self._folder)
        reason = private_folder.why_unsafe(self._folder.parent) or private_folder.why_unsafe(self._folder)
        if reason:
            raise PermissionError(reason)

    def fits(self) -> bool:
        """Say whether what is compiled now is made of the sources that the folder is for."""
        return self._sources.are_unchanged()


class Forgiving:
    """A cache that never fails: to be mixed into one of Numba's."""

    cache_path: Any
    flush: Any
    _impl: Any

    def load_overload(self, sig: object, target_context: object) -> object:
        """Return a kept kernel, None where there is none that can be used."""
        if not self._impl.locator.fits():
            return None
        try:
            self._impl.locator.ensure_cache_path()
            return super().load_overload(sig, target_context)  # type: ignore[misc]
        except Exception as error:  # a damaged file can fail in any way that unpickling can
            _log.warning("a kernel could not be read from %s (%s): compiling it again", self.cache_path, error)
            _log.debug("the error in full", exc_info=True)
            return None

    def save_overload(self, sig: object, data: object) -> None:
        """Keep a kernel, if that can be done and it is made of the sources that the folder is for."""
        if not self._impl.locator.fits():
            _log.info("a kernel is not kept: sources were edited after this process began")
            return
        try:
            self._save(sig, data)
        except Exception as error:
            _log.warning("a compiled kernel could not be kept in %s: %s", self.cache_path, error)

    def _save(self, sig: object, data: object) -> None:
        try:
            super().save_overload(sig, data)  # type: ignore[misc]
        except OSError:
            raise
        except Exception:  # Numba reads the index before it writes: a damaged one is written anew
            self.flush()
            super().save_overload(sig, data)  # type: ignore[misc]
