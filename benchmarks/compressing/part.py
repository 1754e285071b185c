"""What every part of the compression benchmark looks like."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.networks import Trained
from benchmarks.networks.training import accuracy, batches, cross_entropy, fit
from fxq.analysis.profile import profile

_DATA_BATCHES = 8
_DATA_SEED = 1000


@dataclass(frozen=True)
class Settings:
    """What all rows of a table have in common.

    Attributes:
        macs: the fraction of the multiply-adds that stays.
        steps: of fine-tuning, with batches of 64.
        rate: the highest learning rate of fine-tuning.
        budget_s: how long latencies are measured, of each network.
    """

    macs: float = 0.5
    steps: int = 60
    rate: float = 0.02
    budget_s: float = 20.0


@dataclass(frozen=True)
class Row:
    """One method on one trained network.

    Attributes:
        seed: of the network's weights, of the data that the method sees, and of fine-tuning.
        values: what was measured, by column.
        failure: why there are none.
    """

    part: str
    method: str
    seed: int
    values: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None


#: Measures one method on one network.
Method = Callable[[Trained, Settings, int], Mapping[str, float]]


@dataclass(frozen=True)
class Part:
    """A table.

    Attributes:
        methods: by name; the first is what the others are compared with.
        columns: headings of what the methods return; a name that ends in ``(ms)`` or ``(x)`` is a time or a ratio, all
            others are fractions.
        variants: where a method returns several lines, their names: its values are ``"variant: column"``.
        what: what the table shows, one sentence.
    """

    title: str
    what: str
    methods: Mapping[str, Method]
    columns: Mapping[str, str]
    variants: tuple[str, ...] = ()


def data_of(trained: Trained, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return the 8 batches of 64 training images, with labels, that criteria and reconstruction see."""
    return list(batches(trained.images.train, _DATA_BATCHES, _DATA_SEED + seed))


def example_of(trained: Trained) -> Tensor:
    """Return one image, ``[1, 3, 16, 16]``."""
    return trained.images.test.tensors[0][:1]


def macs_share(trained: Trained, model: nn.Module) -> float:
    """Return the multiply-adds of ``model`` over those of the trained network."""
    example = example_of(trained)
    return profile(model, example).macs / profile(trained.model, example).macs


def finetuned(model: nn.Module, trained: Trained, settings: Settings, seed: int) -> nn.Module:
    """Return a fine-tuned copy of ``model``."""
    own = copy.deepcopy(model)
    fit(own, trained.images.train, steps=settings.steps, rate=settings.rate, seed=seed, loss=cross_entropy)
    return own


def before_and_after(model: nn.Module, trained: Trained, settings: Settings, seed: int) -> dict[str, float]:
    """Return the accuracies of ``model`` before and after fine-tuning, and what it costs."""
    test = trained.images.test
    return {
        "macs": macs_share(trained, model),
        "dense": trained.accuracy,
        "before": accuracy(model.eval(), test),
        "after": accuracy(finetuned(model, trained, settings, seed), test),
    }


def reinitialised(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy of ``model`` with fresh weights."""
    own = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in own.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return own
