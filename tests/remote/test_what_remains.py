"""What attackers can do all the same, as docs/security.md says: shown, so that nobody has to believe it."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.client import Guards, ParameterClient
from numba_adam.errors import SnapshotError

LONG = 800.0
OTHER_USER = 65534
WEIGHTS = np.zeros(50, np.float32)


def test_a_pull_token_without_limits_pulls_all_the_time_and_keeps_what_it_has(admin, make_token, revoke, connect):
    connect(admin).create_model("m", {"w": WEIGHTS + 3})
    model = connect(make_token("alice", "--pull", "m")).open_model("m")
    kept = [model.pull()["w"] for _ in range(100)]
    assert revoke("alice") == 0
    assert all((each == 3).all() for each in kept)


def test_a_push_token_can_ruin_its_model_within_the_guards(admin, make_token, connect):
    owner = connect(admin).create_model("m", {"w": WEIGHTS}, lr=0.1, guards=Guards(largest_element=1.0))
    model = connect(make_token("mallory", "--push", "m"), "w").open_model("m")
    for _ in range(50):
        assert model.push({"w": np.full_like(WEIGHTS, -1.0)}).applied
    assert (owner.pull()["w"] > 1).all()


PROGRAM = """\
import os, sys
import numpy as np
from numba_adam.client import ParameterClient
os.setgroups([]); os.setgid({user}); os.setuid({user})
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"
with ParameterClient(sys.argv[1], timeout_seconds=800) as client:
    model = client.open_model("m")
    model.push({{"w": np.ones(50, np.float32)}})
    client.delete_model("m")
    print(client.list_models(), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_a_loopback_token_another_user_can_do_everything(make_server, caplog):
    server = make_server()
    with ParameterClient(server.address, timeout_seconds=LONG) as client:
        client.create_model("m", {"w": WEIGHTS})
        words = [sys.executable, "-c", PROGRAM.format(user=OTHER_USER), server.address]
        run = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LONG)
        assert run.stdout == "[]\n", run.stderr
        assert client.list_models() == []


def test_who_can_write_the_data_folder_reads_and_removes_models_and_changes_the_audit_log_despite_keys(
    make_server, tmp_path, admin, capsys
):
    keys = tmp_path / "keys"
    assert main(["snapshot-key", str(keys), "--unkeyed"]) == 0  # the tokens have no tags yet
    server = make_server(loopback_token="required", snapshot_key_file=keys)
    with ParameterClient(server.address, token=admin, tls=False, timeout_seconds=LONG) as client:
        client.create_model("m", {"w": WEIGHTS + np.float32(1234.5)})
        client.snapshot("m")
    server.stop()
    data = tmp_path / "data"
    assert any(np.float32(1234.5).tobytes() * 50 in path.read_bytes() for path in data.rglob("*") if path.is_file())
    (log,) = (path for path in data.glob("audit*") if "CreateModel" in path.read_text())
    log.write_text(log.read_text().replace("CreateModel", "Innocent"))
    shutil.rmtree(data / "models" / "m")
    with pytest.raises(SnapshotError, match="there is no snapshot of 'm'"):
        make_server(loopback_token="required", snapshot_key_file=keys)
    shutil.rmtree(data / "models")
    for name in ("run", "manifest"):
        (data / name).unlink()
    again = make_server(loopback_token="required", snapshot_key_file=keys)
    with ParameterClient(again.address, token=admin, tls=False, timeout_seconds=LONG) as client:
        assert client.list_models() == []
