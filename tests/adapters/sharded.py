"""A program for one of two processes: trains sharded parameters with our AdamW and with torch.optim's.

`python sharded.py RANK STORE` prints the name of each case that both agree in.
"""

import copy
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict as checkpoints
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import numba_adam.torch as na_torch
from numba_adam.errors import HyperparameterError, StateDictError, UnsupportedArrayError

NEAR = {"rtol": 1e-5, "atol": 1e-6}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3), torch.nn.Linear(3, 1)
    )


def sharded(dtype=None, **options):
    """Return a network whose parameters FSDP2 has sharded. Some shards are empty, some larger than others."""
    model = network().to(dtype) if dtype else network()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[3]):
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def tensor_parallel():
    """Return a network of which some layers are divided by columns and rows, and one is in both processes."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 8))
    plan = {"0": SequenceParallel(sequence_dim=0), "1": ColwiseParallel(input_layouts=Shard(0)), "3": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


def batches(steps, features=5, dtype=torch.float32):
    random = torch.Generator().manual_seed(dist.get_rank())
    return [torch.randn(6, features, generator=random).to(dtype) for _ in range(steps)]


def train(model, optimizer, data, each=lambda: None):
    for batch in data:
        optimizer.zero_grad()
        model(batch).float().square().mean().backward()
        each()
        optimizer.step()


def assert_same(models, **near):
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert isinstance(one, DTensor)
        assert one.placements == other.placements
        torch.testing.assert_close(one.full_tensor(), other.full_tensor(), **(near or NEAR), msg=name)


def both(make, options=None, steps=8, features=5, each=lambda _: None):
    """Train two equal networks, ours first."""
    models = make(), make()
    optimizers = (
        na_torch.AdamW(models[0].parameters(), lr=0.01, **options or {}),
        torch.optim.AdamW(models[1].parameters(), lr=0.01, **options or {}),
    )
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, batches(steps, features), lambda model=model: each(model))
    return models, optimizers


def fsdp2():
    for options in ({}, {"amsgrad": True, "maximize": True}, {"weight_decay": 0.0, "betas": (0.5, 0.9)}):
        models, optimizers = both(sharded, options)
        assert_same(models)
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            own, its = optimizers[0].state[one], optimizers[1].state[other]
            assert own.keys() == its.keys(), (own, its)
            assert own["step"] == its["step"] == 8
            for key in own.keys() - {"step"}:
                assert own[key].placements == its[key].placements
                torch.testing.assert_close(own[key].full_tensor(), its[key].full_tensor(), rtol=1e-4, atol=1e-7)


def fsdp2_in_bfloat16():
    """Sharded float32 parameters that are computed with in bfloat16; and bfloat16 ones with master weights."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    models, _ = both(lambda: sharded(mp_policy=policy))
    assert_same(models, rtol=1e-2, atol=1e-3)
    model = sharded(torch.bfloat16)
    optimizer = na_torch.AdamW(model.parameters(), lr=0.01, master_weights=True, ema_decay=0.9)
    train(model, optimizer, batches(4, dtype=torch.bfloat16))
    for param, average in zip(model.parameters(), optimizer.ema, strict=True):
        master = optimizer.state[param]["master_param"]
        assert master.placements == average.placements == param.placements
        assert torch.equal(master.full_tensor().bfloat16(), param.full_tensor())
        assert not torch.equal(average.full_tensor(), master.full_tensor())


def two_dimensions():
    """Hybrid sharding: a mesh with a replicated dimension."""

    def make():
        return fully_shard(network(), mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))

    assert_same(both(make)[0])


def tensor_parallel_layers():
    models, _ = both(tensor_parallel, features=8)
    assert_same(models)


def partial():
    """Gradients that are sums over processes are added up; a parameter that is one is refused."""
    mesh = init_device_mesh("cpu", (2,))
    found = []
    for make in (na_torch.AdamW, torch.optim.AdamW):
        param = torch.nn.Parameter(distribute_tensor(torch.arange(6.0).reshape(3, 2), mesh, [Replicate()]))
        optimizer = make([param], lr=0.1)
        for number in range(3):
            part = torch.full((3, 2), float(number + dist.get_rank()))
            param.grad = DTensor.from_local(part, mesh, [Partial()])
            optimizer.step()
        found.append(param.full_tensor())
    torch.testing.assert_close(*found, **NEAR)
    refused = torch.nn.Parameter(DTensor.from_local(torch.ones(2), mesh, [Partial()]))
    refusal(UnsupportedArrayError, "sum over processes", lambda: na_torch.AdamW([refused]))
    plain = torch.nn.Parameter(torch.ones(2))
    na_torch.AdamW([plain]).step()


def clipping():
    """PyTorch's clipping works. Ours would see the shards of one process only, and is refused."""

    def clip(model):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    assert_same(both(sharded, each=clip)[0])
    model = sharded()
    refusal(HyperparameterError, "clip_grad_norm_", lambda: na_torch.AdamW(model.parameters(), max_grad_norm=1.0))
    refusal(HyperparameterError, "blocks", lambda: na_torch.Adam(model.parameters(), state_dtype="8bit"))
    refusal(UnsupportedArrayError, "CPUOffloadPolicy", lambda: na_torch.CPUOffloadAdam(model.parameters()))
    optimizer = na_torch.Adam(network().parameters(), max_grad_norm=1.0)
    before = len(optimizer.param_groups)
    refusal(HyperparameterError, "sharded", lambda: optimizer.add_param_group({"params": list(model.parameters())}))
    assert len(optimizer.param_groups) == before


def scaling():
    """Both scalers skip the steps that torch.optim's AdamW skips, also if one process only has an infinity."""
    for scaler_of_ours in (torch.amp.GradScaler, na_torch.GradScaler):
        models = sharded(), sharded()
        found = []
        for model, make, scaler_class in (
            (models[0], na_torch.AdamW, scaler_of_ours),
            (models[1], torch.optim.AdamW, torch.amp.GradScaler),
        ):
            optimizer = make(model.parameters(), lr=0.01)
            scaler = scaler_class("cpu", init_scale=64.0, growth_interval=2)
            for number, batch in enumerate(batches(6)):
                optimizer.zero_grad()
                scaler.scale(model(batch).square().mean()).backward()
                if number == 3 and dist.get_rank() == 1:
                    model[0].weight.grad._local_tensor[0, 0] = float("inf")
                scaler.step(optimizer)
                scaler.update()
            found.append((scaler.get_scale(), float(optimizer.state[model[0].weight]["step"])))
        assert found[0] == found[1], found
        assert found[0][1] == 5
        assert_same(models)


def saving():
    """State dicts: our own, PyTorch's, and those of torch.distributed.checkpoint, whole and sharded."""
    data = batches(6)
    models = sharded(), sharded()
    optimizers = (
        na_torch.AdamW(models[0].parameters(), lr=0.01),
        torch.optim.AdamW(models[1].parameters(), lr=0.01),
    )
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, data[:3])
    theirs = copy.deepcopy(optimizers[1].state_dict())
    train(models[1], optimizers[1], data[3:])

    def goes_on(load):
        """Continue from our third step with another optimizer, and compare with PyTorch's sixth."""
        model = sharded()
        with torch.no_grad():
            for new, old in zip(model.parameters(), models[0].parameters(), strict=True):
                new._local_tensor.copy_(old._local_tensor)
        optimizer = na_torch.AdamW(model.parameters(), lr=0.01)
        load(model, optimizer)
        train(model, optimizer, data[3:])
        assert_same((model, models[1]))

    goes_on(lambda _, optimizer: optimizer.load_state_dict(copy.deepcopy(optimizers[0].state_dict())))
    goes_on(lambda _, optimizer: optimizer.load_state_dict(theirs))
    for whole in (False, True):
        options = checkpoints.StateDictOptions(full_state_dict=whole)
        kept = copy.deepcopy(checkpoints.get_optimizer_state_dict(models[0], optimizers[0], options=options))

        def load(model, optimizer, kept=kept, options=options):
            checkpoints.set_optimizer_state_dict(model, optimizer, kept, options=options)

        goes_on(load)
    plain = torch.optim.AdamW(network().parameters(), lr=0.01)
    for group in plain.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    plain.step()
    refusal(StateDictError, "distribute_tensor", lambda: optimizers[0].load_state_dict(plain.state_dict()))
    train(models[0], optimizers[0], data[3:])
    assert_same(models)


def other_shards():
    """A program may shard its parameters after it made the optimizer, and give them other memory."""
    model = network()
    optimizer = na_torch.AdamW(model.parameters(), lr=0.01)
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model, mesh=mesh)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    theirs = fully_shard(network(), mesh=mesh)
    peer = torch.optim.AdamW(theirs.parameters(), lr=0.01)
    data = batches(6)
    train(model, optimizer, data[:2])
    train(theirs, peer, data[:2])
    for each in (model, theirs):
        each.double()
        each.float()
    train(model, optimizer, data[2:])
    train(theirs, peer, data[2:])
    assert_same((model, theirs))
    version = model[0].weight._version
    train(model, optimizer, data[:1])
    assert model[0].weight._version > version


def fsdp1():
    """The first generation of FSDP: its parameters are views of flat shards, which get other memory in every step."""
    found = []
    for make in (na_torch.AdamW, torch.optim.AdamW):
        model = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
        train(model, make(model.parameters(), lr=0.01), batches(8))
        with FullyShardedDataParallel.summon_full_params(model):
            found.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    torch.testing.assert_close(*found, **NEAR)


def zero_redundancy():
    """ZeroRedundancyOptimizer gives each process some of the parameters."""
    found = []
    for make in (na_torch.AdamW, torch.optim.AdamW):
        model = DistributedDataParallel(network())
        train(model, ZeroRedundancyOptimizer(model.parameters(), optimizer_class=make, lr=0.01), batches(8))
        found.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    torch.testing.assert_close(*found, **NEAR)


def refusal(error, words, act):
    with pytest.raises(error, match=words):
        act()


CASES = {
    case.__name__: case
    for case in (
        fsdp2,
        fsdp2_in_bfloat16,
        two_dimensions,
        tensor_parallel_layers,
        partial,
        clipping,
        scaling,
        saving,
        other_shards,
        fsdp1,
        zero_redundancy,
    )
}

if __name__ == "__main__":
    rank, store, *chosen = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    for name in chosen or CASES:
        CASES[name]()
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
    dist.destroy_process_group()
    os._exit(0)  # tests/adapters/test_torch_distributed.py says why
