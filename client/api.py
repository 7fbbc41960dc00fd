"""ParameterClient: what a program uses to talk to a parameter server. May import its neighbours here."""

from __future__ import annotations

import math
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
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
from numba_adam.client.layout import check_initial
from numba_adam.client.model import Model
from numba_adam.client.progress import Progress
from numba_adam.client.session import Session
from numba_adam.client.transfer import Upload
from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.retry import Backoff
from numba_adam.errors import ConfigurationError, InvalidRequestError, RewoundError, ServiceError
from numba_adam.ps import convert
from numba_adam.ps.checksum import XXH3_64
from numba_adam.ps.errors import detail_of
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.settings.hyperparameters import EpsMode, Hyperparameters

_LONGEST_WORKER_ID = 128
_PAGE_SIZE = 1000  # models; the server ends a page sooner where their descriptions are long
_URL = re.compile(r"(?:https?|grpcs?|tcp)://([^/]*).*", re.IGNORECASE | re.DOTALL)  # gRPC waits for such for ever


class ParameterClient:
    """A connection to a parameter server. Safe to use from several threads.

        with ParameterClient("127.0.0.1:50051") as client:
            model = client.create_model("digits", {"w": w, "b": b}, lr=1e-3, exist_ok=True)
            params = model.pull()
            model.push({"w": grad_w, "b": grad_b})

    Calls that fail for a passing reason (no connection, a restart of the server, a full memory budget) are tried
    again until `timeout_seconds` have passed, with growing, random pauses; a push is applied once all the same.

    Leaving the `with` block waits for pushes of push_async (so long as a call may last), unless it is left by an
    exception: then they are given up.

    A client belongs to the process that made it. In a forked child every call on it, and on its models, is refused at
    once, while `close` returns at once; make a ParameterClient in the child. A fork closes the parent's connection for
    a moment, and calls under way are sent again. Where something else in the parent uses gRPC, such as a server, a
    client cannot work in its forked children, and making one is refused: start them with the method "spawn".

    A call in the main thread may be interrupted at any point, with Ctrl-C or by any signal handler that raises: it is
    given up, whether a push was applied is then unknown, and later calls go on. A client that was not closed does not
    keep the interpreter from exiting; pushes that push_async still holds are then lost.

    Args:
        address: HOST:PORT of the server.
        worker_id: names this worker to the server: 1 to 128 characters. Give one that is stable across restarts of
            the worker, and a new process fences pushes of its old one that are still under way; no two live workers
            of a model may share one. None: random.
        timeout_seconds: how long one call may last, all its tries together.
        progress: called with (bytes done, bytes in all) as a transfer goes on, by the thread that carries it; or
            True for a line on stderr, when that is a terminal, for transfers of more than two seconds.
        backoff: how long to pause between tries.

    Raises:
        ConfigurationError: an argument is out of range.
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
    ) -> None:
        _check_address(address)
        if not isinstance(timeout_seconds, (int, float, np.number)) or not 0 < timeout_seconds < math.inf:
            raise ConfigurationError(f"timeout_seconds={timeout_seconds!r}: it must be above 0 and finite")
        self.address = address
        self.worker_id = _random_worker_id() if worker_id is None else _checked_worker_id(worker_id)
        self._connection = Connection(address, timeout_seconds=timeout_seconds, progress=progress, backoff=backoff)
        self._models: dict[str, Model] = {}
        self._models_lock = threading.Lock()

    def create_model(
        self,
        name: str,
        params: Mapping[str, object],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        eps_mode: EpsMode = "hat",
        maximize: bool = False,
        amsgrad: bool = False,
        mode: str = "async",
        exist_ok: bool = False,
    ) -> Model:
        """Create a model on the server, and return a handle on it.

        Args:
            name: 1 to 128 characters out of A-Z a-z 0-9 . _ - and not starting with a dot.
            params: initial values: a dict of name -> array, all float32 or all float64.
            lr: learning rate.
            betas: decay rates of the two moving averages.
            eps: keeps the denominator away from zero.
            weight_decay: pull towards zero.
            decoupled_weight_decay: True shrinks the parameter itself (AdamW).
            eps_mode: where eps stands: "hat" (Kingma & Ba, section 2) or "algorithm1" (as in PyTorch).
            maximize: True climbs.
            amsgrad: divide by the largest exp_avg_sq seen so far.
            mode: how pushes become steps: "async", each push is one.
            exist_ok: True: when an equal model exists (same arrays and settings; it may have been trained further),
                return that. Several workers may so run the same program.

        Raises:
            ModelExistsError: a model of that name exists, and differs or `exist_ok` is not set.
            NamesError, ArrayError, HyperparameterError, ConfigurationError: an argument is wrong; nothing was sent.
            ServiceError: the call failed.
        """
        hyperparameters = Hyperparameters(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_weight_decay=decoupled_weight_decay,
            eps_mode=eps_mode, maximize=maximize, amsgrad=amsgrad,
        )  # fmt: skip
        if mode != "async":
            raise ConfigurationError(f"mode={mode!r}: it must be 'async'")
        arrays = check_initial(params)
        return self._handle(self._create(_spec(_checked_name(name), arrays, hyperparameters), arrays, exist_ok))

    def open_model(self, name: str) -> Model:
        """Return a handle on a model that exists.

        A client gives out one handle for each model: opening it again returns the same one.

        Raises:
            ModelNotFoundError: there is none of that name.
            ServiceError: the call failed.
        """
        request = pb.GetModelRequest(model=_checked_name(name))
        return self._handle(self._call("GetModel", request, pb.GetModelResponse, f"open model {name!r}").model)

    def list_models(self) -> list[ModelInfo]:
        """Return the models that the server holds, by name."""
        pages = self._pages("ListModels", pb.ListModelsRequest, pb.ListModelsResponse, "list models")
        return [model_info(model) for page in pages for model in page.models]

    def delete_model(self, name: str) -> None:
        """Delete a model, its state and its snapshots. Not to be undone.

        Raises:
            ModelNotFoundError: there is none of that name.
            RewoundError: it may have been deleted, and another one created in its place meanwhile.
            ServiceError: the call failed.
        """
        deletion = Deletion(self._connection, _checked_name(name))
        deadline = self._connection.deadline()
        self._connection.retry(lambda _: deletion.attempt(deadline), what=f"delete model {name!r}", deadline=deadline)
        with self._models_lock:
            self._models.pop(name, None)  # a model of that name, should there be one again, is another one

    def snapshot(self, model: str | None = None) -> list[SnapshotInfo]:
        """Write a snapshot now, and return when it is on disk.

        Args:
            model: name of the model; None: all.

        Returns:
            One record for each model, by name.
        """
        what = "snapshot of all models" if model is None else f"snapshot of model {model!r}"
        answer = self._call("Snapshot", pb.SnapshotRequest(model=model or ""), pb.SnapshotResponse, what)
        return [snapshot_info(snapshot) for snapshot in answer.snapshots]

    def status(self) -> ServerStatus:
        """Return what the server holds and has done."""
        pages = self._pages("GetServerStatus", pb.GetServerStatusRequest, pb.GetServerStatusResponse, "server status")
        return server_status(list(pages))

    def close(self, *, wait: bool = True) -> None:
        """Close the connection. May be called again; in a forked child of the client's process it does nothing.

        Args:
            wait: True: wait for pushes of push_async, so long as a call may last. What is then still queued has its
                future cancelled; what is under way ends with ServiceError, and may or may not have been applied.
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
        """Yield the pages of an answer about all models, each as small as the server makes it."""
        token, deadline = "", self._connection.deadline()  # one, for all of them
        while True:
            request = request_type(page_size=_PAGE_SIZE, page_token=token)
            page = self._connection.call(name, request, response_type, what=what, deadline=deadline)
            yield page
            token = page.next_page_token
            if not token:
                return

    def _create(self, spec: model_pb2.ModelSpec, arrays: Mapping[str, npt.NDArray[Any]], exist_ok: bool) -> Any:
        """Send a model's initial values; the request id makes a second try harmless."""
        what = f"create model {spec.name!r}"
        header = pb.CreateModelHeader(
            spec=spec,
            request_id=secrets.token_hex(16),
            exist_ok=exist_ok,
            total_bytes=sum(array.nbytes for array in arrays.values()),
            checksum_kind=XXH3_64,  # type: ignore[arg-type]  # enums are plain numbers at run time
            after_state_id="",  # no deletion is known here: the server names the last one, if there was one
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

        return self._connection.retry(attempt_after_a_deletion, what=what, deadline=deadline).model

    def _handle(self, model: model_pb2.Model) -> Model:
        """Return the handle on a model: the one given out before, if it still fits."""
        info = model_info(model)
        with self._models_lock:
            known = self._models.get(info.name)
            if known is not None and known.spec.has_arrays_of(info):
                return known
            session = Session(self._connection, info.name, self.worker_id, model.state)
            handle = self._models[info.name] = Model(self._connection, session, info)
        return handle


def _check_address(address: str) -> None:
    """Refuse an address that cannot be one."""
    if not isinstance(address, str) or ":" not in address:
        raise ConfigurationError(f"address={address!r}: it must be HOST:PORT, such as '127.0.0.1:50051'")
    url = _URL.fullmatch(address)
    if url is not None:
        place = url[1] or "127.0.0.1"
        instead = place if place.rpartition(":")[2].isdigit() else f"{place}:50051"
        raise ConfigurationError(f"address={address!r}: it must be HOST:PORT and no URL; write {instead!r}")


def _spec(name: str, arrays: Mapping[str, npt.NDArray[Any]], hyperparameters: Hyperparameters) -> model_pb2.ModelSpec:
    dtype: np.dtype[Any] = next(iter(arrays.values())).dtype
    return model_pb2.ModelSpec(
        name=name,
        dtype=convert.dtype_to_proto(dtype),
        tensors=convert.tensor_specs(arrays),
        hyperparameters=convert.hyperparameters_to_proto(hyperparameters),
        mode=model_pb2.Mode.MODE_ASYNC,
        durability=model_pb2.Durability.DURABILITY_MEMORY,
    )


def _checked_name(name: str) -> str:
    """Return a model's name if it is text that can travel; whether it is a good one, the server knows."""
    if not isinstance(name, str) or not name.isprintable():
        raise InvalidRequestError(f"model name {name!r}: it must be a text of A-Z a-z 0-9 . _ - only")
    return name


def _random_worker_id() -> str:
    return f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"


def _checked_worker_id(worker_id: str) -> str:
    if not isinstance(worker_id, str) or not 1 <= len(worker_id) <= _LONGEST_WORKER_ID or not worker_id.isprintable():
        raise ConfigurationError(
            f"worker_id={worker_id!r}: it must be 1 to {_LONGEST_WORKER_ID} characters, none of them control characters"
        )
    return worker_id
