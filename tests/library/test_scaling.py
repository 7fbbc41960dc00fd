"""Unscaling, skipping, and clipping by norm and by value, in the step."""

import math

import numba
import numpy as np
import pytest

import numba_adam as na

SIZES = (5, 8192, 8193, 0, 100_000, 31)


def arrays(seed=0, dtype=np.float32, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(dtype) for size in sizes]


def exact_norm(grads):
    return math.sqrt(math.fsum(float(x) ** 2 for grad in grads if grad is not None for x in grad.ravel()))


def contents(opt):
    """Return all bits of an optimizer's parameters and state."""
    params = [param.tobytes() for group in opt.param_groups for param in group["params"]]
    states = [
        (int(state["step"]), state["exp_avg"].tobytes(), state["exp_avg_sq"].tobytes()) for state in opt.state.values()
    ]
    return params, states


def stepped(params, grads, **options):
    opt = na.Adam([param.copy() for param in params], lr=0.01)
    return opt, opt.step(grads, **options)


def test_the_norm_is_that_of_all_gradients_together():
    grads = arrays(1)
    _, result = stepped(arrays(), grads, max_grad_norm=1e9)
    assert result.applied
    assert result.grad_norm == pytest.approx(exact_norm(grads), rel=1e-14)


def test_a_step_that_measures_nothing_reports_no_norm():
    _, result = stepped(arrays(), arrays(1), clip_value=0.5)
    assert result == na.StepResult(applied=True, grad_norm=None)


def test_gradients_with_a_larger_norm_are_scaled_down():
    params, grads = arrays(), arrays(1)
    norm = exact_norm(grads)
    clipped, result = stepped(params, grads, max_grad_norm=1.5)
    scaled, _ = stepped(params, grads, grad_scale=1.5 / (norm + 1e-6))
    assert result.grad_norm == pytest.approx(norm, rel=1e-14)
    for a, b in zip(clipped.param_groups[0]["params"], scaled.param_groups[0]["params"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    exp_avg = np.concatenate([state["exp_avg"] for state in clipped.state.values()]) / 0.1
    assert np.linalg.norm(exp_avg.astype(np.float64)) == pytest.approx(1.5, rel=1e-5)


def test_gradients_with_a_smaller_norm_do_not_change():
    params, grads = arrays(), arrays(1)
    clipped, _ = stepped(params, grads, max_grad_norm=1e6)
    plain, _ = stepped(params, grads)
    assert contents(clipped) == contents(plain)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_step_divides_by_the_loss_scale(dtype):
    params, grads = arrays(dtype=dtype), arrays(1, dtype)
    scaled, result = stepped(params, [grad * dtype(1024) for grad in grads], loss_scale=1024.0)
    plain, _ = stepped(params, grads)
    assert contents(scaled) == contents(plain)
    assert result.grad_norm == pytest.approx(exact_norm(grads), rel=1e-14)


@pytest.mark.parametrize("options", [{"loss_scale": 8.0}, {"max_grad_norm": 1.0}], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_non_finite_value_skips_the_whole_step(options, bad):
    opt, _ = stepped(arrays(), arrays(1))
    before = contents(opt)
    for array, place in [(0, 0), (0, 4), (1, 8191), (2, 8192), (4, 0), (4, 50_000), (4, 99_999), (5, 30)]:
        grads = arrays(2)
        grads[array][place] = bad
        result = opt.step(grads, **options)
        assert not result.applied
        assert not math.isfinite(result.grad_norm)
        assert contents(opt) == before
    assert opt.step(arrays(2), **options).applied


def test_a_skipped_first_step_creates_no_state():
    opt = na.Adam(np.ones(3))
    assert not opt.step(np.array([1.0, np.nan, 1.0]), loss_scale=2.0).applied
    assert opt.state == {}


def test_large_float32_gradients_do_not_overflow_their_norm():
    _, result = stepped([np.zeros(1000, np.float32)], [np.full(1000, 3e38, np.float32)], max_grad_norm=1.0)
    assert result.applied
    assert result.grad_norm == pytest.approx(float(np.float32(3e38)) * math.sqrt(1000), rel=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_clipped_after_scaling(dtype):
    params, grads = arrays(dtype=dtype), arrays(1, dtype)
    clipped, _ = stepped(params, [grad * dtype(4) for grad in grads], grad_scale=0.25, clip_value=0.5)
    by_hand, _ = stepped(params, [np.clip(grad, -0.5, 0.5) for grad in grads])
    assert contents(clipped) == contents(by_hand)


def test_clipping_by_value_keeps_nan():
    opt, _ = stepped([np.ones(2)], [np.array([np.nan, 5.0])], clip_value=1.0)
    assert np.isnan(opt.param_groups[0]["params"][0]).tolist() == [True, False]


def test_the_norm_does_not_depend_on_the_threads():
    grads = arrays(1)
    norms = set()
    before = numba.get_num_threads()
    try:
        for threads in range(1, before + 1):
            numba.set_num_threads(threads)
            norms.add(stepped(arrays(), grads, max_grad_norm=1.0)[1].grad_norm)
    finally:
        numba.set_num_threads(before)
    assert len(norms) == 1


@pytest.mark.parametrize("seed", range(16))
def test_the_norm_sums_lanes_and_blocks_in_a_fixed_order(seed):
    """Its root hides half of the last bits in which another order differs: one seed alone would not notice."""
    grads = arrays(seed, sizes=(20_000, 77))
    total = 0.0
    for grad in grads:
        for block in np.split(grad.astype(np.float64), range(8192, len(grad), 8192)):
            padded = np.zeros((-(-len(block) // 16), 16))
            padded.reshape(-1)[: len(block)] = block
            lanes = np.zeros(16)
            for row in padded:
                lanes += row * row
            total += sum(lanes.tolist()[1:], lanes[0])
    _, result = stepped(arrays(sizes=(20_000, 77)), grads, max_grad_norm=1e9)
    assert result.grad_norm == math.sqrt(total)


def test_the_norm_ignores_missing_gradients():
    grads = arrays(1)
    grads[1] = grads[4] = None
    opt, result = stepped(arrays(), grads, max_grad_norm=1e9)
    assert result.grad_norm == pytest.approx(exact_norm(grads), rel=1e-14)
    assert set(opt.state) == {0, 2, 3, 5}


def test_dtypes_and_groups_share_one_norm():
    params = [np.ones(3, np.float32), np.ones(4), np.ones(5, np.float32)]
    grads = [np.full(3, 3.0, np.float32), np.full(4, -2.0), np.full(5, 1.0, np.float32)]
    opt = na.Adam([{"params": params[:1]}, {"params": params[1:], "lr": 0.1}])
    result = opt.step(grads, max_grad_norm=1.0)
    norm = math.sqrt(9 * 3 + 4 * 4 + 5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-15)
    assert opt.state[1]["exp_avg"][0] == pytest.approx(0.1 * -2.0 / norm, rel=1e-6)
    grads[1][2] = np.nan
    before = contents(opt)
    assert not opt.step(grads, loss_scale=1.0).applied
    assert contents(opt) == before


@pytest.mark.parametrize("name", ["loss_scale", "max_grad_norm", "clip_value"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, "1", True])
def test_numbers_out_of_range_are_refused_by_name(name, value):
    if (name, value) == ("max_grad_norm", np.inf):
        value = -np.inf  # infinity itself measures only
    opt = na.Adam(np.ones(3))
    with pytest.raises(na.errors.HyperparameterError, match=name):
        opt.step(np.ones(3), **{name: value})
    assert opt.state == {}


@pytest.mark.parametrize("infinity", [math.inf, np.float32(np.inf), np.array([np.inf])], ids=repr)
def test_an_infinite_norm_measures_and_clips_nothing(infinity):
    own, other = np.ones(3), np.ones(3)
    measured, plain = na.Adam(own), na.Adam(other)
    result = measured.step(np.full(3, 4.0), max_grad_norm=infinity)
    plain.step(np.full(3, 4.0))
    assert (result.applied, result.grad_norm) == (True, pytest.approx(math.sqrt(48)))
    assert own.tobytes() == other.tobytes()
    before = contents(measured)
    assert not measured.step(np.array([1.0, np.nan, 1.0]), max_grad_norm=infinity).applied
    assert contents(measured) == before


@pytest.mark.parity
def test_clipping_matches_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; `make parity` installs it")
    params, grads = arrays(sizes=(300, 40)), [arrays(seed, sizes=(300, 40)) for seed in range(1, 30)]
    theirs = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
    optimizer = torch.optim.AdamW(theirs, lr=0.01)
    opt = na.AdamW([param.copy() for param in params], lr=0.01, eps_mode="algorithm1")
    for step, grad in enumerate(grads):
        for param, g in zip(theirs, grad, strict=True):
            param.grad = torch.from_numpy(g.copy())
        max_norm = 5.0 + step  # sometimes above, sometimes below
        norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        optimizer.step()
        assert opt.step(grad, max_grad_norm=max_norm).grad_norm == pytest.approx(float(norm), rel=1e-6)
    for mine, param in zip(opt.param_groups[0]["params"], theirs, strict=True):
        np.testing.assert_allclose(mine, param.detach().numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [{"loss_scale": 1e-50}, {"grad_scale": 1e39}, {"grad_scale": -1e39, "clip_value": 1.0}, {"clip_value": 1e-50}],
)
def test_scales_beyond_float32_are_refused_and_nothing_changes(arguments):
    w = np.ones(3, np.float32)
    optimizer = na.Adam([w])
    with pytest.raises(na.errors.HyperparameterError, match="float32 holds no"):
        optimizer.step([np.ones(3, np.float32)], **arguments)
    assert (w == 1).all()
    assert optimizer.state == {}
