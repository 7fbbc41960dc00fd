"""What a push came to. May import the generated messages."""

from __future__ import annotations

from dataclasses import dataclass

from numba_adam.client.info import durability_name
from numba_adam.ps.v1.model_pb2 import StatePoint
from numba_adam.ps.v1.parameter_service_pb2 import PushAck


@dataclass(frozen=True, slots=True)
class Ack:
    """The server's answer to one push."""

    version: int
    """Version of the parameters that this push made; where it was not applied, where the model stands."""

    durability: str
    """What the acknowledgement promises: "memory" means that a crash loses what came after the last snapshot."""

    snapshot_version: int
    """Version that the newest snapshot holds: what a crash now would go back to."""

    staleness: int = 0
    """Versions between the parameters the gradient was computed from and those it was applied to."""

    duplicate: bool = False
    """True when an earlier try had been applied and only its answer was lost."""

    applied: bool = True
    """False when the server lost the state that the gradient was meant for before it acknowledged the push. The
    gradient is not sent again; it is part of the restored state only if the snapshot had caught it."""

    rewound_to: int | None = None
    """The version that the model went back to; None unless `applied` is False."""

    state_id: str = ""
    """Names the line of history that `version` belongs to."""


def ack_of(answer: PushAck) -> Ack:
    """Return the answer of a push that was applied.

    Raises:
        ConfigurationError: it promises a durability that this version does not know.
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
    """Return the answer of a push whose state is gone."""
    return Ack(
        version=state.version,
        durability=durability_name(state.durability, f"the model went back to version {state.first_version}"),
        snapshot_version=state.snapshot_version,
        applied=False,
        rewound_to=state.first_version,
        state_id=state.state_id,
    )
