"""A TCP proxy that behaves like a long line: delay, bandwidth, and connections that it cuts at seeded places.

    python tests/network/proxy.py LISTEN TARGET [--delay SECONDS] [--bandwidth BYTES_PER_SECOND] [--cuts N ...]

It prints `proxy on HOST:PORT` and runs until it is ended. The delay is that of each direction. The same seed draws the
same numbers of bytes after which connections are cut. Imports the standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
from collections.abc import Iterator

_READ_BYTES = 1 << 18
_IN_FLIGHT_BYTES = 1 << 26  # of one direction; a full line does not read on
ANNOUNCES = "proxy on "


class Line:
    """One direction of one connection."""

    def __init__(self, delay_seconds: float, bytes_per_second: float) -> None:
        self._delay_seconds, self._bytes_per_second = delay_seconds, bytes_per_second
        self._pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._free_at = 0.0
        self._in_flight = 0
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def put(self, data: bytes) -> None:
        """Send bytes; an empty piece is the end."""
        now = asyncio.get_running_loop().time()
        if self._bytes_per_second:
            self._free_at = max(now, self._free_at) + len(data) / self._bytes_per_second
        self._pieces.put_nowait((max(now, self._free_at) + self._delay_seconds, data))
        self._in_flight += len(data)
        if self._in_flight > _IN_FLIGHT_BYTES:
            self._has_room.clear()
        await self._has_room.wait()

    async def get(self) -> bytes:
        """Return the next bytes when they have arrived."""
        due, data = await self._pieces.get()
        loop = asyncio.get_running_loop()
        if due > loop.time():
            arrival = asyncio.Event()
            loop.call_at(due, arrival.set)
            await arrival.wait()
        self._in_flight -= len(data)
        if self._in_flight <= _IN_FLIGHT_BYTES:
            self._has_room.set()
        return data


class Proxy:
    """Forwards connections to one address.

    Args:
        target: HOST:PORT.
        options: the options of the command.
    """

    def __init__(self, target: str, options: argparse.Namespace) -> None:
        host, _, port = target.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._options = options
        self._cuts = self._places()

    def _places(self) -> Iterator[int]:
        """Yield the number of bytes after which each connection is cut, both directions together; -1: never."""
        seeded = random.Random(self._options.seed)
        for _ in range(self._options.cuts):
            yield seeded.randrange(1, self._options.cut_bytes)
        while True:
            yield -1

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection in both directions until it ends."""
        place = next(self._cuts)
        try:
            there = await asyncio.open_connection(self._host, self._port, limit=_READ_BYTES)
        except OSError:
            writer.transport.abort()
            return
        left = [place]
        writers = (writer, there[1])
        lines = [Line(self._options.delay, self._options.bandwidth) for _ in range(2)]
        tasks = [
            asyncio.ensure_future(task)
            for task in (
                _read(reader, lines[0], left),
                _write(lines[0], there[1]),
                _read(there[0], lines[1], left),
                _write(lines[1], writer),
            )
        ]
        try:
            await asyncio.gather(*tasks)
        except (OSError, _CutError):
            for each in writers:
                each.transport.abort()
        finally:
            for task in tasks:
                task.cancel()
            for each in writers:
                each.close()


class _CutError(Exception):
    """The place of a cut is reached."""


async def _read(reader: asyncio.StreamReader, line: Line, left: list[int]) -> None:
    while True:
        data = await reader.read(_READ_BYTES)
        if left[0] >= 0:
            left[0] -= len(data)
            if left[0] < 0:
                raise _CutError
        await line.put(data)
        if not data:
            return


async def _write(line: Line, writer: asyncio.StreamWriter) -> None:
    while data := await line.get():
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def _run(options: argparse.Namespace) -> None:
    host, _, port = options.listen.rpartition(":")
    proxy = Proxy(options.target, options)
    server = await asyncio.start_server(proxy.serve, host.strip("[]"), int(port), limit=_READ_BYTES)
    sys.stdout.write(f"{ANNOUNCES}{host}:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    """Run the proxy of a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("listen")
    parser.add_argument("target")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--bandwidth", type=float, default=0.0)
    parser.add_argument("--cuts", type=int, default=0)
    parser.add_argument("--cut-bytes", type=int, default=1 << 20)
    parser.add_argument("--seed", type=int, default=1)
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
