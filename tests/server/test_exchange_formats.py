"""`numba-adam export` and `import` of models whose state has formats of its own: the arrays of the library's state."""

import contextlib
import dataclasses

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import numba_adam as na
from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.server.embedded import Server
from numba_adam.server.storage import safetensors_file

SHAPES = {"w": (40, 20), "b": (3,), "s": (), "none": (0,), "never": (200,)}
FORMATS = {
    "bfloat16": {"state_dtype": "bfloat16", "amsgrad": True, "rounding": "stochastic", "seed": 3},
    "8bit": {"state_dtype": "8bit", "ema_decay": 0.5},
    "AMSGrad in 8 bits": {"state_dtype": "8bit", "amsgrad": True},
    "double": {"state_dtype": "float64", "ema_decay": 0.9},
}


def values(seed):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def gradients(seed):
    return {**values(seed), "never": None}


@contextlib.contextmanager
def serving(config):
    with Server(config) as server, ParameterClient(server.address, timeout_seconds=800) as client:
        yield client


def trained(config, options, durability="process"):
    """Train a model and the library's optimizer alike; return the optimizer and its parameters."""
    params = values(0)
    optimizer = na.Adam(params, lr=0.1, **options)
    with serving(config) as client:
        model = client.create_model("m", values(0), lr=0.1, durability=durability, **options)
        for seed in (1, 2, 3):
            model.push(gradients(seed))
            optimizer.step(gradients(seed))
    return optimizer, params


@pytest.mark.parametrize("durability", ["memory", "process", "disk"])
@pytest.mark.parametrize("name", FORMATS)
def test_an_exported_state_is_the_librarys_and_comes_back_with_the_same_bits(name, durability, config, tmp_path):
    optimizer, params = trained(config, FORMATS[name], durability)
    out, again, folder = tmp_path / "m.safetensors", tmp_path / "again.safetensors", tmp_path / "other"
    assert main(["export", str(config.data_dir), "m", str(out)]) == 0
    state = safetensors_file.read(out)
    for key, array in params.items():
        assert state.columns["param"][key].tobytes() == array.tobytes()
        for column, wanted in optimizer.state.get(key, {}).items():
            if column != "step":
                found = state.columns[column][key]
                assert (found.tobytes(), found.shape) == (np.asarray(wanted).tobytes(), wanted.shape), (key, column)
        assert state.steps[key] == int(optimizer.state[key]["step"] if key in optimizer.state else 0)
    assert main(["import", str(folder), "copy", str(out)]) == 0
    assert main(["verify", str(folder)]) == 0
    assert main(["export", str(folder), "copy", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    optimizer.step(gradients(4))
    with serving(dataclasses.replace(config, data_dir=folder)) as client:
        model = client.open_model("copy")
        model.push(gradients(4))
        for key, array in model.pull().items():
            assert array.tobytes() == params[key].tobytes()
        if "ema_decay" in FORMATS[name]:
            for key, array in model.pull(average=True).items():
                assert array.tobytes() == optimizer.ema[key].astype(np.float32).tobytes()


def test_moments_in_bfloat16_are_bfloat16_to_every_reader(config, tmp_path):
    optimizer, _ = trained(config, {"state_dtype": "bfloat16"})
    out = tmp_path / "m.safetensors"
    assert main(["export", str(config.data_dir), "m", str(out)]) == 0
    with safe_open(out, "numpy") as file:
        assert file.get_slice("exp_avg.w").get_dtype() == "BF16"
        assert tuple(file.get_slice("exp_avg.w").get_shape()) == SHAPES["w"]
        assert file.get_tensor("step.w") == 3
    bits = safetensors_file.read(out).columns["exp_avg"]["w"]
    wanted = np.asarray(optimizer.state["w"]["exp_avg"]).view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(bits.view(ml_dtypes.bfloat16).astype(np.float32), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("exp_avg_scale.w"), "lacks 'exp_avg_scale.w'"),
        (lambda arrays: arrays.update({"exp_avg_scale.w": np.zeros(3, np.float32)}), "of shape (3,), expected float32"),
        (lambda arrays: arrays["exp_avg_sq_scale.w"].fill(np.nan), "has a NaN or an infinity"),
        (lambda arrays: arrays["exp_avg_sq_scale.w"].fill(-1), "scales are never negative"),
        (lambda arrays: arrays.update({"exp_avg.w": np.zeros((40, 20), np.float32)}), "dtypes float32, uint8"),
        (lambda arrays: arrays.update({"ema.w": np.zeros((40, 20), np.float32)}), "how fast that average decays"),
    ],
)
def test_a_state_in_8_bits_that_does_not_fit_is_refused_by_name(change, message, config, tmp_path, capsys):
    trained(config, {"state_dtype": "8bit"})
    out, folder = tmp_path / "m.safetensors", tmp_path / "other"
    assert main(["export", str(config.data_dir), "m", str(out)]) == 0
    with safe_open(out, "numpy") as file:
        arrays = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    change(arrays)
    changed = tmp_path / "changed.safetensors"
    safetensors_file.save_file(arrays, changed)
    assert main(["import", str(folder), "copy", str(changed)]) != 0
    assert message in capsys.readouterr().err
    assert not (folder / "models").exists() or not list((folder / "models").iterdir())


@pytest.mark.parametrize("bits", [0x7F80, 0x7FC0, 0xFF80, 0x8001, 0xBF80])
def test_bfloat16_that_no_second_moment_has_is_refused(bits, config, tmp_path, capsys):
    trained(config, {"state_dtype": "bfloat16"})
    out = tmp_path / "m.safetensors"
    assert main(["export", str(config.data_dir), "m", str(out)]) == 0
    state = safetensors_file.read(out)
    state.columns["exp_avg_sq"]["w"][0, 0] = bits
    changed = tmp_path / "changed.safetensors"
    safetensors_file.write(changed, state)
    assert main(["import", str(tmp_path / "other"), "copy", str(changed)]) != 0
    assert "exp_avg_sq.w" in capsys.readouterr().err


def test_a_state_in_bfloat16_of_another_program_needs_no_metadata(config, tmp_path):
    trained(config, {"state_dtype": "bfloat16"})
    out, plain, folder = tmp_path / "m.safetensors", tmp_path / "plain.safetensors", tmp_path / "other"
    assert main(["export", str(config.data_dir), "m", str(out)]) == 0
    length = int.from_bytes(out.read_bytes()[:8], "little")
    header, data = out.read_bytes()[8 : 8 + length], out.read_bytes()[8 + length :]
    assert header.count(b'"numba_adam"') == 1
    other = header.replace(b'"numba_adam"', b'"other-name"')
    plain.write_bytes(len(other).to_bytes(8, "little") + other + data)
    assert main(["import", str(folder), "copy", str(plain)]) == 0
    with serving(dataclasses.replace(config, data_dir=folder)) as client:
        assert client.open_model("copy").spec.options.state_dtype == "bfloat16"
