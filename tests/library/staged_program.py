"""What test_crash_images.py runs in processes of their own: a traced step, and the recovery of what it left.

    prepare CASE START END           write the memory before the traced step, and the columns after it
    step CASE MEMORY                 map the memory and make the step between two SIGSTOPs, traced by the parent
    recover CASE IMAGES END          finish the step in every image; print how many give other columns

A fourth argument is the source of another `numba_adam.cpu.kernels.staged`, which is used in its place.
"""

import ctypes
import importlib.util
import json
import mmap
import os
import signal
import sys

import numpy as np

import numba_adam as na

PTRACE_TRACEME = 0


def replace_kernel(path):
    """Let `numba_adam.cpu.kernels.staged` be the module in another file."""
    import numba_adam.cpu.kernels

    name = "numba_adam.cpu.kernels.staged"
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = numba_adam.cpu.kernels.staged = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


class Case:
    """A model in memory: its columns, its words and its stagings, one after the other."""

    def __init__(self, text):
        from numba_adam.numerics.staging import staging_of, words_of

        case = json.loads(text)
        self.sizes, self.dtype, self.chunk = case["sizes"], np.dtype(case["dtype"]), case["chunk"]
        self.hyperparameters, self.present = case["hyperparameters"], case["present"]
        self.elements = sum(self.sizes)
        self.count = 4 if self.hyperparameters.get("amsgrad") else 3
        self.words = words_of(self.elements, self.chunk)
        self.staging = staging_of(self.elements, self.count, self.chunk)
        self.column_bytes = self.count * self.elements * self.dtype.itemsize
        self.nbytes = self.column_bytes + 8 * self.words + self.staging * self.dtype.itemsize

    def columns(self, memory):
        return list(np.frombuffer(memory, self.dtype, self.count * self.elements).reshape(self.count, -1))

    def update(self, memory):
        from numba_adam.cpu.staged import StagedUpdate
        from numba_adam.settings.hyperparameters import Hyperparameters

        words = np.frombuffer(memory, np.uint64, self.words, self.column_bytes)
        staging = np.frombuffer(memory, self.dtype, self.staging, self.column_bytes + 8 * self.words)
        columns, hyperparameters = self.columns(memory), Hyperparameters(**self.hyperparameters)
        return StagedUpdate(columns, self.sizes, hyperparameters, words, staging, self.chunk)

    def gradients(self, number):
        """Return the gradients of step 1 or 2; all arrays have one in step 1."""
        random = np.random.default_rng(number)
        flat = random.standard_normal(self.elements).astype(self.dtype)
        if number == 1 or all(self.present):
            return [flat]
        cut = np.split(flat, np.cumsum(self.sizes)[:-1])
        return [grad if is_present else None for grad, is_present in zip(cut, self.present, strict=True)]

    def launches(self, update, number):
        gradients = self.gradients(number)
        counts = [number - 1] * (1 if len(gradients) == 1 else len(self.sizes))
        return update.steps(gradients, counts, number)

    def step(self, update, number):
        for _ in self.launches(update, number):
            pass


def expected(case, start):
    """Return the columns after step 2, made by the library's optimizer."""
    params = [part.copy() for part in np.split(start, np.cumsum(case.sizes)[:-1])]
    optimizer = na.Adam(params, **case.hyperparameters)
    for number in (1, 2):
        gradients = case.gradients(number)
        if len(gradients) == 1:
            gradients = np.split(gradients[0], np.cumsum(case.sizes)[:-1])
        optimizer.step(gradients)
    states = [optimizer.state[index] for index in range(len(params))]
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: case.count - 1]
    return b"".join(
        [
            np.concatenate(params).tobytes(),
            *(np.concatenate([state[name] for state in states]).tobytes() for name in names),
        ]
    )


def prepare(case, start_path, end_path):
    memory = bytearray(case.nbytes)
    case.columns(memory)[0][:] = start = np.random.default_rng(0).standard_normal(case.elements).astype(case.dtype)
    with open(end_path, "wb") as file:
        file.write(expected(case, start.copy()))
    case.step(case.update(memory), 1)
    with open(start_path, "wb") as file:
        file.write(memory)


def step(case, path):
    memory = mmap.mmap(os.open(path, os.O_RDWR), case.nbytes)
    copy = bytearray(memory)
    case.step(case.update(copy), 2)  # compiles
    launches = case.launches(case.update(memory), 2)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_TRACEME, 0, None, None):
        sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
    os.kill(os.getpid(), signal.SIGSTOP)
    for _ in launches:
        pass
    os.kill(os.getpid(), signal.SIGSTOP)


def recover(case, images_path, end_path):
    images, end, wrong = open(images_path, "rb").read(), open(end_path, "rb").read(), 0  # noqa: SIM115
    for begin in range(0, len(images), case.nbytes):
        memory = bytearray(images[begin : begin + case.nbytes])
        case.step(case.update(memory), 2)
        wrong += memory[: case.column_bytes] != end
    sys.stdout.write(f"{wrong}\n")


if __name__ == "__main__":
    mode, text, *paths = sys.argv[1:]
    if len(paths) == (2 if mode == "step" else 3):
        replace_kernel(paths.pop())
    {"prepare": prepare, "step": step, "recover": recover}[mode](Case(text), *paths)
