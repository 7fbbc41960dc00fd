"""Workers in other languages find the token that a server on loopback has written for its user."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from numba_adam.client import ParameterClient

LONG = 800
LANGUAGES = pytest.mark.parametrize(("language", "model"), [("node", "digits-node"), ("cpp", "regression-cpp")])
pytestmark = pytest.mark.languages


@pytest.fixture
def command(language: str, node, cpp) -> Callable[..., list[str]]:
    return {"node": node, "cpp": cpp}[language]


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch) -> Path:
    """A folder of settings of its own, for the server and its workers."""
    for name in [name for name in os.environ if name.startswith("NUMBA_ADAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    return tmp_path / "configuration"


@pytest.fixture
def server(start_server):
    """A server that makes a token at each start."""
    return start_server("--loopback-token", "required")


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=LONG)


def token_file(configuration: Path, address: str) -> Path:
    (path,) = (configuration / "numba-adam" / "loopback").glob(f"*-{address.rpartition(':')[2]}.token")
    return path


@LANGUAGES
def test_a_worker_finds_the_token_of_a_server_of_its_user(server, command, language, model) -> None:
    done = run(command(server.address, 5))
    assert done.returncode == 0, done.stderr
    with ParameterClient(server.address, timeout_seconds=LONG) as client:
        assert client.open_model(model).version == 5


@LANGUAGES
def test_the_token_of_the_environment_comes_before_the_file(server, command, language, model) -> None:
    done = run(command(server.address, 5), NUMBA_ADAM_TOKEN="another")
    assert done.returncode != 0
    assert "token" in done.stderr


@LANGUAGES
def test_without_xdg_config_home_the_file_is_in_the_home_folder(
    server, configuration, tmp_path, command, language, model
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    configuration.rename(home / ".config")
    done = run(command(server.address, 5), HOME=str(home), XDG_CONFIG_HOME="")
    assert done.returncode == 0, done.stderr


@LANGUAGES
@pytest.mark.parametrize("fault", ["readable by its group", "a link"])
def test_a_token_file_that_others_may_read_or_replace_is_not_used(
    server, configuration, command, language, model, fault
) -> None:
    path = token_file(configuration, server.address)
    if fault == "a link":
        path.symlink_to(path.rename(path.with_name("elsewhere")))
    else:
        path.chmod(0o640)
    done = run(command(server.address, 5))
    assert done.returncode != 0
    assert "token" in done.stderr


@LANGUAGES
def test_a_worker_follows_a_server_that_starts_again_with_another_token(
    server, configuration, train_through_a_kill, command, language, model
) -> None:
    first = token_file(configuration, server.address).read_text()
    train_through_a_kill(*command(server.address, 2000))
    assert token_file(configuration, server.address).read_text() != first
    with ParameterClient(server.address, timeout_seconds=LONG) as client:
        assert client.open_model(model).version == 2000
