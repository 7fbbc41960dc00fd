"""Adam and AdamW: parameters, their state, and the step. May import everything in the library but no framework.

The update itself stands in `element`; what this file adds is PyTorch's face: param groups, state made on first use,
state dicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np

from numba_adam.cpu.accumulator import WHAT_IS_ACCUMULATED, Accumulation, check_accumulation, factor
from numba_adam.cpu.conversion import format_number
from numba_adam.cpu.kernels.threads import step_lock
from numba_adam.cpu.part import Member, MixedParts, StepResult, accumulate, was_applied
from numba_adam.errors import HyperparameterError, LayoutError, NamesError
from numba_adam.interop import count_writes
from numba_adam.interop.arrays import Extents, check_like, watched
from numba_adam.interop.axes import as_given, axes_of, in_memory_order
from numba_adam.interop.writes import CountedWrites
from numba_adam.optim import pickling, state_dicts
from numba_adam.optim.backends import borrow_param, check_loss_scale, check_same_place, parts_of
from numba_adam.optim.gradients import in_order
from numba_adam.optim.watching import Watch
from numba_adam.settings.fixed import HYPERPARAMETER_NAMES, FixedDict, FixedList, check_attribute
from numba_adam.settings.hyperparameters import EpsMode, Hyperparameters
from numba_adam.settings.options import CopyDtype, Options, Rounding, StateDtype
from numba_adam.settings.param_groups import (
    ParamGroup,
    ParamGroups,
    Schedule,
    follow_schedules,
    groups_of,
    is_array,
    separated,
)
from numba_adam.settings.scaling import Scaling, scaling

_FIXED_STATE = (
    "opt.state only shows the state: write into its arrays, as in opt.state['w']['exp_avg'][...] = 0, or load another "
    "with load_state_dict"
)


class Adam:
    """The Adam optimizer (Kingma & Ba 2015, arXiv 1412.6980) over arrays that are updated in place, where they lie.

    Every parameter has a state, made on its first step: `step` (an int64 array without dimensions), `exp_avg` and
    `exp_avg_sq` (zeros of the parameter's shape, in the format that `state_dtype` says), `max_exp_avg_sq` with AMSGrad,
    the scales of those in 8 bits, and `master_param` and `ema` where they are kept.

        >>> import numpy as np
        >>> import numba_adam as na
        >>> w = np.array([1.0, -2.0], dtype=np.float32)
        >>> opt = na.Adam({"w": w}, lr=0.1)
        >>> opt.step({"w": np.array([0.5, 0.5], dtype=np.float32)}).applied
        True
        >>> w.round(6)
        array([ 0.9, -2.1], dtype=float32)

    The same gradients in the same order give the same bits on any CPU and any number of threads.

    What is set on an optimizer and would not be read is refused: `opt.lr = 0.1`, `opt.param_groups[0]["params"] = ...`.

    `copy.deepcopy` and pickle take an optimizer along with its arrays and tensors, those on a GPU excepted: the copy
    goes on with the same bits, and updates the arrays that were copied with it.
    """

    _OWNED: ClassVar[Mapping[str, object]] = {}  # hyperparameters that the class says, and no group and no state dict

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

        A number may also be a NumPy scalar or a one-element array of any framework; it is read when it is given.

        Args:
            params: one array, a dict (name -> array), an iterable of arrays or of pairs (name, array), such as
                `named_parameters()`, or a list of param groups: dicts with "params" (any of these), hyperparameters and
                notes of their own. float32, float64, bfloat16 (or its bits as uint16) or float16, dense (the axes may
                lie in memory in any order), writable, of any framework whose arrays lend their memory.
            lr: learning rate; or a schedule: a function that is given the number of the update, 1 for the first, and
                returns the learning rate. Steps that were left out do not count; where the parameters of a group had
                different numbers of updates, the largest does. It may be asked more than once for the same number, and
                is asked for 1 when it is set.
            betas: decay rates of the two moving averages, each in [0, 1).
            eps: keeps the denominator away from zero; see `eps_mode`. 0, or at least 2**-126 (float64: 2**-1022). With
                0 a parameter that has had no gradient yet stays where it is.
            weight_decay: pull towards zero.
            amsgrad: divide by the largest second moment so far.
            maximize: climb instead of descending.
            decoupled_weight_decay: shrink the parameter itself (AdamW) instead of adding to the gradient (L2).
            eps_mode: "hat" adds eps to sqrt(exp_avg_sq), as TensorFlow and Keras do; "algorithm1" to the
                bias-corrected root, as PyTorch and optax do.
            state_dtype: format of the moments, whatever that of the parameters: "float32", "float64", "bfloat16" or
                "8bit" (docs/eight-bit-state.md). Default: float64 for float64 parameters, float32 for the rest.
                Everything is computed in float32, or in float64 where the parameter or its state is that.
            rounding: how bfloat16 arrays are written: "nearest", or "stochastic", which keeps the mean of changes that
                are smaller than the format can show. (State in 8 bits always keeps it, in a way of its own.)
            seed: of the stochastic rounding and of the 8-bit state's; the same seed gives the same bits, on any number
                of threads.
            master_weights: keep a float32 copy of each bfloat16 or float16 parameter, update that, and round it into
                the parameter in the same pass. What else writes to the parameter is lost with the next step: write to
                `state[...]["master_param"]` too.
            ema_decay: keep an exponential moving average of the weights with this decay, in [0, 1); see `ema`.
            low_precision_copy: keep a copy of the parameters in "bfloat16" or "float16"; see `low_precision`.

        Raises:
            ArrayError: an array cannot be updated in place, or not with these formats; the message names it.
            HyperparameterError: a hyperparameter is out of range.
            NamesError: there is no array, or a name is used twice.
        """
        plain, schedule = separated({"lr": lr})
        rate: Any = plain["lr"]
        defaults = Hyperparameters(rate, betas, eps, weight_decay, decoupled_weight_decay, eps_mode, maximize, amsgrad)
        options = Options(state_dtype, rounding, seed, master_weights, ema_decay, low_precision_copy)
        self._build(groups_of(params, defaults, schedule, self._OWNED), options, is_single=is_array(params))

    def _build(self, groups: list[ParamGroup], options: Options, *, is_single: bool) -> None:
        """Take the parameters, and make all that a step needs."""
        others = vars(self).keys() - getattr(self, "_own", frozenset())
        self._param_groups, self._options, self._single = ParamGroups(groups), options, is_single
        self._names: list[str] = [name for group in self.param_groups for name in group.get("param_names", ())]
        self._members = self._borrow_all()
        self._watch = Watch(member.given for member in self._members)
        self._writes = CountedWrites(member.given for member in self._members)
        Extents([each.param for each in self._members], [f"params{each.label}" for each in self._members])
        self._narrowest = self._tell_groups()
        self._parts = parts_of(self._members, self._options)
        self._stepper = self._parts[0] if len(self._parts) == 1 else MixedParts(self._parts)
        self._accumulations = 0
        self._lock = step_lock()
        self._own = frozenset({"_own", *vars(self)} - others)

    def step(
        self,
        grads: object = WHAT_IS_ACCUMULATED,
        *,
        grad_scale: float = 1.0,
        loss_scale: Any = None,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
        zero_grad: bool = False,
        accumulation: Accumulation = "mean",
    ) -> StepResult:
        """Update every parameter that has a gradient, in place.

        A parameter that was given other memory since the last step, or other strides (`tensor.data = ...`), is
        followed: as in PyTorch, an element keeps its state by its index. With other strides, the arrays of `state`,
        `ema` and `low_precision` are new ones.

        Args:
            grads: in the form of the constructor's `params`: one array, a sequence in the same order (through all
                groups), or a dict or pairs (name, gradient) with the same names; each of its parameter's shape, of any
                of the dtypes that a parameter may have. One whose axes lie in memory in another order than its
                parameter's is copied first (on a GPU it is refused). None in place of an array leaves that parameter
                and its state as they are. Left out: what was accumulated, see `accumulate`.
            grad_scale: multiplies every gradient.
            loss_scale: divides every gradient, in the pass that updates. Given this, the gradients are read once
                before, and if one is not finite, or its square is not, the whole step is left out. A float; or where
                all parameters are on one GPU, one float32 there, which is read there.
            max_grad_norm: largest global norm over all gradients; larger ones are scaled down to it. Needs the same one
                read before, and leaves the step out as `loss_scale` does. Infinity only measures the norm.
            clip_value: largest magnitude of an element of a gradient, after scaling.
            zero_grad: set the gradients to zero in the pass that updates; they must be writable. A step that is left
                out leaves them too.
            accumulation: whether a step with what was accumulated takes the "mean" over the calls of `accumulate`, or
                the "sum".

        Returns:
            a StepResult: whether the step was applied, and the norm when it was measured. Where that is decided on a
            GPU, reading the result waits for it; the step itself waits for nothing.

        Raises:
            ArrayError: a gradient does not fit, or a parameter has become read-only or another kind of array; the
                message names it. Nothing was changed.
            NamesError: a gradient is missing, or given for a name that no parameter has. Nothing was changed.
            HyperparameterError: a number is out of range.
        """
        treatment = scaling(grad_scale, loss_scale, max_grad_norm, clip_value, zero_grad, self._narrowest)
        check_accumulation(accumulation)
        if treatment.loss_scale is not None:
            check_loss_scale(self._parts)
        if grads is WHAT_IS_ACCUMULATED:
            return self._step_accumulated(treatment, accumulation)
        ordered = in_order(grads, len(self._members), self._names, self._single)
        with self._lock:
            if self._accumulations:
                raise NamesError(
                    f"the gradients of {self._accumulations} micro-batches were accumulated: call accumulate(grads) "
                    "and then step() without gradients, or drop_accumulated() before"
                )
            result = self._step(ordered, treatment)
            if zero_grad and was_applied(result):
                count_writes(ordered)
            return result

    def accumulate(self, grads: object) -> None:
        """Add the gradients of a micro-batch to sums, of which `step()` without gradients makes one update.

        The sums are kept in the dtype in which is computed, float32 or float64, and take as much memory as one moment
        in it. They are zeroed by the step, in its pass.

        Args:
            grads: as for `step`.

        Raises:
            ArrayError: a gradient does not fit; the message names it. Nothing was changed.
            NamesError: a gradient is missing, or given for a name that no parameter has. Nothing was changed.
        """
        ordered = in_order(grads, len(self._members), self._names, self._single)
        with self._lock:
            if self._watch.kinds:
                self._follow()
            accumulate(self._parts, ordered)
            self._accumulations += 1

    def drop_accumulated(self) -> None:
        """Forget what was accumulated since the last step."""
        with self._lock:
            self._accumulate_anew()

    def _step_accumulated(self, treatment: Scaling, accumulation: Accumulation) -> StepResult:
        """Make a step with what was accumulated, and begin anew, whether or not it is applied."""
        with self._lock:
            share = factor(accumulation, self._accumulations)
            sums = {
                place: array
                for part in self._parts
                if part.accumulated is not None
                for place, array in zip(part.places, part.accumulated.grads(), strict=True)
            }
            treatment = treatment._replace(factor=treatment.factor * share, zero_grad=True)
            result = self._step([sums.get(place) for place in range(len(self._members))], treatment)
            self._accumulate_anew(result)
        return result

    def _accumulate_anew(self, result: StepResult | None = None) -> None:
        """Begin to accumulate anew, after a step with this result or without one; the lock is held."""
        for part in self._parts:
            part.accumulate_anew(result)
        self._accumulations = 0

    @property
    def param_groups(self) -> ParamGroups:
        """The groups; set a hyperparameter with `opt.param_groups[0]["lr"] = 0.01`. Their number and params are fixed.

        Other keys are notes, which state dicts carry; one that looks like a slip of a hyperparameter's name is refused.
        """
        return self._param_groups

    @property
    def ema(self) -> Any:
        """The moving averages of the weights, in the form of the constructor's `params`; the optimizer's own arrays.

        Raises:
            HyperparameterError: the optimizer keeps none.
        """
        return self._kept("emas", "ema_decay=0.999")

    @property
    def low_precision(self) -> Any:
        """The low-precision copies of the parameters, in the form of the constructor's `params`.

        Raises:
            HyperparameterError: the optimizer keeps none.
        """
        return self._kept("copies", 'low_precision_copy="bfloat16"')

    @property
    def state(self) -> dict[str | int, dict[str, Any]]:
        """Each parameter's state by its name, or its index where it has none; without those not yet updated.

        The arrays are the optimizer's own, not copies, `step` too, which can only be read; those of parameters on a GPU
        are copied to NumPy, which waits.
        """
        states = self._states()
        keys: Sequence[str | int] = self._names or range(len(states))
        pairs = zip(keys, states, strict=True)
        return FixedDict({key: FixedDict(state, _FIXED_STATE) for key, state in pairs if state}, _FIXED_STATE)

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the param groups, in the nesting and with the keys of PyTorch's optimizers.

        Returns:
            a dict of "state" (index -> what `state` has) and "param_groups", in which a schedule stands as the learning
            rate it gave last. Sums of `accumulate` are not in it.

        As in PyTorch, "state" is the optimizer's own, every entry of it, and shows later steps, `step` too;
        "param_groups" is a copy. Keep what is there now with `copy.deepcopy(opt.state_dict())`. A dict stays the
        optimizer's when parameters are given other memory; where that has another order of axes, dicts from before keep
        the state from before. So they do when a state is loaded, but for "ema", whose arrays stay in place for models
        that compute with them; such a dict is refused when it is loaded. The state of parameters on a GPU is a copy.

        `numba_adam.interop` has what carries a dict elsewhere: `to_torch_state_dict` for `torch.optim.Adam`,
        `to_tensors` for `torch.save`, `to_flat_arrays` for `numpy.savez`.
        """
        return state_dicts.dump(self.param_groups, self._states())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state dict of this class or of `torch.optim.Adam` or `AdamW`; the arrays are copied.

        The dict sets every hyperparameter that it has, and notes such as "initial_lr". What it does not have stays as
        it is, but for eps_mode: a dict that does not say it comes from PyTorch, and sets "algorithm1". Schedules stay.

        `decoupled_weight_decay` is the class's own in `AdamW`, whose decay stays decoupled whatever a dict says. An
        `Adam` takes it over, as PyTorch's does; it stays what it is where an older PyTorch's dict does not say it.

        Raises:
            StateDictError: it does not fit the parameters; the message says where. Nothing was changed.
            HyperparameterError: it holds a hyperparameter that is out of range. Nothing was changed.
        """
        loaded = state_dicts.parse(state_dict, self.param_groups, [member.shown for member in self._members])
        with self._lock:
            for part in self._parts:
                part.check_whole([loaded.states[member.place] for member in part.members])
            for part in self._parts:
                part.set_states([loaded.states[member.place] for member in part.members])
            for group, held, notes in zip(self.param_groups, loaded.hyperparameters, loaded.notes, strict=True):
                group.take_over(held, notes)

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute.

        Raises:
            ImmutableError: nothing would read it; the message says what to do instead.
        """
        if not name.startswith("_"):
            check_attribute(type(self), name, is_extended=type(self).__module__ != __name__)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Say what the optimizer is made of, for `copy.deepcopy` and pickle; no other thread may step meanwhile.

        The copy has parameters of its own: those that are copied with it, so copy a model and its optimizer together.

        Raises:
            TypeError: a parameter is on a GPU, or a memoryview.
        """
        with self._lock:
            state = state_dicts.dump(self.param_groups, self._states())["state"]
            said = pickling.dump(self.param_groups, self._options, self._parts, state, is_single=self._single)
        own = {name: value for name, value in vars(self).items() if name not in self._own}
        attributes = {name: value for name, value in own.items() if not hasattr(type(self), name)}  # no wrapped methods
        return {**said, "accumulations": self._accumulations, "attributes": attributes}

    def __setstate__(self, said: dict[str, Any]) -> None:
        """Become what another optimizer said of itself.

        Raises:
            StateDictError: another version of this library said it.
        """
        groups, options, is_single, state_dict = pickling.parse(said, self._OWNED)
        self._build(groups, options, is_single=is_single)
        self.load_state_dict(state_dict)
        pickling.restore(self._parts, said)
        self._accumulations = said["accumulations"]
        vars(self).update(said["attributes"])

    def __copy__(self) -> NoReturn:
        """Refuse a shallow copy: two optimizers would update the same memory.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__} has no shallow copy, which would update the same arrays: copy.deepcopy it with its "
            "arrays; or make another one over arrays of its own, and load_state_dict(opt.state_dict()) into it"
        )

    def __repr__(self) -> str:
        elements = sum(member.param.size for member in self._members)
        groups = [{key: group[key] for key in HYPERPARAMETER_NAMES} for group in self.param_groups]
        return f"{type(self).__name__}({len(self._members)} arrays, {elements:,} parameters, {groups})"

    def _step(self, grads: list[Any], treatment: Scaling) -> StepResult:
        """Make a step; the lock is held."""
        if self._watch.kinds:
            self._follow()
        scheduled = [group for group in self.param_groups if group.schedule is not None]
        if scheduled:
            steps = [1 + max(part.last_step(group) for part in self._parts) for group in scheduled]
            follow_schedules(scheduled, steps)
        result = self._stepper.step(grads, treatment)
        if self._writes.kinds and was_applied(result):
            self._writes.count(grads)
        return result

    def _states(self) -> list[dict[str, Any]]:
        """Return every parameter's state, in order."""
        with self._lock:
            by_index = {
                member.place: part.state_of(position)
                for part in self._parts
                for position, member in enumerate(part.members)
            }
        return [by_index[index] for index in range(len(self._members))]

    def _kept(self, name: str, option: str) -> Any:
        """Return the arrays of one kind that are kept for all parameters, in the form of `params`."""
        by_place = {
            member.place: None if array is None else as_given(array, member.axes)
            for part in self._parts
            for member, array in zip(part.members, getattr(part.kept, name), strict=True)
        }
        if any(array is None for array in by_place.values()):
            raise HyperparameterError(f"this optimizer keeps no such arrays: make it with {option}")
        arrays = [by_place[place] for place in range(len(by_place))]
        if self._single:
            return arrays[0]
        advice = "these arrays are the optimizer's own and cannot be replaced: write into them"
        if self._names:
            return FixedDict(dict(zip(self._names, arrays, strict=True)), advice)
        return FixedList(arrays, advice)

    def _follow(self) -> None:
        """Borrow anew what was given other memory since: updating the old would move nothing that anybody sees."""
        if not self._watch.sees_a_change():
            return
        members = self._borrow_all()
        for new, old in zip(members, self._members, strict=True):
            check_same_place(new.param, f"params{new.label}", old.param)
            check_like(new.shown, f"params{new.label}", old.shown, "the memory it had before")
        turned = [new.label for new, old in zip(members, self._members, strict=True) if new.axes != old.axes]
        if turned:
            self._reorder(members, turned[0])
        self._members, self._watch = members, Watch(member.given for member in members)
        for part in self._parts:
            part.follow([members[place] for place in part.places])

    def _reorder(self, members: list[Member], label: str) -> None:
        """Let the state of parameters have the axes that these have now: as in PyTorch, an element keeps its index.

        Args:
            members: the parameters as they are now.
            label: what messages call one of those whose axes lie in another order.
        """
        if self._accumulations:
            raise LayoutError(
                f"params{label} has its axes in memory in another order than when gradients were accumulated: set it "
                "back, or drop_accumulated() before the next step"
            )
        saved = state_dicts.dump(self.param_groups, self._states())
        states = state_dicts.parse(saved, self.param_groups, [member.shown for member in members]).states
        parts = parts_of(members, self._options)
        for part in parts:
            part.set_states([states[place] for place in part.places])
        self._parts = parts
        self._stepper = parts[0] if len(parts) == 1 else MixedParts(parts)

    def _tell_groups(self) -> str:
        """Tell every group what its parameters are computed in; return the narrowest dtype of all."""
        dtypes = [self._options.computed_in(format_number(member.param)) for member in self._members]
        for group in self.param_groups:
            pairs = zip(dtypes, self._members, strict=True)
            group.compute_in(dtype for dtype, member in pairs if member.group is group)
        return min(dtypes)  # "float32" comes before "float64"

    def _borrow_all(self) -> list[Member]:
        """Borrow the memory of every parameter."""
        pairs = [(group, param) for group in self.param_groups for param in group["params"]]
        members = []
        for index, (group, param) in enumerate(pairs):
            label = "" if self._single else f"[{self._names[index]!r}]" if self._names else f"[{index}]"
            name = f"params{label}"
            view = borrow_param(param, name)
            self._options.check(label, format_number(view))
            axes = axes_of(view)
            owner = watched(param, name) if isinstance(param, np.ndarray) else None
            members.append(Member(index, label, in_memory_order(view, axes), group, param, axes, owner))
        return members


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101), 0.01 by default.

    The decay is always decoupled: a group or a state dict that says otherwise is refused, or not heard. As in PyTorch,
    a state dict of Adam sets everything else, and AdamW goes on from it with a decay of its own kind. `Adam` is for
    both kinds, and takes over what a dict says.
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
        """Take the parameters and their hyperparameters; as `Adam`, with `decoupled_weight_decay` on."""
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
