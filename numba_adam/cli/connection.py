"""The options and the client of the commands that call a server: --server, --timeout-seconds, --json.

May import the standard library and numba_adam.errors; the client inside the functions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

from numba_adam.errors import DeadlineExceededError, ServerUnavailableError, TlsError

if TYPE_CHECKING:
    from numba_adam.client import ParameterClient, Tls

DEFAULT_SERVER = "127.0.0.1:50051"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that calls a server."""
    parser.add_argument(
        "--server", metavar="HOST:PORT", default=DEFAULT_SERVER, help="address of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout-seconds",
        metavar="S",
        type=float,
        default=10.0,
        help="deadline of the call in seconds (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    add_tls_arguments(parser)
    parser.add_argument("--no-tls", action="store_true", help="connect without TLS, whatever numba-adam login has kept")


def add_tls_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to use TLS. The environment, or numba-adam login, can say it too."""
    parser.add_argument("--server-ca", metavar="FILE", help="PEM file with the CA of the server; turns TLS on")
    parser.add_argument("--worker-certificate", metavar="FILE", help="PEM file with your certificate, for mutual TLS")
    parser.add_argument("--worker-key", metavar="FILE", help="PEM file with the key of that certificate; mode 600")
    parser.add_argument("--server-name", metavar="NAME", help="name in the server's certificate, for tunnels")


def tls_of(arguments: argparse.Namespace) -> Tls | bool | None:
    """Return what the options say about TLS; None: nothing.

    Raises:
        ConfigurationError: an option is invalid, or its counterpart is missing.
    """
    from numba_adam.client import Tls

    names = ("server_ca", "worker_certificate", "worker_key", "server_name")
    values = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    if values:
        return Tls(**values)
    return False if getattr(arguments, "no_tls", False) else None


@contextmanager
def connect(arguments: argparse.Namespace) -> Iterator[ParameterClient]:
    """Yield a client of the server that the arguments name. It does not retry, because a person waits.

    Raises:
        ServerUnavailableError: the server cannot be reached. The message is one line and says what to do.
        DeadlineExceededError: the server did not answer before the deadline.
    """
    from numba_adam.client import Backoff, ParameterClient
    from numba_adam.ps.errors import detail_of

    server, seconds = arguments.server, arguments.timeout_seconds
    tls, token = tls_of(arguments), getattr(arguments, "token_text", None)
    with ParameterClient(
        server, timeout_seconds=seconds, backoff=Backoff(most_tries=1), tls=tls, token=token
    ) as client:
        try:
            yield client
        except TlsError:  # it says what to do
            raise
        except ServerUnavailableError as error:
            if detail_of(error) is not None:  # the server sent this error: it is stopping, for example
                raise
            raise ServerUnavailableError(_unreachable(server, error)) from error
        except DeadlineExceededError as error:
            raise DeadlineExceededError(
                f"{server}: no answer within {seconds:g} s; the server is busy or stopped, or it is not a parameter "
                "server. Read its log, or pass a larger --timeout-seconds."
            ) from error


def _unreachable(server: str, error: ServerUnavailableError) -> str:
    """Return the message for a server that did not accept the connection: the reason, and what to do."""
    import grpc

    from numba_adam.client.transport.loopback import is_loopback

    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    reason = str(root.details() if isinstance(root, grpc.Call) else root)
    if "refused" not in reason.lower() and "No such file" not in reason:
        return f"{server} cannot be reached: {reason}"
    if not is_loopback(server) or server.lower().startswith("unix"):
        return f"nothing listens on {server}; start a server there, or correct --server"
    listen = "" if server == DEFAULT_SERVER else f" --listen {server}"
    return f"nothing listens on {server}; start a server with: numba-adam serve{listen}"


def print_json(record: object) -> None:
    """Print a dataclass, or a list of them, as JSON."""
    print(json.dumps(_plain(record), indent=2))


def _plain(value: object) -> object:
    """Return a value as JSON types. Other types, such as a dtype, become strings."""
    if hasattr(value, "lr_at"):  # a schedule: its fields do not say of which kind it is
        from numba_adam.ps.schedule_records import schedule_record

        return schedule_record(value)  # type: ignore[arg-type]
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def bytes_in_words(count: int) -> str:
    """Return a number of bytes with a decimal unit.

    >>> bytes_in_words(0), bytes_in_words(28_000_000), bytes_in_words(1 << 40)
    ('0 B', '28.0 MB', '1.1 TB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
