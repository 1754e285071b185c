"""Attention in int8: which calls of an observed graph it computes, and the form that they get for it."""

from __future__ import annotations

from collections.abc import Iterator

from fxq.ir.identify import OpCall
from fxq.ir.provenance import node_info
from fxq.ir.rewriter import Rewriter
from fxq.nn import QDQAttention
from fxq.quant.observers import Observer
from fxq.quant.recipe import Recipe
from fxq.targets.suitability import quantised_inputs, why_float


def int8_attentions(rw: Rewriter, recipe: Recipe) -> Iterator[OpCall]:
    """The calls of attention that int8 can compute, and that no override keeps in float."""
    choices = recipe.choices(rw.gm)
    for call in rw.calls():
        if call.kind == "attention" and why_float(call) is None and choices.why_float(call.node) is None:
            yield call


def round_attentions(rw: Rewriter, recipe: Recipe) -> None:
    """Exchange each attention of an observed graph that int8 will compute for its form with rounded exponentials.

    These are the calls whose queries, keys and values are observed: what int8 gives, its users read quantised.
    """
    if not recipe.quantises_attention:
        return
    for call in int8_attentions(rw, recipe):
        if not all(isinstance(rw.module_of(source), Observer) for source in quantised_inputs(call)):
            continue
        with rw.rule("attention", call.node):
            inside = node_info(call.node).module_path
            path = rw.free_path(f"{inside}.{call.node.name}" if inside else call.node.name)
            rw.add_module(path, QDQAttention(call.attrs["is_causal"], call.attrs["scale"]))
            rw.update(call.node, op="call_module", target=path, args=call.inputs, kwargs={})
