"""The parameter server's client, for workers in any framework. Installed as numba_adam.client; never imports Numba.

    from numba_adam.client import ParameterClient

The files, from the public classes down to the wire:

    api          ParameterClient: models created, opened, listed; status and snapshots
    model        Model: pull, push, push_async, push_pull, on_rewind
    worker       the loop of a worker: Model.worker
    structure    nested containers of arrays as one dict of names, and back
    sender       the thread behind push_async
    push, pull   one push, one pull, from beginning to end
    session      a worker's session: epoch, sequence number and the known state of the model
    pieces       bytes to send, some of which are made when they are needed
    transfer     payloads as streams of chunks
    narrow       payloads in 16-bit formats
    model_arrays names, shapes and dtype of a model's arrays; validation of gradients
    ack, info    the server's answers as plain records
    deletion     one deletion of a model
    settings     groups, clipping and frozen arrays; changes while a model trains
    schedules    learning rates by version
    rounds       the mode of a model, and the wait for a round
    workers      the workers of a model and their leases
    same_host    pulls and views through shared memory
    progress     progress reports of long transfers
    transport/   gRPC, and shared memory on the server's machine:
        connection   single tries of each call, and calls with retries
        channel      the gRPC channel
        tls          which CA the client trusts, which certificate it presents
        token        the access token that a client sends
        profiles     TLS settings by address, in the user's configuration folder
        probe        why a connection failed over TLS
        proxy        connections through the HTTP proxy that gRPC uses
        retry        which failures are retried, and when
        shield       runs calls of the main thread where Ctrl-C cannot interrupt them half-way
        forks        closes channels before a fork
        loopback     whether an address is this machine, which needs no proxy
        same_host    finds the server's Unix socket, keeps connections to it
        local_socket one such connection
        shared_memory buffers that the server can read
"""

from numba_adam.client.ack import Ack
from numba_adam.client.api import ParameterClient
from numba_adam.client.info import ModelInfo, ModelStatus, ServerStatus, SnapshotInfo
from numba_adam.client.model import Model
from numba_adam.client.settings import Change, GroupInfo, SettingsInfo
from numba_adam.client.transport.retry import Backoff
from numba_adam.client.transport.tls import Tls
from numba_adam.client.worker import Step, Worker
from numba_adam.client.workers import WorkerInfo
from numba_adam.ps.guards import Guards

__all__ = [
    "Ack",
    "Backoff",
    "Change",
    "GroupInfo",
    "Guards",
    "Model",
    "ModelInfo",
    "ModelStatus",
    "ParameterClient",
    "ServerStatus",
    "SettingsInfo",
    "SnapshotInfo",
    "Step",
    "Tls",
    "Worker",
    "WorkerInfo",
]
