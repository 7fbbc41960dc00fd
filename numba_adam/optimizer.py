"""Adam and AdamW: PyTorch's interface of param groups, a step, and state dicts. Imports no framework.

One step is `Adam._step`: make ready, plan, check, launch. `numba_adam/optim/` does each of these for all parameters.
The backends, `cpu/` and `cuda/`, do it for their own. `numerics/element.py` updates one element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from numba_adam.cpu.kernels.threads import step_lock
from numba_adam.errors import NamesError
from numba_adam.interop import count_writes
from numba_adam.optim import pickling, state_dicts
from numba_adam.optim.accumulation import ACCUMULATED, Accumulation, check_accumulation, share, sums_of
from numba_adam.optim.backends import check_loss_scale
from numba_adam.optim.parameters import Parameters
from numba_adam.optim.scaling import scaling
from numba_adam.optim.stepping import accumulate, check, launch, plan
from numba_adam.settings.fixed import HYPERPARAMETER_NAMES, FixedDict, check_attribute
from numba_adam.settings.hyperparameters import EpsMode, Hyperparameters
from numba_adam.settings.options import CopyDtype, Options, Rounding, StateDtype
from numba_adam.settings.param_groups import ParamGroup, ParamGroups, Schedule, groups_of, is_array, separated
from numba_adam.settings.results import StepResult, may_have_written
from numba_adam.settings.scaling import Scaling

_FIXED_STATE = (
    "opt.state: its arrays cannot be replaced; write into them, as in opt.state['w']['exp_avg'][...] = 0, or load "
    "another state with load_state_dict"
)


class Adam:
    """The Adam optimizer (Kingma & Ba 2015, arXiv 1412.6980). It updates arrays of any framework in place.

    The first step makes each parameter's state: `step` (an int64 array without dimensions), and `exp_avg` and
    `exp_avg_sq` (zeros with the parameter's shape and the format `state_dtype`). AMSGrad adds `max_exp_avg_sq`, 8-bit
    moments add their scales, and the options add `master_param` and `ema`.

        >>> import numpy as np
        >>> import numba_adam as na
        >>> w = np.array([1.0, -2.0], dtype=np.float32)
        >>> opt = na.Adam({"w": w}, lr=0.1)
        >>> opt.step({"w": np.array([0.5, 0.5], dtype=np.float32)}).applied
        True
        >>> w.round(6)
        array([ 0.9, -2.1], dtype=float32)

    The same gradients in the same order give the same bits on any CPU with any number of threads.

    An assignment without effect is refused: `opt.lr = 0.1`, `opt.param_groups[0]["params"] = ...`.

    `copy.deepcopy` and pickle copy an optimizer together with its arrays and tensors, unless these are on a GPU. The
    copy continues with the same bits, and updates the copied arrays.
    """

    _OWNED: ClassVar[Mapping[str, object]] = {}  # hyperparameters that groups and state dicts cannot set

    def __init__(
        self,
        params: object,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        eps_mode: EpsMode = "hat",
        state_dtype: StateDtype | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        master_weights: bool = False,
        ema_decay: float | None = None,
        low_precision_copy: CopyDtype | None = None,
    ) -> None:
        """Take the parameters and their hyperparameters.

        A number may also be a NumPy scalar or a one-element array of any framework. Its value is read once, here.

        Args:
            params: one array, a dict (name -> array), an iterable of arrays or of pairs (name, array), such as
                `named_parameters()`, or a list of param groups: dicts with "params" (any of these), hyperparameters and
                notes of their own. Each array is float32, float64, bfloat16 (or its bits as uint16) or float16,
                writable, and dense, with any order of axes in memory. It may come from any framework.
            lr: the learning rate, or a schedule: a function from the number of the update, 1 for the first, to the
                learning rate. Skipped steps do not count. Where the parameters of a group had different numbers of
                updates, the largest number counts. Setting a schedule calls it with 1. A step may call it more than
                once with the same number.
            betas: decay rates of the two moving averages, each in [0, 1).
            eps: added to the denominator; see `eps_mode`. 0, or at least 2**-126 (float64: 2**-1022). With 0, an
                element that had no gradient so far does not move.
            weight_decay: the weight decay factor.
            amsgrad: divide by the largest second moment so far.
            maximize: increase the objective instead of decreasing it.
            decoupled_weight_decay: shrink the parameter itself (AdamW) instead of adding to the gradient (L2).
            eps_mode: "hat" adds eps to sqrt(exp_avg_sq), as TensorFlow and Keras do. "algorithm1" adds it to the
                bias-corrected root, as PyTorch and optax do.
            state_dtype: format of the moments: "float32", "float64", "bfloat16" or "8bit" (docs/eight-bit-state.md).
                Default: float64 for float64 parameters, float32 for the rest. The compute dtype is float64 where the
                parameter or its state is float64, else float32.
            rounding: how bfloat16 arrays are rounded: "nearest" or "stochastic". Stochastic rounding preserves the mean
                of changes that are too small for the format. 8-bit state has its own rounding, which preserves it too.
            seed: the seed of the stochastic rounding and of the rounding of 8-bit state. The same seed gives the same
                bits with any number of threads.
            master_weights: keep a float32 copy of each bfloat16 or float16 parameter, update that copy, and round it
                into the parameter in the same pass. The next step overwrites other changes to the parameter: make them
                in `state[...]["master_param"]` too.
            ema_decay: keep an exponential moving average of the weights with this decay, in [0, 1); see `ema`.
            low_precision_copy: keep a copy of the parameters in "bfloat16" or "float16"; see `low_precision`.

        Raises:
            ArrayError: an array cannot be updated in place, or not in these formats. The message names it.
            HyperparameterError: a hyperparameter is out of range.
            NamesError: there is no array, or a name is used twice.
        """
        plain, schedule = separated({"lr": lr})
        rate: Any = plain["lr"]
        defaults = Hyperparameters(rate, betas, eps, weight_decay, decoupled_weight_decay, eps_mode, maximize, amsgrad)
        options = Options(state_dtype, rounding, seed, master_weights, ema_decay, low_precision_copy)
        self._build(groups_of(params, defaults, schedule, self._OWNED), options, is_single=is_array(params))

    def _build(self, groups: list[ParamGroup], options: Options, *, is_single: bool) -> None:
        """Take the parameters, and divide them among the backends."""
        others = vars(self).keys() - getattr(self, "_own", frozenset())
        self._param_groups, self._options = ParamGroups(groups), options
        self._parameters = Parameters(self._param_groups, options, is_single=is_single)
        self._accumulations = 0
        self._lock = step_lock()
        self._own = frozenset({"_own", *vars(self)} - others)

    def step(
        self,
        grads: object = ACCUMULATED,
        *,
        grad_scale: float = 1.0,
        loss_scale: Any = None,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
        zero_grad: bool = False,
        accumulation: Accumulation = "mean",
    ) -> StepResult:
        """Update every parameter that has a gradient, in place.

        A step re-borrows a parameter whose storage was replaced since the last step (`tensor.data = ...`). The new
        storage may have other strides. Then `state`, `ema` and `low_precision` have new arrays. As in PyTorch, an
        element keeps its state by its index.

        Args:
            grads: in the form of the constructor's `params`: one array, a sequence in the same order (through all
                groups), or a dict or pairs (name, gradient) with the same names. Each has its parameter's shape, and
                any dtype that a parameter may have. A gradient whose order of axes in memory differs from its
                parameter's is copied first. On a GPU it is refused. None leaves that parameter and its state unchanged.
                Default: the gradients that `accumulate` has summed.
            grad_scale: a factor for every gradient.
            loss_scale: a divisor for every gradient, fused into the update. The step first reads all gradients. It is
                skipped if a gradient or its square is not finite. Pass a float. If all parameters are on one GPU, one
                float32 on that GPU works too.
            max_grad_norm: the largest global norm over all gradients. Larger gradients are scaled down to it. The step
                first reads all gradients, and is skipped as for `loss_scale`. Infinity measures the norm and clips
                nothing.
            clip_value: the largest magnitude of a gradient's element, after scaling.
            zero_grad: set the gradients to zero in the same pass. They must be writable. A skipped step does not change
                them.
            accumulation: whether a step with accumulated gradients takes their "mean" over the calls of `accumulate`,
                or their "sum".

        Returns:
            whether the step was applied, and the norm if it was measured. On a GPU, reading the result may wait for the
            GPU. The step itself does not wait.

        Raises:
            ArrayError: a gradient does not fit, or a parameter has become read-only or another kind of array. The
                message names it. Nothing was changed.
            NamesError: a gradient is missing, or its name is unknown. Nothing was changed.
            HyperparameterError: a number is out of range.
        """
        parameters = self._parameters
        treatment = scaling(grad_scale, loss_scale, max_grad_norm, clip_value, zero_grad, parameters.narrowest)
        check_accumulation(accumulation)
        if treatment.loss_scale is not None:
            check_loss_scale(parameters.parts)
        if grads is ACCUMULATED:
            return self._step_accumulated(treatment, accumulation)
        ordered = parameters.in_order(grads)
        with self._lock:
            if self._accumulations:
                raise NamesError(
                    f"the gradients of {self._accumulations} micro-batches were accumulated. Call accumulate(grads) "
                    "and then step() without gradients, or call drop_accumulated() first."
                )
            result = self._step(ordered, treatment)
            if zero_grad and may_have_written(result):
                count_writes(ordered)
            return result

    def _step(self, grads: list[Any], treatment: Scaling) -> StepResult:
        """Make a step with one gradient, or None, for each parameter in order. The caller holds the lock."""
        parts = self._parameters.make_ready(self._accumulations)
        plans = plan(parts, grads, treatment)
        if treatment.zero_grad:
            check(plans)
        result = launch(plans, treatment)
        self._parameters.count_writes(result, grads)
        return result

    def _step_accumulated(self, treatment: Scaling, accumulation: Accumulation) -> StepResult:
        """Make a step with the accumulated gradients. Reset their sums, also if the step was skipped."""
        with self._lock:
            factor = treatment.factor * share(accumulation, self._accumulations)
            result = self._step(sums_of(self._parameters.parts), treatment._replace(factor=factor, zero_grad=True))
            self._reset_accumulators(result)
        return result

    def accumulate(self, grads: object) -> None:
        """Add the gradients of a micro-batch to sums. `step()` without gradients makes one update with the sums.

        The sums have the compute dtype, float32 or float64. They need as much memory as one moment in that dtype. The
        step sets them to zero in its pass.

        Args:
            grads: as for `step`.

        Raises:
            ArrayError: a gradient does not fit. The message names it. Nothing was changed.
            NamesError: a gradient is missing, or its name is unknown. Nothing was changed.
        """
        parameters = self._parameters
        ordered = parameters.in_order(grads)
        with self._lock:
            parameters.rebind(self._accumulations)
            accumulate(parameters.parts, ordered)
            self._accumulations += 1

    def drop_accumulated(self) -> None:
        """Drop the gradients that were accumulated since the last step."""
        with self._lock:
            self._reset_accumulators(None)

    def _reset_accumulators(self, result: StepResult | None) -> None:
        """Reset the sums of gradients, after a step with this result or without a step. The caller holds the lock."""
        for part in self._parameters.parts:
            part.reset_accumulator(result)
        self._accumulations = 0

    @property
    def param_groups(self) -> ParamGroups:
        """The groups. Set a hyperparameter with `opt.param_groups[0]["lr"] = 0.01`. Their number and params are fixed.

        Other keys are notes. State dicts contain them. A key that looks like a misspelled hyperparameter is refused.
        """
        return self._param_groups

    @property
    def ema(self) -> Any:
        """The moving averages of the weights, in the form of the constructor's `params`. Not copies.

        Raises:
            HyperparameterError: the optimizer keeps none.
        """
        return self._parameters.copies("emas", "ema_decay=0.999")

    @property
    def low_precision(self) -> Any:
        """The low-precision copies of the parameters, in the form of the constructor's `params`.

        Raises:
            HyperparameterError: the optimizer keeps none.
        """
        return self._parameters.copies("rounded", 'low_precision_copy="bfloat16"')

    @property
    def state(self) -> dict[str | int, dict[str, Any]]:
        """The state of each updated parameter, by the parameter's name or, without names, its index.

        The arrays are the optimizer's own, not copies. `step` is read-only. The state of parameters on a GPU is a copy
        in NumPy arrays. Making it waits for the GPU.
        """
        states = self._states()
        keys: Sequence[str | int] = self._parameters.names or range(len(states))
        pairs = zip(keys, states, strict=True)
        return FixedDict({key: FixedDict(state, _FIXED_STATE) for key, state in pairs if state}, _FIXED_STATE)

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the param groups, with the structure and the keys of PyTorch's optimizers.

        Returns:
            a dict of "state" (index -> as in `state`) and "param_groups". A schedule's "lr" is its last learning rate.
            The sums of `accumulate` are not included.

        As in PyTorch, "state" has the optimizer's own arrays, including `step`. Later steps change them. "param_groups"
        is a copy. `copy.deepcopy(opt.state_dict())` keeps the present values. The state of parameters on a GPU is a
        copy.

        Replacing the storage of a parameter keeps these arrays, unless the new storage has another order of axes. Then
        the dict keeps the old state. Loading another state also makes new arrays, except for "ema", which models may
        compute with. `load_state_dict` therefore refuses a dict with "ema" from before another load.

        `numba_adam.interop` converts a dict: `to_torch_state_dict` for `torch.optim.Adam`, `to_tensors` for
        `torch.save`, `to_flat_arrays` for `numpy.savez`.
        """
        return state_dicts.dump(self.param_groups, self._states())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict of this class or of `torch.optim.Adam` or `AdamW`. The arrays are copied.

        The dict sets every hyperparameter that it has, and notes such as "initial_lr". The other hyperparameters do not
        change, except eps_mode: a dict without it comes from PyTorch, and sets "algorithm1". Schedules stay.

        `AdamW` ignores `decoupled_weight_decay`: its decay stays decoupled. `Adam` loads it, as PyTorch's `Adam` does.
        The dict of an older PyTorch does not have this key, so the setting does not change.

        Raises:
            StateDictError: the dict does not fit the parameters. The message says where. Nothing was changed.
            HyperparameterError: a hyperparameter in the dict is out of range. Nothing was changed.
        """
        params = [member.shown for member in self._parameters.members]
        loaded = state_dicts.parse(state_dict, self.param_groups, params)
        with self._lock:
            self._parameters.load(loaded.states)
            for group, held, notes in zip(self.param_groups, loaded.hyperparameters, loaded.notes, strict=True):
                group.take_over(held, notes)

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute.

        Raises:
            ImmutableError: the assignment would have no effect. The message says what to do instead.
        """
        if not name.startswith("_"):
            check_attribute(type(self), name, is_extended=type(self).__module__ != __name__)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Return the optimizer's contents, for `copy.deepcopy` and pickle. No other thread may step meanwhile.

        The copy updates the copied parameters: copy a model and its optimizer together.

        Raises:
            TypeError: a parameter is on a GPU, or a memoryview.
        """
        with self._lock:
            parameters = self._parameters
            state = state_dicts.dump(self.param_groups, parameters.states())["state"]
            said = pickling.dump(
                self.param_groups, self._options, parameters.parts, state, is_single=parameters.is_single
            )
        own = {name: value for name, value in vars(self).items() if name not in self._own}
        attributes = {name: value for name, value in own.items() if not hasattr(type(self), name)}  # no wrapped methods
        return {**said, "accumulations": self._accumulations, "attributes": attributes}

    def __setstate__(self, said: dict[str, Any]) -> None:
        """Restore the contents that `__getstate__` returned.

        Raises:
            StateDictError: another version of this library wrote the contents.
        """
        groups, options, is_single, state_dict = pickling.parse(said, self._OWNED)
        self._build(groups, options, is_single=is_single)
        self.load_state_dict(state_dict)
        pickling.restore(self._parameters.parts, said)
        self._accumulations = said["accumulations"]
        vars(self).update(said["attributes"])

    def __copy__(self) -> NoReturn:
        """Refuse a shallow copy: two optimizers would update the same memory.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__} has no shallow copy: two optimizers would update the same arrays. Call "
            "copy.deepcopy on the model and the optimizer together, or make an optimizer over other arrays and call "
            "its load_state_dict(opt.state_dict())."
        )

    def __repr__(self) -> str:
        members = self._parameters.members
        elements = sum(member.param.size for member in members)
        groups = [{key: group[key] for key in HYPERPARAMETER_NAMES} for group in self.param_groups]
        return f"{type(self).__name__}({len(members)} arrays, {elements:,} parameters, {groups})"

    def _states(self) -> list[dict[str, Any]]:
        """Return every parameter's state, in order."""
        with self._lock:
            return self._parameters.states()


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101), 0.01 by default.

    The decay is always decoupled. A param group with `decoupled_weight_decay=False` is refused. `load_state_dict`
    ignores the setting in a state dict; as in PyTorch, a dict of Adam sets everything else. `Adam` has both kinds of
    decay, and loads the setting from a dict.
    """

    _OWNED: ClassVar[Mapping[str, object]] = {"decoupled_weight_decay": True}

    def __init__(
        self,
        params: object,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        eps_mode: EpsMode = "hat",
        state_dtype: StateDtype | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        master_weights: bool = False,
        ema_decay: float | None = None,
        low_precision_copy: CopyDtype | None = None,
    ) -> None:
        """Take the parameters and their hyperparameters, as `Adam` with `decoupled_weight_decay=True`."""
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            eps_mode=eps_mode,
            state_dtype=state_dtype,
            rounding=rounding,
            seed=seed,
            master_weights=master_weights,
            ema_decay=ema_decay,
            low_precision_copy=low_precision_copy,
        )
