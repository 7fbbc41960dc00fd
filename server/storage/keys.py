"""Keys of a data folder: an HMAC-SHA256 of each file that decides the state of a model, with a key from elsewhere.

A checksum finds accidents. A tag also finds intent: whoever can write the data folder, and does not have the key,
cannot make one. The key file has one key of 64 hexadecimal digits in each line, or the word `unkeyed`, which stands for
files without a tag. The first line is used for writing, all are used for reading. Lines that begin with # are ignored.

A tag covers the kind of the file ("run", "snapshot") and its content, so no file passes for one of another kind.
Imports the check of key files and the error tree.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from pathlib import Path

from numba_adam.errors import ConfigurationError
from numba_adam.ps.pem import check_key_file

_log = logging.getLogger(__name__)
UNKEYED = "unkeyed"
KEY_ID_DIGITS = 16
TAG_DIGITS = 64
_KEY = re.compile(r"[0-9a-fA-F]{64}")
_SETTING = "snapshot_key_file"
_MOST_BYTES = 1 << 16
_DOMAIN = b"numba-adam data folder 1\0"


class Keys:
    """The keys of a data folder, none by default.

    Args:
        keys: the first one for writing, all for reading; empty bytes stand for files without a tag.
        source: the key file, for messages.
    """

    def __init__(self, keys: tuple[bytes, ...] = (), source: str = "") -> None:
        self._by_id = {_id_of(key): key for key in keys}
        self._source = source
        self.key_id = _id_of(keys[0]) if keys else ""
        """Id of the key for writing; empty: files get no tag."""

        self.is_set = bool(keys)
        """Whether files without a valid tag are refused."""

        self.admits_unkeyed = not keys or "" in self._by_id
        """Whether files without any tag are admitted."""

    def __repr__(self) -> str:
        """Return the ids. A key must never be in a log."""
        return f"<Keys {', '.join(each or UNKEYED for each in self._by_id) or 'none'}>"

    def tag(self, kind: str, content: bytes | bytearray) -> str:
        """Return the tag of a file's content with the key for writing, in hexadecimal."""
        return _tag(self._by_id[self.key_id], kind, content)

    def tag_with(self, key_id: str, kind: str, content: bytes | bytearray) -> str:
        """Return the tag of a file's content with a key that is known."""
        return _tag(self._by_id[key_id], kind, content)

    def why_refused(self, what: str, kind: str, key_id: str, tag: str, content: bytes | bytearray) -> str:
        """Return why a file is refused; empty if it is not.

        Args:
            what: its name, for the log.
            kind: its kind.
            key_id: what it says of its key; empty: it has no tag.
            tag: its tag.
            content: what the tag covers.
        """
        if not self.is_set:
            return _NEEDS_KEY.format(key_id) if key_id else ""
        if not key_id and self.admits_unkeyed:
            if self.key_id:
                _log.warning("%s: it has no tag, and is used because %s has the line %r", what, self._source, UNKEYED)
            return ""
        if not key_id:
            return (
                "it has no tag, so anyone who can write the data folder may have made it, and "
                f"{self._source!r} does not admit that. If an earlier server without keys wrote it, add the line "
                f"{UNKEYED!r} at the end of the key file for one start, which gives such files a tag"
            )
        if key_id not in self._by_id:
            known = ", ".join(filter(None, self._by_id)) or "none"
            return (
                f"its tag is of the key {key_id!r}, and {self._source!r} has {known}: add that key below the first "
                "line, to read what was written with it"
            )
        if not hmac.compare_digest(tag.encode(), self.tag_with(key_id, kind, content).encode()):
            return (
                f"its tag is wrong: it was changed by someone without the key {key_id!r}. Find out who can write the "
                "data folder, and put the file back from a backup"
            )
        return ""


NO_KEYS = Keys()
"""Files get no tag, and those with a tag are refused, because nobody could say whether it is right."""


class _Unchecked(Keys):
    """Accepts every tag."""

    def why_refused(self, *_: object) -> str:
        return ""


UNCHECKED = _Unchecked()
"""For commands that only look at a folder: tags are not checked."""

_NEEDS_KEY = (
    "it has a tag of the key {!r}, which nobody checks without a key file: pass --snapshot-key-file. To go on without "
    f"keys for good, make {UNKEYED!r} the first line of the key file for one start"
)


def read_keys(path: Path | None, data_dir: Path) -> Keys:
    """Return the keys of a file; none without one.

    Args:
        path: the key file; None: there is none.
        data_dir: the data folder, in which the key file must not be.

    Raises:
        ConfigurationError: it cannot be read, others may read it, or a line is no key.
    """
    if path is None:
        return NO_KEYS
    if path.resolve().is_relative_to(data_dir.resolve()):
        raise ConfigurationError(
            f"{_SETTING}={str(path)!r}: it is in the data folder {str(data_dir)!r}, and whoever can write there could "
            "replace it; move it elsewhere"
        )
    return Keys(tuple(b"" if line == UNKEYED else bytes.fromhex(line) for line in read_lines(path)), str(path))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a key file that say something.

    Raises:
        ConfigurationError: it cannot be read, others may read it, or a line is no key.
    """
    where = f"{_SETTING}={str(path)!r}"
    check_key_file(_SETTING, path)
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode("ascii")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not ASCII text"
        raise ConfigurationError(f"{where}: it cannot be read ({reason})") from error
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    for number, line in lines:
        if line != UNKEYED and not _KEY.fullmatch(line):  # the line itself may be a damaged key, and is not shown
            raise ConfigurationError(
                f"{where}: line {number} has {len(line)} characters, and is neither 64 hexadecimal digits nor the word "
                f"{UNKEYED!r}; numba-adam snapshot-key makes such a file"
            )
    found = [line.lower() for _, line in lines]
    if not found or len(text) > _MOST_BYTES:
        raise ConfigurationError(
            f"{where}: it has {'no key' if not found else 'too many'}; make one with: numba-adam snapshot-key {path}"
        )
    if len(set(found)) < len(found):
        raise ConfigurationError(f"{where}: the same line is there twice; remove one of them")
    return found


def new_key() -> str:
    """Return a new line of a key file."""
    return secrets.token_hex(32)


def id_of(line: str) -> str:
    """Return the id of a line of a key file."""
    return _id_of(b"" if line == UNKEYED else bytes.fromhex(line))


def write_key_file(path: Path, lines: list[str]) -> None:
    """Write a key file for its user only. An existing one is complete or untouched after a crash.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _id_of(key: bytes) -> str:
    """Return the id of a key: it says nothing of the key, which nobody can guess."""
    return hashlib.sha256(_DOMAIN + b"key id\0" + key).hexdigest()[:KEY_ID_DIGITS] if key else ""


def _tag(key: bytes, kind: str, content: bytes | bytearray) -> str:
    keyed = hmac.new(key, _DOMAIN + kind.encode() + b"\0", "sha256")
    keyed.update(content)
    return keyed.hexdigest()
