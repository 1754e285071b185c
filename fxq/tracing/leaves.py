"""Which modules a graph calls as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TORCH_LAYERS = ("torch.nn.", "torch.ao.nn.")


@dataclass(frozen=True)
class LeafDecision:
    """Whether a module is a leaf, and the reason to record where it is not simply one of torch.nn's."""

    leaf: bool
    reason: str | None = None


def decide_leaf(module: nn.Module) -> LeafDecision:
    """Return whether the graph calls ``module`` or what ``module.forward`` calls.

    Leaves: torch.nn's layers, their subclasses that keep the ``forward`` of torch.nn, modules with hooks or
    parametrisations, scripted and compiled modules. Containers are traced through.
    """
    if has_hooks(module):
        return LeafDecision(True, "carries hooks, which run with it")
    if isinstance(module, torch.jit.ScriptModule):
        return LeafDecision(True, "is a TorchScript module")
    if is_compiled(module):
        return LeafDecision(True, "is compiled by torch.compile")
    if parametrize.is_parametrized(module):
        return LeafDecision(True, "carries parametrisations, which compute its parameters at every call")
    if isinstance(module, _CONTAINERS):
        return LeafDecision(False)
    return LeafDecision(_runs_torch_forward(module))


def has_hooks(module: nn.Module) -> bool:
    """Whether ``module`` carries a forward or backward hook (or pre-hook)."""
    return any(getattr(module, name, None) for name in _HOOKS)


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile`` returned."""
    return type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod")


def _runs_torch_forward(module: nn.Module) -> bool:
    if "forward" in module.__dict__ or type(module).__call__ is not nn.Module.__call__:
        return False  # its own __call__ is traced already: called as a whole, it would run twice
    if type(module).__module__.startswith(_TORCH_LAYERS):
        return True
    return (getattr(type(module).forward, "__module__", None) or "").startswith("torch.nn.modules.")
