"""From a graph of int8 modules to a plan."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from fxq.engine.abi import Type
from fxq.engine.lowering.border import input_view, loaded, stored
from fxq.engine.lowering.context import Fixed, Lowering
from fxq.engine.lowering.reals import lower_expand
from fxq.engine.lowering.scalars import lower_number, reads_shape
from fxq.engine.lowering.table import MODULES, OPERATIONS
from fxq.engine.plan.assemble import assemble
from fxq.engine.plan.builder import Outside
from fxq.engine.plan.groups import DEFAULT, Groups
from fxq.engine.plan.plan import Plan, Port
from fxq.engine.plan.views import Region, View, whole
from fxq.errors import TargetError
from fxq.ir.identify import Identifier, OpCall, read_attribute
from fxq.nn import Dequantize, QConv1d, QConvTranspose1d, Quantize
from fxq.nn.qlayer import QLayer

TYPES = {torch.uint8: Type.U8, torch.float32: Type.F32}
#: (dtype, shape) of an input; the first number of the shape, the images, is of no importance.
Spec = tuple[torch.dtype, tuple[int, ...]]


def lower(gm: fx.GraphModule, specs: Sequence[Spec], groups: Groups = DEFAULT) -> Plan:
    """Return the plan of ``gm`` for inputs of the given dtypes and shapes, for every number of images.

    Raises:
        TargetError: the engine cannot run a node of the graph, or not at this size; names the node.
    """
    low = Lowering()
    identify = Identifier(gm)
    channels_first = any(isinstance(m, QConv1d | QConvTranspose1d) for m in gm.modules())
    ports = [port_of(*spec, channels_first=channels_first) for spec in specs]
    given = iter(range(len(ports)))
    read: list[Region] = []
    outputs: list[Port] = []
    for node in gm.graph.nodes:
        low.builder.name = node.name
        if node.op == "placeholder":
            index = next(given)
            low.values[node] = view = input_view(ports[index], index)
            read.append(whole(view.buffer))
        elif node.op == "output":
            results = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
            outputs = [stored(low, _inside(low, result), i) for i, result in enumerate(results)]
        else:
            _lower_node(low, identify, node)
    return assemble(low.builder, ports, outputs, groups, read)


def _lower_node(low: Lowering, identify: Identifier, node: fx.Node) -> None:
    try:
        low.values[node] = lower_call(low, identify, node)
    except TargetError as error:
        raise TargetError(f"the engine cannot run `{node.name}`: {error.what}", where=node.name) from error


def lower_call(low: Lowering, identify: Identifier, node: fx.Node) -> Any:
    """Emit the operations of one node whose inputs are lowered, and return what it gives.

    Raises:
        TargetError: the engine cannot run it; says why.
    """
    if node.op == "get_attr":
        return Fixed(_attribute(identify, node))
    if node.target is operator.getitem and isinstance(low.values.get(node.args[0]), tuple):  # type: ignore[arg-type]
        return low.values[node.args[0]][low.number(node.args[1])]  # type: ignore[index]
    call: OpCall = identify(node)
    if reads_shape(node):
        return lower_number(low, node)
    if call.module is not None and type(call.module) in MODULES:
        _check_result(call.module)
        if type(call.module) is not Quantize:
            _load_inputs(low, call)
        return MODULES[type(call.module)](low, node.args, call.module)
    if isinstance(call.kind, str) and call.kind in OPERATIONS and not call.inplace:
        _load_inputs(low, call)
        return OPERATIONS[call.kind](low, call)
    if call.kind == "method:expand":
        return lower_expand(low, call)
    raise TargetError(f"the engine has no {name_of(call)}")


def _check_result(module: nn.Module) -> None:
    if isinstance(module, QLayer):
        dtype = module.quantisation.result_dtype
    else:
        dtype = module.dtype if isinstance(module, Dequantize) else torch.float32
    if dtype not in TYPES:
        raise TargetError(f"it gives {str(dtype).removeprefix('torch.')}, which the engine does not have")


def name_of(call: OpCall) -> str:
    """Return what an operation is called in a sentence."""
    if isinstance(call.kind, str):
        return call.kind.removeprefix("method:")
    return getattr(call.kind, "__name__", str(call.kind))


def _attribute(identify: Identifier, node: fx.Node) -> torch.Tensor:
    found = read_attribute(identify._gm, node)
    if not isinstance(found, torch.Tensor):
        raise TargetError("it reads what is no tensor")
    return found


def _load_inputs(low: Lowering, call: OpCall) -> None:
    """Bring the caller's tensors into the arena, each once, when something else than a quantisation reads them."""
    for node in call.nodes:
        found = low.values.get(node)
        if isinstance(found, View) and isinstance(found.buffer, Outside):
            low.values[node] = loaded(low, found)


def _inside(low: Lowering, node: Any) -> View:
    view = low.view(node)
    return loaded(low, view) if isinstance(view.buffer, Outside) else view


def port_of(dtype: torch.dtype, shape: tuple[int, ...], *, channels_first: bool = False) -> Port:
    """Return how a tensor of the caller's is read.

    Args:
        channels_first: whether (N, C, L) rather than (N, L, C) is meant by three dimensions.

    Raises:
        TargetError: no value of the engine's looks like that.
    """
    if dtype not in TYPES:
        raise TargetError(f"the engine takes float32 and u8 codes, not {str(dtype).removeprefix('torch.')}")
    axes = {2: (-1, -1, 1), 3: (-1, 2, 1) if channels_first else (-1, 1, 2), 4: (2, 3, 1)}.get(len(shape))
    if axes is None:
        raise TargetError(f"the engine takes tensors of two to four dimensions, not {len(shape)}")
    return Port(TYPES[dtype], (-1, *shape[1:]), axes)
