"""Schedules beside PyTorch's and optax's own: the same rates, but for the roundings of these."""

import pytest

from numba_adam.ps.schedules import Chain, Constant, Cosine, InverseSquareRoot, Linear, Piecewise

pytestmark = pytest.mark.parity
STEPS = 40


def rates_of_torch(make):
    torch = pytest.importorskip("torch")
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=0.1)
    schedule, rates = make(torch.optim.lr_scheduler, optimizer), []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def joined(each, optimizer):
    warm = each.LinearLR(optimizer, 0.01, 1.0, 10)
    wave = each.CosineAnnealingLR(optimizer, 30, 0.001)
    return each.SequentialLR(optimizer, [warm, wave], [10])


TORCH = {
    "constant": (Constant(0.1), lambda each, opt: each.LambdaLR(opt, lambda _: 1.0)),
    "warm-up": (Linear(0.001, 0.1, 10), lambda each, opt: each.LinearLR(opt, 0.01, 1.0, 10)),
    "cosine": (Cosine(0.1, 0.001, STEPS), lambda each, opt: each.CosineAnnealingLR(opt, STEPS, 0.001)),
    "inverse square root": (
        InverseSquareRoot(0.1, 5),
        lambda each, opt: each.LambdaLR(opt, lambda step: (5 / (5 + step)) ** 0.5),
    ),
    "piecewise": (Piecewise((0.1, 0.01, 0.001), (10, 25)), lambda each, opt: each.MultiStepLR(opt, [10, 25], 0.1)),
    "chain": (Chain((Linear(0.001, 0.1, 10), Cosine(0.1, 0.001, 30)), (10,)), joined),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize("case", TORCH)
def test_the_rates_are_pytorchs(case):
    schedule, make = TORCH[case]
    expected = rates_of_torch(make)
    # PyTorch computes each rate from the one before, so its roundings add up.
    assert [schedule.lr_at(version) for version in range(STEPS)] == pytest.approx(expected, rel=1e-13, abs=0)


OPTAX = {
    "constant": (Constant(0.1), lambda optax: optax.constant_schedule(0.1)),
    "warm-up": (Linear(0.0, 0.1, 10), lambda optax: optax.linear_schedule(0.0, 0.1, 10)),
    "cosine": (Cosine(0.1, 0.001, 30), lambda optax: optax.cosine_decay_schedule(0.1, 30, 0.01)),
    "piecewise": (
        Piecewise((0.1, 0.05, 0.005), (10, 25)),
        lambda optax: optax.piecewise_constant_schedule(0.1, {10: 0.5, 25: 0.1}),
    ),
    "chain": (
        Chain((Linear(0.0, 0.1, 10), Cosine(0.1, 0.0, 25)), (10,)),
        lambda optax: optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 35),
    ),
}


@pytest.mark.parametrize("case", OPTAX)
def test_the_rates_are_optaxs(case):
    optax = pytest.importorskip("optax")
    schedule, make = OPTAX[case]
    theirs = make(optax)
    expected = [float(theirs(version)) for version in range(STEPS)]
    # optax computes in float32.
    assert [schedule.lr_at(version) for version in range(STEPS)] == pytest.approx(expected, rel=1e-5, abs=1e-8)
