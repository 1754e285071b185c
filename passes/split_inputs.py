"""What enters the network is read several times, fractions of a step apart, which makes its steps finer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor, fx, nn

from fxq.analysis.error_sums import ErrorSums
from fxq.errors import InputError
from fxq.ir.identify import OpCall
from fxq.ir.ops import SPECS
from fxq.ir.parameters import clone_parameter
from fxq.ir.provenance import node_info
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.manager.running import ensure_recorded, run_on_copy
from fxq.passes.correcting.batch_run import Args, arguments_at
from fxq.passes.correcting.side_by_side import Rounding, without_epilogue
from fxq.passes.correcting.tally import Tally, from_to, mean_db, no_better
from fxq.passes.layers.products import macs
from fxq.passes.layers.queries import called_again, copy_module, shares_weight
from fxq.passes.observed.layers import quantised, seen_batches
from fxq.passes.scaling.channel_readers import channel_axis_in
from fxq.quant.observers import Observer
from fxq.quant.overrides import Choices
from fxq.quant.qparams import QParams
from fxq.quant.recipe import Recipe
from fxq.targets.suitability import is_weighted

_BATCHES: Final = 4
_COPIES: Final = (2, 4)


@dataclass(frozen=True)
class SplitInputs(Pass):
    """Give a layer that reads the network's input finer steps of it: two copies, half a step apart, of half the weight.

    With Q rounding to the step s of the codes, Hermite's identity says that

        (Q(x - s/4) + Q(x + s/4)) / 2  =  the multiple of s/2 that is nearest to x,

    and so with k copies ``s (2 i + 1 - k) / (2 k)`` away for multiples of s/k. A layer that reads all copies, with
    ``W / k`` for each, has the same codes of weights and is k times as exact about its input: an input that no layer
    has rounded before is often the largest error that there is, and no choice of a range makes it smaller. The copies
    lie about x on both sides, so that zeros of a padding stand for zeros.

    Before: ``%o = Observer(%x)``, ``%y = conv2d[stem](%o) {3, 16}``. After: ``%low = %x - s/4``, ``%high = %x + s/4``,
    ``%both = cat([%low, %high], dim=1)``, ``%o = Observer(%both)``, ``%y = conv2d[stem](%o) {6, 16}``.

    (For weights this is the splitting that preserves rounding of Zhao et al., Improving Neural Network Quantization
    without Retraining using Outlier Channel Splitting, ICML 2019, section 3.3.)

    Args:
        recipe: how the layers are quantised.
        copies: 2 or 4.
        most: how many multiply-adds may come on top, as a share of the network's.

    Refused: an input that something else than layers reads in int8, depthwise and grouped and transposed convolutions,
    layers that are called twice, share their weight or have too many multiply-adds; and, with both figures, where the
    layers' outputs, measured on up to 4 calibration batches, come no nearer to float.
    """

    name: ClassVar[str] = "split_inputs"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    resizes: ClassVar[bool] = True  # what the observer sees

    recipe: Recipe = field(default_factory=Recipe)
    copies: int = 2
    most: float = 0.1

    def __post_init__(self) -> None:
        if self.copies not in _COPIES:
            raise InputError(f"copies is {self.copies!r}", where=self.name, fix="give 2 or 4")

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        ensure_recorded(rw.gm, context.inputs)
        observers = [c for c in rw.calls() if isinstance(c.module, Observer)]
        entering = [c for c in observers if _enters(c.nodes[0], rw) and not self._made(c.nodes[0])]
        splits = {call.node: s for call in entering if (s := self._split(call, rw)) is not None}
        if not splits:
            return
        batches = seen_batches(rw.gm, context, self.name)[:_BATCHES]
        choices, tally = self.recipe.choices(rw.gm), Tally()
        measured = {node: splits[node].measured(args, choices) for node, args in arguments_at(rw.gm, batches, splits)}
        for node, (before, after) in measured.items():
            if after <= before:
                rw.refuse("split", node, no_better(before, after))
                continue
            tally.add(before, after)
            splits[node].apply(rw, from_to(before, after))
        if context.inputs is not None:
            run_on_copy(rw.gm, context.inputs)
        context.note(f"{tally}; {len(batches)} batches")

    def _made(self, value: fx.Node) -> bool:
        """Whether an earlier run has split this one already."""
        return any(origin.pass_name == self.name for origin in node_info(value).origins)

    def _split(self, call: OpCall, rw: Rewriter) -> _Split | None:
        """Return what would be done to an observer and its readers; None where it is refused."""
        readers = [rw.identify(user) for user in call.node.users]
        reason = next((why for r in readers if (why := _unfit(r, call.node, rw)) is not None), None)
        if reason is None and len(rw.callers(cast(nn.Module, call.module))) > 1:
            reason = "other values share its scale"
        if reason is None:
            every = sum(macs(c) for c in rw.calls())
            more = (self.copies - 1) * sum(map(macs, readers))
            if more > self.most * every:
                reason = f"{more:,} multiply-adds would come on top of {every:,}, more than {self.most:.0%}"
        if reason is not None:
            rw.refuse("split", call.node, reason)
            return None
        return _Split(call, tuple(readers), self.copies)


@dataclass(frozen=True)
class _Split:
    """An observer of an entering value, with the layers that read it."""

    observer: OpCall
    readers: tuple[OpCall, ...]
    copies: int

    @property
    def _qparams(self) -> QParams:
        return cast(Observer, self.observer.module).qparams()

    def _offsets(self, copies: int) -> list[float]:
        """How far from the value each copy lies."""
        return [self._qparams.scale * (2 * i + 1 - copies) / (2 * copies) for i in range(copies)]

    @property
    def _axis(self) -> int:
        spec = tensor_spec(self.observer.node)
        assert spec is not None
        return channel_axis_in(cast(nn.Module, self.readers[0].module), len(spec.shape))

    def measured(self, args: Sequence[Args], choices: Choices) -> tuple[float, float]:
        """How near the int8 layers come to float, on average, without and with copies, in dB."""
        before, after = (self._sqnr_db(args, choices, copies) for copies in (1, self.copies))
        return before, after

    def _sqnr_db(self, args: Sequence[Args], choices: Choices, copies: int) -> float:
        rounding, found = Rounding(self._qparams), []
        for reader in self.readers:
            layer = without_epilogue(cast(nn.Module, reader.module))
            int8, sums = quantised(_repeated(layer, copies), reader.node, choices), ErrorSums()
            for (x,) in args:
                read = torch.cat([x + offset for offset in self._offsets(copies)], self._axis)
                sums.add(layer(x), int8(rounding(read)))
            found.append(sums.distance().sqnr_db)
        return mean_db(found)

    def apply(self, rw: Rewriter, detail: str) -> None:
        """Put the copies in front of the observer, and make the layers read them."""
        node, value = self.observer.node, self.observer.nodes[0]
        with rw.rule("split", node, *(r.node for r in self.readers), detail=detail):
            copies = tuple(
                rw.call_function(SPECS["add"].function, (value, offset), {"alpha": 1}, before=node, like=value,
                                 name=f"{value.name}_copy_{i}")
                for i, offset in enumerate(self._offsets(self.copies))
            )  # fmt: skip
            both = rw.call_function(SPECS["cat"].function, (copies,), {"dim": self._axis}, before=node, like=value,
                                    name=f"{value.name}_copies")  # fmt: skip
            rw.update(node, args=(both,))
            for reader in self.readers:
                rw.set_module(reader.node, _repeated(cast(nn.Module, reader.module), self.copies))


def _enters(value: fx.Node, rw: Rewriter) -> bool:
    """Whether ``value`` is an input of the graph, or computed from inputs in float and without a layer."""
    if value.op in ("placeholder", "get_attr"):
        return True
    module = rw.module_of(value)
    if module is not None and (isinstance(module, Observer) or any(True for _ in module.parameters())):
        return False
    return all(_enters(source, rw) for source in value.all_input_nodes)


def _unfit(reader: OpCall, observed: fx.Node, rw: Rewriter) -> str | None:
    layer: Any = reader.module
    if not is_weighted(reader) or reader.nodes[0] is not observed or reader.nodes.count(observed) > 1:
        return f"`{reader.node.name}` reads it, which is no layer"
    if getattr(layer, "groups", 1) != 1 or getattr(layer, "transposed", False):
        return f"`{reader.node.target}` is a {'transposed' if layer.transposed else 'grouped'} convolution"
    return called_again(reader, rw) or shares_weight(reader, rw)


def _repeated(layer: nn.Module, copies: int) -> nn.Module:
    """A layer that reads ``copies`` of its input side by side, and gives each the same share of the weight."""
    twin: Any = copy_module(layer)
    weight = cast(Tensor, layer.weight).detach() / copies
    twin.weight = clone_parameter(torch.cat([weight] * copies, 1))
    name = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
    setattr(twin, name, getattr(layer, name) * copies)
    return cast(nn.Module, twin)
