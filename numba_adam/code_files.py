"""What Numba's caches, the CPU's and a GPU's, are mixed with to be ours: our folder, and no failure. Imports nothing.

A file that cannot be read or written costs a compilation.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

_log = logging.getLogger("numba_adam")


class Place:
    """What Numba calls a locator: which folder, and what its files are valid for."""

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self._folder, self._fingerprint = folder, fingerprint

    def get_cache_path(self) -> str:
        """Return the folder."""
        return str(self._folder)

    def get_source_stamp(self) -> str:
        """Return what a file must have been made for."""
        return self._fingerprint

    def ensure_cache_path(self) -> None:
        """Make the folder again, should it have been removed since it was found."""
        Path(self.get_cache_path()).mkdir(mode=0o700, parents=True, exist_ok=True)


class Forgiving:
    """A cache that never fails: to be mixed into one of Numba's."""

    cache_path: Any
    flush: Any

    def load_overload(self, sig: object, target_context: object) -> object:
        """Return a kept kernel, None where there is none that can be used."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[misc]
        except Exception:  # a damaged file can fail in any way that unpickling can
            _log.warning("a kernel could not be read from %s: compiling it again", self.cache_path, exc_info=True)
            return None

    def save_overload(self, sig: object, data: object) -> None:
        """Keep a kernel, if that can be done."""
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
