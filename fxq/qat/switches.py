"""One call each to switch observers and fake quantisers, and to freeze batch norms."""

from __future__ import annotations

from torch import nn

from fxq.errors import InputError
from fxq.nn.fake_quantisers import FakeQuantise, LearnedFakeQuantise
from fxq.nn.trainable import TrainableLayer, TrainableNorm
from fxq.nn.weight_fake_quantisers import LearnedWeightFakeQuantise, WeightFakeQuantise


def is_prepared(model: object) -> bool:
    """Whether :func:`fxq.prepare_qat` made ``model``, or something inside it."""
    parts = (FakeQuantise, TrainableLayer)
    return isinstance(model, nn.Module) and any(isinstance(m, parts) for m in model.modules())


def enable_observers(model: nn.Module) -> None:
    """Let the ranges of activations follow what the fake quantisers see in training mode; this is how it starts.

    Args:
        model: what :func:`fxq.prepare_qat` returned, or a module around it.

    Raises:
        InputError: nothing in ``model`` was prepared.
    """
    _observe(model, True)


def disable_observers(model: nn.Module) -> None:
    """Leave the ranges of activations as they are. Arguments and errors as for :func:`enable_observers`."""
    _observe(model, False)


def enable_fake_quant(model: nn.Module) -> None:
    """Quantise activations and weights in the forward pass; this is how it starts.

    Arguments and errors as for :func:`enable_observers`.
    """
    _quantise(model, True)


def disable_fake_quant(model: nn.Module) -> None:
    """Train in float; observers go on. Arguments and errors as for :func:`enable_observers`."""
    _quantise(model, False)


def freeze_batch_norm(model: nn.Module) -> None:
    """Let batch norms use their running statistics in training mode too, and leave them alone.

    Their weights and biases go on training. Arguments and errors as for :func:`enable_observers`.
    """
    _freeze(model, True)


def unfreeze_batch_norm(model: nn.Module) -> None:
    """Let batch norms use the statistics of each batch in training mode; this is how it starts.

    Arguments and errors as for :func:`enable_observers`.
    """
    _freeze(model, False)


def learned_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the scales and range ends that train, for a group of an optimiser of their own; empty with observed ones.

        learned = fxq.qat.learned_parameters(prepared)
        rest = [p for p in prepared.parameters() if all(p is not q for q in learned)]
        scales = {"params": learned, "lr": 0.001, "weight_decay": 0.0}
        optimiser = torch.optim.SGD([{"params": rest}, scales], lr=0.01, weight_decay=1e-4)

    Arguments and errors as for :func:`enable_observers`.
    """
    found: dict[nn.Parameter, None] = {}
    for module in _checked(model).modules():
        if isinstance(module, LearnedFakeQuantise | LearnedWeightFakeQuantise):
            found.update(dict.fromkeys(module.parameters(recurse=False)))
    return list(found)


def _observe(model: nn.Module, on: bool) -> None:
    for module in _checked(model).modules():
        if isinstance(module, FakeQuantise):
            module.active = on


def _quantise(model: nn.Module, on: bool) -> None:
    for module in _checked(model).modules():
        if isinstance(module, FakeQuantise | WeightFakeQuantise):
            module.quantising = on


def _freeze(model: nn.Module, on: bool) -> None:
    for module in _checked(model).modules():
        if isinstance(module, TrainableLayer | TrainableNorm):
            module.frozen = on


def _checked(model: nn.Module) -> nn.Module:
    if is_prepared(model):
        return model
    what = "no fake quantisers" if isinstance(model, nn.Module) else "no modules"
    raise InputError(f"a {type(model).__name__} has {what}", where="fxq.qat", fix="give what fxq.prepare_qat returned")
