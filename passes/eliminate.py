"""Operations that do nothing go."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import fx

from fxq.ir.aliasing import merge_hazard
from fxq.ir.call_effects import CHECKS, WRITES, effect
from fxq.ir.identify import OpCall, has_hooks
from fxq.ir.names import DROPOUT_FUNCTIONS, function_name
from fxq.ir.ops import DROPOUTS, IDENTITY_TYPES
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.manager.base import Pass
from fxq.manager.context import PassContext
from fxq.passes.graph.dtypes import Dtypes, infer_dtypes

_POOLS: Final = ("max_pool1d", "max_pool2d", "max_pool3d")
_AVERAGES: Final = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
#: Activations, and what they find already done in the result of another one.
_SETTLED: Final = {"relu": ("relu", "relu6"), "relu6": ("relu6",), "abs": ("abs",)}
#: Layers whose result is always contiguous.
_CONTIGUOUS: Final = ("linear", "embedding", "contiguous")


@dataclass(frozen=True)
class Verdict:
    """An operation that gives its input back: the rule that says so, or the reason for which it has to stay.

    Attributes:
        copies: the operation gives a copy, not the tensor itself or a view of it.
        instead: the operation in front of it that does nothing, rather than itself.
    """

    rule: str
    reason: str | None = None
    copies: bool = False
    instead: OpCall | None = None


@dataclass(frozen=True)
class Eliminate(Pass):
    """Remove operations that give their input back, bit for bit, and those whose result nobody uses.

    ::

        a = conv(x)                                  a = conv(x)
        b = self.drop(a)       # evaluation mode     return F.relu(a)
        c = F.relu(F.relu(b))
        d = torch.add(c, 1)    # nobody uses d
        return torch.permute(c, dims=(0, 1, 2, 3))

    * ``identity``: ``nn.Identity``.
    * ``dropout``: every kind, in evaluation mode; of torchvision also ``stochastic_depth`` and ``drop_block``.
    * ``no_op_move``: a permutation that keeps the order, a transposition of a dimension with itself, a flatten of one
      dimension, ``contiguous`` of what is contiguous, ``cat`` of one tensor.
    * ``no_op_pool``: a maximum over single elements.
    * ``no_op_arithmetic``: ``x * 1``, ``x / 1`` and ``x - 0`` with an integer literal, where that keeps the dtype.
    * ``settled_activation``: ``relu(relu(x)) = relu(x)``, ``relu6(relu(x)) = relu6(x)`` and their like.
    * ``dead_code``: operations without users. Never inputs of the model, nor what writes in place, checks something,
      draws random numbers or belongs to a module of the user's, whose code may do any of that.

    Not bit for bit, and so refused: ``x + 0`` and an average over single elements, which turn -0.0 into 0.0.
    A copy is not replaced by its source where somebody could tell them apart by writing into one of them.
    """

    name: ClassVar[str] = "eliminate"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        _remove_dead_code(rw)
        dtypes = infer_dtypes(rw)
        for call in rw.calls():
            verdict = _judge(call, rw, dtypes)
            if verdict is not None and call.node.users:
                _apply(verdict, call, rw)


def _apply(verdict: Verdict, call: OpCall, rw: Rewriter) -> None:
    call = verdict.instead or call
    reason = verdict.reason
    if reason is None and verdict.copies:
        reason = merge_hazard(call.node, call.nodes[0], rw.identify)
    if reason is not None:
        rw.refuse(verdict.rule, call.node, reason)
        return
    with rw.rule(verdict.rule, call.node):
        rw.replace(call.node, call.nodes[0])


def _remove_dead_code(rw: Rewriter) -> None:
    for node in reversed(list(rw.nodes())):
        if node.users or node.op in ("placeholder", "output"):
            continue
        call = rw.identify(node)
        reason = effect(call)
        if reason is None:
            with rw.rule("dead_code", node):
                rw.erase(node)
        elif reason not in (WRITES, CHECKS):  # those are there for their effect
            rw.refuse("dead_code", node, reason)


def _judge(call: OpCall, rw: Rewriter, dtypes: Dtypes) -> Verdict | None:
    """Return what is to be said of an operation that might do nothing; None for all others."""
    if len(call.nodes) != 1 or call.inplace:
        return None
    if isinstance(call.module, IDENTITY_TYPES):
        hooks = has_hooks(call.module) or type(call.module) not in IDENTITY_TYPES
        return Verdict("identity", "it has hooks, or is a subclass" if hooks else None)
    if call.kind in DROPOUTS:
        return Verdict("dropout", "it is in training mode" if call.attrs["training"] is not False else None)
    if function_name(call.node.target) in DROPOUT_FUNCTIONS:
        return Verdict("dropout", "it is in training mode" if _argument(call, "training", True) is not False else None)
    for judge in (_judge_move, _judge_pool, _judge_activation):
        verdict = judge(call, rw)
        if verdict is not None:
            return verdict
    return _judge_arithmetic(call, dtypes)


def _argument(call: OpCall, name: str, default: object) -> object:
    """Return what a function that the table of operations lacks is given for its parameter ``name``."""
    target = call.node.target
    assert not isinstance(target, str)
    bound = inspect.signature(target).bind(*call.node.args, **call.node.kwargs)
    return bound.arguments.get(name, default)


def _judge_move(call: OpCall, rw: Rewriter) -> Verdict | None:
    rank = _rank(call.nodes[0], rw)
    attrs = call.attrs
    if call.kind == "permute" and all(isinstance(d, int) for d in attrs["dims"]):
        same = [d % len(attrs["dims"]) for d in attrs["dims"]] == list(range(len(attrs["dims"])))
        return Verdict("no_op_move") if same else None
    if call.kind == "transpose":
        return Verdict("no_op_move") if _same_dim(attrs["dim0"], attrs["dim1"], rank) else None
    if call.kind == "flatten" and rank:  # a number has no dimension, and flatten gives it one
        return Verdict("no_op_move") if _same_dim(attrs["start_dim"], attrs["end_dim"], rank) else None
    if call.kind == "cat" and len(call.inputs) == 1:
        return Verdict("no_op_move", copies=True)
    if call.kind == "contiguous":
        return Verdict("no_op_move", _layout(call, rw), copies=True)
    return None


def _same_dim(a: object, b: object, rank: int | None) -> bool:
    if not isinstance(a, int) or not isinstance(b, int):
        return False
    return a == b or (bool(rank) and a % (rank or 1) == b % (rank or 1))


def _rank(node: fx.Node, rw: Rewriter) -> int | None:
    """Return the number of dimensions of a value: recorded, or that of what ``flatten(x, 1)`` gives."""
    spec = tensor_spec(node)
    if spec is not None:
        return len(spec.shape)
    call = rw.identify(node)
    flat = call.kind == "flatten" and call.attrs == {"start_dim": 1, "end_dim": -1}
    return 2 if flat else None


def _layout(call: OpCall, rw: Rewriter) -> str | None:
    """Say why ``contiguous`` has to stay, or None: kernels round otherwise in another memory layout."""
    if call.attrs["memory_format"] is not torch.contiguous_format:
        return "it asks for another memory format"
    source = rw.identify(call.nodes[0])
    plain = source.kind in _CONTIGUOUS and source.attrs.get("memory_format") in (None, torch.contiguous_format)
    return None if plain else "its input may lie in memory in another order, in which later kernels may round otherwise"


def _judge_pool(call: OpCall, rw: Rewriter) -> Verdict | None:
    if call.kind not in (*_POOLS, *_AVERAGES):
        return None
    attrs = call.attrs
    single = {*attrs["kernel_size"], *attrs["stride"]} == {1} and set(attrs["padding"]) == {0}
    if not single or attrs.get("divisor_override") not in (None, 1):
        return None
    reason = "the average of -0.0 alone is 0.0" if call.kind in _AVERAGES else None
    return Verdict("no_op_pool", reason, copies=True)


def _judge_activation(call: OpCall, rw: Rewriter) -> Verdict | None:
    inner = rw.identify(call.nodes[0])
    if isinstance(call.kind, str) and inner.kind in _SETTLED.get(call.kind, ()):
        return Verdict("settled_activation", copies=True)
    if call.kind == "relu6" and inner.kind == "relu" and not inner.inplace and len(inner.node.users) == 1:
        return Verdict("settled_activation", copies=True, instead=inner)
    return None


#: The number that changes nothing on the right of an operation.
_NEUTRAL: Final = {"add": 0, "sub": 0, "mul": 1, "div": 1}


def _judge_arithmetic(call: OpCall, dtypes: Dtypes) -> Verdict | None:
    neutral = _NEUTRAL.get(call.kind) if isinstance(call.kind, str) else None
    if neutral is None or call.inputs[0] is not call.nodes[0]:
        return None
    number = call.inputs[1]
    if not isinstance(number, int | float) or isinstance(number, bool) or number != neutral:
        return None
    return Verdict("no_op_arithmetic", _arithmetic_reason(call, dtypes[call.nodes[0]]), copies=True)


def _arithmetic_reason(call: OpCall, dtype: torch.dtype | None) -> str | None:
    checks: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: call.kind == "add", "adding 0 turns -0.0 into 0.0"),
        (lambda: call.attrs.get("rounding_mode") is not None, "it rounds"),
        (lambda: dtype is None, "the dtype of its input is not known without example inputs"),
        (lambda: dtype is not None and not dtype.is_floating_point, f"its input is {dtype}, its result may not be"),
    )
    return next((reason for holds, reason in checks if holds()), None)
