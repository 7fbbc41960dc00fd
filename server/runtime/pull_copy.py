"""One version of a model's parameters, whole, for those who pull it.

It is copied between two updates, shared by everyone who wants that version, and given back when the last one has sent
it: a slow puller holds up nobody. Imports the budget and the models.
"""

from __future__ import annotations

import threading

from numba_adam.server.runtime.budget import Bytes, Slot, SlotPool
from numba_adam.server.runtime.model import Model

_PAGE_BYTES = 4096


class Image:
    """A copy of one version; a context manager that lets it go."""

    def __init__(self, owner: Images, model: Model, slot: Slot) -> None:
        self._owner = owner
        self._slot = slot
        self.model = model
        self.state = model.state()
        self.users = 1

    @property
    def bytes(self) -> Bytes:
        """The parameters as they travel."""
        return self._slot.bytes

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        self._owner.release(self)

    def give_back(self) -> None:
        """Give the memory back; by the owner, once nobody uses it."""
        self._slot.release()


class Images:
    """Makes and shares images.

    Args:
        pool: where their memory comes from.
    """

    def __init__(self, pool: SlotPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._newest: dict[Model, Image] = {}

    def take(self, model: Model) -> Image:
        """Return an image of the newest version.

        Raises:
            BudgetExceededError: there is no memory for it now.
        """
        with model.imaging:  # whoever comes meanwhile shares what is being made
            return self._share(model) or self._make(model)

    def release(self, image: Image) -> None:
        """Let an image go; its memory is given back by the last one who uses it."""
        with self._lock:
            image.users -= 1
            if image.users:
                return
            if self._newest.get(image.model) is image:
                del self._newest[image.model]
        image.give_back()

    def _make(self, model: Model) -> Image:
        """Return a new image."""
        slot = self._pool.acquire(model.spec.nbytes, f"a pull of model {model.spec.name!r}")
        try:
            slot.bytes[::_PAGE_BYTES] = 0  # fresh pages are touched here, not while the engine waits
            image = model.engine.call(self._copy, model, slot)
        except BaseException:
            slot.release()
            raise
        with self._lock:
            self._newest[model] = image
        return image

    def _share(self, model: Model) -> Image | None:
        """Return the newest image, if it is still of the newest version."""
        with self._lock:
            image = self._newest.get(model)
            if image is None or image.state.version != model.version:
                return None
            image.users += 1
            return image

    def _copy(self, model: Model, slot: Slot) -> Image:
        """Copy the parameters, in the model's engine."""
        slot.bytes.view(model.arena.dtype)[:] = model.arena.param
        return Image(self, model, slot)
