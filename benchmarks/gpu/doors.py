"""The bits through every kind of array, stream and adapter; and what must be refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import numba_adam as na
from benchmarks.gpu.bits import compared, draw
from benchmarks.gpu.device import on_gpu
from benchmarks.gpu.journal import Finding
from benchmarks.gpu.lenders import HOST, OURS, installed, lenders
from benchmarks.gpu.stages import Item
from benchmarks.gpu.training import trained
from numba_adam.cuda import seam

_FORMATS: tuple[dict[str, Any], ...] = (
    {},
    {"number": "bfloat16", "rounding": "stochastic"},
    {"state_dtype": "8bit", "ema_decay": 0.9},
    {"call": {"max_grad_norm": 0.5, "zero_grad": True}},
)
_SIZES = (3, 40, 0, 17) if seam.SIMULATED else (1, 40, 0, 17, 70_001, 16_384, 300_000, 256)


def items() -> Iterator[Item]:
    """Return all questions."""
    kinds = lenders()
    for kind, options in itertools.product(kinds, _FORMATS):
        named = ", ".join(f"{key} {value}" for key, value in options.items()) or "float32"
        yield Item(f"{kind.name}: {named}", partial(trained, lender=kind, sizes=_SIZES, **options))
    every = [*kinds, HOST]
    for options in _FORMATS[:3]:
        named = ", ".join(f"{key} {value}" for key, value in options.items()) or "float32"
        yield Item(
            f"one list of {', '.join(kind.name for kind in every)}: {named}",
            partial(trained, lender=every, sizes=_SIZES, **options),
        )
    yield from _streams()
    yield from _refusals()


def _streams() -> Iterator[Item]:
    torch, cupy = installed("torch"), installed("cupy")
    by_name = {kind.name: kind for kind in lenders()}
    if torch is not None:
        within = partial(_on_stream, "PyTorch", lambda: torch.cuda.stream(torch.cuda.Stream()))
        yield Item("PyTorch's own stream", partial(within, by_name))
        for measured in (False, True):
            name = "a captured CUDA graph" + (", loss scale and norm on the GPU" if measured else "")
            yield Item(name, partial(_captured, torch, is_measured=measured))
        for in_backward in (False, True):
            name = "CPUOffloadAdam, pinned memory" + (", during the backward pass" if in_backward else "")
            yield Item(name, partial(_offloaded, torch, in_backward=in_backward))
        yield Item("GradScaler with CPUOffloadAdam", partial(_grad_scaler, torch))
    if cupy is not None:
        within = partial(_on_stream, "CuPy", lambda: cupy.cuda.Stream(non_blocking=True))
        yield Item("CuPy's own stream", partial(within, by_name))


def _on_stream(kind: str, stream: Callable[[], Any], by_name: dict[str, Any]) -> Finding:
    return trained(lender=by_name[kind], sizes=_SIZES, within=stream(), call={"max_grad_norm": 0.5}, ema_decay=0.9)


def _captured(torch: Any, *, is_measured: bool) -> Finding:
    """Tensors on their own stream: one normal step, then replays of a captured step with other gradients."""
    from numba_adam import Hyperparameters
    from numba_adam.cuda.table import CudaTable
    from numba_adam.optim.scaling import scaling

    size, replays, rng = 100_003, 3, np.random.default_rng(4)
    host = draw(rng, size, "float32")
    grads = [draw(rng, size, "float32") for _ in range(replays + 1)]
    opt = na.Adam(host)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        param, grad = (torch.from_numpy(array.copy()).cuda() for array in (host, grads[0]))
        moments = [torch.zeros_like(param) for _ in range(2)]
        scale = torch.ones(1, device="cuda")
        treatment = scaling(1.0, scale, 0.5, None) if is_measured else scaling(1.0, None, None, None)
        table = CudaTable([param], [moments[0]], [moments[1]], hyperparameters=[Hyperparameters()])
        table.step([grad], treatment)
        plan = table.plan([grad], treatment)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        table.launch(plan, measure=is_measured)
    for number, values in enumerate(grads):
        factor = 2.0**number if is_measured else 1.0
        if number:  # the first one was the normal step
            with torch.cuda.stream(stream):
                grad.copy_(torch.from_numpy(values))
                scale.fill_(factor)
                graph.replay()
        if is_measured:
            opt.step(values, loss_scale=factor, max_grad_norm=0.5)
        else:
            opt.step(values)
    torch.cuda.synchronize()
    state = opt.state_dict()["state"][0]
    ours = [param.cpu().numpy(), *(moment.cpu().numpy() for moment in moments), table.steps]
    return compared(ours, [host, state["exp_avg"], state["exp_avg_sq"], np.array([state["step"]], np.int64)])


def _twins(torch: Any, number: Any) -> tuple[Any, Any, Callable[[Any, Sequence[Any]], None]]:
    """Return a model on the CPU, its twin on the GPU, and what sets the gradients of a model by a backward pass."""
    torch.manual_seed(0)
    here = torch.nn.ParameterList([torch.randn(size).to(number) for size in (17, 70_001, 3, 300_000)])
    there = torch.nn.ParameterList([param.detach().clone() for param in here]).cuda()

    def backward(model: Any, factors: Sequence[Any]) -> None:
        # A product's gradient is its other factor, exactly, on every device.
        products = [param * factor.to(param.device) for param, factor in zip(model, factors, strict=True)]
        sum(product.float().sum() for product in products).backward()

    return here, there, backward


def _offloaded(torch: Any, *, in_backward: bool) -> Finding:
    """State and masters in host memory; parameters and gradients on the GPU; the bits of Adam on the CPU."""
    from numba_adam.torch import Adam, CPUOffloadAdam

    here, there, backward = _twins(torch, torch.bfloat16)
    ours = CPUOffloadAdam(there.parameters(), lr=0.01, update_in_backward=in_backward, chunk_bytes=1 << 16)
    theirs = Adam(here.parameters(), lr=0.01, master_weights=True)
    for _ in range(4):
        factors = [torch.randn_like(param) for param in here]
        for model, opt in ((there, ours), (here, theirs)):
            opt.zero_grad()
            backward(model, factors)
            opt.step()
    ours.close()
    torch.cuda.synchronize()
    bits = [[param.detach().cpu().view(torch.uint16).numpy() for param in model] for model in (there, here)]
    return compared(bits[0], bits[1])


def _grad_scaler(torch: Any) -> Finding:
    """float16 gradients with an infinity in one step: that step is left out on both."""
    from numba_adam.torch import Adam, CPUOffloadAdam

    here, there, backward = _twins(torch, torch.float32)
    optimizers = CPUOffloadAdam(there.parameters(), lr=0.01), Adam(here.parameters(), lr=0.01, master_weights=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for step in range(4):
        factors = [torch.randn_like(param) for param in here]
        if step == 2:
            factors[0][0] = torch.inf
        for model, opt in zip((there, here), optimizers, strict=True):
            opt.zero_grad()
            if opt is optimizers[0]:
                loss = sum((param * factor.cuda()).sum() for param, factor in zip(model, factors, strict=True))
                scaler.scale(loss).backward()
                scaler.step(opt)
                scaler.update()
            elif step != 2:
                backward(model, factors)
                opt.step()
    torch.cuda.synchronize()
    return compared(*([param.detach().cpu().numpy() for param in model] for model in (there, here)))


def _refusals() -> Iterator[Item]:
    def refused(work: Callable[[], object]) -> Finding:
        try:
            work()
        except na.NumbaAdamError as error:
            return Finding(f"{type(error).__name__}: {error}", True)
        return Finding("it was not refused", False)

    rng = np.random.default_rng(2)
    param, grad = (on_gpu(draw(rng, 64, "float32")) for _ in range(2))
    elsewhere = replace(grad, device=grad.device + 1)
    unsuitable = {
        "on another GPU": elsewhere,
        "in the host's memory": OURS.back(grad),
        "of another shape": on_gpu(np.ones(3, np.float32)),
        "that is its parameter": param,
    }
    for what, given in unsuitable.items():
        step = partial(na.Adam(param).step, given)
        yield Item(f"refused: a gradient {what}", partial(refused, step))
    yield Item("refused: rows of a table on the GPU", lambda: refused(lambda: _rows(grad)))
    torch = installed("torch")
    if torch is not None:
        yield Item("refused: the PyTorch adapter for parameters on the GPU", lambda: refused(lambda: _adapter(torch)))


def _rows(grad: Any) -> None:
    table = on_gpu(np.ones((8, 8), np.float32))
    moments = [on_gpu(np.zeros((8, 8), np.float32)) for _ in range(2)]
    na.adam_update_rows(table, np.arange(8), grad, moments[0], moments[1], 1)


def _adapter(torch: Any) -> None:
    from numba_adam.torch import AdamW

    AdamW([torch.ones(3, device="cuda", requires_grad=True)]).step()
