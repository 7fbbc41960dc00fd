"""Ways to damage a cached kernel's file, for the tests of the CPU's and the GPU's caches.

A child process runs through `damaged`, uses the kernel twice after each damage and prints "damage: NAME", then
"compiled: " and what the uses returned; the test that started it hands all that to `assert_each_was_mended`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Spoil = Callable[[bytes], bytes | None]

KINDS: dict[str, Spoil] = {
    "empty": lambda _: b"",
    "a byte": lambda data: data[:1],
    "half": lambda data: data[: len(data) // 2],
    "all but a byte": lambda data: data[:-1],
    "garbage": lambda _: bytes(range(256)) * 4,
    "zeros": lambda data: bytes(len(data)),
    "text": lambda _: b"<html>404</html>",
    "a pickled number": lambda _: b"\x80\x04K\x07.",
    "gone": lambda _: None,
}


def damaged(kinds: dict[str, Spoil], find: Callable[[], Iterable[Path]]) -> Iterator[str]:
    """Damage the files in each way in turn, and yield its name."""
    for name, spoil in kinds.items():
        paths = list(find())
        assert paths
        for path in paths:
            spoiled = spoil(path.read_bytes())
            path.unlink()
            if spoiled is not None:
                path.write_bytes(spoiled)
        yield name


def assert_each_was_mended(output: str, count: int, suffix: str) -> None:
    """Assert that each damage cost one compilation, and was logged if necessary.

    A file that is not there is nothing to be said; a number in an index, in place of the version ("nbi"), is another
    version of Numba's.
    """
    blocks = output.split("damage: ")[1:]
    assert len(blocks) == count
    assert [block for block in blocks if "compiled: True False" not in block] == []  # once, and thereby mended
    silent = {"gone", *(["a pickled number"] if suffix == "nbi" else [])}
    assert {block.splitlines()[0] for block in blocks if "log: " not in block} == silent
