"""Models with random settings have the bits of the library's optimizer through random changes, kills and snapshots."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import numba_adam as na
from numba_adam.client import Model, schedules
from numba_adam.errors import NonFiniteError

SHAPES = ((), (0,), (1,), (127,), (128,), (129,), (5, 7), (300,), (1025,))
RATES = (0.01, 0.02, 0.2, schedules.Cosine(0.1, 0.001, 7), schedules.Linear(0.0, 0.1, 3))
MODELS = 12
LONG = 600


@dataclass
class History:
    """One model, what it is asked for, and the optimizer that it must equal."""

    draw: random.Random
    name: str
    said: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        draw = self.draw
        self.level = draw.choice(("memory", "process", "disk"))
        dtype = draw.choice((np.float32, np.float32, np.float64))
        self.numbers = np.random.default_rng(draw.randrange(1 << 32))
        self.shapes = {f"a{number}": draw.choice(SHAPES) for number in range(draw.randint(1, 4))}
        self.params = {name: self._drawn(shape, dtype) for name, shape in self.shapes.items()}
        self.dtype, self.rate = dtype, draw.choice(RATES)
        self.options: dict[str, Any] = {"amsgrad": draw.random() < 0.3, "weight_decay": draw.choice((0.0, 0.1))}
        if dtype is np.float32:
            self.options["state_dtype"] = draw.choice((None, "bfloat16", "8bit", "float64"))
        if self.options.get("state_dtype") == "bfloat16":
            self.options |= {"rounding": draw.choice(("nearest", "stochastic")), "seed": draw.randrange(5)}
        if draw.random() < 0.4:
            self.options["ema_decay"] = 0.9
        self.groups = [{"params": ["a1"], "weight_decay": 0.3, "lr": 0.05}] if self._has_two(0.5) else None
        self.frozen = {"a0"} if self._has_two(0.3) else set()
        self.clipping = {"max_grad_norm": draw.choice((None, 0.5, 1e6)), "clip_value": draw.choice((None, 0.4))}
        self.copies = {name: array.copy() for name, array in self.params.items()}
        self.optimizer = self._optimizer()

    def _has_two(self, chance: float) -> bool:
        return len(self.shapes) > 1 and self.draw.random() < chance

    def _drawn(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.asarray(self.numbers.normal(size=shape) * self.draw.choice((1, 100)), dtype)

    def _optimizer(self) -> na.Adam:
        if self.groups is None:
            return na.Adam(self.copies, **self.options)
        rest = {name: array for name, array in self.copies.items() if name != "a1"}
        return na.Adam([{**self.groups[0], "params": {"a1": self.copies["a1"]}}, {"params": rest}], **self.options)

    def created_on(self, client: Any) -> Model:
        """Create the model, or look that it is this one."""
        given = {**self.options, **{key: value for key, value in self.clipping.items() if value is not None}}
        return client.create_model(
            self.name, self.params, lr=self.rate, durability=self.level, groups=self.groups,
            frozen=sorted(self.first_frozen), exist_ok=True, **given,
        )  # fmt: skip

    def run(self, client: Any, restart: Any) -> int:
        """Do some things with the model; return the number of kills."""
        self.first_frozen, kills = set(self.frozen), 0
        model, changed = self.created_on(client), None
        for _ in range(self.draw.randint(4, 9)):
            what = self.draw.choice(("push", "push", "push", "rate", "freeze", "kill", "snapshot", "bad"))
            self.said.append(what)
            if what == "rate":
                changed = self.draw.choice((0.02, 0.2))
                model.set(lr=changed)
            elif what == "freeze":
                self._freeze(model)
            elif what == "snapshot":
                client.snapshot(self.name)
            elif what == "kill" and self.level != "memory":
                restart()
                kills += 1
            elif what == "bad":
                self._push_bad(model)
            elif what == "push":
                self._push(model, changed)
        self.created_on(client)
        self._compare(model)
        client.delete_model(self.name)
        return kills

    def _freeze(self, model: Model) -> None:
        name = self.draw.choice(sorted(self.shapes))
        model.set(**{"unfreeze" if name in self.frozen else "freeze": [name]})
        self.frozen ^= {name}

    def _push_bad(self, model: Model) -> None:
        grads = {name: self._drawn(shape, self.dtype) for name, shape in self.shapes.items()}
        name = self.draw.choice(sorted(self.shapes))
        if grads[name].size and name not in self.frozen:
            grads[name].reshape(-1)[-1] = self.draw.choice((np.nan, np.inf))
            with pytest.raises(NonFiniteError):
                model.push(grads)

    def _push(self, model: Model, changed: float | None) -> None:
        drawn = {name: self._drawn(shape, self.dtype) for name, shape in self.shapes.items()}
        grads = {name: None if self.draw.random() < 0.15 else grad for name, grad in drawn.items()}
        scale = self.draw.choice((1.0, 3.0, 1024.0))
        version = model.push(grads, loss_scale=scale).version
        for number, group in enumerate(self.optimizer.param_groups):
            has_own = self.groups is not None and number == 0
            rate = self.rate if isinstance(self.rate, float) else self.rate.lr_at(version - 1)
            group["lr"] = changed if changed is not None else 0.05 if has_own else rate
        given = {name: None if name in self.frozen else grad for name, grad in grads.items()}
        call = {key: value for key, value in self.clipping.items() if value is not None}
        self.optimizer.step(given, **call, **({} if scale == 1.0 else {"loss_scale": scale}))

    def _compare(self, model: Model) -> None:
        found = model.pull()
        about = f"{self.name}: {self.level}, {self.options}, {self.groups}, {self.clipping}, {self.rate}, {self.said}"
        for name, expected in self.copies.items():
            assert found[name].tobytes() == expected.tobytes(), f"{name} of {about}"
        if "ema_decay" in self.options:
            average = model.pull(average=True)
            for name, expected in self.optimizer.ema.items():
                assert average[name].tobytes() == np.asarray(expected, self.dtype).tobytes(), f"ema.{name} of {about}"


@pytest.mark.campaign
def test_models_with_random_settings_have_the_librarys_bits_through_anything(server_process, connect, campaign):
    draw = random.Random(campaign.seed(20))

    def restart() -> None:
        server_process.kill()
        server_process.start()

    client = connect(server_process.address, timeout_seconds=LONG)
    kills = sum(History(draw, f"m{number}").run(client, restart) for number in range(MODELS))
    assert client.list_models() == []
    campaign.did(models=MODELS, kills=kills)
