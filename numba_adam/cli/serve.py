"""`numba-adam serve`: run a parameter server until it is told to stop.

Its options are the fields of numba_adam.server.config.ServerConfig, so nothing is said twice.
"""

from __future__ import annotations

import argparse
import logging
import os

_DESCRIPTION = """\
Run a parameter server. It holds models and their Adam state in memory, applies the gradients that workers push,
exactly once each, and writes snapshots that a restart continues from.

When it is ready it prints one line, `numba-adam: serving on HOST:PORT`, and then works until SIGTERM, SIGHUP or Ctrl-C,
upon which it saves its models, finishes what is in flight, and saves what that changed.

An option given here beats the environment variable of its name (NUMBA_ADAM_DATA_DIR for --data-dir), which beats
the TOML file given with --config, which beats the default.
"""
_EPILOG = """\
examples:
  numba-adam serve --data-dir ./adam                            on 127.0.0.1:50051, models kept in ./adam
  numba-adam serve --listen 127.0.0.1:0 --data-dir ./adam       on a free port, which the first line names
  numba-adam serve --config server.toml                         settings from a file
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the settings of the server as options, and the examples."""
    from numba_adam.server.config import add_arguments

    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from numba_adam.server.config import load
    from numba_adam.server.main import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")  # to stderr
    return serve(load(arguments, os.environ))
