"""The optimiser of sparse structure selection: accelerated proximal gradient for scales that shall become exactly 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fxq.errors import InputError


class ProximalStep(Optimizer):
    """Trains scales under the penalty ``strength * |scale|``, never below 0.

    Huang, Wang, "Data-Driven Sparse Structure Selection for Deep Neural Networks", ECCV 2018 (arXiv:1707.01213), the
    modified accelerated proximal gradient that runs in the loop of stochastic gradient descent. With S the soft
    threshold ``S_a(x) = sign(x) max(|x| - a, 0)``, each step is::

        z = S_(lr strength)(scale - lr grad)
        v = z - scale + momentum v
        scale = max(0, z + momentum v)

    where ``scale`` on the right is the look-ahead value of the step before. The model's other parameters belong to an
    optimiser of their own; the paper trains both with a learning rate of 0.1 and a strength of 0.01 on ImageNet, and
    puts no weight decay on the scales.

    Args:
        params: the scales, as from :func:`fxq.pruning.structure_selection.block_scales`.
        lr: the step, above 0.
        strength: the penalty, at least 0.
        momentum: in [0, 1).

    Raises:
        InputError: an option is out of range.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.1, strength: float = 0.01, momentum: float = 0.9) -> None:
        if not lr > 0 or not strength >= 0 or not 0 <= momentum < 1:
            raise InputError(
                f"lr={lr}, strength={strength}, momentum={momentum}",
                fix="lr is above 0, strength at least 0, momentum in [0, 1)",
            )
        super().__init__(params, {"lr": lr, "strength": strength, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every scale that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for scale in group["params"]:
                if scale.grad is not None:
                    self._update(scale, scale.grad, group["lr"], group["strength"], group["momentum"])
        return loss

    def _update(self, scale: Tensor, gradient: Tensor, lr: float, strength: float, momentum: float) -> None:
        state = self.state[scale]
        velocity = state.get("velocity")
        if velocity is None:
            velocity = state["velocity"] = torch.zeros_like(scale)
        z = scale - lr * gradient
        z = z.sign() * (z.abs() - lr * strength).clamp_min(0)
        velocity.mul_(momentum).add_(z - scale)
        scale.copy_((z + momentum * velocity).clamp_min(0))
