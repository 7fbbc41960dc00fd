"""The parameter server's client, for workers in any framework. Installed as numba_adam.client; never imports Numba.

    from numba_adam.client import ParameterClient

A map, from what a program uses down to the wire:

    api          ParameterClient: models created, opened, listed; status and snapshots
    model        Model: pull, push, push_async, push_pull, on_rewind
    sender       the thread behind push_async
    push, pull   one push, one pull, from beginning to end
    session      epoch, sequence number and what is known of the model's state
    transfer     payloads as streams of chunks
    layout       where arrays lie in the flat vector, and the checks of gradients
    connection   one call, tried again where that may help
    shield       calls of the main thread, which Ctrl-C must not leave half-done
    lane         the gRPC channel
    processes    what a fork means for it
    loopback     whether an address is this machine's own, which no proxy stands before
    retry        which failures are worth another try, and when
    ack, info    what the server answers, as plain records
    progress     how far a long transfer has come
"""

from numba_adam.client.ack import Ack
from numba_adam.client.api import ParameterClient
from numba_adam.client.info import ModelInfo, ModelStatus, ServerStatus, SnapshotInfo
from numba_adam.client.model import Model
from numba_adam.client.transport.retry import Backoff

__all__ = [
    "Ack",
    "Backoff",
    "Model",
    "ModelInfo",
    "ModelStatus",
    "ParameterClient",
    "ServerStatus",
    "SnapshotInfo",
]
