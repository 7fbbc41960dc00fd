"""`numba-adam serve`: run a parameter server until a signal stops it, and start it again if it crashes.

Its options are the fields of numba_adam.server.config.ServerConfig, and those of the supervisor. May import the
standard library; the server inside the functions.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numba_adam.server.config import ServerConfig

_DESCRIPTION = """\
Run a parameter server. It keeps models and their Adam state in memory. It applies each gradient that a worker pushes
exactly once. It writes snapshots, from which a restarted server continues.

When the server is ready, it prints one line, `numba-adam: serving on HOST:PORT`. SIGTERM, SIGHUP or Ctrl-C stops it: it
saves its models, finishes the requests in progress, and saves the models that these have changed.

The exit status is 0 if everything is on disk, 1 if not, and 74 if an fsync failed: then the server ends at once, and is
not started again, because what it wrote may not be on disk. While the disk is full, models of durability "disk" can be
pulled, and pushes wait.

Two processes run: one serves, the other starts it again if it crashes, on the same port, and says why it died. No push
of a model at the level `process` or `disk` is lost, and workers do not notice. After ten crashes in a row it stays
down. A start that is refused (a setting, a port that is taken, damaged data) is not tried again. When the supervising
process dies, the kernel kills the serving process. In a container, process 1 may be this command.

The value of a setting comes from the first of these that has it: the option, the environment variable (for example
NUMBA_ADAM_DATA_DIR for --data-dir), the TOML file of --config, the default.
"""
_EPILOG = """\
examples:
  numba-adam serve --data-dir ./adam                            on 127.0.0.1:50051, with its data in ./adam
  numba-adam serve --listen 127.0.0.1:0 --data-dir ./adam       on a free port; the first line names it
  numba-adam serve --config server.toml                         settings from a file
  numba-adam serve --listen 0.0.0.0:50051 --tls-certificate server.pem --tls-key server.key
                                                                for other machines; docs/remote.md has the steps
  numba-adam serve --no-supervise --data-dir ./adam             one process only, which a crash ends
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the settings of the server as options, and the examples."""
    from numba_adam.server.config import add_arguments

    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_arguments(parser)
    parser.add_argument(
        "--no-supervise",
        action="store_true",
        help="serve in this process; a crash ends it, and nothing starts it again",
    )
    parser.add_argument(
        "--most-restarts",
        metavar="N",
        type=_whole,
        default=10,
        help="crashes in a row after which the server stays down; a minute of serving ends the row. Default: 10",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal stops the server."""
    from numba_adam.server import grpc_experiments
    from numba_adam.server.config import load
    from numba_adam.server.logs import Log

    _open_standard_streams()
    log = Log()
    try:
        config = load(arguments, os.environ)
    except BaseException:
        log.begin()
        raise
    log.begin(config.log_format, config.log_level)
    grpc_experiments.switch_on()
    if arguments.no_supervise or threading.active_count() > 1:  # a program with threads cannot be forked safely
        from numba_adam.server.main import serve

        return serve(config)
    from numba_adam.server.storage.durable import FAILED_SYNC_STATUS
    from numba_adam.server.supervision.supervisor import Supervisor

    return Supervisor(_serve_at(config), arguments.most_restarts, (FAILED_SYNC_STATUS,)).run()


def _serve_at(config: ServerConfig) -> Callable[[str | None, Callable[[str], None]], int]:
    """Return what the serving process runs. It imports the server, so the supervising process stays small."""

    def serve_at(address: str | None, report: Callable[[str], None]) -> int:
        try:
            from numba_adam.server.main import serve
        except ModuleNotFoundError as error:
            from numba_adam import installing
            from numba_adam.errors import ConfigurationError

            if (error.name or "").startswith("numba_adam"):
                raise  # a bug, not a missing extra
            raise ConfigurationError(
                f"serve: the module {error.name!r} is not installed; {installing.advice('server')}"
            ) from error
        settings = config if address is None else replace(config, listen=address)
        return serve(settings, report, announces=address is None)

    return serve_at


def _open_standard_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed: the next file would get its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _whole(text: str) -> int:
    """Return a whole number of at least 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)
