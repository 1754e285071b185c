"""`fxq.profile`: what a model costs, layer by layer: parameters, multiply-adds, memory access, size.

Nothing is computed where shapes alone will do: the graph runs on fake tensors, so that a network on the ``meta``
device can be profiled as well, and needs no memory. Only what looks at its data (an opaque module that branches on
values) and the int8 modules run on the real inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from fxq.analysis.costs import LayerCost, Profile
from fxq.analysis.counting import ProductCounter, int8_macs
from fxq.analysis.layer_time import LayerTime
from fxq.analysis.measuring import layer_seconds
from fxq.analysis.running import evaluation, isolate, plain_modules
from fxq.engine.dissolve import dissolve
from fxq.engine.peaks import machine_peaks
from fxq.errors import GraphError, InputError, TraceError
from fxq.ir.identify import identify, read_attribute
from fxq.ir.interpreter import GraphInterpreter
from fxq.ir.metrics import tensors_in
from fxq.ir.provenance import ensure_ids, node_info
from fxq.ir.shapes import TensorSpec, bind_placeholders
from fxq.ir.snapshot import kind_text
from fxq.ir.stage import Stage, stage_of
from fxq.nn.qlayer import QLayer
from fxq.nn.qoperation import QOperation
from fxq.nn.weight_only import Weight4Linear, Weight8Linear
from fxq.tracing import ModelInputs, TraceRecord, clone_inputs, normalise_inputs, trace
from fxq.tracing.record import RECORD_KEY


def profile(model: nn.Module, example_inputs: object, measured: bool = False) -> Profile:
    """Count what ``model`` costs on ``example_inputs``; the convention in print is a batch of 1.

    Args:
        model: any module, also on the ``meta`` device, or a graph module of any stage.
        example_inputs: as `fxq.trace` takes them. Counts are for these shapes.
        measured: run the model some times as well and tell what each layer takes, in the native engine or outside of
            it, and what share of this machine's int8 peak and memory bandwidth that is. These are measured once for
            each machine and kept in the user's cache folder.

    Raises:
        InputError: the inputs do not fit the model, or are missing; a model to be measured is no graph module.
        GraphError: the model fails on them; names the node.
        TargetError: times were asked for, and the native engine is not there to measure the machine's peak.
    """
    inputs = normalise_inputs(model, example_inputs)
    if inputs is None:
        raise InputError("a profile needs example_inputs", fix="give inputs of the shape that is to be profiled")
    gm, notes = _capture(model, inputs)
    ensure_ids(gm)
    runs = _run(gm, inputs)
    weights = _unique(t for m in model.modules() for t in _weights(m))
    stored = _unique((*model.parameters(), *model.buffers()))
    layers = tuple(_costs(gm, runs))
    timed = _timed(model, inputs, layers) if measured else {}
    return Profile(
        layers=layers,
        params=sum(t.numel() for t in weights),
        bytes=_nbytes(stored),
        notes=(*notes, *_notes(gm, weights, runs)),
        **timed,
    )


def _timed(model: nn.Module, inputs: ModelInputs, layers: tuple[LayerCost, ...]) -> dict[str, Any]:
    if not isinstance(model, fx.GraphModule):
        raise InputError("only a graph module can be measured layer by layer", fix="give fxq.trace(model, inputs)")
    peaks = machine_peaks()
    seconds = layer_seconds(model, inputs)
    costs = {layer.name: layer for layer in layers}
    found = {}
    for name, value in seconds.items():
        macs, moved = (costs[name].macs, costs[name].access_bytes) if name in costs else (0, 0)
        found[name] = LayerTime.of(value, macs, moved, peaks)
    return {"times": found, "peaks": peaks}


# -- the graph -------------------------------------------------------------------------------------------------------


def _capture(model: nn.Module, inputs: ModelInputs) -> tuple[fx.GraphModule, list[str]]:
    """Trace ``model``; one that cannot be traced becomes a graph of one call."""
    if isinstance(model, fx.GraphModule):
        model = dissolve(model)
    try:
        return trace(model, inputs), []
    except TraceError as error:
        return _as_one_call(model, inputs), [f"the model is counted as a whole: {error.what}"]


def _as_one_call(model: nn.Module, inputs: ModelInputs) -> fx.GraphModule:
    root = nn.Module()
    root.add_module("model", model)
    graph = fx.Graph()
    args = tuple(graph.placeholder(f"arg{i}") for i in range(len(inputs.args)))
    kwargs: dict[str, Any] = {name: graph.placeholder(name) for name in inputs.kwargs}
    graph.output(graph.call_module("model", args, kwargs))
    return fx.GraphModule(root, graph)


# -- the run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _NodeRun:
    """What one node read, wrote and computed."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    macs: int
    computed: bool
    uncounted: frozenset[str]


class _CountingInterpreter(GraphInterpreter):
    """Runs a graph and counts, node by node."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.runs: dict[str, _NodeRun] = {}

    def run_node(self, n: fx.Node) -> Any:
        inputs = tuple(_specs([self.env[i] for i in n.all_input_nodes if i.op != "get_attr"]))
        counter = ProductCounter()
        try:
            with counter:
                value = super().run_node(n)
        except Exception as error:
            raise GraphError(
                f"the model fails at `{n.name}`", where=node_info(n).module_path or "the root module",
                why=f"{type(error).__name__}: {error}",
            ) from error  # fmt: skip
        macs, uncounted = counter.macs, frozenset(counter.uncounted)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, QLayer):
            macs, uncounted = int8_macs(module, self.env[n.all_input_nodes[0]], value), frozenset()
        elif isinstance(module, Weight8Linear | Weight4Linear):  # the compiled library runs past the counter
            macs, uncounted = sum(t.numel() for t in tensors_in(value)) * module.in_features, frozenset()
        elif module is not None and type(module).__module__.startswith("fxq.nn."):
            uncounted = frozenset()
        self.runs[n.name] = _NodeRun(inputs, tuple(_specs(value)), macs, counter.computed, uncounted)
        return value


def _run(gm: fx.GraphModule, inputs: ModelInputs) -> dict[str, _NodeRun]:
    """Run on fake tensors; where these do not do, on the real inputs."""
    on_meta = any(p.is_meta for p in gm.parameters())
    if not _needs_data(gm):
        try:
            return _run_fake(gm, inputs, on_meta)
        except Exception:  # whatever a module raises that wanted data; the real run decides whether it is an error
            if on_meta:
                raise
    gm = isolate(trace(gm))
    with evaluation(gm):
        return _run_on(gm, clone_inputs(inputs))


def _needs_data(gm: fx.GraphModule) -> bool:
    """Whether fake tensors must not enter: int8 modules pack their weights and try their kernels at the first call."""
    return stage_of(gm) is Stage.INT8 or any(isinstance(m, QLayer | QOperation) for m in gm.modules())


def _run_fake(gm: fx.GraphModule, inputs: ModelInputs, on_meta: bool) -> dict[str, _NodeRun]:
    inputs = clone_inputs(inputs)
    with evaluation(gm), FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def fake(tensor: Tensor) -> Tensor:
            return mode.from_tensor(tensor.to("meta") if on_meta else tensor)

        _exchange_tensors(gm, fake)
        args, kwargs = tree_map_only(Tensor, fake, (inputs.args, inputs.kwargs))
        return _run_on(gm, ModelInputs(args, kwargs))


def _exchange_tensors(gm: fx.GraphModule, fake: Callable[[Tensor], Tensor]) -> None:
    """Put fake parameters and buffers in the place of the real ones, until the modules' attributes are restored.

    Fake tensor mode does read real ones, but a write into a real scalar (a counter of calls) would go through.
    """
    for module in plain_modules(gm):
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in tables:
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor)


def _run_on(gm: fx.GraphModule, inputs: ModelInputs) -> dict[str, _NodeRun]:
    interpreter = _CountingInterpreter(gm)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole encoder layer hides its products
    try:
        interpreter.run(*bind_placeholders(gm, inputs.args, inputs.kwargs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return interpreter.runs


def _specs(value: Any) -> Iterator[TensorSpec]:
    for tensor in _unique(tensors_in(value)):
        yield TensorSpec(tuple(tensor.shape), tensor.dtype)


# -- the costs -------------------------------------------------------------------------------------------------------


def _costs(gm: fx.GraphModule, runs: dict[str, _NodeRun]) -> Iterator[LayerCost]:
    for node in gm.graph.nodes:
        if not node.op.startswith("call_"):
            continue
        cost = _cost(node, gm, runs[node.name])
        if cost.params or cost.macs or runs[node.name].computed:
            yield cost


def _cost(node: fx.Node, gm: fx.GraphModule, run: _NodeRun) -> LayerCost:
    call = identify(node, gm)
    weights, stored = _tensors_of(node, gm)
    read, read_bytes = sum(t.numel() for t in weights if t.dim() > 1), _nbytes(stored)
    if isinstance(call.module, nn.Embedding | nn.EmbeddingBag):  # reads the rows that it looks up, not the table
        indices = run.inputs[0].shape if run.inputs else run.outputs[0].shape[:-1]  # none where a buffer holds them
        read = math.prod(indices) * call.module.embedding_dim
        read_bytes = read * call.module.weight.element_size()
    moved = (*run.inputs, *run.outputs)
    return LayerCost(
        name=node.name,
        module_path=node_info(node).module_path,
        kind=kind_text(call.kind),
        inputs=run.inputs,
        outputs=run.outputs,
        params=sum(t.numel() for t in weights),
        macs=run.macs,
        activations=sum(math.prod(s.shape) for s in run.outputs) if run.computed else 0,
        access_bytes=sum(math.prod(s.shape) * s.dtype.itemsize for s in moved) + read_bytes if run.computed else 0,
        access_elements=sum(math.prod(s.shape) for s in moved) + read if run.computed else 0,
        bytes=_nbytes(stored),
    )


def _tensors_of(node: fx.Node, gm: fx.GraphModule) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights of a call, and all that it keeps: of its module, or read from attributes of the model."""
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        weights = [t for m in module.modules() for t in _weights(m)]
        stored: list[Tensor] = [*module.parameters(), *module.buffers()]
    else:
        weights, stored = [], []
    for source in node.all_input_nodes:
        value = read_attribute(gm, source) if source.op == "get_attr" else None
        if isinstance(value, Tensor):
            stored.append(value)
            weights += [value] if isinstance(value, nn.Parameter) else []
    return _unique(weights), _unique(stored)


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters of one module without those inside it; the quantised layers keep theirs as buffers."""
    yield from module.parameters(recurse=False)
    if type(module).__module__.startswith("fxq.nn."):
        for name, buffer in module.named_buffers(recurse=False):  # weight, bias; weight_ih_l0, ... of recurrent layers
            if name.startswith(("weight", "bias")) and not name.endswith(("_scale", "_offset")):
                yield buffer


def _unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _notes(gm: fx.GraphModule, weights: list[Tensor], runs: dict[str, _NodeRun]) -> Iterator[str]:
    record = gm.meta.get(RECORD_KEY)
    for leaf in record.leaves if isinstance(record, TraceRecord) else ():
        yield f"`{leaf.path}` ({leaf.type_name}) is one call, counted inside as it ran: it {leaf.reason}"
    for name, run in runs.items():
        if run.uncounted:
            yield f"`{name}` calls {', '.join(sorted(run.uncounted))}, whose arithmetic is not counted"
    read = {id(t) for n in gm.graph.nodes if n.op != "output" for t in _tensors_of(n, gm)[0]}
    unread = sum(t.numel() for t in weights if id(t) not in read)
    if unread:
        yield f"{unread:,} of the parameters are not read on these inputs"
