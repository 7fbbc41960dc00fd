"""What test_crash_images.py runs in processes of their own: a traced step, and the recovery of what it left.

    prepare CASE START END           write the memory before the traced step, and the columns after it
    step CASE MEMORY                 map the memory and make the step between two SIGSTOPs, traced by the parent
    recover CASE IMAGES END          finish the step in every image; print how many give other columns

A fourth argument is the source of another kernel of the same name, which is used in its place. A case with options has
state in formats of its own.
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
    """Let the module of a file's name in `numba_adam.cpu.kernels` be that file."""
    import numba_adam.cpu.kernels

    stem = os.path.basename(path).removesuffix(".py")
    name = f"numba_adam.cpu.kernels.{stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    setattr(numba_adam.cpu.kernels, stem, sys.modules[name])
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


class FormatsCase(Case):
    """A model whose state has formats of its own: param, then each array of the state, one after the other."""

    def __init__(self, text):
        from numba_adam.cpu.staged_formats import layout_of
        from numba_adam.numerics.staging import words_of

        case = json.loads(text)
        self.sizes, self.dtype, self.chunk = case["sizes"], np.dtype(case["dtype"]), case["chunk"]
        self.hyperparameters, self.present = case["hyperparameters"], case["present"]
        self.options, self.block = case["options"], case["block"]
        self.elements, self.words = sum(self.sizes), words_of(sum(self.sizes), self.chunk)
        self.column_bytes = sum(nbytes for _, _, _, nbytes in self.places())
        self.layout = layout_of(self.arrays(bytearray(self.column_bytes)), self.block)
        self.staging_at = -(-(self.column_bytes + 8 * self.words) // 64) * 64
        self.nbytes = self.staging_at + self.words * self.layout.total_bytes

    def places(self):
        """Return the name, the dtype, the elements of each parameter and the bytes, with padding, of each array."""
        state = self.options.get("state_dtype", self.dtype.name)
        codes = {"bfloat16": np.uint16, "8bit": np.uint8}.get(state, state)
        moments = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if self.hyperparameters.get("amsgrad") else [])]
        names = [("param", self.dtype, self.sizes)]
        for name in moments:
            names.append((name, np.dtype(codes), self.sizes))
            if state == "8bit":
                names.append((f"{name}_scale", np.dtype(np.float32), [-(-size // 128) for size in self.sizes]))
        if "ema_decay" in self.options:
            is_double = "float64" in (state, self.dtype.name)
            names.append(("ema", np.dtype(np.float64 if is_double else np.float32), self.sizes))
        return [(name, dtype, sizes, -(-sum(sizes) * dtype.itemsize // 8) * 8) for name, dtype, sizes in names]

    def columns(self, memory):
        found, begin = {}, 0
        for name, dtype, sizes, nbytes in self.places():
            flat = np.frombuffer(memory, dtype, sum(sizes), begin)
            found[name], begin = np.split(flat, np.cumsum(sizes)[:-1]), begin + nbytes
        return found

    def arrays(self, memory):
        from numba_adam.numerics.eight_bit import EightBit
        from numba_adam.settings.step_arrays import StepArrays

        columns, nothing = self.columns(memory), [None] * len(self.sizes)

        def moment(name):
            if f"{name}_scale" not in columns:
                return columns.get(name, nothing)
            return [EightBit(*pair) for pair in zip(columns[name], columns[f"{name}_scale"], strict=True)]

        moments = map(moment, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
        return StepArrays(columns["param"], *moments, columns.get("ema", nothing), nothing)

    def begin(self, memory, start):
        columns = self.columns(memory)
        for name in ("param", "ema"):
            for array, values in zip(columns.get(name, []), np.split(start, np.cumsum(self.sizes)[:-1]), strict=False):
                array[:] = values

    def update(self, memory):
        from numba_adam.cpu.staged_formats import FormatsUpdate, Staging
        from numba_adam.settings.hyperparameters import Hyperparameters
        from numba_adam.settings.options import Options

        words = np.frombuffer(memory, np.uint8, 8 * self.words, self.column_bytes).view(np.uint64)
        staging = np.frombuffer(memory, np.uint8, self.words * self.layout.total_bytes, self.staging_at)
        hyperparameters, options = Hyperparameters(**self.hyperparameters), Options(**self.options)
        held = Staging(words, staging, self.layout)
        return FormatsUpdate(self.arrays(memory), hyperparameters, options, held, self.chunk, self.block)

    def gradients(self, number):
        flat = np.random.default_rng(number).standard_normal(self.elements).astype(self.dtype)
        cut, present = (
            np.split(flat, np.cumsum(self.sizes)[:-1]),
            self.present if number == 2 else [1] * len(self.sizes),
        )
        return [grad if is_present else None for grad, is_present in zip(cut, present, strict=True)]

    def bytes_of(self, optimizer, params):
        states = [optimizer.state.get(index, {}) for index in range(len(params))]
        parts = []
        for name, _, _, nbytes in self.places():
            arrays = params if name == "param" else [np.asarray(state[name]).ravel() for state in states]
            parts.append(b"".join(array.tobytes() for array in arrays).ljust(nbytes, b"\0"))
        return b"".join(parts)


def case_of(text):
    return FormatsCase(text) if "options" in json.loads(text) else Case(text)


def expected(case, start):
    """Return the columns after step 2, made by the library's optimizer."""
    params = [part.copy() for part in np.split(start, np.cumsum(case.sizes)[:-1])]
    optimizer = na.Adam(params, **case.hyperparameters, **getattr(case, "options", {}))
    for number in (1, 2):
        gradients = case.gradients(number)
        if len(gradients) == 1:
            gradients = np.split(gradients[0], np.cumsum(case.sizes)[:-1])
        optimizer.step(gradients)
    if isinstance(case, FormatsCase):
        return case.bytes_of(optimizer, params)
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
    start = np.random.default_rng(0).standard_normal(case.elements).astype(case.dtype)
    if isinstance(case, FormatsCase):
        case.begin(memory, start)
    else:
        case.columns(memory)[0][:] = start
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
    {"prepare": prepare, "step": step, "recover": recover}[mode](case_of(text), *paths)
