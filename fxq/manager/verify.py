"""Checks after each pass: the stage's table, shapes and dtypes, and the output against what the pass promises."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxq.errors import GraphError, VerifyError
from fxq.ir.metrics import Distance, distance
from fxq.ir.provenance import NodeInfo, node_info
from fxq.ir.shapes import tensor_spec
from fxq.ir.snapshot import take_snapshot
from fxq.ir.text import excerpt
from fxq.manager.base import Numerics, Pass
from fxq.manager.running import run_on_copy as run_on_copy
from fxq.manager.stages import stage_violation
from fxq.tracing import ModelInputs

#: A CLOSE pass keeps at least this ratio at the output (folding in float32 gives 120 to 140 dB), or half of the digits
#: that the output's dtype has: 30 dB in float16, 21 dB in bfloat16 ...
CLOSE_DB = 70.0
#: ... or at most this absolute difference, for outputs that are themselves next to nothing.
CLOSE_ABS = 1e-5


def check_structure(p: Pass, gm: fx.GraphModule) -> None:
    """Raise VerifyError where ``gm`` holds something that its stage does not allow."""
    found = stage_violation(gm)
    if found is not None:
        node, reason = found
        raise _error(p, gm, node, f"left a graph that its stage does not allow: {reason}")


def run_rewritten(p: Pass, gm: fx.GraphModule, inputs: ModelInputs) -> Any:
    """Run the graph that ``p`` made.

    Raises:
        VerifyError: a node of it fails.
    """
    try:
        return run_on_copy(gm, inputs)
    except GraphError as error:
        why = "\n".join(filter(None, [error.what, error.why]))
        failing = next((n for n in gm.graph.nodes if f"`{n.name}`" in error.what), None)
        raise _error(p, gm, failing, f"left a graph that fails: {why}") from error


def check_output(
    p: Pass, before: fx.GraphModule, after: fx.GraphModule, old: Any, new: Any, inputs: ModelInputs
) -> None:
    """Compare the outputs before and after a pass with what the pass promises.

    Raises:
        VerifyError: they differ by more; names the first node at which the two graphs disagree.
    """
    try:
        step = distance(old, new)
    except ValueError as error:
        raise _error(p, after, None, f"changed the structure of the output: {error}") from error
    if not holds(p.numerics, step):
        node = first_difference(p, before, after, inputs)
        raise _error(p, after, node, f"promises {p.numerics.value} and changed the output: {_amount(step)}")


def holds(numerics: Numerics, step: Distance) -> bool:
    """Whether a distance is within what a pass of this kind promises."""
    if numerics is Numerics.EXACT:
        return step.equal
    if numerics is Numerics.CLOSE:
        wanted = min(CLOSE_DB, -10.0 * math.log10(step.eps)) if step.eps else CLOSE_DB
        return step.equal or step.sqnr_db >= wanted or step.max_abs <= CLOSE_ABS
    return True


def first_difference(p: Pass, before: fx.GraphModule, after: fx.GraphModule, inputs: ModelInputs) -> fx.Node | None:
    """Return the first node of ``after`` whose value is none of those that it can stand for in ``before``.

    A node stands for the node of the same id, or, where the pass changed it, for the anchor of the rule that did: a
    convolution that a batch norm was folded into stands for the batch norm.
    """
    infos = {node_info(n).id: node_info(n) for n in before.graph.nodes}
    values: dict[int, Any] = {}
    run_on_copy(before, inputs, lambda n, v: values.__setitem__(node_info(n).id, _keep(v)))
    differing: list[fx.Node] = []

    def look(node: fx.Node, value: Any) -> None:
        old = [values[i] for i in _stands_for(node, infos) if isinstance(values.get(i), torch.Tensor)]
        if differing or not old or not isinstance(value, torch.Tensor):
            return
        if not any(o.shape == value.shape and holds(p.numerics, distance(o, value)) for o in old):
            differing.append(node)

    run_on_copy(after, inputs, look)
    return differing[0] if differing else None


def _stands_for(node: fx.Node, before: dict[int, NodeInfo]) -> list[int]:
    """The ids, in the graph before a pass, of the nodes whose value ``node`` may have behind it."""
    info = node_info(node)
    if info.id not in before:
        return []
    new = info.origins[len(before[info.id].origins) :]
    return [info.id, *(origin.sources[0] for origin in new if origin.sources)]


def check_shapes(p: Pass, before: fx.GraphModule, after: fx.GraphModule) -> None:
    """Raise VerifyError where a kept node's recorded shape changed, or its dtype in a pass that is not LOSSY.

    The shapes inside the graph are the pass's own affair where it ``resizes``.
    """
    if p.resizes:
        return
    old = {node_info(n).id: tensor_spec(n) for n in before.graph.nodes}
    for node in after.graph.nodes:
        was, now = old.get(node_info(node).id), tensor_spec(node)
        if was is None or now is None or was == now:
            continue
        if was.shape != now.shape or p.numerics is not Numerics.LOSSY:
            raise _error(p, after, node, f"changed the value of `{node.name}` from {was} to {now}")


def _keep(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else None


def _amount(step: Distance) -> str:
    return f"{step.sqnr_db:.1f} dB, largest difference {step.max_abs:.3g}, largest value {step.scale:.3g}"


def _error(p: Pass, gm: fx.GraphModule, node: fx.Node | None, what: str) -> VerifyError:
    where = None
    if node is not None:
        where = f"node `{node.name}`, module `{node_info(node).module_path or 'the root'}`"
    return VerifyError(
        f"the pass `{p.name}` {what}", where=where,
        why="graph around it:\n" + excerpt(take_snapshot(gm), node.name if node is not None else None),
        fix="this is a bug of the pass; PassManager(..., verify=False) runs it unchecked",
    )  # fmt: skip
