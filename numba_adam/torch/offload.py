"""Adam for parameters on any device, with its state in this host's memory. Imports torch and the optimizers.

The idea is that of ZeRO-Offload (Ren et al. 2021, arXiv 2101.06840). For updates during the backward pass, see LOMO (Lv
et al. 2023, arXiv 2306.09782).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from numba_adam.errors import HyperparameterError
from numba_adam.settings.hyperparameters import EpsMode
from numba_adam.settings.options import CopyDtype, Options, Rounding, StateDtype
from numba_adam.settings.scalars import flag, whole
from numba_adam.torch.offload_steps import OffloadTie
from numba_adam.torch.optimizers import Adam


class CPUOffloadAdam(Adam):
    """Adam for parameters on any device. Its state and float32 master weights are in this host's memory.

        >>> import torch
        >>> from numba_adam.torch import CPUOffloadAdam
        >>> model = torch.nn.Linear(2, 1, dtype=torch.bfloat16)
        >>> opt = CPUOffloadAdam(model.parameters(), lr=0.01, decoupled_weight_decay=True)
        >>> model(torch.ones(2, dtype=torch.bfloat16)).sum().backward()
        >>> opt.step()
        >>> opt.zero_grad()

    A step fetches the gradients, updates copies of the parameters here, and returns the new parameters, in chunks: one
    travels while another is updated. The memory of a CUDA device holds parameters and gradients only.

    With `update_in_backward=True`, each chunk is updated as soon as the backward pass has its gradients, while the
    backward pass goes on. It frees the gradients early. `step` then waits for these updates, and updates the rest. Call
    it after each backward pass, and change no parameter between the two.

    Everything else is as in `Adam`. The results have the same bits as those of `Adam` with these settings.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        update_in_backward: bool = False,
        chunk_bytes: int = 1 << 24,
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
        master_weights: bool = True,
        ema_decay: float | None = None,
        low_precision_copy: CopyDtype | None = None,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        """Take the parameters and their hyperparameters, as `Adam`, with these differences.

        `params` are dense tensors on any device. `master_weights` is True unless you say otherwise. With
        `max_grad_norm`, a step fetches all gradients before it updates. `update_in_backward` updates during the
        backward pass; `GradScaler`, `max_grad_norm` and DistributedDataParallel need all gradients before the first
        update, and are refused with it. `chunk_bytes` is the size of what is moved and updated at a time; a larger
        parameter is a chunk of its own.

        Raises:
            HyperparameterError: a hyperparameter is out of range, or refused. It is a `ValueError`.
            ArrayError: a parameter cannot be copied to this host, or updated there. The message names it.
        """
        if update_in_backward and max_grad_norm is not None:
            raise HyperparameterError(
                f"max_grad_norm={max_grad_norm!r} needs all gradients before the first update, and "
                "update_in_backward=True updates before it has them: leave one of the two out, or use clip_value"
            )
        self._updates_in_backward, self._chunk_bytes = flag("update_in_backward", update_in_backward), chunk_bytes
        if whole("chunk_bytes", chunk_bytes) < 1:
            raise HyperparameterError(f"chunk_bytes={chunk_bytes!r}: expected a positive number of bytes")
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
            decoupled_weight_decay=decoupled_weight_decay,
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

    _tie: OffloadTie

    def _new_tie(self, options: Options, clipping: dict[str, Any]) -> OffloadTie:
        return OffloadTie(options, clipping, self._updates_in_backward, self._chunk_bytes)

    def _update(self) -> None:
        if self._updates_in_backward and getattr(self, "found_inf", None) is not None:
            self._tie.discard()
            raise HyperparameterError(
                "update_in_backward=True has used the gradients before GradScaler could divide them by its scale, so "
                "the parameters are wrong now: use update_in_backward=False with GradScaler, or bfloat16 without it"
            )
        super()._update()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as in PyTorch.

        With `update_in_backward=True` it waits for the updates of the last backward pass. What they changed stays
        changed. Gradients that were taken and not used are dropped.

        Raises:
            NumbaAdamError: an update failed.
        """
        self._tie.discard()
        super().zero_grad(set_to_none)

    def accumulating(self) -> AbstractContextManager[None]:
        """Return a context in which backward passes update nothing, so that their gradients add up.

        The first backward pass outside it, or `step`, uses the sums. Only for `update_in_backward=True`.
        """
        return self._tie.backward.paused()

    def close(self) -> None:
        """Wait for the updates, and take no more gradients during backward passes. `step` still works."""
        self._tie.backward.close()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, as `Adam`."""
        self._tie.backward.wait()
        super().add_param_group(param_group)
        try:
            self._tie.follow(self.param_groups, self.state)
        except Exception:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the param groups, as `Adam`. It waits for the updates that have begun."""
        self._tie.backward.wait()
        said: dict[str, Any] = super().state_dict()
        return said

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict, as `Adam`. It waits for the updates that have begun."""
        self._tie.discard()
        try:
            super().load_state_dict(state_dict)
        finally:
            self._tie.follow(self.param_groups, self.state)

    def __getstate__(self) -> dict[str, Any]:
        """Return the contents for `copy.deepcopy` and pickle."""
        self._tie.backward.wait()
        own = {"_updates_in_backward": self._updates_in_backward, "_chunk_bytes": self._chunk_bytes}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the contents."""
        super().__setstate__(state)
        self._tie.follow(self.param_groups, self.state)
