"""Two layers in the place of one: how a convolution or linear layer is written as a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fxq.ir.provenance import node_info
from fxq.ir.rewriter import Rewriter
from fxq.passes.compressing.candidates import Candidate
from fxq.passes.layers.queries import called_again, epilogue_of, unusual_arguments, with_epilogue

_POINTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Pair:
    """What takes the place of a layer.

    Attributes:
        first: weight of the layer that reads the input; it keeps stride, padding and dilation.
        second: weight of the 1x1 convolution or linear layer behind it; it keeps bias and epilogue.
        names: what the two are called, below the path of the layer.
        groups: groups of the first.
    """

    first: Tensor
    second: Tensor
    names: tuple[str, str]
    groups: int = 1


def unfit(candidate: Candidate, rule: str, rw: Rewriter) -> str | None:
    """Say why a layer cannot become a pair whatever its weights are, or None."""
    (call, *_) = candidate.calls
    module: Any = candidate.module
    if any(origin.rule == rule for origin in node_info(call.node).origins):
        return f"`{candidate.path}` is one half of a pair already"
    again = called_again(call, rw)
    if again is not None:
        return again
    if getattr(module, "transposed", False):
        return f"`{candidate.path}` is a transposed convolution"
    if getattr(module, "groups", 1) > 1:
        depthwise = module.groups == module.in_channels
        return f"`{candidate.path}` is {'depthwise' if depthwise else 'grouped'} already"
    return unusual_arguments(call)


def write_pair(rw: Rewriter, rule: str, candidate: Candidate, pair: Pair) -> None:
    """Put ``pair`` in the place of the layer; the node keeps its id and name and calls the second half."""
    (node,) = candidate.nodes
    (call,) = candidate.calls
    first, second = _modules(candidate, pair)
    with rw.rule(rule, node):
        rw.open_container(node)
        paths = [rw.free_path(f"{candidate.path}.{name}") for name in pair.names]
        x, *residual = call.nodes
        halfway = rw.call_module(paths[0], first, (x,), before=node, like=node, name=f"{node.name}_{pair.names[0]}")
        rw.add_module(paths[1], second)
        rw.update(node, target=paths[1], args=(halfway, *residual), kwargs={})


def _modules(candidate: Candidate, pair: Pair) -> tuple[nn.Module, nn.Module]:
    layer: Any = candidate.module
    if isinstance(layer, nn.Linear):
        first: nn.Module = nn.Linear(pair.first.shape[1], pair.first.shape[0], bias=False, device="meta")
        second: nn.Module = nn.Linear(pair.second.shape[1], pair.second.shape[0], device="meta")
    else:
        kind: Any = next(kind for kind in _POINTS if isinstance(layer, kind))
        first = kind(
            layer.in_channels, pair.first.shape[0], layer.kernel_size, stride=layer.stride, padding=layer.padding,
            dilation=layer.dilation, groups=pair.groups, bias=False, padding_mode=layer.padding_mode, device="meta",
        )  # fmt: skip
        second = kind(pair.second.shape[1], pair.second.shape[0], 1, device="meta")
    second._parameters["bias"] = layer.bias
    for half, weight in ((first, pair.first), (second, pair.second)):
        half._parameters["weight"] = _parameter(candidate.weight, weight)
        half.train(layer.training)
    epilogue = epilogue_of(layer)
    return first, with_epilogue(second, epilogue) if epilogue else second


def _parameter(old: Tensor, values: Tensor) -> nn.Parameter:
    """A parameter with the dtype and device of ``old``, which trains as it does."""
    return nn.Parameter(values.to(old.device, old.dtype).contiguous(), requires_grad=old.requires_grad)
