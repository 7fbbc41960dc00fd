"""A worker on the server's machine pushes and pulls through shared memory, compared with a Ray actor and with TCP.

Ray's actor holds PyTorch's fused Adam, and promises nothing of a crash. Ours is at the level `process`. The turns
alternate in one process; before them, both have touched all pages that they use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.case import Bar, Case, Measurement, Settings
from benchmarks.contestants.contestant import load
from benchmarks.measure import interleave
from benchmarks.themes.service import parameter_server
from benchmarks.workload import Array, one_array

_ELEMENTS = 25_000_000  # 100 MB of float32
_SMALL_ELEMENTS = 25_000
_MODEL = "benchmark"

Act = Callable[[Any, dict[str, Array]], object]


def _private(model: Any, grads: dict[str, Array]) -> None:
    model.push(grads)


def _pull(model: Any, grads: dict[str, Array]) -> None:
    model.push(grads)
    model.pull()


def _view(model: Any, grads: dict[str, Array]) -> None:
    model.push(grads)
    model.parameters_view()


def _beside_ray(act: Act, settings: Settings, *, is_shared: bool, returns: bool) -> Measurement:
    """Compare a step of ours with a call of the actor.

    Args:
        act: takes the model and its gradients.
        settings: settings of the run.
        is_shared: whether the gradients lie in memory that the server reads.
        returns: whether the actor returns the parameters.
    """
    from benchmarks import ray_actor

    client_of = load("numba_adam.client").ParameterClient
    workload = one_array(settings.elements(_ELEMENTS))
    (param,), (grad,) = workload.params(), workload.grads()
    with (
        ray_actor.calls(grad.size, settings.threads) as calls,
        parameter_server() as address,
        client_of(address, transport="same-host") as client,
    ):
        model = client.create_model(_MODEL, {"w": param}, durability="process")
        grads = {"w": grad}
        if is_shared:
            grads = model.gradient_buffers()
            grads["w"][:] = grad
        pairs = interleave(lambda: act(model, grads), lambda: calls[returns](grad), settings)
        way = model.transport.partition(":")[0]
        client.delete_model(_MODEL)
    return Measurement(pairs, {"elements": f"{grad.size:,}", "transport": way, "durability": "process"})


def _beside_tcp(settings: Settings) -> Measurement:
    """Compare a small push with the same push over TCP, to the same server."""
    client_of = load("numba_adam.client").ParameterClient
    workload = one_array(settings.elements(_SMALL_ELEMENTS))
    (param,), (grad,) = workload.params(), workload.grads()
    with (
        parameter_server() as address,
        client_of(address, transport="same-host") as near,
        client_of(address, transport="network") as far,
    ):
        models = [client.create_model(f"m{number}", {"w": param}) for number, client in enumerate((near, far))]
        ours, peer = ((lambda model=model: model.push({"w": grad})) for model in models)
        pairs = interleave(ours, peer, settings)
        for number in range(2):
            near.delete_model(f"m{number}")
    return Measurement(pairs, {"elements": f"{grad.size:,}", "durability": "process"})


_RAY = "a Ray actor with torch.optim.Adam(fused=True)"

CASES: tuple[Case, ...] = (
    Case(
        name="same_host/push",
        title="100 MB of gradients in a private array pushed and applied",
        peer=_RAY,
        bar=Bar(0.9),
        run=lambda settings: _beside_ray(_private, settings, is_shared=False, returns=False),
    ),
    Case(
        name="same_host/push-shared",
        title="100 MB of gradients in a shared buffer pushed and applied",
        peer=_RAY,
        bar=Bar(0.75),
        run=lambda settings: _beside_ray(_private, settings, is_shared=True, returns=False),
    ),
    Case(
        name="same_host/push-view",
        title="100 MB of gradients in a shared buffer pushed, parameters seen in the mapped view",
        peer=f"{_RAY}, which returns the parameters",
        bar=Bar(0.6),
        run=lambda settings: _beside_ray(_view, settings, is_shared=True, returns=True),
    ),
    Case(
        name="same_host/push-pull",
        title="100 MB of gradients in a shared buffer pushed, one version of the parameters copied",
        peer=f"{_RAY}, which returns the parameters",
        run=lambda settings: _beside_ray(_pull, settings, is_shared=True, returns=True),
    ),
    Case(
        name="same_host/push-100kb",
        title="100 kB of gradients pushed and applied, one worker",
        peer="the same over TCP",
        run=_beside_tcp,
    ),
)
