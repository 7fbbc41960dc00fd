"""Nested dicts, lists and tuples of arrays as one flat dict of names, and back.

    {"encoder": {"w": a}, "heads": [b, c]}     has the names "encoder.w", "heads.0" and "heads.1"

May import NumPy, `numba_adam.interop` and the errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from numba_adam.errors import NamesError
from numba_adam.interop import gradient_of, maker_of

_DEEPEST = 64  # containers within containers
_PLAIN = frozenset({np.ndarray, type(None)})

Names = dict[str, object]


class _Branch(NamedTuple):
    """The form of one container."""

    build: Callable[[list[Any]], object]
    """Makes such a container of the values of its children."""

    children: tuple[_Node, ...]
    """The forms of the children."""


_Node = _Branch | str  # an array is its name


class Form:
    """The containers that arrays came in, without the arrays.

    Args:
        node: the outermost container; None: a dict of name -> array.
    """

    def __init__(self, node: _Node | None = None) -> None:
        self._node = node

    def filled(self, values: Mapping[str, Any]) -> Any:
        """Return such containers with these values, by name."""
        return values if self._node is None else _filled(self._node, values)


class Template:
    """Containers and kinds of arrays, for parameters to come back as they were given."""

    def __init__(self, form: Form = Form(), leaves: Mapping[str, object] | None = None) -> None:  # noqa: B008
        self._form = form
        self._makers = {name: make for name, leaf in (leaves or {}).items() if (make := maker_of(leaf)) is not None}

    def filled(self, views: Mapping[str, Any]) -> Any:
        """Return such containers with arrays of such kinds, made of NumPy arrays."""
        if self._makers:
            views = {name: self._makers[name](view) if name in self._makers else view for name, view in views.items()}
        return self._form.filled(views)


def flatten(given: object, argument: str) -> tuple[Names, Form]:
    """Return arrays by name, and the form of their containers.

    Args:
        given: a dict, list or tuple of arrays, nested as deep as you like, or an iterator over arrays or over pairs
            (name, array), such as PyTorch's `named_parameters()`.
        argument: its name in error messages.

    Raises:
        NamesError: a key is not text, two arrays have the same name, or a container is empty or contains itself.
    """
    if type(given) is dict and given and _PLAIN.issuperset(map(type, given.values())):
        _check_keys(given, argument)
        return given, Form()  # the usual case: nothing to walk through
    leaves: Names = {}
    return leaves, Form(_Walk(argument, leaves).node(_container(given, argument), "", ()))


def gradients(given: object, argument: str) -> Names:
    """Return gradients by name. A PyTorch parameter stands for its `.grad`. Raises as `flatten` does."""
    leaves, _ = flatten(given, argument)
    if leaves is given:
        return leaves
    return {name: gradient_of(leaf) for name, leaf in leaves.items()}


class _Walk:
    """Collects the arrays of nested containers in `leaves`."""

    def __init__(self, argument: str, leaves: Names) -> None:
        self._argument, self._leaves = argument, leaves

    def node(self, given: object, name: str, outside: tuple[int, ...]) -> _Node:
        """Return the form of a container or an array.

        Args:
            given: the container or array.
            name: its name.
            outside: the ids of the containers around it.
        """
        if not _is_container(given):
            if name in self._leaves:
                raise NamesError(f"{self._argument}: two arrays have the name {name!r}; change a key")
            self._leaves[name] = given
            return name
        place, kind = f"{self._argument}[{name!r}]" if name else self._argument, type(given).__name__
        if id(given) in outside:
            raise NamesError(f"{place} is a {kind} that contains itself: give each array one place")
        if len(outside) == _DEEPEST:
            raise NamesError(f"{place}: expected at most {_DEEPEST} containers within each other, got more")
        parts = list(_parts(given, place))
        if not parts:
            raise NamesError(f"{place}: expected a {kind} with at least one entry, got an empty one")
        inside = (*outside, id(given))
        children = tuple(self.node(each, f"{name}.{key}" if name else key, inside) for key, each in parts)
        return _Branch(_builder(given), children)


def _container(given: object, argument: str) -> object:
    """Return a container; read an iterator once, and pairs (name, array) as a dict."""
    if isinstance(given, Iterator):
        given = list(given)
    if isinstance(given, (list, tuple)) and given and all(map(_is_pair, given)):
        twice = [name for name, count in Counter(name for name, _ in given).items() if count > 1]
        if twice:
            raise NamesError(f"{argument}: two arrays have the name {twice[0]!r}; change one of the names")
        return dict(given)
    if not _is_container(given):
        raise NamesError(f"{argument}: expected a dict of name -> array, or nested ones, got a {type(given).__name__}")
    return given


def _is_container(given: object) -> bool:
    return isinstance(given, (Mapping, list, tuple))


def _is_pair(given: object) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str)


def _parts(given: Any, place: str) -> Iterable[tuple[str, object]]:
    """Return the keys and children of a container."""
    if isinstance(given, Mapping):
        _check_keys(given, place)
        return given.items()
    return zip(_fields(given) or map(str, range(len(given))), given, strict=True)


def _check_keys(given: Mapping[Any, object], place: str) -> None:
    for key in given:
        if not isinstance(key, str) or not key:
            raise NamesError(f"{place}: expected a dict of name -> array, each name text, got the name {key!r}")


def _fields(given: Any) -> tuple[str, ...]:
    """Return the names of a named tuple's fields; none for other containers."""
    return tuple(getattr(given, "_fields", ()))


def _builder(given: Any) -> Callable[[list[Any]], object]:
    """Return a function that makes a container of this type, with these keys, from values."""
    if isinstance(given, Mapping):
        keys, kind = tuple(given), type(given)
        return lambda values: _mapping(kind, dict(zip(keys, values, strict=True)))
    if _fields(given):
        return type(given)._make  # type: ignore[no-any-return]
    return list if isinstance(given, list) else tuple


def _mapping(kind: Callable[[Names], object], plain: Names) -> object:
    """Return a mapping of a kind that can be made of a dict, such as flax's FrozenDict; for other kinds the dict."""
    if kind is dict:
        return plain
    try:
        made = kind(plain)
    except Exception:  # the constructor of any program's class
        return plain
    return made if isinstance(made, Mapping) and list(made) == list(plain) else plain


def _filled(node: _Node, values: Mapping[str, Any]) -> Any:
    if isinstance(node, str):
        return values[node]
    return node.build([_filled(child, values) for child in node.children])
