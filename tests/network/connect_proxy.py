"""An HTTP proxy that knows CONNECT only.

    python tests/network/connect_proxy.py LISTEN

It prints `connect proxy on HOST:PORT`, and the target of each CONNECT on stderr. Imports the standard library.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

ANNOUNCES = "connect proxy on "


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
        request = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = request.decode().split(" ", 2)
        sys.stderr.write(f"{method} {target}\n")
        sys.stderr.flush()
        host, _, port = target.rpartition(":")
        try:
            there = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.closing(there[1]):
            await asyncio.gather(_forward(reader, there[1]), _forward(there[0], writer))


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def _run(listen: str) -> None:
    host, _, port = listen.rpartition(":")
    server = await asyncio.start_server(_serve, host, int(port))
    sys.stdout.write(f"{ANNOUNCES}{host}:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1]))
