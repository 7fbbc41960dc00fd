"""The state of parameters on a GPU: made there, read, carried to another part, as the CPU's optimizer has it."""

import numpy as np
from lending import on_gpu

import numba_adam as na
from numba_adam import Hyperparameters
from numba_adam.cuda.part import CudaPart, parts_of
from numba_adam.scaling import scaling

LABELS = ("['a']", "['b']")


def draw(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in ((5, 4), (31,))]


def part_of(params, hyperparameters, **options):
    return CudaPart(on_gpu(*params), LABELS, [0, 1], hyperparameters, **options)


def test_states_are_the_cpus_and_carry_over_to_another_part():
    params, copies = draw(1), draw(1)
    settings = [{"lr": 0.1}, {"lr": 0.01, "amsgrad": True}]
    cpu = na.Adam([{"params": [copy], **each} for copy, each in zip(copies, settings, strict=True)])
    part = part_of(params, [Hyperparameters(**each) for each in settings])
    assert part.states() == [{}, {}]
    for seed in range(2, 6):
        grads = draw(seed)
        if seed == 4:
            part = part_of(params, [Hyperparameters(**each) for each in settings], states=part.states())
        part.prepare(on_gpu(*grads) if seed != 3 else on_gpu(grads[0], None))
        part.launch()
        cpu.step(grads if seed != 3 else [grads[0], None])
    for k, state in enumerate(part.states()):
        expected = cpu.state_dict()["state"][k]
        assert set(state) == set(expected)
        assert all(np.array_equal(state[key], expected[key]) for key in state)
    assert all(np.array_equal(param, copy) for param, copy in zip(params, copies, strict=True))


def test_changed_hyperparameters_are_sent():
    params, copies, grads = draw(1), draw(1), draw(2)
    part = part_of(params, [Hyperparameters(lr=0.1), Hyperparameters(lr=0.1)])
    cpu = na.Adam([{"params": [copy]} for copy in copies], lr=0.1)
    for lr in (0.1, 0.05, 0.025):
        part.set_hyperparameters([Hyperparameters(lr=0.1), Hyperparameters(lr=lr)])
        cpu.param_groups[1]["lr"] = lr
        part.prepare(on_gpu(*grads))
        part.launch()
        cpu.step(grads)
    assert all(np.array_equal(param, copy) for param, copy in zip(params, copies, strict=True))


def test_a_norm_over_the_cpu_and_a_gpu_is_one_norm():
    """A mixed list: each part says its sum of squares, and all take the same factor."""
    params, grads = draw(1), draw(2)
    part = part_of(params, [Hyperparameters()] * 2)
    first = scaling(1.0, None, 1.0, None)
    part.prepare(on_gpu(*grads), first)
    expected = sum(float(np.square(grad.astype("f8")).sum()) for grad in grads)
    np.testing.assert_allclose(part.sum_of_squares(), expected, rtol=1e-14)
    part.prepare_again(first._replace(factor=0.25))
    part.launch()
    copies = draw(1)
    na.Adam(copies).step(grads, grad_scale=0.25)
    assert all(np.array_equal(param, copy) for param, copy in zip(params, copies, strict=True))
    assert part.outcome().applied


def test_state_in_bfloat16_is_kept_as_its_bits():
    params, grads = draw(1), draw(2)
    part = part_of(params, [Hyperparameters()] * 2, state_format="bfloat16")
    part.prepare(on_gpu(*grads))
    part.launch()
    assert all(state["exp_avg"].dtype == np.uint16 for state in part.states())


def test_parameters_are_divided_by_gpu_and_precision():
    places = [(0, "float32"), (1, "float32"), (0, "bfloat16"), (0, "float64"), (1, "float16")]
    assert parts_of(places) == [[0, 2], [1, 4], [3]]
