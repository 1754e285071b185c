"""What layers were before corrections changed them: every later correction aims at the same float network."""

from __future__ import annotations

from typing import Final

from torch import fx, nn

from fxq.ir.rewriter import Rewriter

_KEY: Final = "fxq_originals"


def originals(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """The layers that corrections replaced in ``gm``, by module path, as they were before the first did."""
    found: dict[str, nn.Module] = gm.meta.get(_KEY, {})
    return found


def set_corrected(rw: Rewriter, node: fx.Node, layer: nn.Module) -> None:
    """Let ``node``, the only caller of its module, call ``layer``; what it called before any correction is kept."""
    path = str(node.target)
    current = rw.module_of(node)
    assert current is not None
    rw.gm.meta[_KEY] = {path: current, **originals(rw.gm)}
    rw.set_module(node, layer)


def forget_originals(gm: fx.GraphModule) -> None:
    """Let go of the float weights, once nothing will be corrected any more."""
    gm.meta.pop(_KEY, None)
