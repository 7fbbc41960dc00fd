"""The log of `numba-adam serve`: its fields as text and as JSON, its levels, and what it never has."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.errors import AccessDeniedError, NonFiniteError, UnauthenticatedError
from numba_adam.server.logs import FIELDS, JsonFormatter

LONG = 800.0
READY = "numba-adam: serving on "
GRADS = {"w": np.ones(10, np.float32)}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("NUMBA_ADAM_")]:
        monkeypatch.delenv(name)


class Run:
    """`numba-adam serve` in a process of its own."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self._log = folder / "log"
        command = [sys.executable, "-m", "numba_adam", "serve", "--listen", "127.0.0.1:0", "--data-dir"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, str(folder / "data"), *words],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env={**os.environ, **environment},
            )
        line = self._process.stdout.readline()
        assert line.startswith(READY), self._log.read_text()
        self.address = line.removeprefix(READY).strip()

    def stop(self) -> str:
        """Stop the server; return its log."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(LONG)
        return self._log.read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def serve(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda *words, **environment: stack.enter_context(
            contextlib.closing(Run(tmp_path, *words, **environment))
        )


def use(address, token=None):
    """Create a model, push twice, push a NaN, take a snapshot, delete the model."""
    with ParameterClient(address, "w0", token=token, tls=False, timeout_seconds=LONG) as client:
        model = client.create_model("digits", {"w": np.ones(10, np.float32)}, durability="memory")
        model.push(GRADS)
        model.push(GRADS)
        with pytest.raises(NonFiniteError):
            model.push({"w": np.full(10, np.nan, np.float32)})
        client.snapshot("digits")
        client.delete_model("digits")


def lines_of(log):
    return [json.loads(line) for line in log.splitlines()]


def the_line(lines, words):
    (found,) = [line for line in lines if words in line["message"]]
    return found


def test_every_line_of_a_json_log_is_an_object_with_the_fields_it_knows(serve):
    run = serve("--log-format", "json", "--log-level", "debug", NUMBA_ADAM_TREADS="3")
    use(run.address)
    lines = lines_of(run.stop())
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    assert the_line(lines, "NUMBA_ADAM_TREADS")["level"] == "warning"  # it came before the settings were known
    opened = the_line(lines, "opened session 1")
    assert {name: opened[name] for name in FIELDS if name in opened} == {
        "model": "digits",
        "worker": "w0",
        "version": 0,
    }
    pushes = [line for line in lines if ": push " in line["message"]]
    assert [(line["model"], line["worker"], line["request"], line["version"]) for line in pushes] == [
        ("digits", "w0", f"w0/1/{number}", version) for number, version in ((1, 1), (2, 2), (3, 2))
    ]
    assert ["failed with NonFiniteError" in line["message"] for line in pushes] == [False, False, True]
    assert the_line(lines, "snapshot of version 2")["version"] == 2
    assert the_line(lines, "deleted")["model"] == "digits"
    assert len(the_line(lines, "created with")["request"]) == 32
    about_models = [line for line in lines if line["message"].startswith("model ")]
    assert {line["model"] for line in about_models} == {"digits"}


def test_a_text_log_has_the_lines_it_always_had_and_no_pushes(serve):
    run = serve()
    use(run.address)
    log = run.stop()
    assert " INFO numba_adam.server.embedded: serving on 127.0.0.1:" in log
    assert "model digits: worker 'w0' opened session 1 at version 0" in log
    assert ": push " not in log


def test_a_higher_level_has_fewer_lines(serve):
    run = serve("--log-level", "error")
    use(run.address)
    assert run.stop() == ""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_log_ever_has_a_token(serve, tmp_path, capsys, log_format):
    def make(name, *words):
        capsys.readouterr()
        assert main(["token", "make", name, *words, "--data-dir", str(tmp_path / "data")]) == 0
        return capsys.readouterr().out.strip()

    admin, weak = make("admin", "--admin", "*"), make("weak", "--pull", "digits")
    run = serve("--loopback-token", "required", "--log-format", log_format, "--log-level", "debug")
    use(run.address, admin)
    wrong = {weak: AccessDeniedError, admin[:-3]: UnauthenticatedError, f"{weak}x": UnauthenticatedError}
    for token, error in wrong.items():
        client = ParameterClient(run.address, token=token, tls=False, timeout_seconds=LONG)
        with client, pytest.raises(error):
            client.create_model("other", {"w": np.ones(10, np.float32)})
    log = run.stop()
    assert "opened session 1" in log
    assert not [secret for secret in (admin, weak, admin[:-3], "nat_", admin[4:20], weak[4:20]) if secret in log]


def record(message, *args, **fields):
    found = logging.LogRecord("numba_adam.server", logging.INFO, "file", 1, message, args, None)
    vars(found).update(fields)
    return found


def test_a_message_of_several_lines_stays_in_one():
    line = JsonFormatter().format(record("a\nb\r\u2028%s", 'c"}\n{'))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == 'a\nb\r\u2028c"}\n{'


def test_an_exception_is_a_field():
    try:
        raise ValueError("wrong")
    except ValueError:
        found = record("model %s: failed", "m")
        found.exc_info = sys.exc_info()
    line = json.loads(JsonFormatter().format(found))
    assert line["exception"].splitlines()[-1] == "ValueError: wrong"
    assert line["model"] == "m"


def test_a_setting_that_is_wrong_is_reported_after_the_lines_before_it(tmp_path):
    command = [sys.executable, "-m", "numba_adam", "serve", "--data-dir", str(tmp_path), "--log-format", "xml"]
    run = subprocess.run(
        command,
        env={**os.environ, "NUMBA_ADAM_TREADS": "3"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
        cwd=tmp_path,
    )
    assert run.returncode != 0
    assert run.stderr.index("NUMBA_ADAM_TREADS") < run.stderr.index("log_format='xml': it must be 'text' or 'json'")
