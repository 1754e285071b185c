"""Walk a graph, state what each operation says about channels, and form groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxq.ir.identify import Identifier
from fxq.ir.ops import Kind
from fxq.ir.shapes import TensorSpec, bind_placeholders, record_missing, recorded_value, run_recorded
from fxq.structure.analysis import Analysis, Value, plain_value, protect_value
from fxq.structure.groups import make_groups
from fxq.structure.rules.selections import find_selections
from fxq.structure.rules.sizes import protect_computed, read_size
from fxq.structure.rules.table import kind_name, rule_of
from fxq.structure.solve import solve
from fxq.structure.structure import Structure
from fxq.tracing import ModelInputs, clone_inputs


def analyse(gm: fx.GraphModule, inputs: ModelInputs) -> Structure:
    """Find out which channels of ``gm`` can only be removed together.

    Args:
        gm: a graph at stage CANONICAL, in evaluation mode; where its shapes are not recorded yet, or for inputs of
            other shapes, ``inputs`` run once.
        inputs: example inputs. The structure holds for every batch size.

    Raises:
        GraphError: the graph does not run on ``inputs``.
    """
    _record(gm, inputs)
    identify = Identifier(gm)
    an = Analysis(gm, find_selections(gm, identify))
    for node in gm.graph.nodes:
        an.values[node] = _value(an, node, identify)
        _protect_single(an, node, an.values[node])
    _protect_shared_with_opaque(an)
    solution = solve(an.space)
    groups, group_of, unit_of = make_groups(an, solution)
    slots = tuple(an.slots.values())
    shapes = {node: recorded_value(node) for node in gm.graph.nodes}
    selections = tuple(s for node, s in an.selections.items() if s.node is node)
    return Structure(
        gm, inputs, groups, tuple(an.opaque), an.values, shapes, slots, selections, group_of, unit_of, tuple(an.costs),
        _others(gm, an),
    )  # fmt: skip


def _record(gm: fx.GraphModule, inputs: ModelInputs) -> None:
    given = clone_inputs(inputs)
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    values = bind_placeholders(gm, given.args, given.kwargs)
    if [_shapes(recorded_value(n)) for n in placeholders] == [_shapes(v) for v in values] and record_missing(gm):
        return
    with torch.random.fork_rng(devices=[]):
        run_recorded(gm, given.args, given.kwargs)


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(v.shape) for v in tree_leaves(value) if isinstance(v, Tensor | TensorSpec)]


def _value(an: Analysis, node: fx.Node, identify: Identifier) -> Value:
    if node.op == "placeholder":
        return plain_value(recorded_value(node))
    if node.op == "get_attr":
        return _attribute(an, node)
    if node.op == "output" or _holds_outputs(node):
        for source in node.all_input_nodes:
            protect_value(an.space, an.values[source], "it is an output of the model")
        an.protect_sizes(node, "its length is an output of the model")
        return plain_value(recorded_value(node))
    spec = recorded_value(node)
    if not _holds_tensor(spec):
        return None if read_size(an, node) else an.describe_as_opaque(node, kind_name(_kind(node)))
    selection = an.selections.get(node)
    if selection is not None:
        axes = an.axes(selection.source)
        return selection.outer(axes) if node is selection.node else selection.between(axes, len(spec.shape))
    rule, op = rule_of(identify(node))
    if rule is None or _reads_more(node, op.inputs, an):
        return an.describe_as_opaque(node, kind_name(op.kind))
    protect_computed(an, op)
    value = rule(an, op)
    return value if _fits(value, spec) else an.describe_as_opaque(node, kind_name(op.kind))


def _holds_outputs(node: fx.Node) -> bool:
    """Whether a node makes a container, such as an ``OrderedDict`` or a dataclass, that is returned and no more."""
    made = node.op == "call_function" and isinstance(node.target, type) and bool(node.users)
    return made and all(user.op == "output" or _holds_outputs(user) for user in node.users)


def _kind(node: fx.Node) -> Kind:
    target: Any = node.target
    return f"method:{target}" if node.op == "call_method" else target


def _reads_more(node: fx.Node, inputs: tuple[Any, ...], an: Analysis) -> bool:
    """Whether a tensor is among the arguments that is none of the operation's inputs, such as a clamp's bound."""
    return any(an.values[n] is not None and n not in inputs for n in node.all_input_nodes)


def _fits(value: Value, spec: Any) -> bool:
    """Whether a rule's answer has an entry for each dimension of each tensor."""
    if isinstance(spec, TensorSpec):
        axes = value if isinstance(value, tuple) and len(value) == len(spec.shape) else None
        return axes is not None and all(a is None or len(a) == n for a, n in zip(axes, spec.shape, strict=True))
    if isinstance(spec, tuple):
        return isinstance(value, list) and len(value) == len(spec) and all(map(_fits, value, spec))
    return True


def _protect_single(an: Analysis, node: fx.Node, value: Value) -> None:
    """A dimension of length 1 is stretched or dropped at will, so its channel stays."""
    if isinstance(value, list):
        for part in value:
            _protect_single(an, node, part)
    elif isinstance(value, tuple):
        for ids in value:
            if ids is not None and len(ids) == 1:
                an.space.protect(ids, f"{an.where(node)} has it as its only channel")


def _attribute(an: Analysis, node: fx.Node) -> Value:
    """A parameter or buffer that the graph reads by itself: each dimension is new; those of a table of indices stay."""
    *parents, name = str(node.target).split(".")
    owner = an.gm.get_submodule(".".join(parents))
    tensor = getattr(owner, name)
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        return plain_value(recorded_value(node))
    path, where = ".".join(parents), str(node.target)
    known = an.slots.get(id(tensor))
    if known is not None and known.parts == 1:
        return known.axes
    axes = tuple(an.space.fresh(where, n) if n > 1 else None for n in tensor.shape)
    kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    an.slot(owner, path, name, kind, axes, ("scale",) * tensor.dim())
    return axes


def _protect_shared_with_opaque(an: Analysis) -> None:
    """A parameter that an opaque module holds too stays as it is."""
    paths = {node.name: str(node.target) for node in an.values if node.op == "call_module"}
    for opaque in an.opaque:
        if opaque.node not in paths:
            continue
        module = an.gm.get_submodule(paths[opaque.node])
        for tensor in (*module.parameters(), *module.buffers()):
            slot = an.slots.get(id(tensor))
            for ids in slot.axes if slot is not None else ():
                if ids is not None:
                    an.space.protect(ids, f"`{paths[opaque.node]}`, which no rule describes, has the same weights")


def _holds_tensor(spec: Any) -> bool:
    return isinstance(spec, TensorSpec) or (isinstance(spec, tuple) and any(map(_holds_tensor, spec)))


def _others(gm: fx.GraphModule, an: Analysis) -> int:
    return sum(p.numel() for p in gm.parameters() if id(p) not in an.slots)
