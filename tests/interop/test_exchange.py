"""torch.optim.Adam continues a model that left a server, and a server continues one that PyTorch trained."""

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.parity

SETTINGS = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.01}
SHAPES = {"weight": (4, 3), "bias": (3,)}


def values(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}


def server(folder):
    return Server(ServerConfig(listen="127.0.0.1:0", data_dir=folder, snapshot_interval_seconds=0))


def close_to(one, other):
    for name in SHAPES:
        np.testing.assert_allclose(np.asarray(one[name]), np.asarray(other[name]), rtol=2e-6, atol=2e-7)
    return True


@pytest.mark.parametrize("amsgrad", [False, True])
def test_torch_continues_an_exported_model(amsgrad, tmp_path):
    with server(tmp_path / "data") as running, ParameterClient(running.address, timeout_seconds=800) as client:
        model = client.create_model(
            "digits", values(0), **SETTINGS, amsgrad=amsgrad, eps_mode="algorithm1", durability="memory"
        )
        for seed in (1, 2):
            model.push(values(seed))
    out = tmp_path / "digits.safetensors"
    assert main(["export", str(tmp_path / "data"), "digits", str(out)]) == 0

    # As docs/saving.md shows it.
    saved = safetensors_torch.load_file(out)
    names = [name.removeprefix("step.") for name in saved if name.startswith("step.")]
    params = {name: torch.nn.Parameter(saved[name]) for name in names}
    opt = torch.optim.Adam(params.values(), **SETTINGS, amsgrad=amsgrad)
    columns = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    for name, param in params.items():
        opt.state[param] = {column: saved[f"{column}.{name}"] for column in columns}
        opt.state[param]["step"] = saved[f"step.{name}"].float()

    for name, param in params.items():
        param.grad = torch.from_numpy(values(3)[name])
    opt.step()
    with server(tmp_path / "data") as running, ParameterClient(running.address, timeout_seconds=800) as client:
        model = client.open_model("digits")
        model.push(values(3))
        assert close_to(model.pull(), {name: param.detach().numpy() for name, param in params.items()})


def test_torch_reads_moments_in_bfloat16_and_8_bits(tmp_path):
    for state_dtype, dtype in (("bfloat16", torch.bfloat16), ("8bit", torch.uint8)):
        with server(tmp_path / state_dtype) as running, ParameterClient(running.address, timeout_seconds=800) as client:
            model = client.create_model("digits", values(0), state_dtype=state_dtype, ema_decay=0.5)
            model.push(values(1))
            average = model.pull(average=True)
        out = tmp_path / f"{state_dtype}.safetensors"
        assert main(["export", str(tmp_path / state_dtype), "digits", str(out)]) == 0
        saved = safetensors_torch.load_file(out)
        assert {saved[f"{moment}.{name}"].dtype for moment in ("exp_avg", "exp_avg_sq") for name in SHAPES} == {dtype}
        np.testing.assert_array_equal(saved["ema.weight"].numpy(), average["weight"])
        if state_dtype == "bfloat16":
            wanted = torch.from_numpy(np.float32(0.1) * values(1)["weight"]).to(torch.bfloat16)
            torch.testing.assert_close(saved["exp_avg.weight"], wanted)


def test_a_server_continues_what_torch_trained(tmp_path):
    params = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in values(0).items()}
    opt = torch.optim.Adam(params.values(), **SETTINGS)

    def step(seed):
        for name, param in params.items():
            param.grad = torch.from_numpy(values(seed)[name])
        opt.step()

    step(1)
    step(2)
    tensors = {name: param.detach().clone() for name, param in params.items()}
    for name, param in params.items():
        state = opt.state[param]
        tensors |= {f"{key}.{name}": state[key].clone() for key in ("exp_avg", "exp_avg_sq", "step")}
    safetensors_torch.save_file(tensors, tmp_path / "torch.safetensors")
    words = ["--set", "lr=0.1", "--set", "betas=[0.8,0.9]", "--set", "eps=1e-6", "--set", "weight_decay=0.01"]
    source = str(tmp_path / "torch.safetensors")
    assert main(["import", str(tmp_path / "data"), "digits", source, "--durability", "memory", *words]) == 0
    step(3)
    with server(tmp_path / "data") as running, ParameterClient(running.address, timeout_seconds=800) as client:
        model = client.open_model("digits")
        model.push(values(3))
        assert close_to(model.pull(), {name: param.detach().numpy() for name, param in params.items()})
