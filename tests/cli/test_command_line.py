"""The command `numba-adam`: help, version, exit statuses, and one-line errors."""

import argparse
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import numba_adam
from numba_adam.cli import connection, main
from numba_adam.errors import ServerUnavailableError

COMMANDS = (
    "serve", "status", "snapshot", "verify", "restore", "export", "import", "snapshot-key", "certificate", "token",
    "login", "demo", "climb", "warmup", "doctor",
)  # fmt: skip


def run(*words: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process in which some modules cannot be imported."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); from numba_adam.cli import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False, timeout=800
    )


def test_version_prints_the_version() -> None:
    for command in (["-m", "numba_adam"], [str(Path(sys.executable).parent / "numba-adam")]):
        words = [sys.executable, *command] if command[0] == "-m" else command
        result = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True, timeout=800)
        assert result.stdout == f"numba-adam {numba_adam.__version__}\n"


def test_version_needs_the_base_dependencies_only() -> None:
    result = run("--version", blocked=("grpc", "google", "xxhash", "sklearn", "matplotlib", "numba"))
    assert (result.returncode, result.stdout) == (0, f"numba-adam {numba_adam.__version__}\n")


def test_help_names_every_command_and_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {command}" in shown for command in COMMANDS)
    assert "examples:" in shown


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert f"\n  numba-adam {command}" in shown


@pytest.mark.parametrize(
    "words", [["fly"], ["--fly"], ["doctor", "--fly"], ["status", "extra"], ["demo", "--steps", "1"]]
)
def test_an_invalid_command_line_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 2
    assert "usage: numba-adam" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "blocked", "extra"),
    [
        ("serve", "grpc", "server"),
        ("status", "grpc", "client"),
        ("snapshot", "google", "client"),
        ("demo", "sklearn", "demo"),
        ("certificate ca", "cryptography", "certificate"),
        ("climb", "matplotlib", "demo"),
        ("export folder model x.safetensors", "safetensors", "safetensors"),
        ("import folder model x.safetensors", "safetensors", "safetensors"),
    ],
)
def test_a_missing_extra_is_reported_with_its_install_command(command: str, blocked: str, extra: str) -> None:
    result = run(*command.split(), blocked=(blocked,))
    assert result.returncode == 1
    assert f"in your clone of numba-adam, run: pip install -e '.[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_of_ours_is_one_line_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--listen", "0.0.0.0:50051"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("numba-adam: listen='0.0.0.0:50051'")
    assert shown.count("\n") == 1


CLIENTS = [["status"], ["status", "--json"], ["snapshot"], ["snapshot", "--model", "digits"]]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound but not listening, so that no other process takes it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("words", CLIENTS)
def test_a_refused_connection_is_reported_at_once_with_advice(
    words: list[str], closed_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """With retries, as in a training program, this test would time out."""
    for server in (f"127.0.0.1:{closed_port}", f"localhost:{closed_port}"):
        assert main([*words, "--server", server, "--timeout-seconds", "100000"]) == 1
        shown = capsys.readouterr()
        advice = f"start a server with: numba-adam serve --listen {server}"
        assert (shown.out, shown.err) == ("", f"numba-adam: nothing listens on {server}; {advice}\n")


def test_the_advice_for_the_default_server_needs_no_options(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    server = f"127.0.0.1:{closed_port}"
    monkeypatch.setattr(connection, "DEFAULT_SERVER", server)
    arguments = argparse.Namespace(server=server, timeout_seconds=100000.0)
    with (
        pytest.raises(ServerUnavailableError, match=r"; start a server with: numba-adam serve$"),
        connection.connect(arguments) as client,
    ):
        client.list_models()


@pytest.mark.parametrize("words", CLIENTS)
def test_an_unknown_host_is_reported_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--server", "nowhere.invalid:1", "--timeout-seconds", "100000"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("numba-adam: nowhere.invalid:1 cannot be reached: ")
    assert shown.count("nowhere.invalid:1 cannot be reached") == shown.count("\n") == 1


@pytest.mark.parametrize("words", CLIENTS)
def test_a_silent_listener_and_a_missing_one_have_different_errors(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        assert main([*words, "--server", server, "--timeout-seconds", "0.3"]) == 1
    assert capsys.readouterr().err.startswith(f"numba-adam: {server}: no answer within 0.3 s; ")


@pytest.mark.slow
@pytest.mark.parametrize("words", CLIENTS)
def test_ctrl_c_exits_with_130_and_one_line(words: list[str]) -> None:
    """The server accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(800)
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "numba_adam", *words, "--server", server, "--timeout-seconds", "100000"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            asking, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=800)
        finally:
            process.kill()
            process.wait()
        asking.close()
    assert (process.returncode, out, errors) == (130, "", "numba-adam: interrupted\n")


def test_warmup_says_what_it_makes_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["warmup", "float32", "--sizes", "small"]) == 0
    kind, made = capsys.readouterr().out.splitlines()
    assert kind.startswith("1/1 float32 ... ")
    assert kind.endswith(" s")
    counts, where = made.split(" MB in ")
    compiled, there = (int(part.split()[0]) for part in counts.split(": ")[0].split(", "))
    assert compiled + there >= 5
    assert len(list(Path(where).glob("*.nbc"))) == compiled + there


@pytest.mark.parametrize("words", [["int8"], ["float32", "int8"], ["--sizes", "medium"]])
def test_warmup_refuses_what_it_does_not_know(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["warmup", *words])
    assert exit_info.value.code == 2
    assert words[-1] in capsys.readouterr().err
