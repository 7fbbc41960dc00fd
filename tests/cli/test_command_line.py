"""The command `numba-adam` as a user meets it: help, version, exit statuses, one line for an error."""

import subprocess
import sys
from pathlib import Path

import pytest

import numba_adam
from numba_adam.cli import main

COMMANDS = ("serve", "status", "snapshot", "demo", "doctor")


def run(*words: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process in which some modules cannot be imported."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); from numba_adam.cli import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False, timeout=60
    )


def test_version() -> None:
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


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_teaches_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert f"\n  numba-adam {command}" in shown


@pytest.mark.parametrize(
    "words", [["fly"], ["--fly"], ["doctor", "--fly"], ["status", "extra"], ["demo", "--steps", "1"]]
)
def test_a_command_line_that_makes_no_sense_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
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
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(command: str, blocked: str, extra: str) -> None:
    result = run(command, blocked=(blocked,))
    assert result.returncode == 1
    assert f"in your clone of numba-adam, run: pip install -e '.[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_of_ours_is_one_line_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--listen", "0.0.0.0:50051"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("numba-adam: listen='0.0.0.0:50051'")
    assert shown.count("\n") == 1


def test_a_server_that_is_not_there_is_an_error_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--server", "127.0.0.1:1", "--timeout-seconds", "0.5"]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err
