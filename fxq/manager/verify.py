"""Checks after each pass: the stage's table, shapes and dtypes, and the output against what the pass promises."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxq.errors import VerifyError
from fxq.ir.metrics import Distance, distance
from fxq.ir.provenance import node_info
from fxq.ir.shapes import run_recorded, tensor_spec
from fxq.ir.snapshot import take_snapshot
from fxq.ir.text import excerpt
from fxq.manager.base import Numerics, Pass
from fxq.manager.stages import stage_violation
from fxq.tracing import ModelInputs, clone_inputs

#: A CLOSE pass keeps at least this ratio at the output (folding in float32 gives 120 to 140 dB) ...
CLOSE_DB = 70.0
#: ... or at most this absolute difference, for outputs that are themselves next to nothing.
CLOSE_ABS = 1e-5


def run_on_copy(gm: fx.GraphModule, inputs: ModelInputs) -> Any:
    """Run ``gm`` on a copy of the inputs, recording shapes; random operations repeat from run to run."""
    inputs = clone_inputs(inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return run_recorded(gm, inputs.args, dict(inputs.kwargs))


def check_structure(p: Pass, gm: fx.GraphModule) -> None:
    """Raise VerifyError where ``gm`` holds something that its stage does not allow."""
    found = stage_violation(gm)
    if found is not None:
        node, reason = found
        raise _error(p, gm, node, f"left a graph that its stage does not allow: {reason}")


def check_output(
    p: Pass, before: fx.GraphModule, after: fx.GraphModule, old: Any, new: Any, inputs: ModelInputs
) -> Distance:
    """Compare the outputs before and after a pass with what the pass promises.

    Raises:
        VerifyError: they differ by more; names the first node at which the two graphs disagree.
    """
    try:
        step = distance(old, new)
    except ValueError as error:
        raise _error(p, after, None, f"changed the structure of the output: {error}") from error
    if holds(p.numerics, step):
        return step
    node = first_difference(before, after, inputs, p.numerics)
    raise _error(p, after, node, f"promises {p.numerics.value} and changed the output: {_amount(step)}")


def holds(numerics: Numerics, step: Distance) -> bool:
    """Whether a distance is within what a pass of this kind promises."""
    if numerics is Numerics.EXACT:
        return step.equal
    if numerics is Numerics.CLOSE:
        return step.equal or step.sqnr_db >= CLOSE_DB or step.max_abs <= CLOSE_ABS
    return True


def first_difference(
    before: fx.GraphModule, after: fx.GraphModule, inputs: ModelInputs, numerics: Numerics
) -> fx.Node | None:
    """Return the first node of ``after`` whose value differs from the node of the same id in ``before``."""
    values: dict[int, Any] = {}
    run_recorded(before, clone_inputs(inputs).args, dict(clone_inputs(inputs).kwargs),
                 watch=lambda n, v: values.__setitem__(node_info(n).id, _keep(v)))  # fmt: skip
    differing: list[fx.Node] = []

    def look(node: fx.Node, value: Any) -> None:
        old = values.get(node_info(node).id)
        if differing or not isinstance(old, torch.Tensor) or not isinstance(value, torch.Tensor):
            return
        if old.shape != value.shape or not holds(numerics, distance(old, value)):
            differing.append(node)

    run_recorded(after, clone_inputs(inputs).args, dict(clone_inputs(inputs).kwargs), watch=look)
    return differing[0] if differing else None


def check_shapes(p: Pass, before: fx.GraphModule, after: fx.GraphModule) -> None:
    """Raise VerifyError where a kept node's recorded shape changed, or its dtype in a pass that is not LOSSY."""
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
