"""Sparse structure selection: a trained scale on each residual branch, and removal of the blocks whose scale became 0.

Huang, Wang, "Data-Driven Sparse Structure Selection for Deep Neural Networks", ECCV 2018 (arXiv:1707.01213):
``y = scale F(x) + shortcut(x)`` with one scale a block, trained from 1 by :class:`fxq.pruning.proximal.ProximalStep`
beside the weights. A block whose scale is 0 is its shortcut; every other scale is folded into its branch.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxq.errors import GraphError, InputError
from fxq.ir.identify import has_hooks
from fxq.ir.ops import WEIGHTED
from fxq.ir.parameters import shared_tensors
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import keep_record
from fxq.pruning.residual_blocks import residual_blocks

#: Operations through which a scale commutes.
_HOMOGENEOUS = ("dropout", "permute", "transpose", "reshape", "flatten")
_NAME = "block_scale"


class BlockScale(nn.Module):
    """Multiplies a residual branch by one trained number, ``scale``, a parameter of shape () that starts at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """``scale * x``."""
        return x * self.scale


def add_block_scales(gm: fx.GraphModule) -> fx.GraphModule:
    """Put a trainable scale on the branch of every residual block.

    The branch is the operand of the addition with more weights behind it; a projection shortcut stays as it is. Outputs
    do not change, as every scale is 1. ::

        add = conv2(relu(conv1(x))) + x        add = block_scale(conv2(relu(conv1(x)))) + x

    Args:
        gm: a canonical float graph; it stays as it is.

    Returns:
        A new graph module with modules of its own, to train; :func:`block_scales` gives the scales.

    Raises:
        InputError: there is no residual block, or there are scales already.
    """
    if _scale_calls(gm):
        raise InputError("the model has block scales already", fix="train it, or remove_blocks(gm)")
    rewriter = Rewriter(copy.deepcopy(gm), "add_block_scales")
    blocks, others = residual_blocks(rewriter.gm)
    if not blocks:
        reasons = "; ".join(f"{o.add.name}: {o.reason}" for o in others) or "the graph adds no two values"
        raise InputError("the model has no residual block", why=reasons, fix="give a network with residual blocks")
    for other in others:
        rewriter.refuse("block_scale", other.add, other.reason)
    for block in blocks:
        with rewriter.rule("block_scale", block.add):
            path = rewriter.free_path(f"{block.name}.{_NAME}" if block.name != block.add.name else _NAME)
            module = BlockScale().to(_like(rewriter.gm))
            module.training = rewriter.gm.training
            scaled = rewriter.call_module(path, module, (block.branch,), after=block.branch, like=block.add)
            keep_record(block.branch, scaled)
            rewriter.replace_uses(block.branch, scaled, only=lambda user, add=block.add: user is add)  # type: ignore[misc]
    return rewriter.finish()


def block_scales(gm: nn.Module) -> dict[str, nn.Parameter]:
    """The scales by module path, in the order of the module tree: what :class:`ProximalStep` trains."""
    return {path: module.scale for path, module in gm.named_modules() if isinstance(module, BlockScale)}


def remove_blocks(gm: fx.GraphModule) -> fx.GraphModule:
    """Delete the branch of each block whose scale is 0, and fold every other scale into its branch.

    Where the branch ends in a batch norm, convolution or linear layer (dropout and moves of values after it aside) its
    weight and bias take the scale up; else a multiplication by the number stays. A deleted block leaves the same values
    as a scale of 0. ::

        add = block_scale(branch) + x; relu(add)        relu(x)

    Args:
        gm: from :func:`add_block_scales`, trained or not; it stays as it is.

    Raises:
        InputError: there are no block scales, or one is not finite.
        GraphError: an operation overwrites the output of a block that is to be deleted.
    """
    calls = _scale_calls(gm)
    if not calls:
        raise InputError("the model has no block scales", fix="add_block_scales(gm) puts them in")
    rewriter = Rewriter(gm, "remove_blocks")
    names = {n.name: n for n in rewriter.graph.nodes}
    blocks = {b.branch: b for b in residual_blocks(rewriter.gm)[0]}
    for scaled in (names[n.name] for n in reversed(calls)):  # the last first: a block may lie inside another's branch
        if scaled._erased:
            continue
        module = rewriter.module_of(scaled)
        assert isinstance(module, BlockScale)
        scale = float(module.scale.detach())
        if not abs(scale) < float("inf"):
            raise InputError(f"the scale of `{scaled.target}` is {scale}", fix="train with a smaller step")
        if scale != 0:
            _fold(rewriter, scaled, scale)
        elif scaled in blocks:
            _delete(rewriter, scaled, blocks[scaled].add, blocks[scaled].shortcut)
        else:
            raise GraphError(
                f"the branch of `{scaled.target}` cannot be deleted", why="the graph was changed since it was scaled",
                fix="remove blocks before other passes",
            )  # fmt: skip
    return rewriter.finish()


def _delete(rewriter: Rewriter, scaled: fx.Node, add: fx.Node, shortcut: fx.Node) -> None:
    """Let the block be its shortcut."""
    for user in add.users:
        call = rewriter.identify(user)
        if call.inplace and call.inputs[0] is add:
            raise GraphError(
                f"the block that ends in `{add.name}` cannot be replaced by its shortcut",
                why=f"`{user.name}` overwrites the block's output, and would overwrite the shortcut",
                fix="run fxq.passes.Functionalise first",
            )
    with rewriter.rule("delete_branch", add, scaled):
        rewriter.replace(add, shortcut)
        _erase_upwards(rewriter, scaled)


def _erase_upwards(rewriter: Rewriter, node: fx.Node) -> None:
    """Erase ``node`` and what was computed for it alone."""
    waiting = [node]
    while waiting:
        unused = waiting.pop()
        if unused._erased or unused.users or unused.op == "placeholder":
            continue
        sources = unused.all_input_nodes
        rewriter.erase(unused)
        waiting.extend(sources)


def _fold(rewriter: Rewriter, scaled: fx.Node, scale: float) -> None:
    """Let the branch do what the scale did."""
    (branch,) = scaled.all_input_nodes
    if scale == 1:
        with rewriter.rule("drop_scale", scaled):
            rewriter.replace(scaled, branch)
        return
    layer = _last_layer(rewriter, branch)
    if layer is None:
        with rewriter.rule("keep_as_number", scaled):
            product = rewriter.call_function(torch.mul, (branch, scale), after=scaled, like=scaled)
            keep_record(scaled, product)
            rewriter.replace(scaled, product)
        return
    module = copy.deepcopy(rewriter.module_of(layer))
    assert module is not None
    _scale_affine(module, scale)
    with rewriter.rule("fold_scale", scaled, layer):
        rewriter.set_module(layer, module)
        rewriter.replace(scaled, branch)


def _last_layer(rewriter: Rewriter, branch: fx.Node) -> fx.Node | None:
    """The layer at the end of a branch whose weights can take a scale up; None where there is none."""
    node = branch
    while len(node.users) == 1:
        call = rewriter.identify(node)
        if call.kind in (*WEIGHTED, "batch_norm"):
            module = call.module
            plain = module is not None and not has_hooks(module) and "weight" in module._parameters
            usable = plain and len(rewriter.callers(module)) == 1 and not shared_tensors(rewriter.gm, module)  # type: ignore[arg-type]
            return node if usable else None
        if call.kind not in _HOMOGENEOUS or not call.nodes:
            return None
        node = call.nodes[0]
    return None


def _scale_affine(module: nn.Module, scale: float) -> None:
    """Multiply the outputs of a convolution, linear layer or batch norm by a number, in its own parameters."""
    any_module: Any = module
    with torch.no_grad():
        if any_module.weight is None:  # a batch norm without weights gets them
            like = any_module.running_mean
            any_module.affine = True
            any_module.weight = nn.Parameter(torch.ones_like(like))
            any_module.bias = nn.Parameter(torch.zeros_like(like))
        any_module.weight.mul_(scale)
        if any_module.bias is not None:
            any_module.bias.mul_(scale)


def _scale_calls(gm: fx.GraphModule) -> list[fx.Node]:
    calls = [n for n in gm.graph.nodes if n.op == "call_module"]
    return [n for n in calls if isinstance(gm.get_submodule(str(n.target)), BlockScale)]


def _like(gm: fx.GraphModule) -> Tensor:
    """A tensor of the model's device and dtype."""
    return next((p for p in gm.parameters() if p.is_floating_point()), torch.zeros(()))
