"""torch.optim's Adam and AdamW, with the steps of this library. Imports torch, the tie and sparse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import optimizer
from torch.optim.optimizer import ParamsT

from numba_adam.settings.hyperparameters import EpsMode
from numba_adam.settings.options import CopyDtype, Options, Rounding, StateDtype
from numba_adam.settings.results import StepResult
from numba_adam.torch.tie import Tie


class Adam(torch.optim.Optimizer):
    """Adam for CPU tensors: `torch.optim.Adam`'s interface and defaults, with this library's steps.

        >>> import torch
        >>> from numba_adam.torch import Adam
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = Adam(model.parameters(), lr=0.01)
        >>> model(torch.ones(2)).sum().backward()
        >>> opt.step()
        >>> opt.zero_grad()

    Schedulers, `GradScaler`, hooks, closures, param groups, checkpoints, `copy.deepcopy` and pickle work as with
    PyTorch's. Its state dicts and those of `torch.optim.Adam` load into each other. A sparse gradient updates its rows
    only, as `torch.optim.SparseAdam` does.

    Differences: the moments of bfloat16 and float16 parameters are float32, unless `state_dtype` says otherwise.
    `foreach`, `fused` and `capturable=False` are accepted and mean nothing. `capturable=True`, `differentiable=True`,
    complex parameters and parameters on a GPU are refused.
    """

    state: dict[torch.Tensor, dict[str, Any]]
    param_groups: list[dict[str, Any]]

    _step_supports_amp_scaling = True  # GradScaler leaves the division by its scale to the step

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        eps_mode: EpsMode = "algorithm1",
        state_dtype: StateDtype | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        master_weights: bool = False,
        ema_decay: float | None = None,
        low_precision_copy: CopyDtype | None = None,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        """Take the parameters and their hyperparameters.

        Args:
            params: tensors, pairs (name, tensor), or param groups, as PyTorch takes them. Float32, float64, bfloat16 or
                float16, on the CPU, dense in any order of axes. Of a DTensor, each process updates its shard.
            lr: the learning rate. A tensor's value is read at every step.
            betas: decay rates of the two moving averages.
            eps: added to the denominator; see `eps_mode`.
            weight_decay: the weight decay factor.
            amsgrad: divide by the largest second moment so far.
            foreach: means nothing here.
            maximize: increase the objective instead of decreasing it.
            capturable: False. True is refused: a step on the CPU cannot be part of a CUDA graph.
            differentiable: False. True is refused: autograd does not see a step.
            fused: means nothing here.
            decoupled_weight_decay: shrink the parameter itself (AdamW) instead of adding to the gradient (L2).
            eps_mode: "algorithm1" as PyTorch, or "hat"; see `numba_adam.Adam`.
            state_dtype: format of the moments; see `numba_adam.Adam`.
            rounding: of bfloat16 arrays; see `numba_adam.Adam`.
            seed: of stochastic rounding; see `numba_adam.Adam`.
            master_weights: keep float32 copies of narrower parameters; see `numba_adam.Adam`.
            ema_decay: keep a moving average of the weights; see `ema`.
            low_precision_copy: keep a copy of the parameters in this format; see `low_precision`.
            max_grad_norm: the largest global norm of all gradients of a step. Larger ones are scaled down to it, in the
                same pass, and a step whose gradients are not finite is skipped: see `step_result`. Not for DTensors.
            clip_value: the largest magnitude of a gradient's element.

        Raises:
            HyperparameterError: a hyperparameter is out of range, or refused. It is a `ValueError`.
            ArrayError: a parameter cannot be updated in place. The message names it.
        """
        options = Options(state_dtype, rounding, seed, master_weights, ema_decay, low_precision_copy)
        self._tie = self._new_tie(options, {"max_grad_norm": max_grad_norm, "clip_value": clip_value})
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
            "eps_mode": eps_mode,
        }
        super().__init__(params, defaults)
        self._tie.validate(self.param_groups)

    def _new_tie(self, options: Options, clipping: dict[str, Any]) -> Tie:
        return Tie(options, clipping)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss again, with gradients.

        Returns:
            The closure's loss; None without a closure.

        Raises:
            ArrayError: a gradient does not fit. The message names it. Nothing was changed.
            HyperparameterError: a hyperparameter is out of range. Nothing was changed.
        """
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or optimizer._global_optimizer_pre_hooks
            or optimizer._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ):
            return self._observed_step() if closure is None else self._observed_step(closure)
        return self._plain_step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # PyTorch need not wrap it, which costs more than a small step

    def _plain_step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step that nobody observes."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            torch.compiler.disable(self._update)()
        else:
            self._update()
        return loss

    _observed_step = torch.optim.Optimizer.profile_hook_step(_plain_step)  # calls the hooks, and is seen by a profiler

    def _update(self) -> None:
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        factor, overflow = 1.0 if scale is None else 1.0 / scale.item(), self._overflow
        if overflow is not None:
            self._overflow = None
            self._tie.step(self.param_groups, self.state, factor, measured=True)
            overflow.fill_(not self._tie.result.applied)  # type: ignore[union-attr]
        elif found_inf is None or not found_inf.item():
            self._tie.step(self.param_groups, self.state, factor)

    _overflow: torch.Tensor | None = None  # of `report_overflow_in`

    def report_overflow_in(self, found: torch.Tensor) -> None:
        """Let the next step update nothing if a gradient is infinite or NaN, and set `found` to 1 then, else to 0."""
        self._overflow = found

    @property
    def step_result(self) -> StepResult | None:
        """Whether the last step was applied, and the norm of its gradients if it was measured. None before a step."""
        return self._tie.result

    @property
    def ema(self) -> list[torch.Tensor]:
        """The moving averages of the weights, in the order of the parameters. Not copies.

        Raises:
            HyperparameterError: the optimizer keeps none.
        """
        return self._tie.copies(self.param_groups, self.state, "ema")

    @property
    def low_precision(self) -> list[torch.Tensor]:
        """The low-precision copies of the parameters, in their order. Not copies of these.

        Raises:
            HyperparameterError: the optimizer keeps none.
        """
        return self._tie.copies(self.param_groups, self.state, "low_precision")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, as in PyTorch.

        Raises:
            HyperparameterError: a hyperparameter is out of range. Nothing was changed.
            ArrayError: a parameter cannot be updated in place. Nothing was changed.
        """
        super().add_param_group(param_group)
        try:
            self._tie.validate(self.param_groups)
        except Exception:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict of this class, of `torch.optim.Adam` or of `torch.optim.AdamW`. The tensors are copied.

        A dict of PyTorch has no "eps_mode": its groups get "algorithm1".

        Raises:
            StateDictError: the state does not fit the parameters. Nothing was changed.
            ValueError: the groups do not fit; PyTorch's own error.
        """
        before = self.state, self.param_groups
        # PyTorch would cast the moments to the parameter's dtype. So it loads the groups, and the tie loads the states.
        states: dict[Any, Mapping[str, Any]] = {}
        numbers: list[Any] = []

        def keep_states(_: torch.optim.Optimizer, said: dict[str, Any]) -> dict[str, Any]:
            states.update(said["state"])
            numbers.extend(number for group in said["param_groups"] for number in group["params"])
            return {**said, "state": {}}

        def load_states(_: torch.optim.Optimizer) -> None:
            self._tie.load(self.param_groups, self.state, numbers, states)

        handles = [
            self.register_load_state_dict_pre_hook(keep_states),
            self.register_load_state_dict_post_hook(load_states, prepend=True),
        ]
        try:
            super().load_state_dict(dict(state_dict))
        except Exception:
            self.state, self.param_groups = before
            raise
        finally:
            for handle in handles:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        """Return the contents for `copy.deepcopy` and pickle. As in PyTorch, hooks are not copied."""
        return {**super().__getstate__(), "_tie": self._tie}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the contents."""
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in {**self.defaults, "eps_mode": "algorithm1"}.items():
                group.setdefault(key, value)  # which older dicts, PyTorch's and the library's own lack


class AdamW(Adam):
    """AdamW for CPU tensors: `torch.optim.AdamW`'s interface and defaults, with this library's steps.

    The decay is always decoupled, also after a state dict of Adam was loaded. See `Adam` for everything else.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        eps_mode: EpsMode = "algorithm1",
        state_dtype: StateDtype | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        master_weights: bool = False,
        ema_decay: float | None = None,
        low_precision_copy: CopyDtype | None = None,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        """Take the parameters and their hyperparameters, as `Adam` with `decoupled_weight_decay=True`."""
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            eps_mode=eps_mode,
            state_dtype=state_dtype,
            rounding=rounding,
            seed=seed,
            master_weights=master_weights,
            ema_decay=ema_decay,
            low_precision_copy=low_precision_copy,
            max_grad_norm=max_grad_norm,
            clip_value=clip_value,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the contents. As in PyTorch, the decay stays decoupled."""
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
