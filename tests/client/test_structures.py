"""Parameters and gradients in nested containers, and as pairs: what comes back has the form that went in."""

from __future__ import annotations

import io
from collections import OrderedDict, namedtuple
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numba_adam.client.structure import flatten
from numba_adam.errors import ArrayError, NamesError, ShapeError

Layer = namedtuple("Layer", ("w", "b"))


def full(value: float, *shape: int) -> np.ndarray:
    return np.full(shape, value, np.float32)


def nested() -> dict:
    return {
        "encoder": {"w": full(1, 2, 3), "norms": [full(2, 3), full(3, 1)]},
        "head": (full(4, 2), {"b": full(5)}),
        "last": Layer(full(6, 4), full(7, 2)),
    }


NAMES = ["encoder.w", "encoder.norms.0", "encoder.norms.1", "head.0", "head.1.b", "last.w", "last.b"]


def mapped(function, given):
    """Return the same containers with each array replaced by function(array)."""
    if isinstance(given, dict):
        return type(given)((key, mapped(function, each)) for key, each in given.items())
    if isinstance(given, Layer):
        return Layer(*(mapped(function, each) for each in given))
    if isinstance(given, (list, tuple)):
        return type(given)(mapped(function, each) for each in given)
    return function(given)


def check_same(left, right) -> None:
    """Compare types, keys and values, container by container."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        left, right = list(left.values()), list(right.values())
    if isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            check_same(one, other)
    else:
        np.testing.assert_array_equal(left, right, strict=True)


def test_nested_parameters_come_back_in_the_same_containers(client):
    model = client.create_model("m", nested())
    assert list(model.spec.shapes) == NAMES
    check_same(model.pull(), nested())


def test_nested_gradients_are_applied_by_name(client):
    model = client.create_model("m", nested(), lr=0.5)
    grads = mapped(np.ones_like, nested())
    grads["head"] = (None, {"b": full(-1)})
    model.push(grads)
    expected = mapped(lambda array: array - np.float32(0.5), nested())  # the first step is lr, against the sign
    expected["head"] = (full(4, 2), {"b": full(5.5)})
    for left, right in zip(flatten(model.pull(), "")[0].values(), flatten(expected, "")[0].values(), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)


def test_a_push_takes_any_form_with_the_same_names(client):
    model = client.create_model("m", nested(), lr=0.5)
    flat = {name: np.ones(shape, np.float32) for name, shape in model.spec.shapes.items()}
    versions = [
        model.push(each).version for each in (flat, list(flat.items()), iter(flat.items()), MappingProxyType(flat))
    ]
    assert versions == [1, 2, 3, 4]
    assert model.push_async(mapped(np.ones_like, nested())).result().version == 5


def test_a_pull_writes_to_nested_arrays_in_place(client):
    model = client.create_model("m", nested())
    for pull in (model.pull, lambda out: model.push_pull(mapped(np.zeros_like, nested()), out=out)):
        out = mapped(np.zeros_like, nested())
        pulled = pull(out=out)
        check_same(out, nested())
        assert pulled["last"].w is out["last"].w


def test_a_push_pull_returns_the_same_containers(client):
    model = client.create_model("m", nested())
    check_same(model.push_pull(mapped(np.zeros_like, nested())), nested())


def test_lists_and_pairs_have_names(client):
    assert list(client.create_model("list", [full(1, 2), [full(2)]]).spec.shapes) == ["0", "1.0"]
    pairs = client.create_model("pairs", iter([("w", full(1, 2)), ("b", full(2))]))
    check_same(pairs.pull(), {"w": full(1, 2), "b": full(2)})
    check_same(client.open_model("list").pull(), [full(1, 2), [full(2)]])
    ordered = OrderedDict(b=full(1), a={"c": full(2)})
    check_same(client.create_model("ordered", ordered).pull(), ordered)


def test_names_with_dots_may_stand_beside_nested_dicts(client):
    """A state_dict within a dict has such names."""
    given = {"encoder": OrderedDict({"0.weight": full(1, 2), "0.bias": full(2, 1)}), "head.w": full(3)}
    model = client.create_model("m", given)
    assert list(model.spec.shapes) == ["encoder.0.weight", "encoder.0.bias", "head.w"]
    check_same(model.pull(), given)


class Strange(dict):
    """A mapping that cannot be made of a dict."""

    def __init__(self, first, second):
        super().__init__(zip(("w", "b"), (first, second), strict=True))


class Renamed(dict):
    """A mapping that changes its keys."""

    def __init__(self, given):
        super().__init__((f"new_{key}", value) for key, value in dict(given).items())


def test_mappings_that_cannot_be_made_again_come_back_as_dicts(client):
    for number, tree in enumerate((Strange(full(1, 2), full(2)), {"in": Strange(full(1, 2), full(2))})):
        pulled = client.create_model(f"m{number}", tree).pull()
        check_same(pulled, dict(tree) if number == 0 else {"in": dict(tree["in"])})
    renamed = Renamed({"w": full(1, 2)})
    check_same(client.create_model("renamed", renamed).pull(), {"new_w": full(1, 2)})
    with np.load(saved(w=full(1, 2), b=full(2))) as arrays:
        check_same(client.create_model("archive", arrays).pull(), {"w": full(1, 2), "b": full(2)})


def saved(**arrays: np.ndarray) -> io.BytesIO:
    """Return a file of numpy.savez."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    return file


def test_a_model_opened_like_nested_arrays_gives_such_containers(server, connect):
    connect(server.address).create_model("m", nested())
    opened = connect(server.address).open_model("m", like=mapped(np.zeros_like, nested()))
    check_same(opened.pull(), nested())
    check_same(
        connect(server.address).open_model("m").pull(), dict(zip(NAMES, flatten(nested(), "")[0].values(), strict=True))
    )
    with pytest.raises(NamesError, match=r"like lacks 'encoder\.w'"):
        connect(server.address).open_model("m", like={"w": full(1)})
    for value, words in ((full(0, 5), r"\(5,\)"), ("text", "a str"), (None, "a NoneType")):
        like = {**nested(), "last": Layer(value, full(7, 2))}
        with pytest.raises(ShapeError, match=rf"like\['last\.w'\]: expected the model's shape \(4,\), got {words}"):
            connect(server.address).open_model("m", like=like)


def inside_itself() -> dict:
    given: dict = {"a": {"w": full(1)}}
    given["a"]["again"] = [given]
    return given


def deep() -> dict:
    given: dict = {"w": full(1)}
    for _ in range(2000):
        given = {"a": given}
    return given


REFUSED = {
    "no arrays": ({}, NamesError, "{}: expected a dict with at least one entry"),
    "an empty dict": ({"a": full(1), "b": {}}, NamesError, r"{}\['b'\]: expected a dict with at least one entry"),
    "an empty list": ({"a": {"b": []}}, NamesError, r"{}\['a\.b'\]: expected a list with at least one entry"),
    "an empty iterator": (iter(()), NamesError, "{}: expected a list with at least one entry"),
    "the same name": ({"a.b": full(1), "a": {"b": full(1)}}, NamesError, r"{}: two arrays have the name 'a\.b'"),
    "the same name in a list": ({"a.0": full(1), "a": [full(1)]}, NamesError, r"{}: two arrays have the name 'a\.0'"),
    "the same pair": ([("w", full(1)), ("w", full(2))], NamesError, "{}: two arrays have the name 'w'"),
    "a number": ({"a": {3: full(1)}}, NamesError, r"{}\['a'\]: expected a dict .* got the name 3"),
    "no key": ({"a": {None: full(1)}}, NamesError, r"{}\['a'\]: expected a dict .* got the name None"),
    "a pair as key": ({("a", "b"): full(1)}, NamesError, r"{}: expected a dict .* got the name \('a', 'b'\)"),
    "an empty key": ({"a": {"": full(1)}}, NamesError, r"{}\['a'\]: expected a dict .* got the name ''"),
    "a cycle": (inside_itself(), NamesError, r"{}\['a\.again\.0'\] is a dict that contains itself"),
    "too deep": (deep(), NamesError, "at most 64 containers"),
    "text": ("weights", NamesError, "{}: expected a dict of name -> array, or nested ones, got a str"),
    "one array": (full(1, 3), NamesError, "{}: expected a dict of name -> array, or nested ones, got a ndarray"),
    "a set": ({"a": {1, 2}}, ArrayError, r"{}\['a'\] is of type set"),
    "numbers": ({"a": [0.5]}, ArrayError, r"{}\['a\.0'\] is of type float"),
    "text within": ({"a": {"b": "w"}}, ArrayError, r"{}\['a\.b'\] is of type str"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsuitable_structures_are_refused_by_name(client, name):
    params, error, message = REFUSED[name]
    with pytest.raises(error, match=message.format("params")):
        client.create_model("other", params)
    assert client.list_models() == []


@pytest.mark.parametrize("name", [name for name in REFUSED if not name.startswith("an empty iterator")])
def test_unsuitable_gradients_and_outputs_are_refused_and_nothing_changes(client, name):
    given = REFUSED[name][0]
    model = client.create_model("m", nested())
    for call in (model.push, model.push_async, model.push_pull, lambda out: model.pull(out=out)):
        with pytest.raises((NamesError, ArrayError)):
            call(given)
    check_same(model.pull(), nested())
    assert model.push(mapped(np.zeros_like, nested())).version == 1


def test_an_output_of_another_shape_is_refused_and_nothing_is_written(client):
    model = client.create_model("m", nested())
    out = mapped(np.zeros_like, nested())
    out["last"] = Layer(full(0, 5), full(0, 2))
    for call in (lambda: model.pull(out=out), lambda: model.push_pull(mapped(np.zeros_like, nested()), out=out)):
        with pytest.raises(ShapeError, match=r"out\['last\.w'\]: expected the model's shape \(4,\), got \(5,\)"):
            call()
    assert not out["encoder"]["w"].any()
    assert model.push(mapped(np.zeros_like, nested())).version == 1


# --- any structure ----------------------------------------------------------------------------------------------

KEYS = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="."), min_size=1, max_size=4)
LEAVES = st.builds(lambda n, value: full(value, n), st.integers(0, 3), st.integers(-9, 9))
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(KEYS, inner, min_size=1, max_size=4)
        | st.dictionaries(KEYS, inner, min_size=1, max_size=4).map(OrderedDict)
        | st.lists(inner, min_size=1, max_size=4)
        | st.lists(inner, min_size=1, max_size=4).map(tuple)
        | st.builds(Layer, inner, inner)
    ),
    max_leaves=12,
)


def named(given, name=""):
    """Return (name, array) for each array: an independent way to the names."""
    if isinstance(given, np.ndarray):
        return [(name, given)]
    if isinstance(given, dict):
        pairs = list(given.items())
    else:
        pairs = list(zip(getattr(given, "_fields", map(str, range(len(given)))), given, strict=True))
    return [found for key, each in pairs for found in named(each, f"{name}.{key}" if name else key)]


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(TREES.filter(lambda tree: not isinstance(tree, np.ndarray)))
def test_any_structure_is_taken_apart_and_put_together(tree):
    leaves, form = flatten(tree, "tree")
    assert [(name, id(leaf)) for name, leaf in leaves.items()] == [(name, id(leaf)) for name, leaf in named(tree)]
    check_same(form.filled(leaves), tree)


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(TREES.filter(lambda tree: not isinstance(tree, np.ndarray)))
def test_any_structure_comes_back_from_the_server(client, tree):
    model = client.create_model("m", tree)
    try:
        check_same(model.pull(), tree)
        check_same(model.pull(out=mapped(np.zeros_like, tree)), tree)
        assert model.push(mapped(np.zeros_like, tree)).version == 1
        check_same(model.push_pull(mapped(np.zeros_like, tree)), tree)
    finally:
        client.delete_model("m")
