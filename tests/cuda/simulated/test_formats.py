"""16-bit formats and fused work in the simulator, each compared with its own oracle."""

from itertools import product

import numpy as np
import pytest
from lending import Interface, on_gpu

from numba_adam import Hyperparameters
from numba_adam.cuda.table import CudaTable
from numba_adam.functional import adam_update
from numba_adam.settings.scaling import Scaling
from numba_adam.settings.step_arrays import Extras

SIZE = 43
OPTIONS = {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}
FORMATS = ("float32", "bfloat16", "float16")


def rounded(values, number):
    """Return the nearest numbers of a format, as float32; ties to even. Values of the format's normal range."""
    if number == "float16":
        return values.astype(np.float16).astype(np.float32)
    if number == "bfloat16":
        mantissa, exponent = np.frexp(values.astype(np.float64))
        return np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8).astype(np.float32)
    return values.astype(np.float32)


def stored(values, number):
    """Return numbers as stored in a format; bfloat16 as its bits."""
    if number == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(number)


def loaded(array, number):
    """Return stored numbers as float32."""
    if number == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def draw(seed, number, scale=1.0):
    return rounded(np.random.default_rng(seed).normal(size=SIZE) * scale, number)


def updated(param, grad, exp_avg, exp_avg_sq, step=1):
    """Return float32 arrays after one step on the CPU."""
    arrays = [np.array(array, np.float32) for array in (param, grad, exp_avg, exp_avg_sq)]
    adam_update(*arrays, step=step, **OPTIONS)
    return arrays[0], arrays[2], arrays[3]


def one_table(param, exp_avg, exp_avg_sq, **extras):
    columns = on_gpu(param), on_gpu(exp_avg), on_gpu(exp_avg_sq)
    return CudaTable(*columns, hyperparameters=[Hyperparameters(**OPTIONS)], extras=Extras(**extras))


@pytest.mark.parametrize(("param_is", "grad_is", "state_is"), list(product(FORMATS, FORMATS, FORMATS)))
def test_every_combination_is_the_rounded_float32_update(param_is, grad_is, state_is):
    start, slope = draw(1, param_is), draw(2, grad_is)
    exp_avg, exp_avg_sq = draw(3, state_is), np.abs(draw(4, state_is))
    expected = updated(start, slope, exp_avg, exp_avg_sq)
    param, exp_avg, exp_avg_sq = stored(start, param_is), stored(exp_avg, state_is), stored(exp_avg_sq, state_is)
    one_table(param, exp_avg, exp_avg_sq).step(on_gpu(stored(slope, grad_is)))
    assert loaded(param, param_is).tolist() == rounded(expected[0], param_is).tolist()
    assert loaded(exp_avg, state_is).tolist() == rounded(expected[1], state_is).tolist()
    assert loaded(exp_avg_sq, state_is).tolist() == rounded(expected[2], state_is).tolist()


@pytest.mark.parametrize("param_is", ["float32", "bfloat16", "float16"])
def test_float64_state_is_computed_in_float64(param_is):
    start, slope = draw(1, param_is), draw(2, "float32")
    exp_avg, exp_avg_sq = np.zeros(SIZE), np.zeros(SIZE)
    param = stored(start, param_is)
    one_table(param, exp_avg, exp_avg_sq).step(on_gpu(slope))
    wide = [start.astype(np.float64), slope.astype(np.float64), np.zeros(SIZE), np.zeros(SIZE)]
    adam_update(*wide, step=1, **OPTIONS)
    assert exp_avg.tolist() == wide[2].tolist()
    assert exp_avg_sq.tolist() == wide[3].tolist()
    assert loaded(param, param_is).tolist() == rounded(wide[0].astype(np.float32), param_is).tolist()


@pytest.mark.parametrize("number", ["bfloat16", "float16"])
def test_a_16_bit_copy_of_the_new_parameters_is_written(number):
    """Master weights: the parameter in float32, what the model uses in 16 bits."""
    param, copy = draw(1, "float32"), np.zeros(SIZE, np.uint16 if number == "bfloat16" else np.float16)
    one_table(param, np.zeros(SIZE, "f4"), np.zeros(SIZE, "f4"), copies=on_gpu(copy)).step(on_gpu(draw(2, "float32")))
    assert loaded(copy, number).tolist() == rounded(param, number).tolist()


def test_the_moving_average_of_the_weights_is_updated():
    param, ema = draw(1, "float32"), draw(5, "float32")
    before = ema.copy()
    table = one_table(param, np.zeros(SIZE, "f4"), np.zeros(SIZE, "f4"), emas=on_gpu(ema), ema_decay=0.75)
    table.step(on_gpu(draw(2, "float32")))
    np.testing.assert_allclose(ema, 0.75 * before.astype("f8") + 0.25 * param.astype("f8"), rtol=3e-7, atol=1e-7)


def test_the_gradient_is_set_to_zero_with_zero_grad():
    grads = [draw(2, "float32"), stored(draw(3, "bfloat16"), "bfloat16")]
    params = [draw(1, "float32"), draw(4, "float32")]
    moments = [[np.zeros(SIZE, "f4") for _ in params] for _ in range(2)]
    expected = [updated(p, loaded(g, n), 0 * p, 0 * p)[0] for p, g, n in zip(params, grads, FORMATS, strict=False)]
    table = CudaTable(on_gpu(*params), *(on_gpu(*m) for m in moments), hyperparameters=[Hyperparameters(**OPTIONS)])
    table.step(on_gpu(*grads), Scaling(zero_grad=True))
    assert [grad.tolist() for grad in grads] == [[0] * SIZE] * 2
    assert [param.tolist() for param in params] == [each.tolist() for each in expected]


def stochastic(seed, param, cut):
    """Return bfloat16 parameters after a step with stochastic rounding, divided into arrays of different sizes."""
    pieces = [stored(param, "bfloat16")[:cut], stored(param, "bfloat16")[cut:]] if cut else [stored(param, "bfloat16")]
    moments = [[np.zeros(piece.size, "f4") for piece in pieces] for _ in range(2)]
    options = {"hyperparameters": [Hyperparameters(lr=1e-3)], "extras": Extras(is_stochastic=True, seed=seed)}
    table = CudaTable(on_gpu(*pieces), *(on_gpu(*column) for column in moments), **options)
    table.step(on_gpu(*(np.ones(piece.size, "f4") for piece in pieces)))
    return [loaded(piece, "bfloat16") for piece in pieces]


def test_stochastic_rounding_takes_a_neighbour_and_has_the_right_mean():
    size = 4000
    param = np.full(size, 1.0, "f4")
    (result,) = stochastic(7, param, 0)
    below = 1.0 - 2.0**-8
    assert set(result.tolist()) == {1.0, below}
    share = 1e-3 / 2.0**-8
    assert abs(np.mean(result == below) - share) < 5 * np.sqrt(share * (1 - share) / size)


def test_stochastic_rounding_depends_only_on_the_seed_and_the_array():
    param = np.full(300, 1.0, "f4")
    (whole,) = stochastic(7, param, 0)
    first, second = stochastic(7, param, 100)
    assert first.tolist() == whole[:100].tolist()
    assert second.tolist() != whole[:200].tolist()
    assert stochastic(8, param, 0)[0].tolist() != whole.tolist()


def test_arrays_of_several_formats_share_a_launch():
    numbers = ["float32", "bfloat16", "float16"]
    params = [stored(draw(k, number), number) for k, number in enumerate(numbers)]
    moments = [[np.zeros(SIZE, "f4") for _ in numbers] for _ in range(2)]
    slope = draw(9, "float32")
    expected = [updated(loaded(p, n), slope, 0 * slope, 0 * slope)[0] for p, n in zip(params, numbers, strict=True)]
    table = CudaTable(
        on_gpu(*params), *(on_gpu(*column) for column in moments), hyperparameters=[Hyperparameters(**OPTIONS)]
    )
    table.step([Interface(slope)] * 3)
    for param, number, new in zip(params, numbers, expected, strict=True):
        assert loaded(param, number).tolist() == rounded(new, number).tolist()
