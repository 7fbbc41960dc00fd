"""The experiments of gRPC are switched on before gRPC is imported, and the installed gRPC knows them."""

from __future__ import annotations

import os
import subprocess
import sys

from numba_adam.server.grpc_experiments import NAMES, VARIABLE

PROGRAM = """
import os, sys
import numba_adam.cli.serve
from numba_adam.server import config, grpc_experiments, logs
assert "grpc" not in sys.modules
grpc_experiments.switch_on()
import grpc
from concurrent.futures import ThreadPoolExecutor
server = grpc.server(ThreadPoolExecutor(1))
server.add_insecure_port("127.0.0.1:0")
server.start()
server.stop(None)
print(os.environ.get("GRPC_EXPERIMENTS"))
"""


def result(**changes):
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    run = [sys.executable, "-c", PROGRAM]
    return subprocess.run(run, env={**environment, **changes}, capture_output=True, text=True, check=False, timeout=600)


def test_the_installed_grpc_knows_the_experiments():
    done = result()
    assert (done.returncode, done.stdout.strip()) == (0, NAMES), done.stderr
    assert "Unknown experiment" not in done.stderr


def test_the_users_own_choice_is_kept():
    done = result(**{VARIABLE: "tcp_rcv_lowat"})
    assert (done.returncode, done.stdout.strip()) == (0, "tcp_rcv_lowat"), done.stderr
