"""The server's answer to a push, as a plain record. May import the generated messages."""

from __future__ import annotations

from dataclasses import dataclass

from numba_adam.client.info import durability_name
from numba_adam.ps.v1.model_pb2 import StatePoint
from numba_adam.ps.v1.parameter_service_pb2 import PushAck


@dataclass(frozen=True, slots=True)
class Ack:
    """The server's answer to one push."""

    version: int
    """Version that this push produced. If the push was not applied: the model's current version."""

    durability: str
    """What the acknowledgement promises. "memory": a crash loses every push after the last snapshot."""

    snapshot_version: int
    """Version of the newest snapshot. A crash now would restore this version."""

    staleness: int = 0
    """Number of versions between the parameters that the gradient was computed from and those it was applied to."""

    duplicate: bool = False
    """True if an earlier try was applied and only its answer was lost."""

    applied: bool = True
    """False if the push was not applied, and the client does not send the gradient again; `outcome` says why."""

    rewound_to: int | None = None
    """Version that the model was restored to. None unless `outcome` is "rewound"."""

    state_id: str = ""
    """Id of the line of history that `version` belongs to."""

    outcome: str = "applied"
    """"applied". "rewound": the server lost the state that the gradient was computed for, before it acknowledged the
    push; the restored state contains it only if the snapshot does. "late": with the mode "sync", the round of the push
    had closed without it; with others, it was staler than `largest_staleness`. "aborted", only with "sync": the round
    had too few gradients at its timeout, or the mode changed, and none was applied. After each of the three, pull and
    compute the next gradient."""


def ack_of(answer: PushAck) -> Ack:
    """Return the answer to a push that was applied.

    Raises:
        ConfigurationError: this version does not know the durability.
    """
    return Ack(
        version=answer.version,
        durability=durability_name(answer.state.durability, f"the push was applied as version {answer.version}"),
        snapshot_version=answer.state.snapshot_version,
        staleness=answer.staleness,
        duplicate=answer.duplicate,
        state_id=answer.state.state_id,
    )


def ack_of_rewind(state: StatePoint) -> Ack:
    """Return the answer to a push whose state no longer exists."""
    return Ack(
        version=state.version,
        durability=durability_name(state.durability, f"the model went back to version {state.first_version}"),
        snapshot_version=state.snapshot_version,
        applied=False,
        rewound_to=state.first_version,
        state_id=state.state_id,
        outcome="rewound",
    )


def ack_of_missed_round(state: StatePoint, outcome: str) -> Ack:
    """Return the answer to a push that was in no round which was applied."""
    return Ack(
        version=state.version,
        durability=durability_name(state.durability, f"the push was not applied ({outcome})"),
        snapshot_version=state.snapshot_version,
        applied=False,
        state_id=state.state_id,
        outcome=outcome,
    )
