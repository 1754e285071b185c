"""Insert observers on every value that int8 operations read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx

from fxq.errors import PassError
from fxq.ir.identify import OpCall
from fxq.ir.ops import MOVES, SPECS
from fxq.ir.provenance import node_info
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.manager.running import ensure_recorded, run_on_copy
from fxq.nn import Epilogue
from fxq.passes.layers.queries import epilogue_of, with_epilogue
from fxq.quant.observers import Observer
from fxq.quant.overrides import check_overrides
from fxq.quant.recipe import Recipe
from fxq.targets.gates import gate_nodes
from fxq.targets.placement import Placement, plan_placement
from fxq.targets.suitability import is_weighted


@dataclass(frozen=True)
class InsertObservers(Pass):
    """Watch the values that become u8.

    Before: ``%conv = conv2d[conv](%x)``. After: ``%x_observer = MinMaxObserver[observers.x](%x)``,
    ``%conv = conv2d[conv](%x_observer)``.

    A value is watched where an int8 operation reads it. Values on both sides of an operation that only moves values
    (reshape, concatenation, max pooling, ...) share one observer, so that the codes can move as they are. What would
    only be converted to int8 and back stays in float, and is refused with that reason. So does the addition in a fused
    layer where its residual and its result are float (the residual stream of a transformer): it is taken out again.
    """

    name: ClassVar[str] = "insert_observers"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED)
    produces: ClassVar[Stage | None] = Stage.OBSERVED
    numerics: ClassVar[Numerics] = Numerics.EXACT

    recipe: Recipe = field(default_factory=Recipe)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        if context.inputs is None:
            raise PassError(f"the pass `{self.name}` needs example inputs", why="it must know shapes and dtypes",
                            fix="pass example_inputs")  # fmt: skip
        ensure_recorded(rw.gm, context.inputs)
        check_overrides(rw.gm, self.recipe.overrides)
        plan = plan_placement(rw.gm, self._kept_in_float(rw))
        if plan.float_residuals:
            for node in plan.float_residuals:
                _add_in_float(rw.identify(node), rw)
            run_on_copy(rw.gm, context.inputs)
            plan = plan_placement(rw.gm, self._kept_in_float(rw))
        for node, reason in plan.refused.items():
            rw.refuse("int8", node, reason)
        self._insert(plan, rw)

    def _kept_in_float(self, rw: Rewriter) -> dict[fx.Node, str]:
        choices = self.recipe.choices(rw.gm)
        reasons = {node: choices.why_float(node) or self._why_kept(node, rw) for node in rw.nodes()}
        if self.recipe.gates_in_float:
            reasons |= dict.fromkeys(gate_nodes(rw.gm), "the recipe keeps gates in float")
        return {node: reason for node, reason in reasons.items() if reason is not None}

    def _why_kept(self, node: fx.Node, rw: Rewriter) -> str | None:
        """With the recipe "mixed" only layers with weights compute in int8; codes may be moved between them."""
        if not node.op.startswith("call_"):
            return None
        call = rw.identify(node)
        if call.kind == "attention" and self.recipe.attention_in_float:
            return "the recipe keeps attention in float"
        if self.recipe.name != "mixed":
            return None
        return None if is_weighted(call) or call.kind in MOVES else "the recipe carries it in half precision"

    def _insert(self, plan: Placement, rw: Rewriter) -> None:
        choices = self.recipe.choices(rw.gm)
        observers: dict[int, tuple[str, Observer]] = {}
        for value, readers in plan.observed.items():
            group = plan.groups[value]
            if group not in observers:
                label = f"`{value.name}`, module `{node_info(value).module_path or 'the root'}`"
                observers[group] = (rw.free_path(f"observers.{value.name}"), choices.options(value).observer(label))
            self._watch(value, readers, *observers[group], rw)

    def _watch(self, value: fx.Node, readers: list[fx.Node], path: str, observer: Observer, rw: Rewriter) -> None:
        with rw.rule("observe", value):
            chosen = set(readers)
            node = rw.call_shared_module(path, observer, (value,), after=value, name=f"{value.name}_observer")
            rw.replace_uses(value, node, only=lambda user: user in chosen)


def _add_in_float(call: OpCall, rw: Rewriter) -> None:
    """``activation(layer(x) + r)`` in one layer becomes a layer, an addition and an activation: the same bits."""
    assert call.module is not None
    layer, (x, residual) = call.node, call.nodes
    epilogue = epilogue_of(call.module)
    with rw.rule("float_residual", layer):
        rw.give_own_module(layer, with_epilogue(call.module, Epilogue()))
        rw.update(layer, args=(x,), kwargs={})
        sides = (residual, layer) if epilogue.residual_first else (layer, residual)
        added = end = rw.call_function(SPECS["add"].function, sides, {"alpha": 1}, after=layer, like=layer,
                                       name=f"{layer.name}_add")  # fmt: skip
        if epilogue.activation is not None:
            spec = SPECS[epilogue.activation]
            settings = {name: value for (name, _), value in zip(spec.attrs, epilogue.params, strict=True)}
            end = rw.call_function(spec.function, (added,), settings, after=added, like=layer,
                                   name=f"{layer.name}_{epilogue.activation}")  # fmt: skip
        rw.replace_uses(layer, end, only=lambda user: user is not added)
