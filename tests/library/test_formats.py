"""Parameters, gradients and state in different formats: every mixture matches the oracle bit for bit."""

from __future__ import annotations

import itertools
import math
import platform
from pathlib import Path

import formats_reference as oracle
import ml_dtypes
import numba
import numpy as np
import pytest
import vector_features
from formats_reference import BFLOAT16, COMBINATIONS, DTYPES, Twin, values_of

import numba_adam as na
from numba_adam.errors import DtypeError, HyperparameterError, NumbaAdamError

SCRIPT = Path(__file__).with_name("format_updates.py")
SIZES = (0, 1, 2, 3, 127, 128, 129, 1_023, 1_024, 1_025, 2_049)
HYPERPARAMETERS = {
    "hat": {},
    "L2": {"weight_decay": 0.1, "eps_mode": "algorithm1", "betas": (0.8, 0.97)},
    "AdamW": {"decoupled_weight_decay": True, "weight_decay": 0.05, "maximize": True, "lr": 0.03},
    "AMSGrad": {"amsgrad": True, "eps": 1e-3},
}
STEPS = 4
X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def same(found, expected):
    """Return whether two arrays have the same bits, with all NaNs equal."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    numbers = ~np.isnan(oracle.widen(expected))
    return (numbers == ~np.isnan(oracle.widen(found))).all() and (
        found[numbers].tobytes() == expected[numbers].tobytes()
    )


def check_like(optimizer, twins):
    """Check an optimizer over a list of parameters against its oracle."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for index, (param, twin) in enumerate(zip(params, twins, strict=True)):
        assert same(param, twin.param), f"params[{index}]"
        state = optimizer.state[index]
        assert state["step"] == twin.steps
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * bool(twin.hyperparameters.get("amsgrad"))
        for name in names:
            expected = getattr(twin, name)
            if expected.dtype == np.uint16:
                expected = expected.view(BFLOAT16)
            assert same(state[name], expected), f"{name} of params[{index}]"


def train(params, grads, *, state=None, hyperparameters=None, step=None, **options):
    """Train twins and an optimizer over copies of the parameters; return both."""
    hyperparameters, step = hyperparameters or {}, step or {}
    twins = [Twin(p, state, hyperparameters, place=place, **options) for place, p in enumerate(params)]
    optimizer = na.Adam([p.copy() for p in params], state_dtype=state, **hyperparameters, **options)
    for several in grads:
        optimizer.step(several, **step)
        for twin, grad in zip(twins, several, strict=True):
            twin.step(grad, step.get("grad_scale", 1.0), step.get("clip_value", 0.0))
    return optimizer, twins


def names_of(combination):
    return "-".join(part.replace(" as uint16", "*") for part in combination)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=names_of)
def test_every_supported_mixture_of_formats_matches_the_oracle(combination):
    """Parameters, gradients and state, on one thread, in all sizes at once; refused by name where not supported."""
    param, grad, state = combination
    params = [values_of(size, DTYPES[param], size) for size in SIZES]
    if not oracle.is_supported(param.split()[0], state):
        with pytest.raises(DtypeError, match=rf"params\[0\] is {param.split()[0]}.*state_dtype='{state}'"):
            na.Adam(params, state_dtype=state)
        return
    grads = [[values_of(size, DTYPES[grad], 97 * step + size) for size in SIZES] for step in range(1, STEPS)]
    check_like(*train(params, grads, state=state))


@pytest.mark.parametrize("state", ["float32", "bfloat16", "float64", "8bit"])
@pytest.mark.parametrize("param", DTYPES)
def test_supported_state_formats_are_accepted_and_others_refused(param, state):
    w = np.ones(3, DTYPES[param])
    name = param.split()[0]
    if oracle.is_supported(name, state):
        assert na.Adam({"w": w}, state_dtype=state).step({"w": np.ones(3, DTYPES[param])}).applied
        return
    with pytest.raises(DtypeError, match=rf"params\['w'\] is {name}.*state_dtype='{state}'"):
        na.Adam({"w": w}, state_dtype=state)


@pytest.mark.parametrize("param", DTYPES)
def test_the_default_state_is_float32_or_float64(param):
    optimizer = na.Adam([np.ones(3, DTYPES[param])])
    optimizer.step([np.ones(3, np.float32)])
    assert optimizer.state[0]["exp_avg"].dtype == ("float64" if param == "float64" else "float32")


KINDS = {  # param, grad, state; one for each way through the kernels
    "pairs": ("bfloat16", "bfloat16", "bfloat16"),
    "tiles of bfloat16": ("bfloat16", "float32", "float32"),
    "tiles of float16": ("float16", "bfloat16", "bfloat16"),
    "float32 with float16 gradients": ("float32", "float16", "float32"),
    "float32 computed in float64": ("float32", "float16", "float64"),
    "float64 with a float32 state": ("float64", "bfloat16", "float32"),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def arrays_of(kind, sizes, steps=STEPS):
    param, grad, state = KINDS[kind]
    params = [values_of(size, DTYPES[param], size) for size in sizes]
    return params, [[values_of(size, DTYPES[grad], 31 * k + size) for size in sizes] for k in range(steps)], state


@kinds
@pytest.mark.parametrize("name", HYPERPARAMETERS)
@pytest.mark.parametrize("step", [{}, {"grad_scale": 0.7, "clip_value": 0.25}], ids=["plain", "clipped"])
def test_every_kind_of_step_matches_the_oracle(kind, name, step):
    params, grads, state = arrays_of(kind, (1_300, 7))
    check_like(*train(params, grads, state=state, hyperparameters=HYPERPARAMETERS[name], step=step))


@kinds
def test_a_loss_scale_with_a_global_norm_matches_the_oracle(kind):
    """Sums of squares use the gradients' values, in float64, in lanes; the scaled step equals one with `grad_scale`."""
    params, grads, state = arrays_of(kind, (9_000, 5), steps=1)
    optimizer, other = (na.Adam([p.copy() for p in params], state_dtype=state) for _ in range(2))
    result = optimizer.step(grads[0], loss_scale=8.0, max_grad_norm=0.5)
    exact = math.sqrt(math.fsum(float(x) ** 2 for grad in grads[0] for x in oracle.widen(grad))) / 8
    assert result.grad_norm == pytest.approx(exact, rel=1e-14)
    other.step(grads[0], grad_scale=0.125 * (0.5 / (result.grad_norm + 1e-6)))
    for one, two in zip(optimizer.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert one.tobytes() == two.tobytes()


@kinds
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_non_finite_value_skips_the_whole_step(kind, bad):
    params, grads, state = arrays_of(kind, (9_000, 5), steps=2)
    optimizer = na.Adam(params, state_dtype=state, ema_decay=0.5)
    optimizer.step(grads[0])

    def contents():
        arrays = [array for entry in optimizer.state.values() for array in entry.values()]
        return [getattr(array, "tobytes", lambda a=array: a)() for array in (*params, *arrays)]

    before = contents()
    for array, place in ((0, 0), (0, 8_191), (0, 8_999), (1, 4)):
        spoilt = [grad.copy() for grad in grads[1]]
        spoilt[array][place] = bad
        kept = [grad.tobytes() for grad in spoilt]
        result = optimizer.step(spoilt, loss_scale=2.0, zero_grad=True)
        assert (result.applied, math.isfinite(result.grad_norm)) == (False, False)
        assert contents() == before
        assert [grad.tobytes() for grad in spoilt] == kept


@kinds
def test_without_a_finite_check_non_finite_values_propagate(kind):
    (param,), ((grad,),), state = arrays_of(kind, (1_500,), steps=1)
    with np.errstate(over="ignore"):
        for k, value in enumerate((np.nan, np.inf, -np.inf, -0.0, 3.3e38, 1e-40)):
            param[10 + k], grad[20 + k], param[1_100 + k], grad[1_100 + k] = value, value, value, value
    check_like(*train([param], [[grad]] * 3, state=state, hyperparameters=HYPERPARAMETERS["AdamW"]))


def test_bfloat16_pairs_and_tiles_give_the_same_bits():
    """An average selects the kernel with tiles, because the one with pairs has none."""
    params, grads, state = arrays_of("pairs", (1, 2, 1_025, 4_099, 66_001))
    for name, hyperparameters in HYPERPARAMETERS.items():
        pairs, tiles = (
            na.Adam([p.copy() for p in params], state_dtype=state, **hyperparameters, **options)
            for options in ({}, {"ema_decay": 0.5})
        )
        for several in grads:
            pairs.step(several, clip_value=0.5 if name == "L2" else None)
            tiles.step(several, clip_value=0.5 if name == "L2" else None)
        for index, param in enumerate(pairs.param_groups[0]["params"]):
            assert param.tobytes() == tiles.param_groups[0]["params"][index].tobytes(), name
            for key in ("exp_avg", "exp_avg_sq"):
                assert pairs.state[index][key].tobytes() == tiles.state[index][key].tobytes(), (name, key)


@pytest.mark.parametrize("shifts", [*itertools.product((0, 1), repeat=2), (3, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat16 as uint16", "float16"])
def test_16_bit_arrays_that_begin_in_the_middle_of_a_word_match_the_oracle(dtype, shifts):
    size = 3_001
    rooms = [np.full(size + 4, 0x3F3F, np.uint16).view(DTYPES[dtype]) for _ in range(2)]
    param, grad = (room[shift : shift + size] for room, shift in zip(rooms, shifts, strict=True))
    assert [array.ctypes.data % 4 for array in (param, grad)] == [2 * (shift % 2) for shift in shifts]
    param[:], grad[:] = values_of(size, DTYPES[dtype], 1), values_of(size, DTYPES[dtype], 2)
    twin = Twin(param, "bfloat16")
    optimizer = na.Adam([param], state_dtype="bfloat16")
    for _ in range(3):
        optimizer.step([grad])
        twin.step(grad)
    check_like(optimizer, [twin])
    for room, shift in zip(rooms, shifts, strict=True):
        outside = np.concatenate([room[:shift], room[shift + size :]]).view(np.uint16)
        assert (outside == 0x3F3F).all(), "written outside"


def test_all_formats_in_one_optimizer_match_the_oracle():
    """One launch for each compute dtype; None and other gradient formats between steps."""
    sizes = (1, 1_025, 40_000, 3)
    whole = [(name, size) for size in sizes for name in DTYPES]
    params = [values_of(size, DTYPES[name], k) for k, (name, size) in enumerate(whole)]
    twins = [Twin(param, place=place) for place, param in enumerate(params)]
    optimizer = na.Adam({str(k): param for k, param in enumerate(params)})
    names = list(DTYPES)
    for step in range(5):
        grads = [
            None if (k + step) % 6 == 5 else values_of(size, DTYPES[names[(k + step) % 5]], 50 * step + k)
            for k, (_, size) in enumerate(whole)
        ]
        optimizer.step({str(k): grad for k, grad in enumerate(grads)})
        for twin, grad in zip(twins, grads, strict=True):
            if grad is not None:
                twin.step(grad)
    for k, twin in enumerate(twins):
        assert same(params[k], twin.param), whole[k]
        assert optimizer.state[str(k)]["step"] == twin.steps
        assert same(optimizer.state[str(k)]["exp_avg_sq"], twin.exp_avg_sq), whole[k]


def test_a_thousand_arrays_of_all_formats_and_sizes_match_the_oracle():
    rng = np.random.default_rng(12)
    names = rng.choice(["float32", "bfloat16", "float16", "bfloat16 as uint16"], 1_000)
    sizes = [*rng.integers(0, 90, 998).tolist(), 70_001, 33_000]
    params = [values_of(size, DTYPES[name], k) for k, (name, size) in enumerate(zip(names, sizes, strict=True))]
    grads = [values_of(param.size, param.dtype, 5_000 + k) for k, param in enumerate(params)]
    check_like(*train(params, [grads] * 2, state="bfloat16"))


@kinds
def test_a_gradients_format_can_change_between_steps(kind):
    (param,), _, state = arrays_of(kind, (1_100,), steps=0)
    grads = [[values_of(1_100, dtype, k)] for k, dtype in enumerate((*DTYPES.values(), *DTYPES.values()))]
    check_like(*train([param], grads, state=state))


@kinds
def test_the_function_accepts_the_same_formats_as_the_class(kind):
    (param,), grads, state = arrays_of(kind, (1_100,))
    optimizer, _ = train([param], grads, state=state, hyperparameters=HYPERPARAMETERS["AMSGrad"])
    moments = [np.zeros(1_100, DTYPES[state]) for _ in range(3)]
    for step, (grad,) in enumerate(grads, 1):
        na.adam_update(param, grad, *moments[:2], step, eps=1e-3, max_exp_avg_sq=moments[2])
    assert param.tobytes() == optimizer.param_groups[0]["params"][0].tobytes()
    for key, moment in zip(("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), moments, strict=True):
        assert moment.tobytes() == optimizer.state[0][key].tobytes()


def test_the_function_accepts_moments_of_two_formats():
    param, grad = values_of(1_500, DTYPES["bfloat16"], 1), values_of(1_500, DTYPES["float16"], 2)
    moments = [np.zeros(1_500, BFLOAT16), np.zeros(1_500, np.float32)]
    twins = [Twin(param, "bfloat16"), Twin(param, "float32")]
    na.adam_update(param, grad, *moments, 1)
    for twin in twins:
        twin.step(grad)
    assert same(param, twins[0].param)
    assert same(moments[0], twins[0].exp_avg)
    assert same(moments[1], twins[1].exp_avg_sq)


@pytest.mark.parametrize(
    ("param", "first", "second"),
    [
        ("float64", "bfloat16", "bfloat16"),
        ("float64", "float64", "bfloat16"),
        ("bfloat16", "float64", "float64"),
        ("float16", "float32", "float64"),
        ("float32", "float64", "bfloat16"),
        ("float32", "float16", "float32"),
        ("float16", "float16", "float16"),
        ("float64", "float64", "float16"),
    ],
)
def test_the_function_refuses_unsupported_mixtures(param, first, second):
    arrays = [np.ones(4, DTYPES[name]) for name in (param, "float32", first, second)]
    before = [array.tobytes() for array in arrays]
    with pytest.raises(DtypeError, match=r"float16|float64 goes with") as caught:
        na.adam_update(*arrays, 1)
    assert "param" in str(caught.value)
    assert [array.tobytes() for array in arrays] == before


# --- rounding at random ---


@pytest.mark.parametrize("kind", ["pairs", "tiles of bfloat16", "float32 with float16 gradients"])
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_stochastic_rounding_depends_on_seed_step_and_element(kind, seed, amsgrad):
    params, grads, _ = arrays_of(kind, (1, 1_300, 40_000), steps=3)
    hyperparameters = {"amsgrad": amsgrad, "lr": 0.01}
    options = {"rounding": "stochastic", "seed": seed, "hyperparameters": hyperparameters}
    check_like(*train(params, grads, state="bfloat16", **options))


def test_stochastic_rounding_keeps_small_changes_in_the_mean():
    """A step of 1e-4 from 1, where bfloat16 has a spacing of 2**-8: a fraction p of 200,000 elements changes.

    Their mean deviates by sqrt(p (1 - p) / n) steps; six such deviations are let, for each of ten seeds.
    """
    count, grad = 200_000, np.ones(200_000, np.float32)
    for seed in range(10):
        w = np.ones(count, BFLOAT16)
        na.Adam([w], lr=1e-4, eps=0.0, rounding="stochastic", seed=seed).step([grad])
        values = w.astype(np.float64)
        part = 1e-4 * 2**8
        assert set(values.tolist()) == {1.0, 1.0 - 2**-8}
        deviation = math.sqrt(part * (1 - part) / count) * 2**-8
        assert abs(values.mean() - (1 - 1e-4)) < 6 * deviation, f"seed {seed}"
    w = np.ones(count, BFLOAT16)
    na.Adam([w], lr=1e-4, eps=0.0).step([grad])
    assert (w == 1).all()


def test_each_seed_and_parameter_has_its_own_random_numbers():
    def trained(seed):
        params = [np.ones(5_000, BFLOAT16) for _ in range(2)]
        na.Adam(params, lr=1e-3, rounding="stochastic", seed=seed).step([np.ones(5_000, BFLOAT16)] * 2)
        return [param.tobytes() for param in params]

    assert len({*trained(0), *trained(1), *trained(2**40)}) == 6
    assert trained(7) == trained(7)


def test_stochastic_rounding_keeps_unchanged_parameters():
    w = values_of(5_000, BFLOAT16, 3)
    before = w.tobytes()
    optimizer = na.Adam([w], lr=0.0, rounding="stochastic", state_dtype="bfloat16")
    for step in range(20):
        optimizer.step([values_of(5_000, BFLOAT16, step)])
    assert w.tobytes() == before


# --- threads and machines ---


@pytest.fixture(scope="module")
def expected():
    """Return what the script prints, made on one thread of this process."""
    import format_updates

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield {which: format_updates.digests(which) for which in ("large", "small")}
    numba.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 4])
def test_the_number_of_threads_does_not_change_the_bits(run_python, expected, threads):
    assert run_python(SCRIPT, str(threads), "large", NUMBA_NUM_THREADS="4").splitlines() == expected["large"]


@pytest.mark.skipif(not X86, reason="SSE2 and AVX2 are instruction sets of x86-64")
@pytest.mark.parametrize("cpu", ["x86-64", "haswell"])  # SSE2 alone; AVX2 and FMA
def test_code_for_older_cpus_gives_the_same_bits(run_python, expected, cpu):
    output = run_python(SCRIPT, "1", "small", NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="")
    assert output.splitlines() == expected["small"]


@pytest.mark.parametrize("bits", vector_features.WIDTHS)
def test_every_vector_width(run_python, expected, bits):
    environment = {"NUMBA_CPU_FEATURES": vector_features.preferring(bits)}
    assert run_python(SCRIPT, "1", "small", **environment).splitlines() == expected["small"]


# --- refused ---


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("state_dtype", ["float16", "fp32", "", 32, True, np.float32, np.ones(2), ["float32"], "int8"]),
        ("rounding", ["random", "", None, 1, True, "Nearest"]),
        ("seed", [-1, 2**63, 1.0, "1", None, True, np.float64(1), [1], float("nan")]),
        ("master_weights", [1, 0, None, "yes", "float32", np.ones(2)]),
        ("ema_decay", [-0.1, 1.0, 1.5, float("nan"), float("inf"), "0.9", True, [0.9], 1j, np.array([0.9, 0.9])]),
        ("low_precision_copy", ["float32", "8bit", True, "", np.float16, np.ones(2)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_options_are_refused(name, values):
    w = np.ones(3, np.float32)
    for value in values:
        for kind in (na.Adam, na.AdamW):
            with pytest.raises(HyperparameterError, match=name):
                kind([w], **{name: value})
    assert (w == 1).all()


def test_format_options_are_refused_in_a_group():
    for name, value in (("state_dtype", "bfloat16"), ("ema_decay", 0.9), ("seed", 1)):
        with pytest.raises(HyperparameterError, match=name):
            na.Adam([{"params": [np.ones(3)], name: value}])
        optimizer = na.Adam([np.ones(3)])
        with pytest.raises(NumbaAdamError, match=name):
            optimizer.param_groups[0][name] = value


def test_seeds_may_have_any_integer_type():
    trained = []
    for seed in (3, np.int32(3), np.uint64(3), np.array(3)):
        w = np.ones(500, BFLOAT16)
        na.Adam([w], rounding="stochastic", seed=seed).step([np.ones(500, np.float32)])
        trained.append(w.tobytes())
    assert len(set(trained)) == 1


@pytest.mark.parametrize("param", DTYPES)
def test_stochastic_rounding_does_not_apply_to_float16(param):
    w = np.ones(3, DTYPES[param])
    if param != "float16":
        assert na.Adam([w], rounding="stochastic").step([w.copy()]).applied
        return
    with pytest.raises(DtypeError, match=r"params\[0\] is float16, rounding='stochastic'"):
        na.Adam([w], rounding="stochastic")
    assert na.Adam([w], rounding="stochastic", master_weights=True).step([w.copy()]).applied


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.uint16])
def test_unsuitable_16_bit_arrays_are_refused(dtype):
    good, wrong = np.ones((4, 6), dtype), {
        "contiguous": np.ones((4, 12), dtype)[:, ::2],
        "address": np.frombuffer(bytearray(49), np.uint8)[1:].view(dtype).reshape(4, 6),
        "shape": np.ones((4, 5), dtype),
    }  # fmt: skip
    optimizer = na.Adam([good])
    for words, array in wrong.items():
        with pytest.raises(NumbaAdamError, match=rf"grads\[0\].*{words}"):
            optimizer.step([array])
        if words != "shape":
            with pytest.raises(NumbaAdamError, match=rf"params\[0\].*{words}"):
                na.Adam([array])
    assert (optimizer.state, good.tobytes()) == ({}, np.ones((4, 6), dtype).tobytes())
