"""ParameterClient, the connection of a program to a parameter server. May import its neighbours here."""

from __future__ import annotations

import math
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from numba_adam.client.deletion import Deletion
from numba_adam.client.info import (
    ModelInfo,
    ServerStatus,
    SnapshotInfo,
    model_info,
    server_status,
    snapshot_info,
)
from numba_adam.client.model import Model
from numba_adam.client.model_arrays import check_initial, model_arrays_of
from numba_adam.client.options import check_options, set_options
from numba_adam.client.progress import Progress, Reason
from numba_adam.client.rounds import check_mode, mode_settings
from numba_adam.client.session import Session, checked_worker_id
from numba_adam.client.settings import check_known, first_settings, split_rate
from numba_adam.client.structure import Template, flatten
from numba_adam.client.transfer import Upload
from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.retry import Backoff
from numba_adam.client.transport.same_host import SCHEME, address_of_socket
from numba_adam.client.transport.tls import TlsArgument, choose
from numba_adam.client.transport.token import choose_token
from numba_adam.client.workers import WorkerInfo, evict, workers_of
from numba_adam.errors import ConfigurationError, InvalidRequestError, RewoundError, ServiceError
from numba_adam.ps import convert
from numba_adam.ps.checksum import XXH3_64
from numba_adam.ps.errors import detail_of
from numba_adam.ps.guards import NO_GUARDS, Guards
from numba_adam.ps.mode_settings import DEFAULT_LEASE_SECONDS, lease_seconds_of
from numba_adam.ps.modes import Durability
from numba_adam.ps.schedules import Schedule
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.settings.hyperparameters import EpsMode, Hyperparameters
from numba_adam.settings.options import Options, Rounding, StateDtype

_PAGE_SIZE = 1000  # models; a page with long descriptions has fewer
_URL = re.compile(
    r"(?:https?|grpcs?|tcp)://([^/]*).*", re.IGNORECASE | re.DOTALL
)  # gRPC would wait for such an address forever


class ParameterClient:
    """A connection to a parameter server. Safe to use from several threads.

        with ParameterClient("127.0.0.1:50051") as client:
            model = client.create_model("digits", {"w": w, "b": b}, lr=1e-3, exist_ok=True)
            params = model.pull()
            model.push({"w": grad_w, "b": grad_b})

    A call is retried after a transient failure: no connection, a restart of the server, a full memory budget. The
    pauses are random and grow. Retries end after `timeout_seconds`. A push is applied once, however often it is sent.

    The end of the `with` block waits for pushes of push_async, at most as long as one call. If an exception ends the
    block, these pushes are given up.

    A client belongs to the process that created it. In a forked child, every call on it and on its models is refused
    at once, and `close` does nothing. Create a new ParameterClient in the child. A fork closes the parent's connection
    for a moment, and the client sends interrupted calls again. If something else in the parent uses gRPC, such as a
    server, gRPC does not work in forked children. A client cannot be created there; start such children with the
    method "spawn".

    Ctrl-C, or any signal handler that raises, may interrupt a call of the main thread at any point. The call is given
    up, and a push may or may not have been applied. Later calls work. An open client does not keep the interpreter
    from exiting; queued pushes of push_async are then lost.

    Args:
        address: HOST:PORT of the server; or unix:PATH, the Unix socket of a server of this user on this machine, for
            gradients and parameters through shared memory only.
        worker_id: id of this worker, 1 to 128 characters. With an id that is stable across restarts of the worker, a
            new process fences unfinished pushes of the old one. No two live workers of a model may share an id.
            None: a random id.
        timeout_seconds: maximum duration of one call, including its retries.
        progress: called with (bytes done, total bytes) during a transfer, by the thread that runs it. True: draw a
            line on stderr, if it is a terminal, for transfers that take more than two seconds.
        backoff: the pauses between tries.
        tls: `Tls(server_ca=...)` or the path of the server's ca.pem. True: TLS with the public CAs. False: no TLS.
            None: what the environment (NUMBA_ADAM_SERVER_CA, ...) or `numba-adam login` says; else no TLS.
        token: access token, for a server that requires one. None: that of the environment (NUMBA_ADAM_TOKEN), if any.
            Without TLS it is sent to this machine only.
        transport: "auto": gradients and parameters of a server of this user on this machine go through shared memory,
            all others over the network. "network": always the network. "same-host": never the network. None: what
            the environment says (NUMBA_ADAM_TRANSPORT), else "auto".

    Raises:
        ConfigurationError: an argument is out of range, or a TLS file cannot be used.
        ServiceError: this is a forked child of a process in which something else used gRPC.
    """

    def __init__(
        self,
        address: str,
        worker_id: str | None = None,
        *,
        timeout_seconds: float = 60.0,
        progress: Progress | bool | None = None,
        backoff: Backoff = Backoff(),  # noqa: B008  # frozen
        tls: TlsArgument = None,
        token: str | None = None,
        transport: str | None = None,
    ) -> None:
        socket: Path | None = None
        if isinstance(address, str) and address.startswith(SCHEME):
            address, socket = address_of_socket(address, transport)
        _check_address(address)
        if not isinstance(timeout_seconds, (int, float, np.number)) or not 0 < timeout_seconds < math.inf:
            raise ConfigurationError(f"timeout_seconds: expected a finite number above 0, got {timeout_seconds!r}")
        self.address = address
        self.worker_id = _random_worker_id() if worker_id is None else checked_worker_id(worker_id)
        settings = choose(tls, address, os.environ)
        self._connection = Connection(
            address,
            timeout_seconds=timeout_seconds,
            progress=progress,
            backoff=backoff,
            tls=settings,
            token=choose_token(token, address, os.environ, is_secret=settings is not None),
            transport=transport,
            socket=socket,
        )
        self._models: dict[str, Model] = {}
        self._models_lock = threading.Lock()

    def create_model(
        self,
        name: str,
        params: object,
        *,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        eps_mode: EpsMode = "hat",
        maximize: bool = False,
        amsgrad: bool = False,
        state_dtype: StateDtype | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        ema_decay: float | None = None,
        mode: str = "async",
        workers: int | None = None,
        backup: int = 0,
        round_timeout_seconds: float | None = None,
        staleness: int | None = None,
        staleness_power: float = 0.0,
        largest_staleness: int | None = None,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        durability: str = "process",
        guards: Guards = NO_GUARDS,
        groups: Sequence[Mapping[str, Any]] | None = None,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
        frozen: Sequence[str] = (),
        exist_ok: bool = False,
    ) -> Model:
        """Create a model on the server and return a handle on it.

        Args:
            name: 1 to 128 of the characters A-Z a-z 0-9 . _ - without a dot at the start.
            params: initial values, all float32 or all float64: a dict of name -> array; dicts, lists and tuples within
                each other, whose arrays get names such as "encoder.0.w"; PyTorch's `named_parameters()` or
                `state_dict()`. bfloat16 and float16 are widened: the server holds the model in float32. Parameters
                come back in the same containers, as arrays of the same frameworks.
            lr: learning rate, or one of `numba_adam.client.schedules`, which the server evaluates by version.
            betas: decay rates of the two moving averages.
            eps: added to the denominator, so that it is never zero.
            weight_decay: strength of the decay towards zero.
            decoupled_weight_decay: True: decay the parameter itself (AdamW), not the gradient.
            eps_mode: where eps is added: "hat" (Kingma & Ba, section 2) or "algorithm1" (as in PyTorch).
            maximize: True: maximize the objective.
            amsgrad: divide by the largest exp_avg_sq seen so far.
            state_dtype: format of the moments on the server: "float32", "float64", "bfloat16" or "8bit"
                (docs/eight-bit-state.md); with float64 parameters "float32" or "float64". Default: the parameters'.
            rounding: how bfloat16 moments are rounded: "nearest" or "stochastic".
            seed: the seed of stochastic rounding and of the rounding of 8-bit moments. As in `Adam`, which makes the
                same bits of the same gradients.
            ema_decay: keep an exponential moving average of the weights with this decay, in [0, 1): see
                `Model.pull(average=True)`. None: no average.
            mode: how the server applies pushes (docs/modes.md). "async": each push is one step. "sync": each step is
                the mean of one gradient of each of several workers, and a push waits for that. "ssp": as "async", but
                a worker that is too far ahead of the slowest one waits.
            workers: for "sync": number of workers that train the model, backup workers among them.
            backup: for "sync": a step is made as soon as `workers - backup` of them have pushed. The push of a slower
                one is not applied: the `outcome` of its ack is "late".
            round_timeout_seconds: for "sync": how long a push waits at most for those of others. Then none of them is
                applied: the `outcome` of the acks is "aborted". None: 30. The client's `timeout_seconds` should be
                longer.
            staleness: for "ssp": how many pushes a worker may be ahead of the slowest one, at least 1.
            staleness_power: the learning rates of a push are divided by (1 + its staleness) to this power: a multiple
                of 0.5 up to 4. Its staleness is the number of versions between the parameters it was computed from and
                those it is applied to. 0: they are not divided.
            largest_staleness: a push that is staler is not applied: the `outcome` of its ack is "late". None: any.
            lease_seconds: how long after the last call of a worker the others wait for it: its clock in "ssp" and its
                gradient in an open round are then given up. Its session stays: the worker may push later.
            durability: what survives if the server's process is killed. "process" and "disk": every acknowledged
                push; workers go on as if nothing had happened. "memory": what the last snapshot has. If the machine
                stops, "disk" still means every acknowledged push, and the others the last snapshot. A server that
                cannot give a level refuses the model; it never lowers the level.
            guards: limits of the pushes of all workers: `Guards(largest_norm=..., largest_element=...,
                pushes_per_second=...)`. A gradient that exceeds one is refused with GradientTooLargeError, and changes
                nothing. A push that comes too soon waits.
            groups: arrays with other hyperparameters, in the library's form with names:
                `[{"params": ["b1", "b2"], "weight_decay": 0.0}]`. What a group does not name is as in the arguments
                here. Arrays in no group form the last one.
            max_grad_norm: largest 2-norm of all gradients of a push: larger ones are scaled down to it. None: any.
            clip_value: largest magnitude of an element, after that: larger ones are cut. None: any.
            frozen: names of arrays that pushes do not change until `Model.set(unfreeze=...)`.
            exist_ok: True: if a model with the same arrays and settings exists, return it, however far it is trained.
                Several workers can then run the same program.

        Raises:
            ModelExistsError: a model of that name exists, and it differs or `exist_ok` is False.
            NamesError, ArrayError, HyperparameterError, ConfigurationError: an argument is invalid; nothing was sent.
            ServiceError: the call failed.
        """
        rate, schedule = split_rate(lr)
        hyperparameters = Hyperparameters(
            lr=rate, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_weight_decay=decoupled_weight_decay,
            eps_mode=eps_mode, maximize=maximize, amsgrad=amsgrad,
        )  # fmt: skip
        level = _level(durability)
        leaves, form = flatten(params, "params")
        arrays = check_initial(leaves)
        if not isinstance(guards, Guards):
            raise ConfigurationError(f"guards: expected Guards(largest_norm=..., ...), got {guards!r}")
        spec = _spec(_checked_name(name), arrays, hyperparameters, level)
        wanted = mode_settings(mode, workers, backup, round_timeout_seconds, staleness)
        convert.set_mode_settings(spec, wanted)
        if lease_seconds_of(lease_seconds) != DEFAULT_LEASE_SECONDS:
            spec.lease_seconds = lease_seconds_of(lease_seconds)
        options = Options(state_dtype, rounding, seed, ema_decay=ema_decay)
        set_options(spec, options, next(iter(arrays.values())).dtype.name)
        if (limits := convert.guards_to_proto(guards)) is not None:
            spec.guards.CopyFrom(limits)
        settings = first_settings(
            hyperparameters, schedule, groups, max_grad_norm, clip_value, frozen, staleness_power, largest_staleness
        )
        if settings is not None:
            spec.settings.CopyFrom(settings)
        model = self._create(spec, arrays, exist_ok)
        check_options(model, spec)
        check_known(model, settings)
        check_mode(model, spec)
        return self._handle(model, Template(form, leaves))

    def open_model(self, name: str, like: object = None) -> Model:
        """Return a handle on an existing model.

        A client has one handle for each model: a second call returns the same one.

        Args:
            name: the model's name.
            like: arrays with the model's names, in any form that `create_model` takes. Parameters come back in the same
                containers, as arrays of the same frameworks. None: as before; at first a dict of NumPy arrays.

        Raises:
            NamesError, ShapeError: `like` has other names or shapes than the model.
            ModelNotFoundError: no model has that name.
            ServiceError: the call failed.
        """
        request = pb.GetModelRequest(model=_checked_name(name))
        leaves, form = (None, None) if like is None else flatten(like, "like")
        answer = self._call("GetModel", request, pb.GetModelResponse, f"open model {name!r}")
        if leaves is None or form is None:
            return self._handle(answer.model, None)
        model_arrays_of(model_info(answer.model)).check_like(leaves)
        return self._handle(answer.model, Template(form, leaves))

    def list_models(self) -> list[ModelInfo]:
        """Return the server's models, sorted by name."""
        pages = self._pages("ListModels", pb.ListModelsRequest, pb.ListModelsResponse, "list models")
        return [model_info(model) for page in pages for model in page.models]

    def delete_model(self, name: str) -> None:
        """Delete a model, its state and its snapshots. This cannot be undone.

        Raises:
            ModelNotFoundError: no model has that name.
            RewoundError: the model may have been deleted, and another one of that name was created since.
            ServiceError: the call failed.
        """
        deletion = Deletion(self._connection, _checked_name(name))
        deadline = self._connection.deadline()
        self._connection.retry(lambda _: deletion.attempt(deadline), what=f"delete model {name!r}", deadline=deadline)
        with self._models_lock:
            self._models.pop(name, None)  # a later model of that name needs a new handle

    def snapshot(self, model: str | None = None) -> list[SnapshotInfo]:
        """Write a snapshot now and wait until it is on disk.

        Args:
            model: name of the model; None: all.

        Returns:
            One record for each model, sorted by name.
        """
        what = "snapshot of all models" if model is None else f"snapshot of model {model!r}"
        answer = self._call("Snapshot", pb.SnapshotRequest(model=model or ""), pb.SnapshotResponse, what)
        return [snapshot_info(snapshot) for snapshot in answer.snapshots]

    def status(self) -> ServerStatus:
        """Return the server's models, counters and memory use."""
        pages = self._pages("GetServerStatus", pb.GetServerStatusRequest, pb.GetServerStatusResponse, "server status")
        return server_status(list(pages))

    def workers(self, model: str) -> list[WorkerInfo]:
        """Return the workers that have a session with a model, by id. Needs the scope admin, if there are tokens."""
        return workers_of(self._connection, _checked_name(model))

    def evict(self, model: str, worker_id: str) -> None:
        """Let nobody wait for a worker any more, as if its lease had ended.

        Its clock and its gradient in an open round are given up. Its session stays, and if it pushes again, it joins
        again. Needs the scope admin, if there are tokens.

        Raises:
            SessionUnknownError: the model has no such worker.
            ServiceError: the call failed.
        """
        evict(self._connection, _checked_name(model), worker_id)

    def close(self, *, wait: bool = True) -> None:
        """Close the connection. May be called again; in a forked child of the client's process it does nothing.

        Args:
            wait: True: wait for pushes of push_async, at most as long as one call. After that, the futures of queued
                pushes are cancelled. A running push ends with ServiceError; it may or may not have been applied.
        """
        if self._connection.is_inherited():
            return
        try:
            with self._models_lock:
                models = tuple(self._models.values())
            for model in models:
                model.close(self._connection.deadline().remaining_seconds() if wait else 0.0)
        finally:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(wait=error is None)

    def __repr__(self) -> str:
        return f"<ParameterClient {self.address}, worker {self.worker_id!r}>"

    # --- behind the calls ---------------------------------------------------------------------------------------

    def _call(self, name: str, request: Any, response_type: Any, what: str) -> Any:
        return self._connection.call(name, request, response_type, what=what)

    def _pages(self, name: str, request_type: Any, response_type: Any, what: str) -> Iterator[Any]:
        """Yield the pages of an answer about all models. The server chooses their size."""
        token, deadline = "", self._connection.deadline()  # one for all pages
        while True:
            request = request_type(page_size=_PAGE_SIZE, page_token=token)
            page = self._connection.call(name, request, response_type, what=what, deadline=deadline)
            yield page
            token = page.next_page_token
            if not token:
                return

    def _create(self, spec: model_pb2.ModelSpec, arrays: Mapping[str, npt.NDArray[Any]], exist_ok: bool) -> Any:
        """Send a model's initial values. The request id makes retries safe."""
        what = f"create model {spec.name!r}"
        header = pb.CreateModelHeader(
            spec=spec,
            request_id=secrets.token_hex(16),
            exist_ok=exist_ok,
            total_bytes=sum(array.nbytes for array in arrays.values()),
            checksum_kind=XXH3_64,  # type: ignore[arg-type]  # enums are plain numbers at run time
            after_state_id="",  # unknown here: if a model of this name was deleted, the server answers with the id
        )
        report, deadline = self._connection.report(what), self._connection.deadline()

        def attempt() -> pb.CreateModelResponse:
            raw = pb.CreateModelRequest(header=header).SerializeToString()
            upload = Upload(raw, arrays.values(), XXH3_64, report)
            try:
                return self._connection.create(upload.messages(), deadline.remaining_seconds())
            except ServiceError as error:
                if upload.failure is not None:
                    raise upload.failure from error
                raise

        def attempt_after_a_deletion(_: float) -> pb.CreateModelResponse:
            try:
                return attempt()
            except RewoundError as error:
                detail = detail_of(error)
                if detail is None or not detail.state.state_id:
                    raise
                header.after_state_id = detail.state.state_id
                return attempt()

        with Reason(lambda: self._why_waiting(spec.name)):
            return self._connection.retry(attempt_after_a_deletion, what=what, deadline=deadline).model

    def _why_waiting(self, name: str) -> str:
        """Return why the creation of a model takes long, if the server says that it compiles."""
        status = self._call(
            "GetServerStatus", pb.GetServerStatusRequest(page_size=1), pb.GetServerStatusResponse, "why"
        )
        if not status.compiling:
            return ""
        return f"create model {name!r}: the server compiles its {status.compiling} kernels, once, some 4 s"

    def _handle(self, model: model_pb2.Model, template: Template | None) -> Model:
        """Return the client's handle on a model; create one if there is none with the same arrays."""
        info = model_info(model)
        with self._models_lock:
            known = self._models.get(info.name)
            if known is not None and known.spec.has_arrays_of(info):
                if template is not None:
                    known.template = template
                return known
            session = Session(self._connection, info.name, self.worker_id, model.state)
            handle = self._models[info.name] = Model(self._connection, session, info, template or Template())
        return handle


def _check_address(address: str) -> None:
    """Raise ConfigurationError if an address is not HOST:PORT."""
    if not isinstance(address, str) or ":" not in address:
        raise ConfigurationError(f"address: expected HOST:PORT, such as '127.0.0.1:50051', got {address!r}")
    url = _URL.fullmatch(address)
    if url is not None:
        place = url[1] or "127.0.0.1"
        instead = place if place.rpartition(":")[2].isdigit() else f"{place}:50051"
        raise ConfigurationError(f"address: expected HOST:PORT, got the URL {address!r}; write {instead!r}")


def _level(durability: str) -> Durability:
    """Return a durability by its name.

    Raises:
        ConfigurationError: there is no such durability.
    """
    try:
        return Durability(durability)
    except ValueError:
        known = " or ".join(repr(str(level)) for level in Durability)
        raise ConfigurationError(f"durability: expected {known}, got {durability!r}") from None


def _spec(
    name: str, arrays: Mapping[str, npt.NDArray[Any]], hyperparameters: Hyperparameters, durability: Durability
) -> model_pb2.ModelSpec:
    dtype: np.dtype[Any] = next(iter(arrays.values())).dtype
    return model_pb2.ModelSpec(
        name=name,
        dtype=convert.dtype_to_proto(dtype),
        tensors=convert.tensor_specs(arrays),
        hyperparameters=convert.hyperparameters_to_proto(hyperparameters),
        durability=convert.durability_to_proto(durability),
    )


def _checked_name(name: str) -> str:
    """Return a model's name if it is printable text; the server validates the rest."""
    if not isinstance(name, str) or not name.isprintable():
        raise InvalidRequestError(f"model name: expected text with only the characters A-Z a-z 0-9 . _ -, got {name!r}")
    return name


def _random_worker_id() -> str:
    return f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
