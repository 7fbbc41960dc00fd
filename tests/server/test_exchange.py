"""`numba-adam export` and `import`: a model leaves as a safetensors file and comes back with the same bits."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.server.embedded import Server

SETTINGS = {"lr": 0.25, "betas": (0.5, 0.75), "eps": 1e-3, "weight_decay": 0.1, "eps_mode": "algorithm1"}


@pytest.fixture
def folder(config):
    return config.data_dir


@pytest.fixture
def client():
    """Runs a server on a configuration, and yields a client; a context manager."""

    class Running:
        def __init__(self, config):
            self.server = Server(config)

        def __enter__(self):
            self.server.start()
            self.client = ParameterClient(self.server.address, timeout_seconds=800)
            return self.client

        def __exit__(self, *_):
            self.client.close()
            assert self.server.stop()

    return Running


def gradients(params, seed, *, without=()):
    rng = np.random.default_rng(seed)
    return {
        name: None if name in without else np.asarray(rng.standard_normal(array.shape), array.dtype)
        for name, array in params.items()
    }


@pytest.fixture
def trained(client, config, params):
    """Trains a model and stops the server; returns its parameters. One array has fewer steps than the others."""

    def run(dtype="float32", **options):
        start = {name: array.astype(dtype) for name, array in params.items()}
        with client(config) as running:
            model = running.create_model("model", start, **SETTINGS, **options)
            for seed in range(3):
                model.push(gradients(start, seed, without=["bias"] if seed == 1 else []))
            return model.pull()

    return run


def same(one, other):
    assert one.keys() == other.keys()
    return all(
        one[name].tobytes() == other[name].tobytes()
        and (one[name].shape, one[name].dtype) == (other[name].shape, other[name].dtype)
        for name in one
    )


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("durability", "dtype", "amsgrad"),
    [("memory", "float64", False), ("process", "float32", True), ("disk", "float32", False)],
)
@pytest.mark.parametrize("is_new", [True, False], ids=["another folder", "same folder"])
def test_a_round_trip_has_the_same_bits_and_continues_alike(
    durability, dtype, amsgrad, is_new, trained, client, config, folder, tmp_path, capsys, caplog
):
    params = trained(dtype, durability=durability, amsgrad=amsgrad)
    out, again = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    before = content(folder)
    assert main(["export", str(folder), "model", str(out)]) == 0
    assert content(folder) == before
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{out}: model model, version 3, from snapshot 2\n", "")
    arrays = load_file(out)
    names = ["", "exp_avg.", "exp_avg_sq.", *(["max_exp_avg_sq."] if amsgrad else []), "step."]
    assert arrays.keys() == {prefix + name for prefix in names for name in params}
    assert same({name: arrays[name] for name in params}, params)
    assert {name: int(arrays[f"step.{name}"]) for name in params} == dict.fromkeys(params, 3) | {"bias": 2}

    target = tmp_path / "other" if is_new else folder
    assert main(["import", str(target), "copy", str(out)]) == 0
    assert main(["verify", str(target)]) == 0
    assert main(["export", str(target), "copy", str(again)]) == 0
    assert capsys.readouterr().err == ""
    assert same(load_file(again), arrays)
    with safe_open(out, "numpy") as one, safe_open(again, "numpy") as other:
        assert one.metadata() == other.metadata()

    def pushed(path, name):
        with client(dataclasses.replace(config, data_dir=path)) as running:
            model = running.open_model(name)
            assert model.spec.durability == durability
            assert model.spec.hyperparameters.lr == SETTINGS["lr"]
            model.push(gradients(params, 9))
            return model.pull()

    caplog.clear()
    copied = pushed(target, "copy")
    assert "rewound" not in caplog.text
    assert same(copied, pushed(folder, "model"))


def test_other_models_of_the_folder_go_on_unnoticed(trained, client, config, folder, tmp_path):
    trained()
    with client(config) as running:
        before = running.open_model("model").spec
    assert main(["export", str(folder), "model", str(tmp_path / "x.safetensors")]) == 0
    assert main(["import", str(folder), "copy", str(tmp_path / "x.safetensors")]) == 0
    with client(config) as running:
        after = running.open_model("model").spec
        assert {model.name for model in running.list_models()} == {"model", "copy"}
    assert (after.state_id, after.version) == (before.state_id, before.version)


def test_a_file_of_another_program_needs_no_state_and_takes_settings(client, config, folder, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    weights = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}
    moments = {"exp_avg.w": weights["w"] / 8, "exp_avg_sq.w": weights["w"] / 4, "step.w": np.float32(7)}
    save_file(weights | {name: np.asarray(array) for name, array in moments.items()}, path)
    words = ["import", str(folder), "new", str(path), "--durability", "memory", "--set", "lr=0.5"]
    assert main([*words, "--set", "betas=[0.5,0.75]"]) == 0
    assert "lr=0.5, betas=(0.5, 0.75)" in capsys.readouterr().out
    with client(config) as running:
        info = running.open_model("new").spec
        assert (info.hyperparameters.lr, info.hyperparameters.eps_mode) == (0.5, "algorithm1")
        assert same(running.open_model("new").pull(), weights)
    assert main(["export", str(folder), "new", str(tmp_path / "y.safetensors")]) == 0
    arrays = load_file(tmp_path / "y.safetensors")
    assert same(
        {name: arrays[name] for name in ("exp_avg.w", "exp_avg_sq.w")}, {n: moments[n] for n in list(moments)[:2]}
    )
    assert (int(arrays["step.w"]), int(arrays["step.b"]), arrays["exp_avg.b"].any()) == (7, 0, False)


ONES = np.ones(3, np.float32)
STATE = {"exp_avg.w": ONES, "exp_avg_sq.w": ONES, "step.w": np.asarray(1)}


@pytest.mark.parametrize(
    ("arrays", "words", "message"),
    [
        ({}, (), "has no arrays"),
        ({"w": ONES.astype(np.float16)}, (), "have the dtypes float16; a model has one dtype, float32 or float64"),
        ({"w": ONES, "b": np.ones(2)}, (), "have the dtypes float32, float64"),
        ({"w": ONES * np.nan}, (), "array 'w' has a NaN or an infinity"),
        ({"w": ONES, "exp_avg.w": ONES}, (), "has 'exp_avg.w', and lacks 'exp_avg_sq.w'"),
        ({"w": ONES, "exp_avg.w": ONES, "exp_avg_sq.w": ONES}, (), "lacks 'step.w'"),
        (
            {"w": ONES, **STATE, "exp_avg.w": np.ones(2, np.float32)},
            (),
            "of shape (2,), expected float32 of shape (3,)",
        ),
        ({"w": ONES, **STATE, "exp_avg_sq.w": -ONES}, (), "'exp_avg_sq.w' has negative values"),
        ({"w": ONES, **STATE, "step.w": np.asarray(1.5)}, (), "'step.w' is 1.5, expected one whole number"),
        ({"w": ONES, **STATE, "step.w": np.asarray(-1)}, (), "'step.w' is -1, expected one whole number"),
        ({"w": ONES}, ("--set", "speed=1"), "the hyperparameters are lr, betas, eps"),
        ({"w": ONES}, ("--set", "lr=-1"), "lr=-1: it must be at least 0"),
        ({"w": ONES}, ("--set", "lr"), "expected NAME=VALUE, such as lr=0.01"),
        ({"w": ONES}, ("--set", "amsgrad=true"), "the file lacks max_exp_avg_sq.NAME"),
        ({"bad\nname": ONES}, (), "printable characters"),
    ],
)
def test_a_file_that_makes_no_model_is_refused_by_name(arrays, words, message, folder, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    save_file(arrays, path)
    assert main(["import", str(folder), "new", str(path), *words]) == 1
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_what_cannot_be_exported_or_imported_changes_nothing(trained, client, config, folder, tmp_path, capsys):
    trained()
    out, strange = tmp_path / "x.safetensors", tmp_path / "strange.safetensors"
    strange.write_bytes(b"no such file")
    assert main(["export", str(folder), "model", str(out)]) == 0
    raw, before = out.read_bytes(), content(folder)
    cases = (
        (["export", folder, "model", out], "exists, and is not overwritten"),
        (["export", folder, "model", tmp_path / "x.pt"], "expected a name that ends with .safetensors"),
        (["export", folder, "model", tmp_path / "no" / "x.safetensors"], "its folder must exist"),
        (["export", folder, "nobody", tmp_path / "y.safetensors"], "has no such model; it has 'model'"),
        (["export", folder, "model", tmp_path / "y.safetensors", "--snapshot", "9"], "no such snapshot; it has 1, 2"),
        (["export", tmp_path, "model", tmp_path / "y.safetensors"], "is not a data folder"),
        (["import", folder, "model", out], "model 'model' exists"),
        (["import", folder, "../x", out], "../x"),
        (["import", folder, "new", strange], "is not a safetensors file that can be read"),
        (["import", folder, "new", tmp_path / "y.safetensors"], "is not a safetensors file that can be read"),
    )
    for words, message in cases:
        assert main([str(word) for word in words]) == 1
        assert message in capsys.readouterr().err
    assert (out.read_bytes(), content(folder)) == (raw, before)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors*")) == ["strange.safetensors", "x.safetensors"]
    with client(config):
        for words in (["export", folder, "model", tmp_path / "y.safetensors"], ["import", folder, "new", out]):
            assert main([str(word) for word in words]) == 1
            assert "a server uses it" in capsys.readouterr().err


def test_after_a_crash_an_export_says_so_and_an_import_is_refused(processes, peers, params, folder, tmp_path, capsys):
    process = processes(folder)
    peers(process.address).create(params)
    process.kill()
    out = tmp_path / "x.safetensors"
    assert main(["export", str(folder), "model", str(out)]) == 0
    assert "may not be the model's last state: the last server was not stopped cleanly" in capsys.readouterr().err
    before = content(folder)
    assert main(["import", str(folder), "new", str(out)]) == 1
    assert "start a server on it, stop it, and import then" in capsys.readouterr().err
    assert content(folder) == before


def test_names_that_a_file_would_mix_up_are_refused(client, config, folder, tmp_path, capsys):
    with client(config) as running:
        running.create_model("model", {"w": ONES, "step.w": ONES})
    assert main(["export", str(folder), "model", str(tmp_path / "x.safetensors")]) == 1
    assert "array 'step.w': in such a file this name would be that of another array's state" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_the_metadata_has_every_hyperparameter(trained, folder, tmp_path):
    trained()
    assert main(["export", str(folder), "model", str(tmp_path / "x.safetensors")]) == 0
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        settings = json.loads(file.metadata()["numba_adam"])
    expected = SETTINGS | {"betas": [0.5, 0.75], "decoupled_weight_decay": False, "maximize": False, "amsgrad": False}
    assert settings["hyperparameters"] == expected


def test_an_export_has_the_hyperparameters_of_the_moment(client, config, params, tmp_path):
    with client(config) as running:
        model = running.create_model("model", params, **SETTINGS)
        model.push(gradients(params, 0))
        model.set(lr=0.125, weight_decay=0.0)
    assert main(["export", str(config.data_dir), "model", str(tmp_path / "out.safetensors")]) == 0
    with safe_open(tmp_path / "out.safetensors", "numpy") as file:
        found = json.loads(file.metadata()["numba_adam"])["hyperparameters"]
    assert (found["lr"], found["weight_decay"], found["eps"]) == (0.125, 0.0, SETTINGS["eps"])
