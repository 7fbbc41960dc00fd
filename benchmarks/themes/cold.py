"""The first second: the processor time of programs in a new installation, whose cache of kernels is empty.

The figures are user plus system time of a process and its children, from after `import numpy` until its first step
returns. Beside each program, in turns, runs the smallest parallel kernel of Numba alone.
"""

from __future__ import annotations

import functools
import os
import tempfile

from benchmarks.case import Bar, Case, Measurement, MissingError, Quantity, Settings
from benchmarks.process import answer_of

_TURNS = 5
_MEASURED = """
import os
import resource
import numpy as np

def spent():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

before = spent()
{program}
print(spent() - before)
"""
_NUMBA = """
import numba

@numba.njit(parallel=True)
def increment(array):
    for index in numba.prange(array.size):
        array[index] += 1

increment(np.zeros(1000))
"""
_NUMPY = """
import numba_adam as na
x = np.random.default_rng(0).standard_normal(1000)
y = 3 * x - 2
params = {"slope": np.zeros(1), "offset": np.zeros(1)}
opt = na.Adam(params, lr=0.1)
error = params["slope"] * x + params["offset"] - y
opt.step({"slope": 2 * (error * x).mean(keepdims=True), "offset": 2 * error.mean(keepdims=True)})
"""
_FLOAT32 = """
import numba_adam as na
param, grad = np.ones(ELEMENTS, np.float32), np.ones(ELEMENTS, np.float32)
na.Adam(param).step(grad)
"""
_TORCH = """
import torch
import numba_adam as na
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
opt = na.AdamW(model.named_parameters(), lr=1e-2, eps_mode="algorithm1")
x = torch.randn(256, 4)
y = torch.sin(x.sum(dim=1, keepdim=True))
loss = torch.nn.functional.mse_loss(model(x), y)
loss.backward()
grads = {name: param.grad for name, param in model.named_parameters()}
opt.step(grads, max_grad_norm=1.0, zero_grad=True)
"""
_JAX = """
import jax
import jax.numpy as jnp
import numba_adam as na

def loss(params, x, y):
    hidden = jnp.tanh(x @ params["hidden"])
    return jnp.mean((hidden @ params["out"] - y) ** 2)

random = np.random.default_rng(0)
x = random.standard_normal((256, 4), dtype=np.float32)
y = np.sin(x.sum(axis=1, keepdims=True))
params = {"hidden": random.standard_normal((4, 16), dtype=np.float32) / 2, "out": np.zeros((16, 1), dtype=np.float32)}
opt = na.Adam(params, lr=1e-2, eps_mode="algorithm1")
value, grads = jax.jit(jax.value_and_grad(loss))(params, x, y)
opt.step(grads)
"""
_EXTRAS = """
import numba_adam as na
w = np.ones(10_000, np.float32)
opt = na.AdamW(
    [w],
    lr=lambda step: 1e-3 * min(1.0, step / 100),
    state_dtype="8bit",
    ema_decay=0.999,
    low_precision_copy="bfloat16",
)
opt.step([65536 * w], loss_scale=65536, max_grad_norm=1.0, zero_grad=True)
"""
_WARMUP = "import numba_adam as na; na.warmup(KINDS)"
# The server is a child of the measured process, and has ended when its time is read.
_SERVICE = """
import signal
import subprocess
import sys
import tempfile
from numba_adam.client import ParameterClient

with tempfile.TemporaryDirectory() as folder:
    command = (sys.executable, "-m", "numba_adam", "serve", "--listen", "127.0.0.1:0", "--data-dir", folder)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().rpartition(" ")[2].strip()
        with ParameterClient(address) as client:
            model = client.create_model("digits", {"w": np.ones(10, np.float32)}, lr=1e-3, durability="process")
            model.push({"w": np.ones(10, np.float32)})
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
        server.stdout.close()
"""
# From the call to the answer, in wall time: the server has compiled before it said that it serves.
_PUSH = _SERVICE.replace(
    "            model.push({", "            import time; begin = time.perf_counter()\n            model.push({"
).replace("    finally:", "            seconds = time.perf_counter() - begin\n    finally:", 1)


def _cold(program: str, module: str = "numba") -> float:
    """Return the processor seconds of a program whose cache of kernels is empty.

    Raises:
        MissingError: a module that it needs cannot be imported.
    """
    try:
        answer_of(f"import {module}")
    except RuntimeError as error:
        raise MissingError(f"{module} does not run here") from error
    return float(_answer(_MEASURED.format(program=program)))


def _answer(program: str) -> str:
    """Return the last line that a program prints in a new interpreter with an empty cache of kernels."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("NUMBA_CACHE_DIR")
        os.environ["NUMBA_CACHE_DIR"] = folder
        try:
            return answer_of(program)
        finally:
            os.environ.pop("NUMBA_CACHE_DIR")
            if before is not None:
                os.environ["NUMBA_CACHE_DIR"] = before


def _program(program: str, module: str, settings: Settings) -> Measurement:  # noqa: ARG001 - there is nothing to set
    """Compare a program with Numba's smallest parallel kernel, turn by turn."""
    pairs: list[tuple[float, float | None]] = [(_cold(program, module), _cold(_NUMBA)) for _ in range(_TURNS)]
    return Measurement(pairs, {"cache": "empty", "seconds": "user and system, of the process and its children"})


def _first_push(settings: Settings) -> Measurement:  # noqa: ARG001 - there is nothing to set
    """Time the first push to a new server whose cache of kernels was empty when it started."""
    program = "import numpy as np\n" + _PUSH + "print(seconds)"
    pairs: list[tuple[float, float | None]] = [(float(_answer(program)), None) for _ in range(_TURNS)]
    notes = {"cache": "empty when the server starts", "seconds": "wall time of the push", "durability": "process"}
    return Measurement(pairs, notes)


def _case(name: str, title: str, program: str, limit: float | None, module: str = "numba") -> Case:
    return Case(
        name=f"cold/{name}",
        title=title,
        peer="import numba, and one trivial parallel kernel",
        quantity=Quantity.VALUE,
        bar=None if limit is None else Bar(limit),
        run=functools.partial(_program, program, module),
    )


CASES: tuple[Case, ...] = (
    _case("first", "first step of 1,000 float32, kernels not compiled yet", _FLOAT32.replace("ELEMENTS", "1_000"), 3),
    _case("first-large", "first step of 1 million float32, likewise", _FLOAT32.replace("ELEMENTS", "1_000_000"), 3),
    _case("readme-numpy", "README, NumPy: until the first step returns", _NUMPY, None),
    _case("readme-torch", "README, PyTorch: until the first step returns", _TORCH, 8, "torch"),
    _case("readme-jax", "README, JAX: until the first step returns", _JAX, None, "jax"),
    _case("readme-extras", "README, more work in the same pass: until the first step returns", _EXTRAS, None),
    _case("service", "new server, one model, first push: both processes", _SERVICE, 8, "grpc"),
    Case(
        name="cold/first-push",
        title="first push to a new server, wall time",
        quantity=Quantity.VALUE,
        bar=Bar(1),
        run=_first_push,
    ),
    _case("warmup", "warmup(), everything", _WARMUP.replace("KINDS", ""), 40),
    _case("warmup-float32", 'warmup("float32")', _WARMUP.replace("KINDS", '"float32"'), None),
)
