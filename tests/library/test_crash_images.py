"""A staged update that dies at any instruction is finished by the next process with the bits of one that did not.

The step is executed one instruction at a time, and the memory is copied whenever it has changed: these are all states
in which a process can die. Each is recovered by another process and compared with the library's plain update.
Protocols that are broken on purpose must leave states from which the recovery is wrong: else this would prove nothing.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("staged_program.py")
KERNELS = PROGRAM.parents[2] / "numba_adam" / "cpu" / "kernels"
PTRACE_CONT, PTRACE_SINGLESTEP = 7, 9
LONGEST_SECONDS = 800

pytestmark = [pytest.mark.campaign, pytest.mark.skipif(sys.platform != "linux", reason="ptrace is Linux's")]

CASES = {
    "one array in three chunks": {"sizes": [1400], "dtype": "float32"},
    "float64": {"sizes": [700], "dtype": "float64"},
    "arrays that divide blocks": {"sizes": [100, 300, 1, 0, 700], "dtype": "float32"},
    "arrays without a gradient": {"sizes": [100, 300, 1, 700], "dtype": "float32", "present": [1, 0, 1, 0]},
    "AMSGrad": {"sizes": [600], "dtype": "float32", "hyperparameters": {"lr": 0.1, "amsgrad": True}},
}

DIVIDED = {"sizes": [100, 300, 1, 0, 129], "dtype": "float32", "chunk": 256, "block": 128}
FORMATS = {
    "8 bits": {**DIVIDED, "options": {"state_dtype": "8bit", "seed": 5}},
    "8 bits in blocks of several scales": {**DIVIDED, "block": 256, "options": {"state_dtype": "8bit"}},
    "8 bits, an average and decay": {
        **DIVIDED,
        "options": {"state_dtype": "8bit", "ema_decay": 0.5},
        "hyperparameters": {"lr": 0.1, "weight_decay": 0.1},
    },
    "AMSGrad in 8 bits": {
        **DIVIDED,
        "options": {"state_dtype": "8bit"},
        "hyperparameters": {"lr": 0.1, "amsgrad": True},
    },
    "arrays in 8 bits without a gradient": {**DIVIDED, "options": {"state_dtype": "8bit"}, "present": [1, 0, 1, 0, 1]},
    "bfloat16": {**DIVIDED, "options": {"state_dtype": "bfloat16"}},
    "bfloat16 rounded at random": {
        **DIVIDED,
        "options": {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 3, "ema_decay": 0.9},
    },
    "an average": {**DIVIDED, "options": {"ema_decay": 0.9}},
    "double": {**DIVIDED, "options": {"state_dtype": "float64", "ema_decay": 0.9}},
    "a float64 model": {**DIVIDED, "dtype": "float64", "options": {"state_dtype": "float32", "ema_decay": 0.9}},
}

BROKEN_FORMATS = {
    "the word is stored before the staging is complete": (
        """                    operands = operands_of(plan,""",
        """                    if is_staged:
                        store_word(address, first + done + np.uint64(1))
                    operands = operands_of(plan,""",
    ),
    "the update is in place": (
        "    if staging == 0:\n        return o\n",
        "    if staging == 0 or begin + np.uint64(1) > np.uint64(0):\n        return o\n",
    ),
    "a complete staging is made anew": ("if state < done + np.uint64(1):", "if state < done + np.uint64(2):"),
    "the word is stored before the block is in place": (
        """                    _copy_block(plan, row, job, staging, here, np.uint64(size), True)
                    store_word(address, first + (done if begin + size < end else np.uint64(DONE)))""",
        """                    store_word(address, first + (done if begin + size < end else np.uint64(DONE)))
                    _copy_block(plan, row, job, staging, here, np.uint64(size), True)""",
    ),
    "words do not know the number of the update": ("job[NUMBER] * np.uint64(STATES)", "np.uint64(0)"),
    "scales are not staged": (
        "        if address != 0 and format_ == EIGHT_BIT:\n            skip",
        "        if address != 0 and format_ == EIGHT_BIT and not is_back:\n            skip",
    ),
}

BROKEN = {
    "the word is stored before the staging is complete": (
        "            _stage(plan, job, count, k, chunk, begin, size)\n            state += np.uint64(1)\n",
        "            state += np.uint64(1)\n            store_word(address, first + state)\n"
        "            _stage(plan, job, count, k, chunk, begin, size)\n",
    ),
    "the update is in place": (
        "            store_word(address, first + state)\n        for column",
        "        for column",
    ),
    "a complete staging is made anew": ("if state & np.uint64(1) == np.uint64(0):", "if True:"),
    "the word is stored before the block is in place": (
        "        for column in range(job[COLUMNS]):\n"
        "            _copy(_staged(job, chunk, column, np.uint64(0), size, like), "
        "_placed(job, column, begin, size, like))\n"
        "        state += np.uint64(1)\n"
        "        store_word(address, first + state)\n",
        "        state += np.uint64(1)\n"
        "        store_word(address, first + state)\n"
        "        for column in range(job[COLUMNS]):\n"
        "            _copy(_staged(job, chunk, column, np.uint64(0), size, like), "
        "_placed(job, column, begin, size, like))\n",
    ),
    "words do not know the number of the update": ("job[NUMBER] * np.uint64(STATES)", "np.uint64(0)"),
}


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def images_of(case, memory, *kernel, **environment):
    """Return the memory after every instruction of a step that changed it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    command = [sys.executable, str(PROGRAM), "step", case, str(memory), *map(str, kernel)]
    images = [memory.read_bytes()]
    descriptor = os.open(memory, os.O_RDONLY)
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True) as child:
        try:
            _, status = os.waitpid(child.pid, 0)
            if os.WIFEXITED(status):
                child.returncode = os.waitstatus_to_exitcode(status)
                message = child.stderr.read()
                if "ptrace" in message:
                    pytest.skip(f"this system forbids tracing: {message}")
                raise AssertionError(message)
            while True:
                assert libc.ptrace(PTRACE_SINGLESTEP, child.pid, None, None) == 0
                _, status = os.waitpid(child.pid, 0)
                assert os.WIFSTOPPED(status), status
                if os.WSTOPSIG(status) == signal.SIGSTOP:
                    break
                now = os.pread(descriptor, len(images[0]), 0)
                if now != images[-1]:
                    images.append(now)
        finally:
            child.kill()
            os.close(descriptor)
    return images


@pytest.fixture
def prepared(tmp_path):
    """Return a function that writes a case's memory, and returns the case, the path, and that of the columns after."""

    def prepare(case):
        case = {"chunk": 512, "hyperparameters": {"lr": 0.1}, "present": [1] * len(case["sizes"]), **case}
        text, memory, end = json.dumps(case), tmp_path / "memory", tmp_path / "end"
        run("prepare", text, memory, end)
        return text, memory, end

    return prepare


def wrong_of(images, path, case, end, *kernel, **environment):
    """Return how many images are recovered wrongly."""
    path.write_bytes(b"".join(images))
    return int(run("recover", case, path, end, *kernel, **environment))


@pytest.mark.parametrize("name", [*CASES, *FORMATS])
def test_every_state_in_which_a_process_can_die_is_recovered(name, prepared, tmp_path):
    case, memory, end = prepared({**CASES, **FORMATS}[name])
    images = images_of(case, memory)
    assert len(images) > 100
    assert images[-1].startswith(end.read_bytes())
    assert wrong_of(images, tmp_path / "images", case, end) == 0


@pytest.mark.parametrize("name", ["one array in three chunks", "8 bits, an average and decay", "bfloat16"])
def test_a_recovery_that_dies_is_recovered(name, prepared, tmp_path):
    case, memory, end = prepared({**CASES, **FORMATS}[name])
    images = images_of(case, memory)
    for index in (len(images) // 5, len(images) // 2, len(images) * 4 // 5):
        memory.write_bytes(images[index])
        again = images_of(case, memory)
        assert len(again) > 10
        assert wrong_of(again, tmp_path / "images", case, end) == 0


def broken(name, change, folder):
    """Write a kernel with a change; return its path."""
    source, kernel = (KERNELS / name).read_text(), folder / name
    assert source.count(change[0]) == 1
    kernel.write_text(source.replace(*change))
    return kernel


@pytest.mark.parametrize("name", BROKEN_FORMATS)
def test_a_broken_protocol_for_formats_is_noticed(name, prepared, tmp_path):
    case, memory, end = prepared(FORMATS["8 bits"])
    kernel = broken("staged_formats.py", BROKEN_FORMATS[name], tmp_path)
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    images = images_of(case, memory, kernel, **environment)
    assert wrong_of(images, tmp_path / "images", case, end, kernel, **environment) > 0


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_protocol_is_noticed(name, prepared, tmp_path):
    case, memory, end = prepared(CASES["one array in three chunks"])
    kernel = broken("staged.py", BROKEN[name], tmp_path)
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    images = images_of(case, memory, kernel, **environment)
    assert wrong_of(images, tmp_path / "images", case, end, kernel, **environment) > 0
