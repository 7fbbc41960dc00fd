"""The state of `numba_adam.torch`'s optimizers: alive, saved, loaded, copied; and exchanged with torch.optim's."""

import copy
import importlib
import io

import pytest
import torch

import numba_adam as na
import numba_adam.torch as na_torch
from numba_adam.errors import HyperparameterError, StateDictError

pickle = importlib.import_module("pickle")  # as users do; our own code has none
pytestmark = pytest.mark.parity
CLASSES = [(na_torch.Adam, torch.optim.Adam), (na_torch.AdamW, torch.optim.AdamW)]
NEAR = 1e-5  # training amplifies the last bits' differences; another formula differs by a hundred times more


def test_state_is_alive_and_has_pytorchs_keys_and_forms(net):
    model = net()
    optimizer = na_torch.Adam(model.parameters(), lr=0.1, amsgrad=True)
    assert len(optimizer.state) == 0
    weight = model[0].weight
    for count in (1, 2):
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        state = optimizer.state[weight]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert (state["step"].item(), state["step"].dtype, state["step"].shape) == (count, torch.float32, ())
        assert state["exp_avg"].shape == weight.shape
    held = state["exp_avg"]
    before = held.clone()
    optimizer.step()
    assert held is optimizer.state[weight]["exp_avg"]
    assert not torch.equal(held, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["exp_avg"].zero_(),
        lambda state: state["step"].fill_(7),
        lambda state: state.update(exp_avg=torch.full_like(state["exp_avg"], 0.5)),
        lambda state: state.update(step=torch.tensor(3.0)),
        lambda state: state.clear(),
    ],
    ids=["zeroed in place", "another step", "another tensor", "another step tensor", "cleared"],
)
def test_what_a_program_does_to_the_state_counts_in_the_next_step(pair, change):
    both = pair(lambda m: na_torch.Adam(m.parameters(), lr=0.01), lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
    both.train(5)
    for model, optimizer in zip(both.models, both.optimizers, strict=True):
        change(optimizer.state[model[0].weight])
    both.train(5)
    assert both.difference() < NEAR
    for model, optimizer in zip(both.models, both.optimizers, strict=True):
        del optimizer.state[model[3].bias]
    both.train(5)
    assert both.difference() < NEAR


def test_frozen_and_unused_parameters_keep_no_state(net):
    model = net()
    model[0].bias.requires_grad_(False)
    unused = torch.nn.Parameter(torch.ones(3))
    optimizer = na_torch.AdamW([*model.parameters(), unused], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
    assert unused not in optimizer.state
    assert model[0].bias not in optimizer.state
    assert torch.equal(unused, torch.ones(3))
    unused.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[unused]["step"].item() == 1
    assert optimizer.state[model[0].weight]["step"].item() == 4


@pytest.mark.parametrize(("ours", "theirs"), CLASSES)
def test_state_dicts_load_into_torch_optim_and_back(pair, ours, theirs):
    both = pair(lambda m: ours(m.parameters(), lr=0.01), lambda m: theirs(m.parameters(), lr=0.01))
    both.train(8)
    said = [copy.deepcopy(optimizer.state_dict()) for optimizer in both.optimizers]
    assert [set(said[0]["state"][0]), len(said[0]["state"])] == [set(said[1]["state"][0]), len(said[1]["state"])]
    both.optimizers[0].load_state_dict(said[1])
    both.optimizers[1].load_state_dict(said[0])
    both.train(8)
    assert both.difference() < NEAR
    assert both.optimizers[0].state[both.models[0][0].weight]["step"].item() == 16


@pytest.mark.parametrize("state_dtype", [None, "8bit", "bfloat16"])
def test_a_checkpoint_continues_with_the_same_bits(net, state_dtype):
    def train(model, optimizer, steps, seed):
        random = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 6, generator=random)).square().mean().backward()
            optimizer.step()

    settings = {"lr": 0.01, "state_dtype": state_dtype}
    model = net()
    optimizer = na_torch.Adam(model.parameters(), **settings)
    train(model, optimizer, 5, 1)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 5, 2)
    other = net(seed=3)
    again = na_torch.Adam(other.parameters(), **settings)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    other.load_state_dict(loaded["model"])
    again.load_state_dict(loaded["optimizer"])
    train(other, again, 5, 2)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_loading_copies_the_tensors(net):
    model = net()
    optimizer = na_torch.Adam(model.parameters())
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    said = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(said)
    held = said["state"][0]["exp_avg"].clone()
    optimizer.step()
    assert torch.equal(said["state"][0]["exp_avg"], held)
    assert said["state"][0]["step"].item() == 1


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda said: said["state"][0].update(exp_avg=torch.ones(3)), StateDictError),
        (lambda said: said["state"][0].pop("exp_avg_sq"), StateDictError),
        (lambda said: said["state"][0].update(step=torch.tensor(-1.0)), StateDictError),
        (lambda said: said["state"].update({99: said["state"][0]}), StateDictError),
        (lambda said: said["param_groups"].pop(), ValueError),
        (lambda said: said["param_groups"][0].update(lr=-1.0), HyperparameterError),
    ],
    ids=["shape", "missing moment", "step", "stranger", "groups", "lr"],
)
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(net, damage, error):
    model = net()
    optimizer = na_torch.Adam(model.parameters())
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    said = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(said)
    damage(said)
    with pytest.raises(error):
        optimizer.load_state_dict(said)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, entry in before["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in entry.items())
    optimizer.step()
    assert optimizer.state[model[0].weight]["step"].item() == 2


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))],
    ids=["copy", "pickle"],
)
@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_a_copy_of_model_and_optimizer_trains_on_by_itself(net, copied, state_dtype):
    model = net()
    optimizer = na_torch.Adam(model.parameters(), lr=0.01, state_dtype=state_dtype)

    def train(model, optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(3, 6)).square().mean().backward()
            optimizer.step()

    train(model, optimizer)
    other, its = copied((model, optimizer))
    assert all(param in its.state for param in other.parameters())
    before = [param.clone() for param in other.parameters()]
    train(model, optimizer)
    assert all(map(torch.equal, before, other.parameters()))
    train(other, its)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_storage_that_is_replaced_is_followed(pair):
    both = pair(lambda m: na_torch.Adam(m.parameters(), lr=0.01), lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
    both.train(3)
    for model in both.models:
        model[0].weight.data = model[0].weight.data.clone()
    both.train(3)
    for model in both.models:
        model[0].weight.data = model[0].weight.data.t().contiguous().t()
    both.train(3)
    assert both.difference() < NEAR
    ours, theirs = (o.state[m[0].weight]["exp_avg"] for o, m in zip(both.optimizers, both.models, strict=True))
    assert torch.allclose(ours, theirs, atol=NEAR)


def test_named_parameters_keep_their_names_in_the_state_dict(net):
    model = net()
    optimizer = na_torch.Adam(model.named_parameters())
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == [name for name, _ in model.named_parameters()]


def test_a_moment_replaced_by_one_with_the_same_identity_counts(pair):
    """The program lets go of the old tensor first, so that Python may give the new one its identity."""
    both = pair(lambda m: na_torch.Adam(m.parameters(), lr=0.01), lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
    both.train(3)
    for model, optimizer in zip(both.models, both.optimizers, strict=True):
        for param in model.parameters():
            state = optimizer.state[param]
            state.pop("exp_avg")
            state["exp_avg"] = torch.full_like(param, 0.25)
    both.train(3)
    assert both.difference() < NEAR


def test_amsgrad_may_be_switched_on_and_its_array_is_shown():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = na_torch.Adam([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["max_exp_avg_sq"], optimizer.state[weight]["exp_avg_sq"])
    assert optimizer.state[weight]["step"].item() == 2


def test_dicts_with_fewer_settings_load_and_set_pytorchs_eps_mode():
    """PyTorch's have no eps_mode; those of older versions and of `numba_adam.Adam` lack further keys."""
    weight = torch.nn.Parameter(torch.ones(3))
    library = na.Adam([torch.ones(3)], lr=0.5, eps_mode="algorithm1")
    library.step([torch.full((3,), 2.0)])
    theirs = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=0.5).state_dict()
    del theirs["param_groups"][0]["capturable"], theirs["param_groups"][0]["differentiable"]
    for said, step in ((library.state_dict(), 1), (theirs, 0)):
        optimizer = na_torch.Adam([weight], eps_mode="hat")
        optimizer.load_state_dict(said)
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["eps_mode"]) == (0.5, "algorithm1")
        weight.grad = torch.ones(3)
        optimizer.step()
        assert optimizer.state[weight]["step"].item() == step + 1
