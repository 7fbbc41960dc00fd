"""warmup(): no later step compiles a kernel of these kinds again, in this process or in the next."""

from __future__ import annotations

import pytest

import numba_adam as na
from numba_adam.errors import HyperparameterError

KINDS = ("float32", "float64", "formats", "rows")

SETUP = r"""
import itertools
import re
import sys
import numpy as np
import numba_adam as na
from numba.core import event
from numba.core.dispatcher import Dispatcher


def loaded():
    kernels = [each for name, module in list(sys.modules.items()) if re.match(r"numba_adam\.(cpu|rows)\.kernels", name)
               for each in vars(module).values() if isinstance(each, Dispatcher)]
    return {f"{k.py_func.__module__}.{k.py_func.__name__}": len(k.overloads) for k in kernels}


def more(before, after):
    return sorted(name for name in after if after[name] != before.get(name, 0))


def train(param, grad=None, sizes=(3, 70_001), **options):
    params = [np.ones(size, param) for size in sizes]
    opt = na.Adam(params, **options)
    grads = [np.ones(size, grad or param) for size in sizes]
    for several in (grads, [memoryview(g) for g in grads] if grads[0].dtype.kind == "f" else grads):
        opt.step(several)
        opt.step(several, loss_scale=2.0, max_grad_norm=0.1, clip_value=0.5, grad_scale=0.5)
        opt.param_groups[0].update(lr=0.5, weight_decay=0.1)
    return opt, grads


def plain(dtype):
    for amsgrad, sizes in itertools.product((False, True), ((3,), (70_001,), (3, 70_001))):
        opt, _ = train(dtype, sizes=sizes, amsgrad=amsgrad)
        opt.load_state_dict(opt.state_dict())
        arrays = np.ones((5, sizes[-1]), dtype)
        na.adam_update(*arrays[:4], step=7, **({"max_exp_avg_sq": arrays[4]} if amsgrad else {}))


EXTRAS = (
    {"ema_decay": 0.5, "amsgrad": True},
    {"master_weights": True, "ema_decay": 0.5},
    {"low_precision_copy": "float16"},
)


def formats():
    mixtures = itertools.product(("float32", "float64", "uint16", "float16"), ("float32", "float64", "uint16"),
                                 (None, "float64", "bfloat16", "8bit"), ((3,), (70_001,)))
    for param, grad, state, sizes in mixtures:
        for extra in EXTRAS:
            try:
                opt, grads = train(param, grad, sizes, state_dtype=state, **extra)
            except na.errors.DtypeError:
                continue
            opt.accumulate(grads)
            opt.step(max_grad_norm=1.0, zero_grad=True)
            opt.load_state_dict(opt.state_dict())
            opt.step(grads, zero_grad=True)


def rows():
    shapes = ((1, 16), (3, 20_000), (9_000, 8))
    for dtype, amsgrad, shape, mode in itertools.product(("f4", "f8"), (False, True), shapes, ("lazy", "exact")):
        size = shape[0]
        table, exp_avg, exp_avg_sq, largest = (np.zeros(shape, dtype) for _ in range(4))
        own = {"last_step": np.zeros(size, np.int64)} if mode == "exact" else {}
        own |= {"max_exp_avg_sq": largest} if amsgrad else {}
        places = np.arange(size) if size == 1 else np.arange(size) // 2
        for step in (1, 5):
            for numbers in (places, places.astype(np.int32)):
                na.adam_update_rows(table, numbers, np.ones(shape, dtype), exp_avg, exp_avg_sq, step, mode=mode,
                                    weight_decay=0.1, decoupled_weight_decay=True, **own)
                own |= {"last_step": np.zeros(size, np.int64)} if mode == "exact" else {}


PROGRAMMES = {
    "float32": lambda: plain("float32"), "float64": lambda: plain("float64"), "formats": formats, "rows": rows
}
"""

NOTHING_MORE = """
kinds = sys.argv[1].split(",")
na.warmup(*kinds)
before = loaded()
with event.install_recorder("numba:compile") as compiled:
    for kind in kinds:
        PROGRAMMES[kind]()
print(sum(before.values()) > 5, more(before, loaded()), len(compiled.buffer))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_step_compiles_a_kernel_after_a_warmup(run_python, kind):
    """Not even from the cache."""
    assert run_python(SETUP + NOTHING_MORE, kind) == "True [] 0"


WARM = """
with event.install_recorder("numba:compile") as again:
    na.warmup(*sys.argv[1:])
print(len(again.buffer), sum(loaded().values()) > 5)
"""


@pytest.mark.slow
def test_the_next_process_compiles_no_kernel_of_any_kind(run_python):
    na.warmup()
    assert run_python(SETUP + WARM, *KINDS) == "0 True"


def test_it_reports_what_it_compiled():
    seen = []
    seconds = na.warmup("float32", "float64", progress=lambda kind, taken: seen.append((kind, taken)))
    assert list(seconds) == ["float32", "float64"]
    assert seen == list(seconds.items())
    assert all(isinstance(taken, float) and taken >= 0 for taken in seconds.values())


def test_it_compiles_all_kinds_by_default():
    seen = []
    assert tuple(na.warmup(progress=lambda kind, _: seen.append(kind))) == KINDS
    assert tuple(seen) == KINDS


@pytest.mark.parametrize("kind", ["int8", "", "Float32", "9bit", None, 32, ["float32"]], ids=repr)
def test_an_unknown_kind_is_refused_before_anything_is_compiled(kind):
    seen = []
    with pytest.raises(HyperparameterError, match=r"kinds.*'float32', 'float64', 'formats', 'rows'"):
        na.warmup("float32", kind, progress=lambda *what: seen.append(what))
    assert seen == []


def test_a_kind_can_be_given_twice():
    assert list(na.warmup("float32", "float32")) == ["float32"]


@pytest.mark.parametrize("sizes", [["medium"], ["small", ""], "small", [None]], ids=repr)
def test_an_unknown_size_is_refused_before_anything_is_compiled(sizes):
    seen = []
    with pytest.raises(HyperparameterError, match=r"sizes.*'small', 'large'"):
        na.warmup("float32", sizes=sizes, progress=lambda *what: seen.append(what))
    assert seen == []


SMALL = """
na.warmup("float32", sizes=["small"])
before = loaded()
with event.install_recorder("numba:compile") as compiled:
    train("float32", sizes=(3, 1000))
print(more(before, loaded()), len(compiled.buffer))
"""


@pytest.mark.slow
def test_small_sizes_are_enough_for_small_steps(run_python):
    assert run_python(SETUP + SMALL) == "[] 0"


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "8bit"])
def test_a_format_is_a_kind(kind):
    assert list(na.warmup(kind, sizes=["small"])) == [kind]
