"""Parameters that a module computes at every call, taken once: for inference they do not change.

``torch.nn.utils.parametrize`` (``parametrizations.weight_norm``, ``spectral_norm``, ``orthogonal``, ...) exchanges a
module's class for one whose ``weight`` is a property; the older ``torch.nn.utils.weight_norm`` and ``spectral_norm``
compute it in a hook. Neither is a layer that a pass knows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def take_computed_parameters(model: nn.Module) -> list[str]:
    """Give every module of ``model``, in eval mode, plain parameters in the place of computed ones; changes ``model``.

    The values are those that a call would compute, to the bit.

    Returns:
        A sentence for each parameter taken.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        for name, what in (*_parametrised(module), *_hooked(module)):
            found.append(f"`{path + '.' if path else ''}{name}` is computed by {what}: its value was taken")
    return found


def _parametrised(module: nn.Module) -> Iterator[tuple[str, str]]:
    if not parametrize.is_parametrized(module):
        return
    chains = dict(module.parametrizations.items())  # type: ignore[union-attr,operator]
    with torch.no_grad():
        values = {name: getattr(module, name).clone() for name in chains}
    parameters = {name: isinstance(chain.original, nn.Parameter) if hasattr(chain, "original") else True
                  for name, chain in chains.items()}  # fmt: skip
    del module._modules["parametrizations"]
    # The class is shared with the caller's module, so that its properties must stay: torch's remove_parametrizations
    # deletes them.
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        if parameters[name]:
            trains = any(p.requires_grad for p in chains[name].parameters())
            module.register_parameter(name, nn.Parameter(value, requires_grad=trains))
        else:
            module.register_buffer(name, value)
        yield name, " and ".join(type(step).__name__ for step in chains[name])


def _hooked(module: nn.Module) -> Iterator[tuple[str, str]]:
    removers = {WeightNorm: remove_weight_norm, SpectralNorm: remove_spectral_norm}
    for hook in list(module._forward_pre_hooks.values()):
        remove = removers.get(type(hook))
        if remove is not None:
            with torch.no_grad():
                remove(module, hook.name)  # type: ignore[attr-defined]
            yield hook.name, type(hook).__name__  # type: ignore[attr-defined]
