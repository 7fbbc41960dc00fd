"""The unit file of systemd and the Dockerfile: what they start serves a user without rights on a read-only system."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.client import ParameterClient, Tls

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "examples" / "numba-adam.service"
DOCKERFILE = ROOT / "examples" / "Dockerfile"
COMMAND = [sys.executable, "-m", "numba_adam"]
LONG = 800
USER = 10001
GRADS = {"w": np.ones(1000, np.float32)}
needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None,
    reason="only root may become another user and mount a read-only system; it needs unshare and setpriv",
)


def unit_settings() -> dict[str, str]:
    """Return the settings of the unit file by name."""
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with its words."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#"))
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def container_variables() -> dict[str, str]:
    """Return the variables that the Dockerfile sets."""
    words = [word for name, rest in instructions() if name == "ENV" for word in rest.split()]
    return dict(word.split("=", 1) for word in words)


def command_of(instruction: str) -> list[str]:
    """Return the command of CMD or HEALTHCHECK, from its JSON form."""
    (rest,) = [rest for name, rest in instructions() if name == instruction]
    return re.findall(r'"([^"]*)"', rest[rest.index("[") :])


def ours(words: list[str]) -> list[str]:
    """Return a command of the installed program as one of this environment."""
    assert Path(words[0]).name == "numba-adam"
    return [*COMMAND, *words[1:]]


def restricted(words: list[str], writable: list[Path]) -> list[str]:
    """Return a command that runs as a user without rights, who may write to these folders of a read-only system.

    The user may read all files: the interpreter of a test may be in root's home. It may not write more for that.
    """
    mounts = [f"mount --bind {shlex.quote(str(path))} {shlex.quote(str(path))}" for path in writable]
    capability = "-all,+dac_read_search"
    drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"]
    drop += [f"--inh-caps={capability}", f"--ambient-caps={capability}", f"--bounding-set={capability}"]
    # Mounts apart from that of / stay as they are; only root can write to what matters in them.
    script = " && ".join([*mounts, "mount -o remount,bind,ro /", f"exec {shlex.join([*drop, *words])}"])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that a user without rights can reach, with folders of that user."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def own(*paths: Path) -> None:
    """Make folders of the user without rights, which nobody else may read."""
    for path in paths:
        path.mkdir()
        path.chmod(0o700)
        os.chown(path, USER, USER)


def variables(**more: str) -> dict[str, str]:
    """Return an environment without settings of ours and without a home."""
    left_out = ("NUMBA_", "XDG_", "HOME", "PYTEST_", "COVERAGE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)} | more


@contextlib.contextmanager
def running(words: list[str], environment: dict[str, str], folder: Path) -> Iterator[str]:
    """Run a server's command; yield its address; stop it with SIGTERM, as systemd and Docker do."""
    log = folder / "server.log"
    with log.open("w") as opened:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=opened, text=True, env=environment, cwd=folder)
    try:
        line = process.stdout.readline().strip()
        assert line.startswith("numba-adam: serving on "), line + log.read_text()
        identity = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(rf"^Uid:\t{USER}\t{USER}\t{USER}\t{USER}$", identity, re.MULTILINE)
        yield line.rpartition(" ")[2]
        process.terminate()
        assert process.wait(LONG) == 0, log.read_text()
    finally:
        process.kill()
        process.wait(LONG)
        process.stdout.close()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_in_the_unit(tmp_path) -> None:
    program = tmp_path / "numba-adam"
    program.symlink_to(shutil.which("true"))
    installed = unit_settings()["ExecStart"].split()[0]
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(installed, str(program)))
    words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LONG)
    about_us = [line for line in done.stderr.splitlines() if UNIT.name in line or str(tmp_path) in line]
    assert (done.returncode, about_us) == (0, []), done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_a_setting_that_does_not_exist(tmp_path) -> None:
    """The test above could fail."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("OOMPolicy=continue", "OOMPolicy=go-on"))
    words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LONG)
    assert "go-on" in done.stderr


def test_systemd_starts_it_again_after_a_signal_only() -> None:
    settings = unit_settings()
    assert settings["Restart"] == "on-abnormal"
    assert set(settings["RestartPreventExitStatus"].split()) == {"1", "2", "74"}
    assert (settings["RuntimeDirectoryPreserve"], settings["OOMPolicy"]) == ("yes", "continue")


@needs_root
@pytest.mark.campaign
def test_the_command_of_the_unit_serves_and_tells_systemd(folder) -> None:
    settings = unit_settings()
    state, run, cache = folder / "state", folder / "run", folder / "cache"
    own(state, run, cache)
    line = settings["ExecStart"].replace("${STATE_DIRECTORY}", str(state)).replace("${RUNTIME_DIRECTORY}", str(run))
    assert "$" not in line
    words = line.replace("127.0.0.1:50051", "127.0.0.1:0").split()
    text = (
        settings["Environment"].replace("/var/lib/numba-adam", str(state)).replace("/var/cache/numba-adam", str(cache))
    )
    environment = variables(**dict(word.split("=", 1) for word in text.split()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        (folder / "notify").chmod(0o777)
        manager.settimeout(LONG)
        environment["NOTIFY_SOCKET"] = str(folder / "notify")
        with running(restricted(ours(words), [state, run, cache]), environment, folder) as address:
            assert manager.recv(4096).decode().startswith(f"READY=1\nSTATUS=serving on {address}, process ")
            (file,) = (state / "configuration/numba-adam/loopback").glob("*.token")
            with ParameterClient(address, token=file.read_text().strip(), timeout_seconds=LONG) as client:
                model = client.create_model("m", GRADS)
                assert model.push(GRADS).version == 1
            assert list(run.rglob("arena*")) or list(run.rglob("*")), "the model is not in the memory folder"
        assert manager.recv(4096).decode() == "STOPPING=1"
    assert any(cache.iterdir()), "no kernels were kept"


@needs_root
@pytest.mark.campaign
def test_the_commands_of_the_container_serve_on_a_read_only_root(folder, capsys) -> None:
    data, memory, certificates, kernels = (folder / name for name in ("data", "memory", "certificates", "kernels"))
    own(data, memory, certificates)
    assert ("USER", str(USER)) in instructions()
    for words in (["ca"], ["server", "trainer.example.org"]):
        assert main(["certificate", *words, "--folder", str(certificates)]) == 0
    for path in certificates.iterdir():
        os.chown(path, USER, USER)
    capsys.readouterr()
    here = {"/opt/kernels": kernels, "/data": data, "/memory": memory, "/certificates": certificates}

    def moved(text: str) -> str:
        return re.sub("|".join(here), lambda found: str(here[found[0]]), text)

    environment = variables(**{name: moved(value) for name, value in container_variables().items()})
    environment["NUMBA_ADAM_LISTEN"] = environment["NUMBA_ADAM_LISTEN"].replace("50051", "0")
    (baked,) = [rest for name, rest in instructions() if name == "RUN" and "warmup" in rest]
    bake = moved(baked).replace("numba-adam", shlex.join(COMMAND))
    subprocess.run(["sh", "-c", bake], env=environment, cwd=folder, check=True, capture_output=True, timeout=LONG)
    made = sorted(kernels.rglob("*"))
    make = restricted([*COMMAND, "token", "make", "w0", "--admin", "*", "--data-dir", str(data)], [data, memory])
    done = subprocess.run(make, env=environment, capture_output=True, text=True, check=True, timeout=LONG, cwd=folder)
    token = done.stdout.strip()
    with running(restricted(ours(command_of("CMD")), [data, memory]), environment, folder) as address:
        port = address.rpartition(":")[2]
        health = [moved(word).replace(":50051", f":{port}") for word in command_of("HEALTHCHECK")]
        for given, status in ((token, 0), ("wrong", 1)):
            check = restricted(ours(health), [data, memory])
            known = {**environment, "NUMBA_ADAM_TOKEN": given}
            assert subprocess.run(check, env=known, check=False, timeout=LONG, cwd=folder).returncode == status
        tls = Tls(server_ca=certificates / "ca.pem")
        with ParameterClient(f"localhost:{port}", tls=tls, token=token, timeout_seconds=LONG) as client:
            assert client.create_model("m", GRADS).push(GRADS).version == 1
        assert list(memory.iterdir())
    assert sorted(kernels.rglob("*")) == made
    assert "compil" not in (folder / "server.log").read_text()


@needs_root
def test_the_user_of_these_tests_cannot_write_elsewhere(folder) -> None:
    """The tests above could fail."""
    own(folder / "data")
    script = f"touch {folder}/data/a && ! touch {folder}/b && ! touch {ROOT}/c && ! touch /d"
    done = subprocess.run(
        restricted(["sh", "-c", script], [folder / "data"]), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "data" / "a").exists()
