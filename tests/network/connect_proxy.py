"""An HTTP proxy that knows CONNECT only.

    python tests/network/connect_proxy.py LISTEN [--user USER:PASSWORD | --refuse]

It prints `connect proxy on HOST:PORT`, and the target of each CONNECT on stderr. With a user, it answers 407 to whoever
does not send it; with --refuse, 403 to everybody. Imports the standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import sys
from functools import partial

ANNOUNCES = "connect proxy on "


def _refusal(request: str, options: argparse.Namespace) -> str:
    """Return the status with which a request is refused; empty if it is not."""
    if options.refuse:
        return "403 Forbidden"
    expected = f"Proxy-Authorization: Basic {base64.b64encode((options.user or '').encode()).decode()}"
    fields = [line.strip() for line in request.split("\r\n")[1:]]
    return "407 Proxy Authentication Required" if options.user and expected not in fields else ""


async def _serve(options: argparse.Namespace, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = request.split(" ", 2)
        sys.stderr.write(f"{method} {target}\n")
        sys.stderr.flush()
        if refusal := _refusal(request, options):
            writer.write(f"HTTP/1.1 {refusal}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return
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


async def _run(options: argparse.Namespace) -> None:
    host, _, port = options.listen.rpartition(":")
    server = await asyncio.start_server(partial(_serve, options), host, int(port))
    sys.stdout.write(f"{ANNOUNCES}{host}:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("listen")
    parser.add_argument("--user")
    parser.add_argument("--refuse", action="store_true")
    asyncio.run(_run(parser.parse_args()))
