"""Records what a server does to its data folder, and builds the states that a power failure may leave of it.

A write is sure to be there once its file was fsynced, and a change of a folder once the folder was. Until then each
sector of each write, and each creation, rename and removal, may be there or not, in any combination.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SECTOR = 512
ROOT = 0


class Op(NamedTuple):
    """One operation.

    write, truncate: of the content of file `node`, at `offset`. link, unlink: `name` in folder `node` (now `child`).
    move: `name` in folder `node` becomes `new_name` in folder `new_node`. sync: of `node`, a file or a folder.
    mark: what a client was told.
    """

    kind: str
    node: int = ROOT
    name: str = ""
    child: int = ROOT
    is_folder: bool = False
    offset: int = 0
    data: bytes = b""
    new_node: int = ROOT
    new_name: str = ""


class Recorder:
    """Records the operations under a folder.

    Args:
        root: the folder.
        fail: called before each with its kind and number, from 1; it may raise.
    """

    def __init__(self, root: Path, fail: Callable[[str, int], None] | None = None) -> None:
        self.root = root.resolve()
        self.ops: list[Op] = []
        self.calls = 0
        self._fail = fail
        self._folders: dict[int, dict[str, int]] = {ROOT: {}}
        self._descriptors: dict[int, int] = {}
        self._nodes = ROOT

    def mark(self, name: str) -> None:
        """Note what a client knows from now on."""
        self.ops.append(Op("mark", name=name))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put itself between the program and the functions of `os`."""
        content = {"write": self._write, "writev": self._write, "pwrite": self._write, "pwritev": self._write}
        content["ftruncate"] = self._truncate
        barriers = {"fsync": self._sync, "fdatasync": self._sync}
        entries = {"mkdir": self._mkdir, "rename": self._rename, "unlink": self._unlink, "rmdir": self._unlink}
        for name, record in {**content, **barriers}.items():
            patch.setattr(os, name, self._by_descriptor(name, getattr(os, name), record))
        for name, record in entries.items():
            patch.setattr(os, name, self._by_path(name, getattr(os, name), record))
        patch.setattr(os, "open", self._opening(os.open))
        patch.setattr(os, "close", self._closing(os.close))

    def _count(self, name: str) -> None:
        self.calls += 1
        if self._fail is not None:
            self._fail(name, self.calls)

    def _by_descriptor(self, name: str, real: Any, record: Any) -> Any:
        def call(descriptor: int, *arguments: Any) -> Any:
            node = self._descriptors.get(descriptor)
            if node is None:
                return real(descriptor, *arguments)
            self._count(name)
            is_appended = name in ("write", "writev")
            place = os.lseek(descriptor, 0, os.SEEK_CUR) if is_appended else 0
            if is_appended and self._is_append(descriptor):
                place = os.fstat(descriptor).st_size
            result = real(descriptor, *arguments)
            record(node, place, result, *arguments)
            return result

        return call

    def _is_append(self, descriptor: int) -> bool:
        flags = int(Path(f"/proc/self/fdinfo/{descriptor}").read_text().split("flags:")[1].split()[0], 8)
        return bool(flags & os.O_APPEND)

    def _write(self, node: int, place: int, count: int, data: Any, offset: int | None = None) -> None:
        raw = b"".join(map(bytes, data)) if isinstance(data, list) else bytes(data)
        self.ops.append(Op("write", node, offset=place if offset is None else offset, data=raw[:count]))

    def _truncate(self, node: int, _: int, __: None, size: int) -> None:
        self.ops.append(Op("truncate", node, offset=size))

    def _sync(self, node: int, _: int, __: None) -> None:
        self.ops.append(Op("sync", node))

    def _by_path(self, name: str, real: Any, record: Any) -> Any:
        def call(*arguments: Any, dir_fd: int | None = None, **options: Any) -> Any:
            places = [self._place(each, dir_fd) for each in arguments if not isinstance(each, int)]
            if places[0] is None:
                return real(*arguments, dir_fd=dir_fd, **options) if dir_fd is not None else real(*arguments, **options)
            self._count(name)
            result = real(*arguments, dir_fd=dir_fd, **options) if dir_fd is not None else real(*arguments, **options)
            record(*places)
            return result

        return call

    def _mkdir(self, place: tuple[int, str]) -> None:
        self._link(place, is_folder=True)

    def _link(self, place: tuple[int, str], *, is_folder: bool = False) -> int:
        folder, name = place
        if not name:
            return ROOT
        self._nodes += 1
        self._folders[folder][name] = self._nodes
        if is_folder:
            self._folders[self._nodes] = {}
        self.ops.append(Op("link", folder, name, self._nodes, is_folder))
        return self._nodes

    def _rename(self, old: tuple[int, str], new: tuple[int, str]) -> None:
        child = self._folders[old[0]].pop(old[1])
        self._folders[new[0]][new[1]] = child
        self.ops.append(Op("move", *old, child, new_node=new[0], new_name=new[1]))

    def _unlink(self, place: tuple[int, str]) -> None:
        child = self._folders[place[0]].pop(place[1])
        self.ops.append(Op("unlink", *place, child))

    def _opening(self, real: Any) -> Any:
        def call(path: Any, flags: int, *arguments: Any, dir_fd: int | None = None, **options: Any) -> int:
            place = self._place(path, dir_fd)
            if place is None:
                return int(real(path, flags, *arguments, dir_fd=dir_fd, **options))
            if flags & os.O_CREAT:
                self._count("open")
            descriptor = int(real(path, flags, *arguments, dir_fd=dir_fd, **options))
            folder, name = place
            node = self._folders[folder].get(name) if name else ROOT
            if node is None:
                node = self._link(place)
            elif flags & os.O_TRUNC:
                self.ops.append(Op("truncate", node))
            self._descriptors[descriptor] = node
            return descriptor

        return call

    def _closing(self, real: Any) -> Any:
        def call(descriptor: int) -> None:
            self._descriptors.pop(descriptor, None)
            real(descriptor)

        return call

    def _place(self, path: Any, dir_fd: int | None) -> tuple[int, str] | None:
        """Return the folder and the name of a path; None outside the root."""
        if isinstance(path, int):
            return None
        text = os.fspath(path)
        if dir_fd is not None and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        relative = os.path.relpath(os.path.abspath(text), self.root)
        if relative.startswith(".."):
            return None
        *parents, name = ["", ""] if relative == "." else relative.split("/")
        folder = ROOT
        for parent in filter(None, parents):
            folder = self._folders[folder][parent]
        return folder, name


class Choice(NamedTuple):
    """Which operations that are not sure to be on disk are there."""

    entries: Callable[[], bool]
    """Asked for each change of a folder."""

    sectors: Callable[[], bool]
    """Asked for each sector of a write, and for each change of a size."""


def choices(rng: random.Random, count: int) -> list[Choice]:
    """Return the four extreme choices, and some random ones."""
    everything = [Choice(lambda a=a: a, lambda b=b: b) for a in (False, True) for b in (False, True)]

    def some() -> Choice:
        entries, sectors = rng.choice((0.1, 0.5, 0.9)), rng.choice((0.1, 0.5, 0.9))
        return Choice(lambda: rng.random() < entries, lambda: rng.random() < sectors)

    return everything + [some() for _ in range(count)]


def image(ops: list[Op], choice: Choice) -> dict[str, bytes | None]:
    """Return what is on disk after the operations and a power failure: path -> content, None for a folder."""
    synced: set[int] = set()
    sure = []
    for op in reversed(ops):
        if op.kind == "sync":
            synced.add(op.node)
        sure.append(op.node in synced and (op.kind != "move" or op.new_node in synced))
    folders: dict[int, dict[str, int]] = {ROOT: {}}
    files: dict[int, bytearray] = {}
    for op, is_sure in zip(ops, reversed(sure), strict=True):
        if op.kind in ("link", "move", "unlink"):
            if op.kind == "link":
                (folders.setdefault(op.child, {}) if op.is_folder else files.setdefault(op.child, bytearray()))
            if is_sure or choice.entries():
                _enter(folders, op)
        elif op.kind == "truncate" and (is_sure or choice.sectors()):
            content = files[op.node]
            del content[op.offset :]
            content.extend(bytes(op.offset - len(content)))
        elif op.kind == "write":
            _put(files[op.node], op, (lambda: True) if is_sure else choice.sectors)
    found: dict[str, bytes | None] = {}
    _walk(ROOT, "", folders, files, found)
    return found


def build(found: dict[str, bytes | None], path: Path) -> None:
    """Write an image to an empty folder."""
    path.mkdir(mode=0o700)
    for name, content in found.items():
        if content is None:
            (path / name).mkdir(mode=0o700)
        else:
            (path / name).touch(mode=0o600)
            (path / name).write_bytes(content)


def _enter(folders: dict[int, dict[str, int]], op: Op) -> None:
    if op.kind == "link":
        folders[op.node][op.name] = op.child
        return
    if folders[op.node].get(op.name) == op.child:
        del folders[op.node][op.name]
    if op.kind == "move":
        folders[op.new_node][op.new_name] = op.child


def _put(content: bytearray, op: Op, is_there: Callable[[], bool]) -> None:
    """Put the sectors of a write that are there into a file."""
    begin, end = op.offset, op.offset + len(op.data)
    while begin < end:
        stop = min(end, begin - begin % SECTOR + SECTOR)
        if is_there():
            content.extend(bytes(max(0, stop - len(content))))
            content[begin:stop] = op.data[begin - op.offset : stop - op.offset]
        elif is_there():  # its size only
            content.extend(bytes(max(0, stop - len(content))))
        begin = stop


def _walk(
    folder: int,
    prefix: str,
    folders: dict[int, dict[str, int]],
    files: dict[int, bytearray],
    found: dict[str, bytes | None],
) -> None:
    for name, child in sorted(folders[folder].items()):
        if child in folders:
            found[prefix + name] = None
            _walk(child, f"{prefix}{name}/", folders, files, found)
        else:
            found[prefix + name] = bytes(files[child])
