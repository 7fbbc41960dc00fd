"""How much memory this process may use: all of the computer's, or its control group's limit. Sizes as text.

Imports the standard library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path, PurePosixPath

_UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([A-Za-z]*)", re.ASCII)
_LIMIT_FILES = {"cgroup": ("memory.limit_in_bytes",), "cgroup2": ("memory.max", "memory.high")}


def parse_size(text: str) -> int:
    """Return a number of bytes that was written with or without a unit.

    Raises:
        ValueError: the text is not a whole number of bytes.

    >>> parse_size("8GiB"), parse_size("1.5 MB"), parse_size("4096")
    (8589934592, 1500000, 4096)
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match.group(2).lower() or "b") if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size")
    size = Decimal(match.group(1)) * unit
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def usable_bytes(proc: Path = Path("/proc")) -> int:
    """Return how much memory this process may use: the computer's, or its control group's limit if that is lower.

    Args:
        proc: where the system describes processes.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_group_limits(proc / "self")])


def _group_limits(process: Path) -> Iterator[int]:
    """Yield the limits of a process's control groups, versions 1 and 2, and of their parent groups."""
    try:
        groups = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        mounts = [line.split(" ") for line in (process / "mountinfo").read_text().splitlines()]
    except OSError:  # not Linux
        return
    for fields in mounts:
        root, mounted_at = fields[3], Path(_unescaped(fields[4]))
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        for _, controllers, path in (group for group in groups if len(group) == 3):
            is_ours = kind == "cgroup2" and not controllers
            is_ours |= kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(",")
            if is_ours:
                yield from _limits_up_to(mounted_at, _within(root, path), _LIMIT_FILES[kind])


def _within(root: str, path: str) -> PurePosixPath:
    """Return a group's path below a mount that shows the groups below `root`; in a container it may be the root."""
    try:
        return PurePosixPath(path).relative_to(root)
    except ValueError:
        return PurePosixPath()


def _limits_up_to(mounted_at: Path, group: PurePosixPath, names: tuple[str, ...]) -> Iterator[int]:
    """Yield the limits in a group's folder and in its parents."""
    for folder in [group, *group.parents]:
        for name in names:
            try:
                text = (mounted_at / folder / name).read_text().strip()
            except OSError:  # the root group has no limit
                continue
            if text.isdecimal() and int(text) > 0:  # "max": no limit
                yield int(text)


def _unescaped(path: str) -> str:
    r"""Return a path without mountinfo's escapes: it writes a space as \040.

    >>> _unescaped(r"/a\040b")
    '/a b'
    """
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)
