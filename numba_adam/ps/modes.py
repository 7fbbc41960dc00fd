"""The mode and durability of a model, which are chosen when it is created.

Snapshots store these values, and clients return them. `numba_adam.ps.convert` maps them to the protocol's numbers.
May import the standard library only.
"""

from enum import StrEnum


class Mode(StrEnum):
    """How the server applies pushes."""

    ASYNC = "async"
    """Every accepted push is one step, in the order of acceptance."""

    SYNC = "sync"
    """Each step is the mean of the gradients of several workers: a round."""

    SSP = "ssp"
    """As ASYNC, but no worker runs more than a number of clocks ahead of the slowest: bounded staleness."""


class Durability(StrEnum):
    """What a crash can lose after an acknowledgement."""

    MEMORY = "memory"
    """A crash loses every push after the last snapshot."""

    PROCESS = "process"
    """An acknowledged push survives any end of the server's process; a stop of the machine is as with MEMORY."""

    DISK = "disk"
    """An acknowledged push survives any end of the server's process and of the machine, power failures among them."""
