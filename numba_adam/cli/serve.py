"""`numba-adam serve`: run a parameter server until a signal stops it.

Its options are the fields of numba_adam.server.config.ServerConfig. May import the standard library; the server inside
the functions.
"""

from __future__ import annotations

import argparse
import os

_DESCRIPTION = """\
Run a parameter server. It keeps models and their Adam state in memory. It applies each gradient that a worker pushes
exactly once. It writes snapshots, from which a restarted server continues.

When the server is ready, it prints one line, `numba-adam: serving on HOST:PORT`. SIGTERM, SIGHUP or Ctrl-C stops it: it
saves its models, finishes the requests in progress, and saves the models that these have changed.

The exit status is 0 if everything is on disk, 1 if not, and 74 if an fsync failed: then the server ends at once, because
what it wrote may not be on disk. While the disk is full, models of durability "disk" can be pulled, and pushes wait.

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
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the settings of the server as options, and the examples."""
    from numba_adam.server.config import add_arguments

    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal stops the server."""
    from numba_adam.server.config import load
    from numba_adam.server.logs import Log
    from numba_adam.server.main import serve

    log = Log()
    try:
        config = load(arguments, os.environ)
    except BaseException:
        log.begin()
        raise
    log.begin(config.log_format, config.log_level)
    return serve(config)
