"""A worker on one host pushes to a server on another, with TLS and a token: cuts, IPv6, names, a small MTU, a move."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.campaign]

NAME, PUSHES = "trainer.test", 40
PROXY = str(Path(__file__).with_name("proxy.py"))
WORKER = """
import numpy as np
from numba_adam.client import ParameterClient
with ParameterClient({address!r}, "w0", timeout_seconds=700) as client:
    model = client.create_model("m", {{"w": np.zeros({size}, np.float32)}}, exist_ok=True, durability="memory")
    versions = [model.push({{"w": np.full({size}, i + 1, np.float32)}}).version for i in range({pushes})]
    print(versions == list(range(1, {pushes} + 1)), model.pull()["w"].tobytes() == {expected})
"""


def program(address, size=50_000, pushes=PUSHES):
    """Return a worker's program: its versions are 1, 2, 3 and so on, and the parameters those of as many steps."""
    steps = (
        "import numba_adam as na, numpy as np\n"
        f"w = np.zeros({size}, np.float32); adam = na.Adam(w)\n"
        f"for i in range({pushes}): adam.step(np.full({size}, i + 1, np.float32))\n"
    )
    return steps + WORKER.format(address=address, size=size, pushes=pushes, expected="w.tobytes()")


def port_of(address):
    return address.rpartition(":")[2]


@pytest.mark.parametrize("seed", [1, 2])
def test_every_push_counts_once_over_a_line_that_is_cut(pair, seed):
    port = port_of(pair.serve("10.77.0.1:0"))
    line = pair.worker.start(
        *(sys.executable, PROXY, "10.77.0.2:0", f"10.77.0.1:{port}"),
        *("--delay", "0.005", "--bandwidth", "50e6", "--cuts", "8", "--cut-bytes", "2000000", "--seed", str(seed)),
        announces="proxy on ",
        log=pair.folder / "proxy-log",
    )
    pair.names("10.77.0.2")
    assert pair.work(program(f"{NAME}:{port_of(line)}")) == "True True\n"


def test_over_ipv6(pair):
    address = pair.serve("[fd77::1]:0")
    pair.names("fd77::1")
    assert pair.work(program(f"{NAME}:{port_of(address)}", pushes=3)) == "True True\n"


def test_a_small_mtu(pair):
    for host in (pair.server, pair.worker):
        host.run("ip", "link", "set", "cable", "mtu", "1280")
    port = port_of(pair.serve("10.77.0.1:0"))
    pair.names("10.77.0.1")
    assert pair.work(program(f"{NAME}:{port}", size=1_000_000, pushes=3)) == "True True\n"


@pytest.mark.parametrize("addresses", [("10.77.0.200", "10.77.0.1"), ("10.77.0.1", "10.77.0.200")])
def test_a_name_with_a_dead_address(pair, addresses):
    port = port_of(pair.serve("10.77.0.1:0"))
    pair.names(*addresses)
    assert pair.work(program(f"{NAME}:{port}", pushes=3)) == "True True\n"


def test_a_server_that_moves_to_another_address_behind_its_name(pair):
    """The worker's program runs on: it waits between its pushes until the server has moved."""
    port = port_of(pair.serve("10.77.0.1:0"))
    pair.names("10.77.0.1")
    steps = program(f"{NAME}:{port}").partition("with ParameterClient")[0]
    script = steps + (
        f"with ParameterClient('{NAME}:{port}', 'w0', timeout_seconds=700) as client:\n"
        "    model = client.create_model('m', {'w': np.zeros(50000, np.float32)}, durability='memory')\n"
        f"    for i in range({PUSHES}):\n"
        "        if i == 5: client.snapshot(); print('moves', flush=True); input()\n"
        "        model.push({'w': np.full(50000, i + 1, np.float32)})\n"
        "    print(model.pull()['w'].tobytes() == w.tobytes(), model.version)\n"
    )
    ca = str(pair.folder / "numba-adam-certificates/ca.pem")
    environment = {**pair.environment, "NUMBA_ADAM_SERVER_CA": ca, "NUMBA_ADAM_TOKEN": pair.token}
    with pair.worker.talking(sys.executable, "-c", script, env=environment) as worker:
        assert worker.stdout.readline() == "moves\n"
        pair.server.terminate_programs()
        pair.server.run("ip", "address", "del", "10.77.0.1/24", "dev", "cable")
        pair.server.run("ip", "address", "add", "10.77.0.9/24", "dev", "cable")
        pair.names("10.77.0.9")
        pair.serve(f"10.77.0.9:{port}")
        worker.stdin.write("\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == f"True {PUSHES}\n"
