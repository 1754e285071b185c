"""Parameters of the model that a layer made by a pass takes over."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from fxq.ir.aliasing import sharing
from fxq.ir.call_effects import writes
from fxq.ir.rewriter import Rewriter
from fxq.ir.scalars import is_scalar
from fxq.passes.graph.dtypes import attribute


def held_reason(name: str, node: Any, rw: Rewriter) -> str | None:
    """Say why a layer cannot hold the value of ``node`` as its parameter ``name``, or None."""
    if node is None:
        return None
    if not isinstance(node, fx.Node) or is_scalar(node):
        return f"its {name} is not a tensor"
    if node.op == "placeholder":
        return f"its {name} is an input of the model"
    if node.op != "get_attr":
        return f"its {name} is computed, by `{node.name}`"
    if not isinstance(attribute(rw.gm, str(node.target)), Tensor):
        return f"its {name} is not a tensor"
    for other in sharing(node, rw.identify):
        if writes(rw.identify(other)):
            return f"its {name} may be written, by `{other.name}`"
    return None


def held_tensor(rw: Rewriter, path: str) -> Tensor:
    value = attribute(rw.gm, path)
    assert isinstance(value, Tensor)
    return value


def layer_path(paths: dict[str, str | None], kind: str, node: fx.Node) -> str:
    """Return where a layer would live: ``block.proj`` for the parameter ``block.proj_weight``."""
    first = next((p for p in paths.values() if p is not None), None)
    if first is None:
        return node.name
    *parents, leaf = first.split(".")
    stem = leaf
    for ending in ("running_mean", "weight"):
        stem = stem.removesuffix(ending).rstrip("_")
    name = kind if not stem else stem if stem != leaf else f"{leaf}_{kind}"
    return ".".join([*parents, name])
