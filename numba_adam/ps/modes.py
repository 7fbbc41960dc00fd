"""How a model trains and what its acknowledgements promise: the choices a model is created with.

Each value is what snapshots store and what clients read. `numba_adam.ps.convert` maps them to the protocol's numbers.
Imports the standard library.
"""

from enum import StrEnum


class Mode(StrEnum):
    """How pushes become steps."""

    ASYNC = "async"
    """Every accepted push is one step, in the order in which the server accepts them."""


class Durability(StrEnum):
    """What an acknowledgement promises about a crash."""

    MEMORY = "memory"
    """A crash loses what came after the last snapshot."""
