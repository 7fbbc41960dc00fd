"""A worker's handle on one model. May import NumPy and its neighbours here."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from numba_adam.client.ack import Ack
from numba_adam.client.formats import converted, named_dtype
from numba_adam.client.info import ModelInfo, model_info
from numba_adam.client.model_arrays import Parameters, model_arrays_of
from numba_adam.client.narrow import wire_format
from numba_adam.client.pull import PLAIN, Pulled, Wanted, pull, wanted_as, wanted_in
from numba_adam.client.push import Answer, Push
from numba_adam.client.rounds import mode_settings
from numba_adam.client.same_host import ModelMemory, gradient_memory, memory_of, parameter_views
from numba_adam.client.sender import Sender
from numba_adam.client.session import Session, checked_worker_id
from numba_adam.client.settings import Change, change_of, change_settings, checked_loss_scale
from numba_adam.client.structure import Names, Template, flatten, gradients
from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.retry import Deadline
from numba_adam.client.worker import Worker
from numba_adam.client.workers import heartbeat, leave_at_once
from numba_adam.errors import HyperparameterError, InvalidRequestError, PushRejectedError, ServiceError
from numba_adam.interop import count_writes
from numba_adam.numerics.formats import Format
from numba_adam.ps.schedules import Schedule
from numba_adam.ps.v1.parameter_service_pb2 import GetModelRequest, GetModelResponse
from numba_adam.settings.hyperparameters import EpsMode

_log = logging.getLogger(__name__)

_WAITING = 4  # queued pushes of push_async, besides the running one; each keeps its gradients alive
_LARGEST_VERSION = (1 << 64) - 1  # of the protocol's field
_Batch = TypeVar("_Batch")
_Run = Callable[[Push, Deadline], Answer]


class Model:
    """One model on the server: pull its parameters, push gradients.

    `ParameterClient.create_model` and `open_model` return it. Safe to use from several threads. The server applies the
    pushes of one handle in the order of the calls.
    """

    def __init__(self, connection: Connection, session: Session, info: ModelInfo, template: Template) -> None:
        self._connection, self._session, self._info = connection, session, info
        self.template = template
        """What pulled parameters come back as."""

        self._model_arrays = model_arrays_of(info)
        self._listeners: list[Callable[[int], None]] = []
        self._sender: Sender | None = None
        self._sender_lock = threading.Lock()
        self._prefetched: Pulled | None = None  # parameters pulled after a rewind, for the caller's next pull
        self._last_ack: Ack | None = None
        self._worker_numbers = itertools.count(1)
        self._wire: Format | None = None
        self._loops: set[Session] = set()  # of the mode "ssp": the sessions of loops that have not left
        self._misfit = ""  # why this handle is unusable; empty: it is usable

    def __repr__(self) -> str:
        return f"<Model {self.name!r} at version {self.version}, worker {self._session.worker_id!r}>"

    @property
    def name(self) -> str:
        """The model's name."""
        return self._info.name

    @property
    def spec(self) -> ModelInfo:
        """The model's arrays, hyperparameters and mode, and its version when it was opened."""
        return self._info

    @property
    def version(self) -> int:
        """Version of the parameters pulled last; before the first pull, the version when the model was opened."""
        return self._session.origin.version

    @property
    def state_id(self) -> str:
        """Id of the line of history that `version` belongs to. It changes with each rollback of the server."""
        return self._session.origin.state_id

    @property
    def last_ack(self) -> Ack | None:
        """The answer to the last push or push_pull; None before the first."""
        return self._last_ack

    @property
    def wire_dtype(self) -> str | None:
        """The 16-bit format in which gradients and parameters travel, "bfloat16" or "float16"; None: the model's dtype.

        Assign to it to halve the bytes of float32. Both ends round to the nearest number. The arrays that you pass and
        get keep their dtype, and the server computes in the model's. Arrays that are 16-bit themselves travel in their
        own format, whatever this says. Through shared memory (see `transport`) nothing travels, and pulls are faster
        without it. A float16 gradient beyond 65504 becomes infinite, and is refused. Applies to the
        calls that start afterwards, and to `worker`.
        """
        return None if self._wire is None else self._wire.label

    @wire_dtype.setter
    def wire_dtype(self, name: str | None) -> None:
        self._wire = wire_format(name)

    def pull(
        self, min_version: int | None = None, out: object = None, *, dtype: object = None, average: bool = False
    ) -> Any:
        """Return all parameters of one version.

        Args:
            min_version: oldest acceptable version, such as an ack's. The call waits for it. None: any.
            out: arrays to write to, in any form that `create_model` takes, with the model's names and shapes. PyTorch's
                parameters may require gradients. Arrays of another dtype than the model's, float32, float64, bfloat16
                or float16, get the nearest numbers. After an error their contents are undefined. None: allocate new
                arrays.
            dtype: dtype of new arrays, such as "bfloat16" or torch.bfloat16, rounded to the nearest. None: the model's.
            average: True: the moving average of the weights, which models with `ema_decay` keep. `version` stays that
                of the parameters that were pulled last.

        Parameters for bfloat16 or float16 arrays, all of one format, travel so, in half the bytes of float32; see
        `wire_dtype` too.

        Returns:
            `out`, or new arrays in the containers and of the frameworks of the parameters that the model was created
            with or opened `like`. Otherwise a dict of name -> NumPy array. New arrays are views of one flat vector,
            where the framework has views.

        Raises:
            NamesError, ArrayError: `out` does not fit the model, or `dtype` is none of the four.
            InvalidRequestError: `min_version` is not a whole number, both `out` and `dtype` are given, or the model
                keeps no average.
            DeadlineExceededError: the model did not reach `min_version` in time.
            ServiceError: the call failed.
        """
        self._check_fit()
        if average and self._info.options.ema_decay is None:
            raise InvalidRequestError(
                f"average={average!r}: model {self.name!r} keeps no average of its weights; create one with ema_decay"
            )
        if out is not None:
            if dtype is not None:
                raise InvalidRequestError(f"dtype={dtype!r}: the arrays of `out` have their own; leave one of them out")
            places, form = flatten(out, "out")
            return form.filled(self._pull_into(places, min_version, average=average))
        version, as_dtype = _checked_version(min_version), None if dtype is None else named_dtype(dtype)
        pulled = None if version or average else self._take_prefetched()
        if pulled is None:
            pulled = self._pull(version, wanted_as(as_dtype, self._wire), average=average)
            self._report_rewinds(prefetch=False)
        return self.template.filled(converted(pulled.parameters, as_dtype))

    def push(self, grads: object, *, loss_scale: float | None = None) -> Ack:
        """Apply a gradient, exactly once, however often it is sent.

        If push_async is in use, the call first waits for earlier pushes. That time counts towards its deadline.

        Args:
            grads: an array for each of the model's names, of the same shape, in any form that `create_model` takes. A
                PyTorch parameter stands for its `.grad`. None: this array has no gradient and does not change. The
                dtype is the model's, bfloat16 or float16. If all arrays are bfloat16, or all float16, they travel so,
                in half the bytes. Do not modify the gradients before the call returns. `module.state_dict()` has the
                values of the parameters, which cannot be told from gradients: pass `module.named_parameters()` or
                `module.state_dict(keep_vars=True)`.
            loss_scale: the factor that the loss, and so the gradients, were multiplied by. The server divides by it.

        Returns:
            The server's answer. Its `applied` is False if the server lost the state that the gradient was computed
            for; see `on_rewind`.

        Raises:
            NamesError, ArrayError: the gradients do not fit the model; nothing was sent.
            NonFiniteError: a gradient contains a NaN or an infinity; nothing was changed.
            SessionFencedError: another process with this worker id took over.
            ServiceError: there was no answer in time. The push may or may not have been applied, unless the message
                says that it was not sent.
        """
        return self._run(self._prepare(grads, loss_scale=loss_scale), Push.run)[0]

    def push_async(self, grads: object, *, loss_scale: float | None = None) -> Future[Ack]:
        """Apply a gradient in the background, and return a future of the server's answer.

        At most four pushes wait behind the running one; if the queue is full, the call waits. A push's timeout starts
        when the push starts. Do not modify the arrays until the future is done. Gradients that do not fit the model
        are refused at once. In a forked child, pending futures end with a ServiceError.
        """
        push = self._prepare(grads, loss_scale=loss_scale)
        return self._connection.shielded(
            lambda: self._ensure_sender().submit(
                lambda: self._carry_out(push, Push.run, self._connection.deadline())[0]
            )
        )

    def push_pull(self, grads: object, out: object = None, *, loss_scale: float | None = None) -> Any:
        """Apply a gradient and return parameters that are at least as new, in one round trip.

        `last_ack` is the answer to the push. Takes `out` and returns as `pull` does. Raises the same errors as both.
        """
        if out is None:
            push = self._prepare(grads, wanted_as(None, self._wire), loss_scale)
            ack, pulled = self._run(push, Push.run_with_pull)
            wanted = ack.version if ack.applied else None
            return self.pull(wanted) if pulled is None else self.template.filled(pulled.parameters)
        places, form = flatten(out, "out")
        return form.filled(self._push_and_pull_into(places, grads, loss_scale))

    @property
    def transport(self) -> str:
        """Which way gradients and parameters take, and why: "same host: ..." or "network: ..."."""
        self._check_fit()
        return self._connection.same_host.look()

    def gradient_buffers(self) -> Parameters:
        """Return new arrays of zeros for gradients, by name. A server of this user on this machine reads them in place.

        They are NumPy arrays; `torch.from_numpy` gives tensors over the same memory. A push of them copies nothing in
        the worker. Several pushes at a time need several sets. Over the network they are plain arrays.
        """
        self._check_fit()
        return gradient_memory(self._model_arrays)

    def parameters_view(self) -> Parameters:
        """Return read-only NumPy arrays of the parameters where the server has them, by name.

        They change while the server applies pushes, so what is read may be of several versions, and of updates that
        are not finished; `pull` gives one version. After a restart of the server, ask for a new view.

        Raises:
            ConfigurationError: the server is not of this user on this machine.
            ServiceError: the call failed.
        """
        self._check_fit()
        deadline, what = self._connection.deadline(), f"view of model {self.name!r}"

        def attempt(seconds: float) -> ModelMemory:
            return memory_of(self._connection, self.name, self._model_arrays, seconds)

        memory = self._connection.retry(attempt, what=what, deadline=deadline)
        return parameter_views(memory, self._model_arrays)

    def worker(
        self, batches: Iterable[_Batch], params: object = None, *, worker_id: str | None = None
    ) -> Worker[_Batch]:
        """Return a loop over batches that pulls parameters and pushes gradients.

            for batch, step in model.worker(batches, net.named_parameters()):      # PyTorch
                loss(net, batch).backward()

            for batch, step in model.worker(batches):                              # NumPy, JAX, ...
                step.grads = gradient(step.params, batch)

        Before each pass, the newest parameters are pulled. After it, the gradients are pushed. If the server lost
        unsaved steps, the loop pulls what it restored and continues with the next batch: the callbacks of
        `on_rewind` are called, and `step.ack` says so. A transient failure is retried for the client's
        `timeout_seconds`. All other errors end the loop. A pass that is left with `break` or an exception pushes
        nothing.

        The loop has its own session with the server, so several may run at the same time, each in a thread. The
        `version` and `last_ack` of this handle do not change; those of the loop are in `step`.

        Args:
            batches: any iterable; its items are passed on.
            params: arrays to pull into, in any form that `create_model` takes. PyTorch's parameters lose their
                gradients before each pass, and those that `backward` made are pushed. None: every pass has new
                arrays in `step.params`.
            worker_id: id of this worker. None: the client's with "/1", the next loop's with "/2", and so on.

        Raises:
            NamesError, ArrayError: `params` does not fit the model. In the loop: no gradients were computed, or they
                do not fit.
            ConfigurationError: `worker_id` is not an id.
        """
        self._check_fit()
        own_id = f"{self._session.worker_id}/{next(self._worker_numbers)}" if worker_id is None else worker_id
        session = self._session.of_another_worker(checked_worker_id(own_id))
        handle = Model(self._connection, session, self._info, self.template)
        handle._listeners, handle._wire = self._listeners, self._wire
        handle._loops = self._loops
        if self._info.mode == "ssp":
            self._loops.add(session)
        worker = Worker(handle, batches, params)
        if params is not None:
            self._model_arrays.check_out(worker.leaves, "params")
        return worker

    def set(
        self,
        *,
        group: int | None = None,
        lr: float | Schedule | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        decoupled_weight_decay: bool | None = None,
        eps_mode: EpsMode | None = None,
        maximize: bool | None = None,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
        freeze: Sequence[str] = (),
        unfreeze: Sequence[str] = (),
        staleness_power: float | None = None,
        largest_staleness: float | None = None,
        mode: str | None = None,
        workers: int | None = None,
        backup: int = 0,
        round_timeout_seconds: float | None = None,
        staleness: int | None = None,
    ) -> Change:
        """Change settings of the model while it trains, for all its workers.

        Pushes that are applied later have the new settings. What is not given stays as it is. The change is made once,
        however often it is sent, and is kept like an acknowledged push.

        Args:
            group: place of a group of arrays, from 0, for the hyperparameters. None: all groups.
            lr: learning rate, or one of `numba_adam.client.schedules`.
            betas: decay rates of the two moving averages.
            eps: added to the denominator.
            weight_decay: strength of the decay towards zero.
            decoupled_weight_decay: True: decay the parameter itself (AdamW), not the gradient.
            eps_mode: where eps is added, as in `create_model`.
            maximize: True: maximize the objective.
            max_grad_norm: largest 2-norm of the gradients of a push; `math.inf`: any.
            clip_value: largest magnitude of an element; `math.inf`: any.
            freeze: names of arrays that pushes do not change from now on.
            unfreeze: names of arrays that they change again.
            staleness_power: divides the learning rates of stale pushes, as in `create_model`; 0: it does not.
            largest_staleness: largest staleness of a push; `math.inf`: any.
            mode: another mode, with what belongs to it, as in `create_model`. Pushes that wait in a round are not
                applied: the `outcome` of their acks is "aborted".
            workers: for the mode "sync".
            backup: for the mode "sync".
            round_timeout_seconds: for the mode "sync".
            staleness: for the mode "ssp".

        Returns:
            The number of the change, and the model's version at it.

        Raises:
            NamesError, HyperparameterError: an argument is invalid; nothing was sent.
            InvalidRequestError: the model has no such group or array, or cannot have such a value; nothing was changed.
            SettingsChangedError: somebody else changed the settings at the same moment; nothing was changed.
            AccessDeniedError: the token does not have the scope admin for the model.
            BudgetExceededError: the server has no memory for the rounds of the new mode.
            ServiceError: the call failed. Without an answer in time, the settings may have changed.
        """
        wanted = None
        if mode is not None:
            wanted = mode_settings(mode, workers, backup, round_timeout_seconds, staleness)
        elif workers is not None or backup or round_timeout_seconds is not None or staleness is not None:
            raise HyperparameterError("mode is not given: workers, backup, round_timeout_seconds and staleness need it")
        change = change_of(
            group=group, max_grad_norm=max_grad_norm, clip_value=clip_value, freeze=freeze, unfreeze=unfreeze,
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_weight_decay=decoupled_weight_decay,
            eps_mode=eps_mode, maximize=maximize, staleness_power=staleness_power,
            largest_staleness=largest_staleness, mode=wanted,
        )  # fmt: skip
        return change_settings(self._connection, self.name, change)

    def heartbeat(self) -> None:
        """Tell the server that this worker is alive. Every push does that too.

        A worker that computes for longer than the model's `lease_seconds` calls it meanwhile, so that the others go on
        waiting for it. Without a session, which the first push opens, nothing happens.

        Raises:
            SessionFencedError: another process with this worker id took over.
            ServiceError: the call failed.
        """
        self._check_fit()
        heartbeat(self._connection, self._session, leaving=False)

    def leave(self) -> None:
        """Tell the server that this worker pushes nothing for now: nobody waits for it any more.

        Loops over `worker`, and the end of the client's `with` block, do that in the mode "ssp". If the worker pushes
        again, it joins at the slowest clock. Raises as `heartbeat` does.
        """
        self._check_fit()
        heartbeat(self._connection, self._session, leaving=True)
        self._loops.discard(self._session)

    def on_rewind(self, callback: Callable[[int], None]) -> None:
        """Register a callback for rewinds: it takes the version that the server restored after it lost unsaved steps.

        It is called once for each rewind, in the thread of the call that found it. The parameters of the restored
        state are pulled before; the next `pull` returns them.
        """
        self._connection.check_owner(f"model {self.name!r}")
        self._listeners.append(callback)

    def close(self, timeout_seconds: float) -> None:
        """End push_async: wait for queued pushes until the timeout, then cancel those that have not started.

        In a forked child it does nothing, because the parent's threads may have held the locks.
        """
        if self._connection.is_inherited():
            return
        with self._sender_lock:
            sender = self._sender
        if sender is not None:
            self._connection.shielded(lambda: sender.close(timeout_seconds))
        if timeout_seconds and self._info.mode == "ssp":
            for session in (self._session, *self._loops):
                leave_at_once(self._connection, session)

    # --- pushes, in the order of the calls --------------------------------------------------------------------

    def _prepare(self, grads: object, wanted: Wanted = PLAIN, loss_scale: float | None = None) -> Push:
        """Validate gradients and record the version that they were computed from, which later pulls do not change."""
        self._check_fit()
        scale = None if loss_scale is None else checked_loss_scale(loss_scale)
        checked = self._model_arrays.check_gradients(gradients(grads, "grads"), self._wire)
        return Push(self._connection, self._session, self._model_arrays, checked, self._session.origin, wanted, scale)

    def _run(self, push: Push, run: _Run) -> Answer:
        """Run a push now, or after the queued pushes if push_async is in use."""
        deadline = self._connection.deadline()
        with self._sender_lock:
            sender = self._sender
        if sender is None or sender.is_current_thread():
            return self._carry_out(push, run, deadline)
        return self._connection.shielded(lambda: sender.run(lambda: self._carry_out(push, run, deadline), deadline))

    def _carry_out(self, push: Push, run: _Run, deadline: Deadline) -> Answer:
        ack, pulled = run(push, deadline)
        self._last_ack = ack
        if ack.applied:
            self._prefetched = None  # the next pull must include this push
        if pulled is not None:
            self._session.pulled(pulled.state)
        self._report_rewinds(prefetch=True)
        return ack, pulled

    def _ensure_sender(self) -> Sender:
        with self._sender_lock:
            if self._sender is None:
                self._sender = Sender(f"push to model {self.name!r}", _WAITING)
                self._connection.on_fork(self._sender.abandon)
            return self._sender

    # --- pulls and rewinds --------------------------------------------------------------------------------------

    def _pull_into(self, places: Names, min_version: int | None, *, average: bool = False) -> Names:
        """Pull into these arrays; return them."""
        views = self._model_arrays.check_out(places)
        version, wanted = _checked_version(min_version), wanted_in(self._model_arrays.direct(views), self._wire)
        with _counting_writes(places):
            wanted.fill(views, self._pull(version, wanted, average=average))
        self._report_rewinds(prefetch=False)
        return places

    def _push_and_pull_into(self, places: Names, grads: object, loss_scale: float | None) -> Names:
        """Push, and pull into these arrays; return them."""
        views = self._model_arrays.check_out(places)
        wanted = wanted_in(self._model_arrays.direct(views), self._wire)
        push = self._prepare(grads, wanted, loss_scale)
        with _counting_writes(places):
            ack, pulled = self._run(push, Push.run_with_pull)
            if pulled is not None:
                wanted.fill(views, pulled)
        return places if pulled is not None else self._pull_into(places, ack.version if ack.applied else None)

    def _pull(self, min_version: int, wanted: Wanted, *, average: bool = False) -> Pulled:
        return pull(
            self._connection,
            self._session,
            self._model_arrays,
            min_version=min_version,
            wanted=wanted,
            deadline=self._connection.deadline(),
            average=average,
        )

    def _take_prefetched(self) -> Pulled | None:
        """Return the parameters pulled after a rewind, once, unless there was another rewind since."""
        ready, self._prefetched = self._prefetched, None
        return ready if ready is not None and ready.state.state_id == self.state_id else None

    def _report_rewinds(self, *, prefetch: bool) -> None:
        """Call the listeners for each rewind that was not reported yet."""
        for state in self._session.take_rewinds():
            self._check_arrays()
            if prefetch:
                self._prefetch()
            for callback in tuple(self._listeners):
                callback(state.first_version)

    def _check_arrays(self) -> None:
        """Check that the model still has the arrays of this handle: an apparent rewind may be another model.

        Raises:
            InvalidRequestError: the model was deleted and created again with other arrays.
        """
        what = f"open model {self.name!r}"
        try:
            answer = self._connection.call("GetModel", GetModelRequest(model=self.name), GetModelResponse, what=what)
        except ServiceError as error:  # the listeners must hear of the rewind all the same
            _log.warning("model %r was restored, but its arrays could not be checked: %s", self.name, error)
            return
        if not self._info.has_arrays_of(model_info(answer.model)):
            self._misfit = f"model {self.name!r} was deleted and created again with other arrays; open it again"
        self._check_fit()

    def _check_fit(self) -> None:
        self._connection.check_owner(f"model {self.name!r}")
        if self._misfit:
            raise InvalidRequestError(self._misfit)

    def _prefetch(self) -> None:
        try:
            self._prefetched = self._pull(0, wanted_as(None, self._wire))
        except ServiceError as error:  # the listeners must hear of the rewind all the same
            _log.warning("model %r was restored, but its parameters could not be pulled: %s", self.name, error)


@contextlib.contextmanager
def _counting_writes(places: Names) -> Iterator[None]:
    """Tell the arrays' frameworks about writes, also about those of a call that failed in between."""
    try:
        yield
    except PushRejectedError:  # before anything was pulled
        raise
    except BaseException:
        count_writes(list(places.values()))
        raise
    count_writes(list(places.values()))


def _checked_version(min_version: int | None) -> int:
    """Return the version to wait for; 0: any."""
    if min_version is None:
        return 0
    if not isinstance(min_version, (int, np.integer)) or not 0 <= min_version <= _LARGEST_VERSION:
        raise InvalidRequestError(
            f"min_version: expected a whole number from 0 to {_LARGEST_VERSION}, got {min_version!r}"
        )
    return int(min_version)
