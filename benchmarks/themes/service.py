"""The parameter server compared with a bare gRPC stream of the same bytes; and the imports of its client.

Every server runs in its own process; the client's turns alternate in one process.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import bare_stream
from benchmarks.case import Bar, Case, Measurement, Quantity, Settings, Unit
from benchmarks.contestants.contestant import DisagreementError, load
from benchmarks.measure import interleave
from benchmarks.process import answer_of, serving
from benchmarks.workload import Array, Workload, check_usual, one_array

_ELEMENTS = 25_000_000  # 100 MB of float32
_ANNOUNCES = "numba-adam: serving on "
_MODEL = "benchmark"
_CLIENT = """
import sys
import numpy as np
from numba_adam.client import ParameterClient
with ParameterClient({address!r}) as client:
    model = client.create_model("imports", {{"w": np.ones(1000, dtype=np.float32)}})
    model.push({{"w": np.ones(1000, dtype=np.float32)}})
    model.pull()
print(sum(name.split(".")[0] in ("numba", "llvmlite") for name in sys.modules))
"""


@contextlib.contextmanager
def parameter_server() -> Iterator[str]:
    """Run a server without automatic snapshots, because the comparison excludes writes to disk."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ("--listen", "127.0.0.1:0", "--data-dir", "data")
        quiet = ("--snapshot-interval-seconds", "0", "--snapshot-every-pushes", "0")
        with serving("-m", "numba_adam", "serve", *arguments, *quiet, announces=_ANNOUNCES, cwd=folder) as address:
            yield address


def _push(
    chunks: Callable[[memoryview], Callable[[], Iterator[bytes]]], settings: Settings, durability: str = "memory"
) -> Measurement:
    """Compare a push that is applied with a bare stream of the same bytes.

    Args:
        chunks: takes the payload, returns a function that returns the bare stream's messages.
        settings: settings of the run.
        durability: the model's level.
    """
    grpc = load("grpc")
    client_of = load("numba_adam.client").ParameterClient
    workload = one_array(settings.elements(_ELEMENTS))
    (param,), (grad,) = workload.params(), workload.grads()
    messages = chunks(grad.view(np.uint8).data)
    with (
        parameter_server() as address,
        serving("-m", "benchmarks.bare_stream", announces=bare_stream.ANNOUNCES) as bare_address,
        client_of(address) as client,
        grpc.insecure_channel(bare_address) as channel,
    ):
        model = client.create_model(_MODEL, {"w": param}, durability=durability)
        grads = {"w": grad}
        pairs = interleave(lambda: model.push(grads), lambda: bare_stream.push(channel, messages()), settings)
        _check_applied(workload, model)
        client.delete_model(_MODEL)  # otherwise the server would write a snapshot at its stop
    notes = {"bytes pushed": f"{grad.nbytes:,}", "chunk bytes": f"{bare_stream.CHUNK_BYTES:,}"}
    return Measurement(pairs, {**notes, "durability": model.last_ack.durability})


def _check_applied(workload: Workload, model: Any) -> None:
    """Check that the server's parameters equal those of the library after the same steps, bit for bit.

    Raises:
        DisagreementError: they differ.
        UnusualError: the moments have subnormal numbers, infinities or NaN.
    """
    import numba_adam as na

    pulled: Array = model.pull()["w"]
    (param,), (grad,) = workload.params(), workload.grads()
    optimizer = na.Adam(param)
    for _ in range(model.version):
        optimizer.step(grad)
    check_usual([optimizer.state[0]["exp_avg"], optimizer.state[0]["exp_avg_sq"]], "the moments")
    if not np.array_equal(param, pulled):
        raise DisagreementError(f"after {model.version} pushes the server's parameters are not those of as many steps")


def _cut_when_sent(payload: memoryview) -> Callable[[], Iterator[bytes]]:
    return lambda: bare_stream.cut(payload)


def _cut_beforehand(payload: memoryview) -> Callable[[], Iterator[bytes]]:
    ready = list(bare_stream.cut(payload))
    return lambda: iter(ready)


def _beside_rpc(
    step: Callable[[Any, Any], Any], settings: Settings, *, returns: bool, wire_dtype: str | None
) -> Measurement:
    """Compare a step of ours with a call of torch.distributed.rpc that sends as many float32 elements.

    Args:
        step: takes the model and its gradients.
        settings: settings of the run.
        returns: whether the call returns as many elements too.
        wire_dtype: see Model.wire_dtype.
    """
    from benchmarks import torch_rpc

    client_of, torch = load("numba_adam.client").ParameterClient, load("torch")
    workload = one_array(settings.elements(_ELEMENTS))
    (param,), (grad,) = workload.params(), workload.grads()
    tensor = torch.from_numpy(grad)
    with torch_rpc.calls() as calls, parameter_server() as address, client_of(address) as client:
        model = client.create_model(_MODEL, {"w": param}, durability="process")
        model.wire_dtype = wire_dtype
        pairs = interleave(lambda: step(model, {"w": grad}), lambda: calls[returns](tensor), settings)
        client.delete_model(_MODEL)
    return Measurement(pairs, {"elements": f"{grad.size:,}", "on the wire": wire_dtype or "float32"})


def _pushed(model: Any, grads: dict[str, Array]) -> None:
    model.push(grads)


def _pushed_and_pulled(model: Any, grads: dict[str, Array]) -> None:
    model.push_pull(grads)


def _client_imports(settings: Settings) -> Measurement:  # noqa: ARG001 - has no settings
    with parameter_server() as address:
        return Measurement([(float(answer_of(_CLIENT.format(address=address))), None)], {"calls": "create, push, pull"})


CASES: tuple[Case, ...] = (
    Case(
        name="service/push",
        title="100 MB of gradients pushed and applied",
        peer="bare gRPC stream of the same array, thrown away",
        bar=Bar(1.5),
        run=lambda settings: _push(_cut_when_sent, settings),
    ),
    Case(
        name="service/push-process",
        title="100 MB of gradients pushed and applied, to survive a kill",
        peer="bare gRPC stream of the same array, thrown away",
        bar=Bar(1.3),
        run=lambda settings: _push(_cut_when_sent, settings, "process"),
    ),
    Case(
        name="service/push-ready",
        title="100 MB of gradients pushed and applied",
        peer="the same stream, its messages made beforehand",
        run=lambda settings: _push(_cut_beforehand, settings),
    ),
    Case(
        name="service/push-rpc",
        title="100 MB of gradients pushed and applied, to survive a kill",
        peer="torch.distributed.rpc sending the same tensor over TCP",
        bar=Bar(1.1),
        run=lambda settings: _beside_rpc(_pushed, settings, returns=False, wire_dtype=None),
    ),
    Case(
        name="service/push-rpc-bfloat16",
        title="25 million float32 gradients pushed as bfloat16 and applied, to survive a kill",
        peer="torch.distributed.rpc sending them as float32 over TCP",
        bar=Bar(0.65),
        run=lambda settings: _beside_rpc(_pushed, settings, returns=False, wire_dtype="bfloat16"),
    ),
    Case(
        name="service/push-pull-rpc-bfloat16",
        title="25 million float32 gradients pushed, and parameters pulled, as bfloat16",
        peer="torch.distributed.rpc sending and returning as many float32 over TCP",
        bar=Bar(0.65),
        run=lambda settings: _beside_rpc(_pushed_and_pulled, settings, returns=True, wire_dtype="bfloat16"),
    ),
    Case(
        name="service/client-imports",
        title="modules of Numba that the client imports",
        quantity=Quantity.VALUE,
        unit=Unit.COUNT,
        bar=Bar(0),
        run=_client_imports,
    ),
)
