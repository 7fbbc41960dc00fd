"""`numba_adam.torch.CPUOffloadAdam`: state in this host's memory, and updates while the backward pass goes on."""

import copy
import gc
import importlib
import io

import pytest
import torch

import numba_adam as na
import numba_adam.torch as na_torch
from numba_adam.errors import ArrayError, HyperparameterError, StateDictError

pickle = importlib.import_module("pickle")  # as users do; our own code has none
pytestmark = pytest.mark.parity
BOTH = pytest.mark.parametrize("in_backward", [False, True], ids=["step", "in backward"])


def made(model, in_backward, **settings):
    settings = {"lr": 0.01, "weight_decay": 0.01, "decoupled_weight_decay": True, "chunk_bytes": 1, **settings}
    return na_torch.CPUOffloadAdam(model.parameters(), update_in_backward=in_backward, **settings)


def train(model, optimizer, steps=5, seed=1):
    random = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 6, generator=random).to(dtype)).square().mean().backward()
        optimizer.step()


def assert_same(one, other):
    assert all(map(torch.equal, one.parameters(), other.parameters()))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"state_dtype": "8bit", "seed": 5},
        {"amsgrad": True, "maximize": True},
        {"ema_decay": 0.9, "clip_value": 0.01},
        {"decoupled_weight_decay": False, "eps_mode": "hat"},
    ],
    ids=str,
)
def test_it_has_the_bits_of_adam_with_master_weights(net, in_backward, dtype, settings):
    if dtype == torch.float64:
        settings = {key: value for key, value in settings.items() if key not in ("state_dtype", "seed")}
    models = [net(dtype=dtype) for _ in range(3)]
    ours = made(models[0], in_backward, chunk_bytes=40 * dtype.itemsize, **settings)  # the smaller ones are together
    common = {"lr": 0.01, "weight_decay": 0.01, "decoupled_weight_decay": True, "master_weights": True, **settings}
    theirs = na_torch.Adam(models[1].parameters(), **common)
    clip = {"clip_value": common.pop("clip_value", None)}
    common.setdefault("eps_mode", "algorithm1")
    library = na.Adam(list(models[2].parameters()), **common)
    random = torch.Generator().manual_seed(2)
    for _ in range(4):
        batch = torch.randn(8, 6, generator=random).to(dtype)
        for model in models:
            model.zero_grad()
            model(batch).square().mean().backward()
        ours.step()
        theirs.step()
        library.step([param.grad for param in models[2].parameters()], **clip)
    assert_same(models[0], models[1])
    assert_same(models[0], models[2])
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert ours.state[one].keys() == theirs.state[other].keys()
        for key, value in theirs.state[other].items():
            assert torch.equal(ours.state[one][key], value), key


@BOTH
def test_its_state_dict_goes_to_adam_and_back(net, in_backward):
    models = [net(dtype=torch.bfloat16) for _ in range(2)]
    ours = made(models[0], in_backward)
    train(models[0], ours)
    file = io.BytesIO()
    torch.save([models[0].state_dict(), ours.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    models[1].load_state_dict(weights)
    theirs = na_torch.AdamW(models[1].parameters(), master_weights=True)
    theirs.load_state_dict(state)
    for model, optimizer in zip(models, (ours, theirs), strict=True):
        train(model, optimizer, seed=2)
    assert_same(*models)
    again = net(seed=9, dtype=torch.bfloat16)
    back = made(again, in_backward)
    again.load_state_dict(models[1].state_dict())
    back.load_state_dict(theirs.state_dict())
    train(again, back, seed=3)
    train(models[1], theirs, seed=3)
    assert_same(again, models[1])


@BOTH
def test_a_state_dict_that_does_not_fit_changes_nothing(net, in_backward):
    models = [net(dtype=torch.bfloat16) for _ in range(2)]
    optimizers = [made(model, in_backward) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer)
    wrong = copy.deepcopy(optimizers[0].state_dict())
    wrong["state"][0]["exp_avg"] = torch.ones(3)
    with pytest.raises(StateDictError):
        optimizers[0].load_state_dict(wrong)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, seed=2)
    assert_same(*models)


@BOTH
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"]
)
def test_a_copy_of_model_and_optimizer_trains_on_by_itself(net, in_backward, copied):
    model = net(dtype=torch.bfloat16)
    optimizer = made(model, in_backward)
    train(model, optimizer)
    other, its = copied((model, optimizer))
    before = [param.clone() for param in other.parameters()]
    train(model, optimizer)
    assert all(map(torch.equal, before, other.parameters()))
    train(other, its)
    assert_same(model, other)


@BOTH
def test_schedulers_groups_and_closures_work(net, in_backward):
    models = [net() for _ in range(2)]

    def groups(model):
        return [{"params": model[0].parameters(), "lr": 0.05}, {"params": model[3].parameters(), "weight_decay": 0.3}]

    optimizers = (
        na_torch.CPUOffloadAdam(groups(models[0]), update_in_backward=in_backward, decoupled_weight_decay=True),
        na_torch.Adam(groups(models[1]), decoupled_weight_decay=True),
    )
    for model, optimizer in zip(models, optimizers, strict=True):
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
        random = torch.Generator().manual_seed(3)
        for number in range(6):
            if number == 3:
                optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.02})
            batch = torch.randn(4, 6, generator=random)

            def closure(model=model, optimizer=optimizer, batch=batch):
                optimizer.zero_grad()
                loss = model(batch).square().mean()
                loss.backward()
                return loss

            assert optimizer.step(closure) > 0
            scheduler.step()
    assert_same(*models)
    assert optimizers[0].state[models[0][2].weight]["step"].item() == 3


@BOTH
def test_weights_that_the_program_changes_count(net, in_backward):
    models = [net() for _ in range(2)]
    optimizers = made(models[0], in_backward), na_torch.AdamW(models[1].parameters(), lr=0.01)
    for model, optimizer in zip(models, optimizers, strict=True):
        model.load_state_dict(net(seed=4).state_dict())
        train(model, optimizer)
        with torch.no_grad():
            model[0].weight.mul_(0.5)
        model[3].weight.data = model[3].weight.data.t().contiguous().t() * 2
        model[0].bias.data = torch.zeros(16)
        train(model, optimizer)
    assert_same(*models)


@BOTH
def test_state_is_alive(net, in_backward):
    models = [net() for _ in range(2)]
    optimizers = made(models[0], in_backward), na_torch.AdamW(models[1].parameters(), lr=0.01)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer)
        optimizer.state[model[0].weight]["exp_avg"].zero_()
        optimizer.state[model[3].weight]["exp_avg"] = torch.ones(3, 16)
        optimizer.state[model[3].bias].clear()
        del optimizer.state[model[0].bias]
        train(model, optimizer)
    assert_same(*models)


@BOTH
def test_frozen_unused_and_tied_parameters(net, in_backward):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.encoder = torch.nn.Linear(6, 6, bias=False)
            self.decoder = torch.nn.Linear(6, 6, bias=False)
            self.decoder.weight = self.encoder.weight
            self.unused = torch.nn.Linear(2, 2)
            self.frozen = torch.nn.Linear(6, 6).requires_grad_(False)

        def forward(self, batch):
            return self.decoder(torch.tanh(self.frozen(self.encoder(batch))))

    models = Tied(), Tied()
    optimizers = made(models[0], in_backward), na_torch.AdamW(models[1].parameters(), lr=0.01)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
        assert list(optimizer.state) == [model.encoder.weight]
        model.frozen.requires_grad_(True)  # after the optimizer was made
        train(model, optimizer, 3)
        model.encoder.requires_grad_(False)
        train(model, optimizer, 3)
        assert optimizer.state[model.encoder.weight]["step"].item() == 6
        assert optimizer.state[model.frozen.weight]["step"].item() == 6
    assert_same(*models)


@BOTH
def test_max_grad_norm_and_values_that_are_not_finite(net, in_backward):
    if in_backward:
        with pytest.raises(HyperparameterError, match=r"max_grad_norm=1\.0 .*update_in_backward"):
            made(net(), in_backward, max_grad_norm=1.0)
        return
    models = [net() for _ in range(2)]
    optimizers = (
        made(models[0], False, max_grad_norm=0.01),
        na_torch.AdamW(models[1].parameters(), lr=0.01, max_grad_norm=0.01),
    )
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
        next(model.parameters()).grad[0, 0] = float("nan")
        optimizer.step()
        assert not optimizer.step_result.applied
        train(model, optimizer, 1)
        assert optimizer.step_result.grad_norm > 0
    assert_same(*models)


@BOTH
def test_sparse_gradients_update_their_rows(in_backward):
    tables = [torch.nn.Embedding(40, 5, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    optimizers = (
        na_torch.CPUOffloadAdam(tables[0].parameters(), lr=0.05, update_in_backward=in_backward),
        na_torch.Adam(tables[1].parameters(), lr=0.05),
    )
    random = torch.Generator().manual_seed(2)
    for _ in range(4):
        rows = torch.randint(0, 40, (9,), generator=random)
        for table, optimizer in zip(tables, optimizers, strict=True):
            optimizer.zero_grad()
            table(rows).square().sum().backward()
            optimizer.step()
    assert_same(*tables)


@pytest.mark.parametrize("settings", [{"chunk_bytes": 0}, {"chunk_bytes": 1.5}, {"update_in_backward": 2}], ids=str)
def test_settings_that_mean_nothing_are_refused(net, settings):
    with pytest.raises(HyperparameterError, match=next(iter(settings))):
        na_torch.CPUOffloadAdam(net().parameters(), **settings)


def test_what_cannot_be_copied_is_refused_by_name():
    good = torch.nn.Parameter(torch.ones(4))
    for bad, words in (
        (torch.nn.Parameter(torch.ones(2, device="meta")), "meta"),
        (torch.nn.Parameter(torch.ones(2, dtype=torch.complex64)), "complex64"),
        (torch.nn.Parameter(torch.ones(3).expand(2, 3)), "strides"),
        (torch.nn.Parameter(good.data[:2]), "share memory"),
    ):
        with pytest.raises(ArrayError, match=words):
            na_torch.CPUOffloadAdam([good, bad])


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 24], ids=["a chunk for each parameter", "one chunk"])
def test_each_chunk_is_updated_while_the_backward_pass_goes_on(net, chunk_bytes):
    """When the gradient of the first layer is made, the last layer has changed, unless all are one chunk."""
    model = net()
    optimizer = made(model, True, chunk_bytes=chunk_bytes)
    before = [param.detach().clone() for param in model.parameters()]
    has_changed = []

    def look(_):
        optimizer.state_dict()  # waits for the updates that have begun
        has_changed.append(not torch.equal(model[3].weight, before[4]))
        assert model[3].weight.grad is None

    model[0].weight.register_hook(look)
    model(torch.ones(2, 6)).square().mean().backward()
    assert has_changed == [chunk_bytes == 1]
    assert all(param.grad is None for param in model.parameters())
    optimizer.step()
    assert not any(map(torch.equal, before, model.parameters()))


def test_gradients_add_up_over_several_backward_passes(net):
    models = [net(dtype=torch.bfloat16) for _ in range(2)]
    optimizers = made(models[0], True), na_torch.AdamW(models[1].parameters(), lr=0.01, master_weights=True)
    batches = torch.randn(3, 3, 8, 6, generator=torch.Generator().manual_seed(4)).bfloat16()
    for first, second, third in batches:
        optimizers[0].zero_grad()
        with optimizers[0].accumulating():
            models[0](first).square().mean().backward()
            models[0](second).square().mean().backward()
        models[0](third).square().mean().backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        for batch in (first, second, third):
            models[1](batch).square().mean().backward()
        optimizers[1].step()
    assert_same(*models)
    with optimizers[0].accumulating():
        models[0](batches[0, 0]).square().mean().backward()
    optimizers[0].step()  # without a backward pass outside
    optimizers[1].zero_grad()
    models[1](batches[0, 0]).square().mean().backward()
    optimizers[1].step()
    assert_same(*models)


def test_a_second_backward_pass_without_a_step_is_refused(net):
    model = net()
    optimizer = made(model, True)
    model(torch.ones(2, 6)).square().mean().backward()
    with pytest.raises(HyperparameterError, match=r"second gradient before step\(\).*accumulating"):
        model(torch.ones(2, 6)).square().mean().backward()
    optimizer.zero_grad()
    train(model, optimizer, 2)
    assert optimizer.state[model[0].weight]["step"].item() == 3


def test_a_backward_pass_that_fails_leaves_an_optimizer_that_works(net):
    model = net()
    optimizer = made(model, True)

    def fail(_):
        raise ZeroDivisionError

    handle = model[0].weight.register_hook(fail)
    with pytest.raises(ZeroDivisionError):
        model(torch.ones(2, 6)).square().mean().backward()
    handle.remove()
    optimizer.zero_grad()
    counts = [optimizer.state[param]["step"].item() if param in optimizer.state else 0 for param in model.parameters()]
    assert counts[0] == 0
    train(model, optimizer, 2)
    after = [optimizer.state[param]["step"].item() for param in model.parameters()]
    assert after == [count + 2 for count in counts]


def test_zero_grad_between_backward_and_step_takes_back_no_update(net):
    models = [net() for _ in range(2)]
    ours, theirs = made(models[0], True), na_torch.AdamW(models[1].parameters(), lr=0.01)
    for model in models:
        model(torch.ones(2, 6)).square().mean().backward()
    ours.zero_grad()
    ours.step()
    theirs.step()
    assert_same(*models)


def test_zero_grad_of_the_model_during_accumulation_drops_the_sums(net):
    models = [net() for _ in range(2)]
    ours, theirs = made(models[0], True), na_torch.AdamW(models[1].parameters(), lr=0.01)
    with ours.accumulating():
        models[0](torch.ones(2, 6)).square().mean().backward()
    models[0].zero_grad()
    train(models[0], ours, 1)
    train(models[1], theirs, 1)
    assert_same(*models)


def test_an_update_that_is_refused_says_so_at_the_next_call(net):
    model = net()
    optimizer = made(model, True)
    train(model, optimizer, 1)
    before = [param.detach().clone() for param in model.parameters()]
    for call in (optimizer.step, optimizer.zero_grad):
        optimizer.param_groups[0]["lr"] = -1.0
        model(torch.ones(2, 6)).square().mean().backward()
        with pytest.raises(HyperparameterError, match="lr"):
            call()
        assert all(map(torch.equal, before, model.parameters()))
    optimizer.param_groups[0]["lr"] = 0.01
    train(model, optimizer, 1)
    assert optimizer.state[model[0].weight]["step"].item() == 2


def test_a_learning_rate_that_changes_after_the_backward_pass_is_the_next_steps(net):
    models = [net() for _ in range(2)]
    ours, theirs = made(models[0], True), na_torch.AdamW(models[1].parameters(), lr=0.01)
    for model in models:
        model(torch.ones(2, 6)).square().mean().backward()
    ours.param_groups[0]["lr"] = 0.5
    ours.step()
    theirs.step()
    assert_same(*models)


def test_a_grad_scaler_is_refused_during_the_backward_pass(net):
    model = net()
    optimizer = made(model, True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(2, 6)).square().mean()).backward()
    with pytest.raises(HyperparameterError, match="GradScaler"):
        scaler.step(optimizer)


def test_a_gradient_that_is_set_after_the_update_is_refused(net):
    model = net()
    optimizer = made(model, True)
    model(torch.ones(2, 6)).square().mean().backward()
    model[0].bias.grad = torch.ones(16)
    with pytest.raises(HyperparameterError, match=r"params\[1\].*DistributedDataParallel"):
        optimizer.step()


def test_two_optimizers_cannot_take_the_same_gradients(net):
    model = net()
    first = made(model, True)
    with pytest.raises(HyperparameterError, match="close"):
        made(model, True)
    first.close()
    second = made(model, True)
    train(model, second, 2)
    assert len(first.state) == 0
    assert second.state[model[0].weight]["step"].item() == 2


def test_an_optimizer_that_is_gone_takes_no_gradients(net):
    model = net()
    optimizer = made(model, True)
    train(model, optimizer, 1)
    del optimizer
    gc.collect()
    model.zero_grad()
    model(torch.ones(2, 6)).square().mean().backward()
    assert all(param.grad is not None for param in model.parameters())
    train(model, made(model, True), 1)
