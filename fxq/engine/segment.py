"""A part of a graph that the engine runs as one module."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxq.engine import library
from fxq.engine.binding import Run, bind
from fxq.engine.lowering.lower import lower
from fxq.engine.plan.plan import Plan
from fxq.engine.program import Program
from fxq.errors import FxqError, InputError, TargetError
from fxq.ir.shapes import TensorSpec, tensor_spec
from fxq.nn.packed import Packed
from fxq.openmp import without_torch_threads

#: Spatial sizes whose programs a segment keeps.
CACHED = 8


class Segment(nn.Module):
    """Runs ``subgraph`` in the native engine: tensors in, a tensor or a tuple of tensors out.

    A plan is made for each spatial size and serves every number of images; the last few are kept. Programs are built at
    the first call and never saved or copied. Several threads may call one segment at once. Where the buffers are on
    another device than the CPU, the engine cannot run a size, or tensors have no memory of their own, the subgraph
    itself runs instead.

    Args:
        subgraph: int8 modules and operations between them; each placeholder a tensor with the batch in front.

    Attributes:
        plans: how many plans were made so far; a number that grows from call to call says that sizes keep changing.
    """

    def __init__(self, subgraph: fx.GraphModule) -> None:
        super().__init__()
        self.subgraph = subgraph
        for layer in subgraph.modules():
            if isinstance(layer, Packed):
                layer.let_go()  # verification had them packed, in float: four bytes a weight that nothing reads again
        self._forget()
        self.eval()

    def _forget(self) -> None:
        self.plans = 0
        self._runs: OrderedDict[Any, Run] = OrderedDict()
        self._last: tuple[list[Any], Run] = [], self.reference
        self._lock = threading.Lock()

    def forward(self, *inputs: Tensor) -> Any:
        """float32 or u8 tensors of any layout, (N, ...) -> new tensors.

        Raises:
            InputError: an input has another dtype, number of channels or device than the graph, or a size that it
                cannot take.
            TargetError: the engine is not there, or fails.
        """
        shapes = [getattr(x, "shape", None) for x in inputs]
        last = self._last
        if shapes == last[0]:
            return last[1](*inputs)
        run = self._find(inputs)
        self._last = shapes, run
        return run(*inputs)

    def reference(self, *inputs: Tensor) -> Any:
        """Return what the subgraph's own modules compute: what the engine is compared with."""
        with torch.no_grad():
            return self.subgraph(*inputs)

    def timed(self, *inputs: Tensor) -> tuple[Any, dict[str, float]]:
        """Return the result, and the seconds spent in the operations of each node, by its name.

        Nothing where the subgraph's own modules run: on another device, or at a size that the engine does not take.
        """
        run: Any = self._find(inputs)
        if not hasattr(run, "names"):
            return run(*inputs), {}
        clock = np.zeros(len(run.names))
        result = run(*inputs, clock=clock)
        found: dict[str, float] = {}
        for name, seconds in zip(run.names, clock.tolist(), strict=True):
            found[name] = found.get(name, 0.0) + seconds
        return result, found

    def plan(self, *shapes: tuple[int, ...]) -> Plan:
        """Return the plan for inputs of these shapes; by default those of the example that the graph was compiled on.

        Raises:
            TargetError: the engine cannot run a node at this size.
        """
        specs = self._specs()
        found = [spec.shape for spec in specs] if not shapes else [tuple(s) for s in shapes]
        return lower(self.subgraph, [(spec.dtype, shape) for spec, shape in zip(specs, found, strict=True)])

    def prepare(self) -> None:
        """Make the program for the example's size now, for the first call to find.

        Raises:
            TargetError: the engine cannot run a node, or refuses the program.
        """
        with without_torch_threads():
            plan = self.plan()
            key = tuple([torch.Size(port.shape[1:]) for port in plan.inputs])
            self._runs[key] = self._bound(plan)

    def describe(self) -> str:
        """The name of what runs it."""
        return "native"

    def extra_repr(self) -> str:
        calls = sum(node.op == "call_module" for node in self.subgraph.graph.nodes)
        return f"{calls} modules"

    # -- inside ------------------------------------------------------------------------------------------------

    def _slow_forward(self, *inputs: Tensor) -> Any:
        """What ``nn.Module`` calls while torch.jit.trace watches."""
        raise TargetError("torch.jit.trace cannot follow the native engine", why="it would take results for constants",
                          fix="keep the module with fxq.save, or export it with fxq.export_onnx")  # fmt: skip

    def _specs(self) -> list[TensorSpec]:
        nodes = [node for node in self.subgraph.graph.nodes if node.op == "placeholder"]
        found = [tensor_spec(node) for node in nodes]
        return [spec for spec in found if spec is not None]

    def _find(self, inputs: tuple[Tensor, ...]) -> Run:
        """Return the function for inputs of these sizes."""
        if any(b.device.type != "cpu" for b in self.buffers()):
            return self.reference
        self._check(inputs)
        key = tuple([x.shape[1:] for x in inputs])
        with self._lock:
            run = self._runs.get(key)
            if run is None:
                run = self._runs[key] = self._build([tuple(x.shape) for x in inputs])
                if len(self._runs) > CACHED:
                    self._runs.popitem(last=False)
            self._runs.move_to_end(key)
        return run if len({x.shape[0] for x in inputs}) == 1 else _repeating(run)

    def _build(self, shapes: list[tuple[int, ...]]) -> Run:
        try:
            with without_torch_threads():
                return self._bound(self.plan(*shapes))
        except TargetError as refused:
            missing = library.unavailable_reason()
            if missing is not None:
                warnings.warn(
                    f"a segment runs without the native engine, slowly: {missing}", RuntimeWarning, stacklevel=4
                )
            return self._in_python(refused)

    def _bound(self, plan: Plan) -> Run:
        program = Program(plan.records())
        self.plans += 1
        return bind(program, plan, self._check, self.reference)

    def _in_python(self, refused: TargetError) -> Run:
        """The subgraph's own modules, for a size that the engine does not take but the network may."""

        def run(*inputs: Tensor) -> Any:
            self._check(inputs)
            try:
                return self.reference(*inputs)
            except (RuntimeError, FxqError) as error:
                shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
                raise InputError(f"the network cannot take inputs of this size: {shapes}", where=refused.where,
                                 why=f"{refused.what}; {error}") from error  # fmt: skip

        return run

    def _check(self, inputs: tuple[Any, ...]) -> None:
        specs = self._specs()
        if len(inputs) != len(specs):
            raise InputError(f"the segment takes {len(specs)} tensors, not {len(inputs)}")
        for i, (x, spec) in enumerate(zip(inputs, specs, strict=True)):
            _check_tensor(f"input {i}", x, spec)
        sizes = {x.shape[0] for x in inputs}
        if len(sizes - {1}) > 1:
            raise InputError(f"the inputs have different numbers of images: {sorted(sizes)}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runs": None, "_last": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._forget()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._forget()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()


def _repeating(run: Run) -> Run:
    """Return ``run`` for inputs of which some have one image, which goes with every image of the others."""

    def repeat(*inputs: Tensor) -> Any:
        (images,) = {x.shape[0] for x in inputs} - {1}
        return run(*[x.expand(images, *x.shape[1:]) for x in inputs])

    return repeat


def _check_tensor(name: str, x: Any, spec: TensorSpec) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"{name} is a {type(x).__name__}, not a tensor")
    if x.dtype != spec.dtype:
        raise InputError(f"{name} is {x.dtype}, the graph takes {spec.dtype}", fix=f"convert it with .to({spec.dtype})")
    if x.dim() != len(spec.shape):
        raise InputError(
            f"{name} has {x.dim()} dimensions, the graph takes {len(spec.shape)}: {tuple(x.shape)}, compiled on "
            f"{spec.shape}",
            fix="give a batch: an image alone is x.unsqueeze(0)" if x.dim() == len(spec.shape) - 1 else None,
        )
    if x.device.type != "cpu":
        raise InputError(f"{name} is on {x.device}, the engine runs on the CPU", fix="move it with .cpu()")
    if x.layout is not torch.strided:
        raise InputError(f"{name} is {x.layout}, the engine takes strided tensors", fix="make it dense: .to_dense()")
