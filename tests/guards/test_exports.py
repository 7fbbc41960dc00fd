"""`__all__` of each package equals its public names."""

import ast
import importlib
from types import ModuleType

import pytest

import numba_adam

PACKAGES = ("numba_adam.client", "numba_adam.server", "numba_adam.interop", "numba_adam.cli", "numba_adam.demo")


@pytest.mark.parametrize("name", PACKAGES)
def test_all_equals_the_public_names(name: str) -> None:
    package = importlib.import_module(name)
    public = {key for key, value in vars(package).items() if key[0] != "_" and not isinstance(value, ModuleType)}
    own = {key for key in public if getattr(getattr(package, key), "__module__", "").startswith(name)}
    listed = set(getattr(package, "__all__", ()))
    assert own <= listed <= public


def test_every_name_of_the_library_resolves_and_is_listed_once() -> None:
    assert len(set(numba_adam.__all__)) == len(numba_adam.__all__)
    for name in numba_adam.__all__:
        assert getattr(numba_adam, name) is not None
    assert dir(numba_adam) == sorted(numba_adam.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Adagrad'"):
        _ = numba_adam.Adagrad


def test_type_checkers_see_the_same_names_as_users(sources) -> None:
    (source,) = [source for source in sources if source.path == "numba_adam/__init__.py"]
    blocks = [node for node in source.tree.body if isinstance(node, ast.If)]
    seen = {alias.name for block in blocks for node in block.body for alias in getattr(node, "names", [])}
    assert seen | {"__version__"} == set(numba_adam.__all__)
