"""Running somebody's model for an analysis, without leaving a trace in it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn

from fxq.ir.identify import has_hooks
from fxq.tracing.preserve import preserved

# Layers whose forward, in evaluation mode, writes nothing but what it derives from its own weights.
_HARMLESS = ("torch.nn.", "fxq.nn.")


@contextmanager
def evaluation(gm: fx.GraphModule) -> Iterator[None]:
    """Within this context ``gm`` is in evaluation mode, gradients are off and random numbers are seeded.

    Modes, attributes, and the global random state are as before on leaving it, also after an error. The flag is set on
    each module by itself, because some people's ``eval()`` does more, such as merging weights.
    """
    with preserved(gm), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(0)
        for module in plain_modules(gm):
            module.training = False
        yield


def plain_modules(gm: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules whose attributes are Python's: those of a TorchScript module could not be put back."""
    return (m for m in gm.modules() if not isinstance(m, torch.jit.ScriptModule))


def isolate(gm: fx.GraphModule) -> fx.GraphModule:
    """Give ``gm``, a traced copy, its own copies of the modules whose forward may write to their buffers; return it."""
    for path in dict.fromkeys(str(n.target) for n in gm.graph.nodes if n.op == "call_module"):
        module = gm.get_submodule(path)
        if type(module).__module__.startswith(_HARMLESS) and not has_hooks(module):
            continue
        parent, _, name = path.rpartition(".")
        setattr(gm.get_submodule(parent), name, _copy(module))
    return gm


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (TypeError, RuntimeError, NotImplementedError, pickle.PicklingError):
        return module  # what cannot be copied runs as itself
