"""Asking the user's function for a metric."""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxq.errors import InputError
from fxq.progress import step

Evaluate = Callable[[fx.GraphModule], float | Tensor]


def check_evaluate(evaluate: object) -> None:
    """Raise InputError where ``evaluate`` is not a function."""
    if not callable(evaluate):
        raise InputError(
            f"evaluate is a {type(evaluate).__name__}", fix="give a function of a model that returns a number"
        )


def measure(evaluate: Evaluate, gm: fx.GraphModule, seed: int = 0) -> float:
    """Return the metric of a copy of ``gm``; NaN where that is what it is.

    The random numbers of torch, NumPy and Python start from ``seed``, and go on afterwards as if nothing had run. Each
    call of the module is a step between which the work may be ended, see :func:`fxq.progress.checked_by`.

    Raises:
        InputError: ``evaluate`` returned something that is not a number.
    """
    with _seeded(seed):
        value = evaluate(_stepping(copy.deepcopy(gm)))  # layers are shared with other candidates
    return _number(value)


def measure_float(evaluate: Evaluate, gm: fx.GraphModule, seed: int = 0) -> float:
    """Return the metric of the float model.

    Raises:
        InputError: it is not a finite number.
    """
    value = measure(evaluate, gm, seed)
    if not math.isfinite(value):
        raise InputError(f"evaluate returned {value} for the float model", why="there is nothing to compare with",
                         fix="return a finite number; higher is better unless you say otherwise")  # fmt: skip
    return value


def _stepping(gm: fx.GraphModule) -> fx.GraphModule:
    """Make each call of ``gm`` a step. torch.fx gives every graph module a class of its own, which ends with it.

    Copies, files and further graphs made from ``gm`` do not have it, as they would a hook.
    """
    cls: Any = type(gm)
    forward = cls.forward

    @functools.wraps(forward)
    def stepping(self: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        step()
        return forward(self, *args, **kwargs)

    cls.forward = stepping
    return gm


def _number(value: Any) -> float:
    if isinstance(value, str | bytes | bool) or value is None:
        raise _no_number(value)
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_number(value) from error


def _no_number(value: Any) -> InputError:
    shape = f" of shape {list(value.shape)}" if isinstance(value, Tensor) else ""
    return InputError(
        f"evaluate returned a {type(value).__name__}{shape}", fix="return one number, such as the accuracy"
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % (1 << 32))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
