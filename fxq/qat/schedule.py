"""When fake quantisation starts, and when observers and batch norms stop."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxq.errors import InputError
from fxq.qat.switches import (
    disable_fake_quant,
    disable_observers,
    enable_fake_quant,
    enable_observers,
    freeze_batch_norm,
    unfreeze_batch_norm,
)


class Schedule:
    """Switches a prepared model at given steps of the training loop.

        schedule = fxq.qat.Schedule(prepared, fake_quant=100, freeze_observers=800, freeze_batch_norm=600)
        for x, y in loader:
            optimiser.zero_grad()
            loss(prepared(x), y).backward()
            optimiser.step()
            schedule.step()

    Steps count from 0: with ``fake_quant=100`` the first hundred steps train in float while the ranges settle, with
    ``freeze_observers=0`` nothing is ever observed. Everything is set at construction for step 0. Freeze batch norms
    late, and with a small learning rate: without the statistics of each batch large steps diverge, as in float.

    Args:
        model: what :func:`fxq.prepare_qat` returned, or a module around it.
        fake_quant: the first step with fake quantisation.
        freeze_observers: the first step in which ranges stay; None for never.
        freeze_batch_norm: the first step in which batch norms use running statistics; None for never.

    Raises:
        InputError: a step is not a whole number from 0 on, or the model was not prepared.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        fake_quant: int = 0,
        freeze_observers: int | None = None,
        freeze_batch_norm: int | None = None,
    ) -> None:
        self.fake_quant = _checked("fake_quant", fake_quant)
        self.freeze_observers = None if freeze_observers is None else _checked("freeze_observers", freeze_observers)
        self.freeze_batch_norm = None if freeze_batch_norm is None else _checked("freeze_batch_norm", freeze_batch_norm)
        self.steps = 0
        self._model = model
        self._apply()

    def step(self) -> None:
        """Count a step of the training loop; call it behind the optimiser's."""
        self.steps += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps done, for a checkpoint."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``'s result, and switch the model as it was then."""
        self.steps = _checked("steps", state["steps"])
        self._apply()

    def _apply(self) -> None:
        (enable_fake_quant if self.steps >= self.fake_quant else disable_fake_quant)(self._model)
        (disable_observers if self._reached(self.freeze_observers) else enable_observers)(self._model)
        (freeze_batch_norm if self._reached(self.freeze_batch_norm) else unfreeze_batch_norm)(self._model)

    def _reached(self, step: int | None) -> bool:
        return step is not None and self.steps >= step


def _checked(name: str, step: object) -> int:
    if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
        return step
    raise InputError(f"{name} is {step!r}", where="Schedule", fix="give the number of a step, from 0 on")
