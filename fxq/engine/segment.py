"""A part of a graph that the engine runs as one module."""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxq.engine import abi, library
from fxq.engine.lowering.lower import lower
from fxq.engine.plan.plan import Plan, Port
from fxq.engine.program import Program
from fxq.errors import FxqError, InputError, TargetError
from fxq.ir.shapes import TensorSpec, tensor_spec

#: Spatial sizes whose programs a segment keeps.
CACHED = 8
_DTYPES = {abi.Type.U8: torch.uint8, abi.Type.F32: torch.float32}
_MESSAGE = 512

Run = Callable[..., Any]


class Segment(nn.Module):
    """Runs ``subgraph`` in the native engine: tensors in, a tensor or a tuple of tensors out.

    A plan is made for each spatial size and serves every number of images; the last few are kept. Programs are built at
    the first call and never saved or copied. Several threads may call one segment at once. Where the buffers are on
    another device than the CPU, or the engine cannot run a size, the subgraph itself runs instead.

    Args:
        subgraph: int8 modules and operations between them; each placeholder a tensor with the batch in front.

    Attributes:
        plans: how many plans were made so far; a number that grows from call to call says that sizes keep changing.
    """

    def __init__(self, subgraph: fx.GraphModule) -> None:
        super().__init__()
        self.subgraph = subgraph
        self._forget()
        self.eval()

    def _forget(self) -> None:
        self.plans = 0
        self._example: Plan | None = None
        self._runs: OrderedDict[Any, Run] = OrderedDict()
        self._lock = threading.Lock()

    def forward(self, *inputs: Tensor) -> Any:
        """float32 or u8 tensors of any layout, (N, ...) -> new tensors.

        Raises:
            InputError: an input has another dtype, number of channels or device than the graph, or a size that it
                cannot take.
            TargetError: the engine is not there, or fails.
        """
        try:
            key = tuple([x.shape[1:] for x in inputs])
            run = self._runs[key]
            self._runs.move_to_end(key)
        except (KeyError, AttributeError, IndexError):
            run = self._prepare(inputs)
        return run(*inputs)

    def reference(self, *inputs: Tensor) -> Any:
        """Return what the subgraph's own modules compute: what the engine is compared with."""
        with torch.no_grad():
            return self.subgraph(*inputs)

    def plan(self, *shapes: tuple[int, ...]) -> Plan:
        """Return the plan for inputs of these shapes; by default those of the example that the graph was compiled on.

        Raises:
            TargetError: the engine cannot run a node at this size.
        """
        specs = self._specs()
        found = [spec.shape for spec in specs] if not shapes else [tuple(s) for s in shapes]
        if self._example is not None and [s[1:] for s in found] == [p.shape[1:] for p in self._example.inputs]:
            return self._example
        return lower(self.subgraph, [(spec.dtype, shape) for spec, shape in zip(specs, found, strict=True)])

    def prepare(self) -> None:
        """Make the plan for the example's size now, for the first call to find.

        Raises:
            TargetError: the engine cannot run a node after all.
        """
        self._example = self.plan()

    def describe(self) -> str:
        """The name of what runs it."""
        return "native"

    def extra_repr(self) -> str:
        calls = sum(node.op == "call_module" for node in self.subgraph.graph.nodes)
        return f"{calls} modules"

    # -- inside ------------------------------------------------------------------------------------------------

    def _specs(self) -> list[TensorSpec]:
        nodes = [node for node in self.subgraph.graph.nodes if node.op == "placeholder"]
        found = [tensor_spec(node) for node in nodes]
        return [spec for spec in found if spec is not None]

    def _prepare(self, inputs: tuple[Tensor, ...]) -> Run:
        self._check(inputs)
        if any(b.device.type != "cpu" for b in self.buffers()):
            return self.reference
        key = tuple([x.shape[1:] for x in inputs])
        with self._lock:
            run = self._runs.get(key)
            if run is None:
                run = self._build([tuple(x.shape) for x in inputs])
                self._runs[key] = run
                if len(self._runs) > CACHED:
                    self._runs.popitem(last=False)
        return run

    def _build(self, shapes: list[tuple[int, ...]]) -> Run:
        try:
            plan = self.plan(*shapes)
        except TargetError as refused:
            return self._in_python(refused)
        self.plans += 1
        return _bind(Program(plan.records()), plan, self._check)

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
        if len(sizes) > 1:
            raise InputError(f"the inputs have different numbers of images: {sorted(sizes)}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runs": None, "_lock": None, "_example": None}

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


def _bind(program: Program, plan: Plan, check: Callable[[tuple[Any, ...]], None]) -> Run:
    """Return a function of the inputs that runs a program: everything that can be known before the call is."""
    dtypes = [_DTYPES[port.type] for port in plan.inputs]
    makers = [_maker(port) for port in plan.outputs]
    readers = [port.axes for port in plan.inputs]
    orders = [port.order for port in plan.outputs]
    run_program, handle, threads = library.load().fxq_run, program.handle, torch.get_num_threads
    inputs_type, outputs_type = abi.Input * len(readers), ctypes.c_void_p * len(makers)
    is_single, permuted = len(makers) == 1, any(orders)

    def run(*inputs: Tensor) -> Any:
        images = inputs[0].shape[0]
        given = inputs_type()
        for i, x in enumerate(inputs):
            if x.dtype is not dtypes[i] or x.shape[0] != images or x.device.type != "cpu" or x.layout is not _STRIDED:
                check(inputs)
            strides = x.stride()
            y, column, c = readers[i]
            view = given[i]
            view.data = x.data_ptr()
            view.strides = (
                strides[0], strides[y] if y > 0 else 0, strides[column] if column > 0 else 0, strides[c]
            )  # fmt: skip
        outputs = [make(images) for make in makers]
        if images:
            error = ctypes.create_string_buffer(_MESSAGE)
            pointers = outputs_type(*[y.data_ptr() for y in outputs])
            if run_program(handle, given, pointers, images, threads(), None, error, _MESSAGE):
                raise TargetError("the native engine failed", why=error.value.decode())
        if permuted:
            outputs = [y.permute(order) if order else y for y, order in zip(outputs, orders, strict=True)]
        return outputs[0] if is_single else tuple(outputs)

    run.program = program  # type: ignore[attr-defined]  # alive as long as the function
    return run


_STRIDED = torch.strided


def _maker(port: Port) -> Callable[[int], Tensor]:
    dtype, shape = _DTYPES[port.type], port.shape[1:]
    empty = torch.empty
    if port.channels_last:
        channels, height, width = shape
        strided = torch.empty_strided
        strides = (channels * height * width, 1, width * channels, channels)
        return lambda images: strided((images, channels, height, width), strides, dtype=dtype)
    return lambda images: empty((images, *shape), dtype=dtype)
