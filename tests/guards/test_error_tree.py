"""The tree in the docstring of numba_adam/errors.py equals the classes of the file."""

import builtins
import re

import pytest

from numba_adam import errors

LINE = re.compile(r"^(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)(?:\s+\((?P<builtin>\w+)\))?")


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Return name -> (parent's name, builtin) as the docstring draws them."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    above: list[tuple[int, str]] = []
    lines = errors.__doc__.splitlines()
    for line in lines[lines.index("    NumbaAdamError") :]:
        if (match := LINE.match(line)) is None or not line.strip():
            break
        depth = len(match["indent"])
        above = [(other, name) for other, name in above if other < depth]
        tree[match["name"]] = (above[-1][1] if above else None, match["builtin"])
        above.append((depth, match["name"]))
    return tree


DEFINED = {name: value for name, value in vars(errors).items() if isinstance(value, type)}


def test_the_tree_has_every_error_and_no_other() -> None:
    assert set(drawn()) == set(DEFINED)


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_every_error_has_the_bases_in_the_tree(name: str) -> None:
    parent, builtin = drawn()[name]
    bases = DEFINED[name].__bases__
    if parent is None:
        assert bases == (Exception,)
        return
    assert bases[0] is DEFINED[parent]
    assert {base.__name__ for base in bases[1:]} == ({builtin} if builtin else set())
    if builtin:
        assert issubclass(DEFINED[name], getattr(builtins, builtin))


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_every_error_has_a_docstring(name: str) -> None:
    assert DEFINED[name].__doc__.endswith(".")
    assert str(DEFINED[name]("lr=-1.0: it must be at least 0")) == "lr=-1.0: it must be at least 0"
