"""`numba_adam.torch` in a PyTorch program's place of torch.optim: the same values, and everything an Optimizer has."""

import copy
import importlib
import warnings

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import numba_adam.torch as na_torch
from numba_adam.errors import ArrayError, HyperparameterError

pickle = importlib.import_module("pickle")  # as users do; our own code has none
pytestmark = pytest.mark.parity
CLASSES = [(na_torch.Adam, torch.optim.Adam), (na_torch.AdamW, torch.optim.AdamW)]
SETTINGS = [
    {},
    {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6},
    {"weight_decay": 0.1},
    {"amsgrad": True, "weight_decay": 0.05},
    {"maximize": True},
    {"lr": torch.tensor(0.003)},
    {"fused": True},
    {"foreach": True},
]
NEAR = 1e-5  # training amplifies the last bits' differences; another formula differs by a hundred times more


@pytest.mark.parametrize(("ours", "theirs"), CLASSES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_gives_the_same_parameters_as_torch_optim(pair, ours, theirs, settings):
    both = pair(
        lambda model: ours(model.parameters(), **settings), lambda model: theirs(model.parameters(), **settings)
    )
    both.train(30)
    assert both.difference() < NEAR


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_takes_decoupled_weight_decay(pair, decoupled):
    settings = {"weight_decay": 0.2, "decoupled_weight_decay": decoupled, "lr": 0.01}
    both = pair(
        lambda model: na_torch.Adam(model.parameters(), **settings),
        lambda model: torch.optim.Adam(model.parameters(), **settings),
    )
    both.train(20)
    assert both.difference() < NEAR


def test_the_defaults_are_those_of_torch_optim():
    for ours, theirs in CLASSES:
        params = [torch.ones(2, requires_grad=True)]
        expected = theirs(params).defaults
        assert {key: ours(params).defaults[key] for key in expected} == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_of_parameters_trains(net, dtype):
    model = net(dtype=dtype)
    optimizer = na_torch.AdamW(model.parameters(), lr=0.01)
    batch = torch.randn(12, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    state = optimizer.state[model[0].weight]
    assert state["exp_avg"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_float64_parameters_follow_torch_optim_closely(pair, net):
    def make():
        return net(dtype=torch.float64)

    both = pair(lambda m: na_torch.Adam(m.parameters()), lambda m: torch.optim.Adam(m.parameters()), make)
    for optimizer, model in zip(both.optimizers, both.models, strict=True):
        for number in range(20):
            for place, param in enumerate(model.parameters()):
                random = torch.Generator().manual_seed(100 * number + place)
                param.grad = torch.randn(param.shape, dtype=torch.float64, generator=random)
            optimizer.step()
    assert both.difference() < 1e-14


def test_parameters_of_no_and_of_zero_dimensions_train():
    params = [
        torch.nn.Parameter(torch.tensor(2.0)),
        torch.nn.Parameter(torch.ones(0, 3)),
        torch.nn.Parameter(torch.ones(2)),
    ]
    theirs = [param.detach().clone().requires_grad_() for param in params]
    pairs = (na_torch.Adam(params, lr=0.1), params), (torch.optim.Adam(theirs, lr=0.1), theirs)
    for optimizer, its in pairs:
        for _ in range(3):
            for param in its:
                param.grad = torch.full_like(param, 0.3)
            optimizer.step()
    for one, other in zip(params, theirs, strict=True):
        assert torch.allclose(one, other, atol=NEAR)
    assert params[0].shape == ()


def test_param_groups_are_followed(pair):
    def groups(model):
        return [{"params": model[0].parameters(), "lr": 0.05}, {"params": model[3].parameters(), "weight_decay": 0.3}]

    both = pair(lambda m: na_torch.AdamW(groups(m)), lambda m: torch.optim.AdamW(groups(m)))
    both.train(5)
    for model, optimizer in zip(both.models, both.optimizers, strict=True):
        optimizer.param_groups[0]["lr"] = 0.001
        optimizer.param_groups[1]["betas"] = (0.5, 0.9)
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.02})
    both.train(5)
    assert both.difference() < NEAR
    assert both.optimizers[0].state[both.models[0][2].weight]["step"].item() == 5


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=20),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=4, cycle_momentum=True),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [5]
        ),
    ],
    ids=["cosine", "one cycle", "lambda", "cyclic with betas", "sequence"],
)
@pytest.mark.parametrize("lr", [0.02, torch.tensor(0.02)], ids=["number", "tensor"])
def test_learning_rate_schedulers_drive_it(pair, schedule, lr):
    both = pair(
        lambda m: na_torch.Adam(m.parameters(), lr=copy.deepcopy(lr)),
        lambda m: torch.optim.Adam(m.parameters(), lr=copy.deepcopy(lr)),
    )
    schedulers = [schedule(optimizer) for optimizer in both.optimizers]
    for _ in range(12):
        both.train(1)
        for scheduler in schedulers:
            scheduler.step()
    assert both.difference() < NEAR


def test_reduce_on_plateau_drives_it(pair):
    both = pair(lambda m: na_torch.Adam(m.parameters()), lambda m: torch.optim.Adam(m.parameters()))
    schedulers = [torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0) for o in both.optimizers]
    for _ in range(6):
        both.train(1)
        for scheduler in schedulers:
            scheduler.step(1.0)
    assert both.optimizers[0].param_groups[0]["lr"] == both.optimizers[1].param_groups[0]["lr"] < 1e-3
    assert both.difference() < NEAR


def test_a_closure_is_called_with_gradients_enabled_and_its_loss_returned(net):
    model = net()
    optimizer = na_torch.Adam(model.parameters(), lr=0.01)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 6)).square().mean()
        loss.backward()
        losses.append(loss)
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) is losses[0]
    optimizer.step(closure)
    assert losses[1] < losses[0]


def test_all_hooks_run_in_pytorchs_order(net):
    said = []
    model = net()
    optimizer = na_torch.Adam(model.parameters())
    optimizer.register_step_pre_hook(lambda *_: said.append("before step"))
    optimizer.register_step_post_hook(lambda *_: said.append("after step"))
    optimizer.register_state_dict_pre_hook(lambda *_: said.append("before dict"))
    optimizer.register_state_dict_post_hook(lambda _, found: said.append("after dict") or {**found, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, found: said.append("before load") or {**found, "seen": True})
    optimizer.register_load_state_dict_post_hook(lambda o: said.append(f"after load: {len(o.state)} states"))
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    found = optimizer.state_dict()
    assert found.pop("note") == 1
    optimizer.load_state_dict(found)
    assert said == ["before step", "after step", "before dict", "after dict", "before load", "after load: 6 states"]


def test_hooks_of_all_optimizers_and_a_profiler_see_a_step(net):
    model = net()
    optimizer = na_torch.Adam(model.parameters())
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: seen.append((o, args, kwargs))),
        register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append((o, args, kwargs))),
    ]
    try:
        model(torch.ones(1, 6)).sum().backward()
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [(optimizer, (optimizer,), {})] * 2
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#Adam.step" in {event.name for event in profile.function_events}
    assert optimizer.state[model[0].weight]["step"].item() == 2


def test_a_pre_hook_may_change_the_arguments_of_a_step(net):
    model = net()
    optimizer = na_torch.AdamW(model.parameters())
    optimizer.register_step_pre_hook(lambda *_: ((optimizer, lambda: 3.0), {}))
    assert optimizer.step() == 3.0


def test_autograd_hears_of_the_step():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = na_torch.Adam([weight], lr=0.5)
    loss = (weight**2).sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("layout", ["transposed", "channels last"])
def test_dense_layouts_of_any_order_train(layout):
    random = torch.Generator().manual_seed(5)
    value = torch.randn(4, 3, 5, 2, generator=random)
    value = value.transpose(1, 3) if layout == "transposed" else value.contiguous(memory_format=torch.channels_last)
    ours, theirs = (torch.nn.Parameter(value.clone(memory_format=torch.preserve_format)) for _ in range(2))
    optimizers = na_torch.Adam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for _ in range(3):
        grad = torch.randn(value.shape, generator=random)
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = grad.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=NEAR)
    moment = optimizers[0].state[ours]["exp_avg"]
    assert torch.allclose(moment, optimizers[1].state[theirs]["exp_avg"], atol=NEAR)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_sparse_gradients_update_their_rows_as_sparse_adam_does(amsgrad):
    tables = [torch.nn.Embedding(40, 5, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    ours = na_torch.Adam(tables[0].parameters(), lr=0.05, eps_mode="hat", amsgrad=amsgrad)
    theirs = torch.optim.SparseAdam(tables[1].parameters(), lr=0.05)
    random = torch.Generator().manual_seed(2)
    for _ in range(6):
        rows = torch.randint(0, 40, (9,), generator=random)
        for table, optimizer in zip(tables, (ours, theirs), strict=True):
            optimizer.zero_grad()
            table(rows).square().sum().backward()
            optimizer.step()
    if not amsgrad:
        assert torch.allclose(tables[0].weight, tables[1].weight, atol=NEAR)
    assert ours.state[tables[0].weight]["step"].item() == 6
    assert ("max_exp_avg_sq" in ours.state[tables[0].weight]) == amsgrad


def test_a_table_beside_dense_layers_trains_and_may_change_to_dense_gradients():
    table, layer = torch.nn.Embedding(10, 4, sparse=True), torch.nn.Linear(4, 2)
    optimizer = na_torch.AdamW([*table.parameters(), *layer.parameters()], lr=0.05, weight_decay=0.0)
    rows = torch.tensor([1, 3, 3])
    before = table.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        layer(table(rows)).square().mean().backward()
        optimizer.step()
    untouched = [row for row in range(10) if row not in (1, 3)]
    assert torch.equal(table.weight[untouched], before[untouched])
    assert not torch.equal(table.weight[1], before[1])
    moment = optimizer.state[table.weight]["exp_avg"].clone()
    table.weight.grad = torch.zeros(10, 4)
    optimizer.step()
    assert torch.allclose(optimizer.state[table.weight]["exp_avg"], moment * 0.9)
    assert optimizer.state[table.weight]["step"].item() == 3
    assert optimizer.state[layer.weight]["step"].item() == 3
    said = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(said)
    assert torch.equal(optimizer.state[table.weight]["exp_avg"], said["state"][0]["exp_avg"])


@pytest.mark.parametrize("unscaled", [False, True], ids=["step", "unscale_ first"])
def test_a_grad_scaler_unscales_in_the_step_and_skips_what_overflows(pair, unscaled):
    both = pair(lambda m: na_torch.Adam(m.parameters()), lambda m: torch.optim.Adam(m.parameters()))
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3) for _ in range(2)]
    for number in range(8):
        batch = torch.full((4, 6), float("inf") if number == 4 else 1.0 + number)
        for model, optimizer, scaler in zip(both.models, both.optimizers, scalers, strict=True):
            optimizer.zero_grad()
            scaler.scale(model(batch).square().mean()).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    assert both.difference() < NEAR
    assert scalers[0].get_scale() == scalers[1].get_scale() != 1024.0
    assert both.optimizers[0].state[both.models[0][0].weight]["step"].item() == 7


def test_max_grad_norm_clips_as_clip_grad_norm_does(pair):
    both = pair(lambda m: na_torch.Adam(m.parameters(), max_grad_norm=0.01), lambda m: torch.optim.Adam(m.parameters()))

    def clip(*_):
        torch.nn.utils.clip_grad_norm_(both.models[1].parameters(), 0.01)

    both.optimizers[1].register_step_pre_hook(clip)
    assert both.optimizers[0].step_result is None
    both.train(10)
    assert both.difference() < NEAR
    result = both.optimizers[0].step_result
    assert result.applied
    assert result.grad_norm > 0


def test_a_step_that_is_not_finite_is_skipped_where_the_norm_is_measured():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = na_torch.Adam([weight], max_grad_norm=1.0)
    weight.grad = torch.tensor([1.0, float("nan"), 1.0])
    optimizer.step()
    assert not optimizer.step_result.applied
    assert torch.equal(weight, torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[weight]["step"].item() == 1


def test_moving_averages_and_low_precision_copies_are_tensors(net):
    model = net()
    optimizer = na_torch.Adam(model.parameters(), lr=0.01, ema_decay=0.5, low_precision_copy="bfloat16")
    start = [param.detach().clone() for param in model.parameters()]
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param, average, rounded, old in zip(
        model.parameters(), optimizer.ema, optimizer.low_precision, start, strict=True
    ):
        assert torch.allclose(average, (param + old) / 2, atol=1e-6)
        assert torch.equal(rounded, param.detach().bfloat16())
    with pytest.raises(HyperparameterError, match="ema_decay"):
        _ = na_torch.Adam(net().parameters()).ema


@pytest.mark.parametrize("settings", [{"capturable": True}, {"differentiable": True}], ids=str)
def test_what_would_be_a_lie_is_refused(settings):
    with pytest.raises(HyperparameterError, match=next(iter(settings))):
        na_torch.Adam([torch.ones(2, requires_grad=True)], **settings)


def test_a_parameter_that_cannot_be_updated_is_refused_by_name():
    with pytest.raises(ArrayError, match="complex64"):
        na_torch.Adam([torch.ones(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(ArrayError, match="device meta"):
        na_torch.Adam([torch.nn.Parameter(torch.ones(2, device="meta"))])
    optimizer = na_torch.Adam([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ArrayError, match="int64"):
        optimizer.add_param_group({"params": [torch.ones(2, dtype=torch.int64)]})
    assert len(optimizer.param_groups) == 1


def test_a_gradient_on_sparse_rows_is_refused_with_options_that_need_it_whole():
    table = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = na_torch.Adam(table.parameters(), max_grad_norm=1.0)
    table(torch.tensor([1])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(HyperparameterError, match="max_grad_norm"):
        optimizer.step()
    assert torch.equal(table.weight, before)


def test_a_compiled_model_trains(net):
    model = net()
    compiled = torch.compile(model, backend="eager")
    optimizer = na_torch.Adam(compiled.parameters(), lr=0.01)
    before = [param.detach().clone() for param in model.parameters()]
    compiled(torch.ones(3, 6)).sum().backward()
    optimizer.step()
    assert not any(map(torch.equal, before, model.parameters()))


def test_a_compiled_training_step_may_contain_the_optimizer(net):
    models = net(), net()
    optimizers = [na_torch.Adam(model.parameters(), lr=0.01) for model in models]

    def train(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(3, 6)).square().mean().backward()
        optimizer.step()

    for model, optimizer, run in zip(models, optimizers, (train, torch.compile(train, backend="eager")), strict=True):
        for _ in range(3):
            run(model, optimizer)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    assert optimizers[1].state[models[1][0].weight]["step"].item() == 3


def test_no_warning_is_shown_in_ordinary_use(net):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = net()
        optimizer = na_torch.Adam(model.parameters())
        model(torch.ones(1, 6)).sum().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state[model[0].weight]["step"].item() == 1


def test_a_refused_hyperparameter_leaves_nothing_behind(pair):
    both = pair(lambda m: na_torch.Adam(m.parameters(), lr=0.01), lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
    both.train(2)
    group = both.optimizers[0].param_groups[0]
    before = [param.detach().clone() for param in both.models[0].parameters()]
    group.update(lr=0.5, betas=(2.0, 0.9))
    with pytest.raises(HyperparameterError, match="betas"):
        both.optimizers[0].step()
    assert all(map(torch.equal, both.models[0].parameters(), before))
    group.update(lr=0.01, betas=(0.9, 0.999))
    both.train(2)
    assert both.difference() < NEAR


@pytest.mark.parametrize("table", ["bfloat16", "turned"])
def test_a_table_that_rows_cannot_update_is_refused_before_other_parameters_change(table):
    weight = torch.nn.Parameter(torch.ones(3))
    values = torch.ones(4, 2, dtype=torch.bfloat16) if table == "bfloat16" else torch.ones(2, 4).t()
    rows = torch.nn.Parameter(values)
    optimizer = na_torch.Adam([weight, rows])
    weight.grad = torch.ones(3)
    rows.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2, dtype=values.dtype), (4, 2), check_invariants=True)
    with pytest.raises(ArrayError, match="sparse gradient"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(3))


@pytest.mark.parametrize("make", [na_torch.Adam, na_torch.AdamW, na_torch.CPUOffloadAdam])
@pytest.mark.parametrize("empty", [[{"params": []}], [{"params": []}, {"params": []}]], ids=len)
def test_a_group_may_be_empty_and_others_are_added_later_as_in_pytorch(make, empty):
    optimizer = make([dict(group) for group in empty], lr=0.1)
    optimizer.step()
    param = torch.nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [param], "lr": 0.5})
    param.grad = torch.ones(3)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert torch.allclose(param, torch.zeros(3), atol=0.01)
    assert list(optimizer.state) == [param]


def test_a_wrong_setting_of_an_empty_group_is_refused():
    with pytest.raises(ValueError, match="lr"):
        na_torch.Adam([{"params": [], "lr": -1.0}])
