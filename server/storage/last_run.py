"""Reads the records of the last run, and decides whether a model's newest snapshot is its last state.

Without proof that it is, the model is rewound, and the reason is stated. Imports the manifest and the error tree.
"""

from __future__ import annotations

import re
from pathlib import Path

from numba_adam.errors import ConfigurationError, SnapshotError
from numba_adam.server.storage.keys import NO_KEYS, Keys
from numba_adam.server.storage.manifest import FORMAT, LastSnapshot, check_format, read_manifest, read_run

LOCK_TEXT = f"numba-adam data folder, format {FORMAT}\n".encode("ascii")
"""Content of the lock file in this format. In the first format the file was empty."""

_LOCK_TEXT = re.compile(rb"numba-adam data folder, format ([0-9]{1,9})\n")


class LastRun:
    """The records of the last run in a data folder.

    Args:
        folder: the data folder.
        lock_text: content of its lock file; None if it did not exist.
        keys: of the data folder.

    Raises:
        ConfigurationError: another release wrote it, or it cannot be read.
        SnapshotError: the keys refuse a record.
    """

    def __init__(self, folder: Path, lock_text: bytes | None, keys: Keys = NO_KEYS) -> None:
        _check_lock_text(lock_text, folder / "lock")
        run, manifest = read_run(folder / "run", keys), read_manifest(folder / "manifest", keys)
        is_first_format = lock_text == b"" and not (folder / "run").exists() and not (folder / "manifest").exists()
        known = run or manifest
        self.names = frozenset(known.models if known else ())
        """The models that must exist."""

        self.names_all = is_first_format or known is not None
        """Whether `names` is complete. If so, other folders without a snapshot are models that were never
        acknowledged."""

        self.run_id = run.run_id if run else ""
        """Id of the last run; empty if it is not known."""

        self._last = manifest.models if manifest else {}
        self._is_left_clean = is_first_format and not (folder / "running").exists()
        self._why_all = ""
        if manifest is None:
            self._why_all = "the last server was not stopped cleanly"
            if (folder / "manifest").exists():
                self._why_all = "the manifest of the last clean stop is damaged"
        elif run is None:
            self._why_all = "the record of the last run is missing or damaged"
        elif run.run_id != manifest.run_id:
            self._why_all = "the manifest is not from the last run"

    def why_rewound(self, name: str, found: LastSnapshot) -> str:
        """Return why a model's newest snapshot may not be its last state; empty if it is."""
        if self._is_left_clean:
            return ""
        if self._why_all:
            return self._why_all
        last = self._last.get(name)
        if last is None:
            return "its last state was not saved when the server stopped"
        if found == last:
            return ""
        if found._replace(changed_ns=last.changed_ns) == last:
            return "its snapshot is a copy, or was moved or changed since the server stopped"
        return (
            f"the server stopped at version {last.version} of state {last.state_id}, snapshot {last.number}, and the "
            f"newest snapshot is {found.number}, of version {found.version} of state {found.state_id}"
        )


def check_known(models: Path, run_id: str, keys: Keys) -> None:
    """Refuse models without a record of the last run: with keys, the record says which ones there are.

    Args:
        models: the folder of the models.
        run_id: what the record says; empty: there is none.
        keys: of the data folder.

    Raises:
        SnapshotError: someone removed the record.
    """
    if keys.admits_unkeyed or run_id:
        return
    found = sorted(path.parent.name for path in models.glob("*/*.snapshot"))
    if found:
        raise SnapshotError(
            f"{str(models)!r} has models, such as {found[0]!r}, and there is no file 'run' beside it, so someone "
            "removed it. Put it back from a backup, or, to go on with what is there, add the line 'unkeyed' at the end "
            "of the key file for one start"
        )


def _check_lock_text(text: bytes | None, path: Path) -> None:
    """Refuse a folder of another format."""
    if not text:
        return
    match = _LOCK_TEXT.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{str(path)!r} begins with {text[:80]!r}: this is not a numba-adam data folder")
    check_format(int(match.group(1)), path)
