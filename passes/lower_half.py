"""Products in half precision, float where it must stay."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from fxq.errors import InputError, PassError, nearest
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage, stage_of
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.manager.running import ensure_recorded, run_on_copy
from fxq.nn import Dequantize, Quantize
from fxq.nn.qlayer import QLayer
from fxq.passes.graph.dtypes import attribute
from fxq.passes.half.plan import HalfPlan, plan_half
from fxq.passes.half.table import FLOAT_INSIDE, is_real
from fxq.quant.options import Options
from fxq.quant.overrides import Choices, Override, check_overrides
from fxq.targets.half_support import HALF_TYPES, no_half_reason
from fxq.targets.suitability import reads_size_only


@dataclass(frozen=True)
class LowerHalf(Pass):
    """Let large products, and what follows them, compute in bf16 or fp16.

    Before: ``%y = linear[fc](%x)``, ``%s = softmax(%y)``. After: ``%x_bf16 = %x.to(bfloat16)``,
    ``%y = linear[fc](%x_bf16)`` with weights in bf16, ``%y_float = %y.to(float32)``, ``%s = softmax(%y_float)``.

    Three kinds of operations: *products* (convolutions, linear layers, matrix products, LSTMs) sum in float32 inside
    PyTorch's kernels and are lowered where they have ``least_macs`` multiply-adds at the recorded shapes, 16 or more
    for each value. *Followers* (activations that saturate or stay near their input, sums and products of two tensors,
    whatever moves values, and the smaller products) are lowered where all that they read is in half precision. All
    others stay in float32: softmax and attention, norms, means, ``exp``, division and roots, embeddings, and what the
    table in ``_half_table`` does not name. For fp16, values and weights are looked at too: beyond 2**13 or all below
    2**-10 on the example inputs, or constants out of that range (a mask of -1e9), keep an operation in float.

    Between int8 layers (a graph of the stage INT8, for bf16) nothing is converted to bf16: an int8 layer, or a
    dequantisation, rounds its float32 result to bf16 itself where something in bf16 reads it, and a quantisation reads
    bf16. ``%y = QLinear[fc](%q)`` gives bf16, ``%s = add(%y, %x)``, ``%n = layer_norm(%s)`` compute in it, and
    ``%n_quantize = Quantize(%n)`` makes codes of it. There a follower is lowered where *one* of what it reads is in
    bf16 and the others, which are then converted, are as large as its result; and so are norms and means, whose bf16
    kernels compute in float32 inside, with weights in float32.

    A value is converted once, however many read it, and never back and forth; weights and constants are converted when
    the pass runs. The inputs and outputs of the graph keep their dtypes.

    Where this CPU has no instructions for the type nothing is lowered, and the report says so. ``least_macs`` was
    measured: on a CPU with AVX512-BF16 a linear layer of 197 x 64 x 64 takes longer in bf16 than in float32 (33 and 26
    us), one of 16 x 1024 x 1024 a third of the time (233 and 649 us). Elementwise operations gain nothing.

    Args:
        dtype: "bf16" or "fp16".
        least_macs: the multiply-adds from which a product is worth its conversions.
        anywhere: lower also where this CPU is slow in the type.
        overrides: layers that stay in float, see :class:`fxq.Override`.
    """

    name: ClassVar[str] = "lower_half"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED, Stage.INT8)
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    dtype: str = "bf16"
    least_macs: int = 2**22
    anywhere: bool = False
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in HALF_TYPES:
            raise InputError(f"unknown half type {self.dtype!r}", fix=nearest(str(self.dtype), HALF_TYPES))
        if isinstance(self.least_macs, bool) or not isinstance(self.least_macs, int) or self.least_macs < 0:
            raise InputError(f"least_macs is {self.least_macs!r}", fix="give a number of multiply-adds, 0 for all")

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        if context.inputs is None:
            raise PassError(f"the pass `{self.name}` needs example inputs", why="it must know shapes and dtypes",
                            fix="pass example_inputs")  # fmt: skip
        if stage_of(rw.gm) is not Stage.INT8:
            check_overrides(rw.gm, self.overrides)
        reason = None if self.anywhere else no_half_reason(self.dtype)
        if reason is not None:
            context.note(f"everything stays in float: {reason}; LowerHalf(dtype={self.dtype!r}, anywhere=True) lowers "
                         "all the same, and is slower")  # fmt: skip
            return
        ensure_recorded(rw.gm, context.inputs)
        choices = Choices(rw.gm, Options(), self.overrides)
        kept = {n: why for n in rw.nodes() if (why := choices.why_float(n)) is not None}
        dtype = HALF_TYPES[self.dtype]
        largest = _magnitudes(rw.gm, context) if dtype is torch.float16 else None
        plan = plan_half(rw, dtype, self.least_macs, kept, largest)
        for node, why in plan.refused.items():
            rw.refuse("half", node, why)
        _Lowering(rw, plan, dtype, self.dtype).run()
        _summarise(plan, context, self.dtype)


class _Lowering:
    """Carries out a plan."""

    def __init__(self, rw: Rewriter, plan: HalfPlan, dtype: torch.dtype, name: str) -> None:
        self._rw, self._plan, self._dtype, self._name = rw, plan, dtype, name
        self._order = {n: i for i, n in enumerate(rw.graph.nodes)}
        self._modules: dict[nn.Module, nn.Module] = {}

    def run(self) -> None:
        rw, half = self._rw, self._plan.half
        nodes = list(self._order)
        for node in nodes:
            module = rw.module_of(node)
            if node in self._plan.sources:
                assert isinstance(module, QLayer | Dequantize)
                with rw.rule("give", node):
                    rw.give_own_module(node, module.giving(self._dtype))
            elif node in half and module is not None and rw.identify(node).kind not in FLOAT_INSIDE:
                with rw.rule("half", node):
                    rw.give_own_module(node, self._in_half(module))
            elif node in half:
                with rw.rule("half", node):
                    pass
        for node in nodes:
            readers = [u for u in node.users if u in half]
            given = node in half or node in self._plan.sources
            if not given and readers and is_real(node):
                self._narrow(node, readers)
            if given and not isinstance(node.meta.get("fxq_tensor"), tuple):
                self._widen(node, [u for u in node.users if not self._takes_half(u)])

    def _narrow(self, node: fx.Node, readers: list[fx.Node]) -> None:
        with self._rw.rule("narrow", node):
            if node.op == "get_attr":
                new = self._constant(node, readers)
            else:
                new = self._cast(node, self._dtype, f"{node.name}_{self._name}", readers)
            chosen = set(readers)
            self._rw.replace_uses(node, new, only=lambda user: user in chosen)
            self._rw.erase_unused(*([node] if node.op == "get_attr" else []))

    def _widen(self, node: fx.Node, readers: list[fx.Node]) -> None:
        if not readers:
            return
        with self._rw.rule("widen", node):
            new = self._cast(node, torch.float32, f"{node.name}_float", readers)
            chosen = set(readers)
            self._rw.replace_uses(node, new, only=lambda user: user in chosen)

    def _takes_half(self, user: fx.Node) -> bool:
        module = self._rw.module_of(user)
        return user in self._plan.half or reads_size_only(user) or isinstance(module, Quantize)

    def _cast(self, node: fx.Node, dtype: torch.dtype, name: str, readers: list[fx.Node]) -> fx.Node:
        first = min(readers, key=lambda n: self._order[n])
        new = self._rw.call_function(torch.Tensor.to, (node, dtype), before=first, like=node, name=name)
        self._rw.update(new, op="call_method", target="to")
        return new

    def _constant(self, node: fx.Node, readers: list[fx.Node]) -> fx.Node:
        value = attribute(self._rw.gm, str(node.target))
        assert isinstance(value, Tensor)
        path = self._rw.free_path(f"{str(node.target).replace('.', '_')}_{self._name}")
        self._rw.set_tensor(path, nn.Parameter(value.detach().to(self._dtype), requires_grad=False))
        return self._rw.get_attr(path, before=min(readers, key=lambda n: self._order[n]))

    def _in_half(self, module: nn.Module) -> nn.Module:
        if module not in self._modules:
            new = copy.deepcopy(module).to(self._dtype).requires_grad_(False)
            if isinstance(module, nn.Conv2d):
                new = new.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the faster kernel
            self._modules[module] = new
        return self._modules[module]


def _magnitudes(gm: fx.GraphModule, context: PassContext) -> dict[fx.Node, float]:
    """The largest magnitude of each value on the example inputs."""
    found: dict[fx.Node, float] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            found[node] = float(value.abs().amax())

    assert context.inputs is not None
    run_on_copy(gm, context.inputs, watch)
    return found


def _summarise(plan: HalfPlan, context: PassContext, name: str) -> None:
    done = sum(count for node, count in plan.macs.items() if node in plan.half)
    whole = sum(plan.macs.values())
    if whole:
        context.note(f"{done / whole:.0%} of {whole:,} multiply-adds are in {name}")
    unknown = Counter(why.split(" is not known")[0] for why in plan.refused.values() if "is not known" in why)
    if unknown:
        context.note("not in the table of what is safe, so in float: " + ", ".join(sorted(unknown)))
