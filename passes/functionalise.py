"""In-place operations become operations that give a new tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from torch import fx

from fxq.ir.aliasing import sharing
from fxq.ir.call_effects import writes
from fxq.ir.identify import OpCall
from fxq.ir.ops import DROPOUTS
from fxq.ir.rewriter import Rewriter
from fxq.ir.scalars import is_scalar
from fxq.ir.snapshot import kind_text
from fxq.manager.base import Pass
from fxq.manager.context import PassContext
from fxq.passes.graph.dtypes import Dtypes, infer_dtypes
from fxq.passes.graph.spelling import canonical_call

_RULE: Final = "out_of_place"
_OF_NUMBERS: Final[dict[Any, Callable[..., Any]]] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.imatmul: operator.matmul,
}  # fmt: skip
#: In-place operators that the table of operations lacks, and what they compute.
_OPERATORS: Final[dict[Any, Callable[..., Any]]] = {
    operator.ifloordiv: operator.floordiv, operator.imod: operator.mod, operator.ipow: operator.pow,
    operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor,
}  # fmt: skip
#: In-place methods that the table lacks whose name without the underscore computes the same from the same arguments ...
_ARITHMETIC: Final = frozenset({
    "acos_", "addcdiv_", "addcmul_", "asin_", "atan_", "ceil_", "clamp_max_", "clamp_min_", "cos_", "cosh_", "erf_",
    "exp2_", "expm1_", "floor_", "floor_divide_", "lerp_", "log10_", "log1p_", "log2_", "log_", "pow_", "reciprocal_",
    "remainder_", "round_", "rsqrt_", "sign_", "sin_", "sinh_", "square_", "tan_", "trunc_",
})  # fmt: skip
#: ... and those of them whose result has the dtype of the tensor, whatever the other arguments are.
_KEEP_DTYPE: Final = frozenset({
    "index_add_", "index_copy_", "index_fill_", "masked_fill_", "masked_scatter_", "scatter_", "scatter_add_", "tril_",
    "triu_",
})  # fmt: skip


@dataclass(frozen=True)
class Functionalise(Pass):
    """Let in-place operations give a new tensor, and their later readers read that.

    ``x.relu_()`` writes ``relu(x)`` into the memory of ``x``; who reads ``x`` afterwards reads the result. With
    ``y = relu(x)`` in its place and ``y`` in the place of ``x`` at every later reader, the same values flow, and ``x``
    keeps its own. The graph then no longer overwrites its inputs, and the operation can be matched, fused and moved::

        a = conv(x)                    a = conv(x)
        b = a.add_(1)                  b = torch.add(a, 1, alpha=1)
        return a * 2                   return b * 2

    It is refused where that would change a value: where another value may share the memory and is read later (a view
    of ``x`` taken before, or the tensor of which ``x`` is a view), where the memory is a parameter or buffer, where
    code that fxq cannot see had its hands on it, and where the new tensor could have another dtype
    (``half += float`` stays half, ``half + float`` does not). The inputs of the model are taken not to share memory
    with each other.

    Spellings: methods and functions that end in ``_``, ``inplace=True`` of modules and functions, ``x += y``. Of a
    number (``n += 1``) that operator makes a new one, and ``plain_operator`` writes it so: the code that torch.fx
    generates for it would change ``n`` for every reader.
    """

    name: ClassVar[str] = "functionalise"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        order = {node: i for i, node in enumerate(rw.graph.nodes)}
        dtypes = infer_dtypes(rw)
        for call in rw.calls():
            if _gives_new_value(call):
                with rw.rule("plain_operator", call.node):
                    rw.update(call.node, target=(_OF_NUMBERS | _OPERATORS)[call.node.target])
            elif _is_candidate(call):
                _functionalise(call, rw, order, dtypes)


def _functionalise(call: OpCall, rw: Rewriter, order: dict[fx.Node, int], dtypes: Dtypes) -> None:
    reason = _hindrance(call, rw, order, dtypes)
    if reason is not None:
        rw.refuse(_RULE, call.node, reason)
        return
    with rw.rule(_RULE, call.node):
        _replace(call, rw, order)


def _gives_new_value(call: OpCall) -> bool:
    """Whether an in-place operator overwrites nothing, because its left side is a number or it is ``@=``."""
    target: Any = call.node.target
    if call.node.op != "call_function" or target not in (*_OF_NUMBERS, *_OPERATORS):
        return False
    return target is operator.imatmul or is_scalar(call.node.args[0])


def _is_candidate(call: OpCall) -> bool:
    if call.known:
        return call.inplace
    name = str(call.node.target)
    asks = call.node.op == "call_function" or name.endswith("_") or getattr(call.module, "inplace", False)
    return asks and writes(call) and _written(call) is not None and not _is_user_code(call)


def _is_user_code(call: OpCall) -> bool:
    """A function of the user's may write into its inputs or not; it is not a spelling of anything."""
    root = str(getattr(call.node.target, "__module__", "") or "").split(".")[0]
    return call.node.op == "call_function" and root not in ("torch", "_operator")


def _written(call: OpCall) -> fx.Node | None:
    """Return the tensor that ``call`` overwrites."""
    first = call.inputs[0] if call.known else call.node.args[0] if call.node.args else None
    return first if isinstance(first, fx.Node) else None


def _hindrance(call: OpCall, rw: Rewriter, order: dict[fx.Node, int], dtypes: Dtypes) -> str | None:
    written = _written(call)
    assert written is not None
    if not call.known and call.node.target not in (*_OPERATORS, *_ARITHMETIC, *_KEEP_DTYPE):
        return f"fxq knows no operation that computes what `{kind_text(call.kind)}` writes"
    if call.kind in DROPOUTS and call.attrs["training"]:
        return "it draws random numbers, in training mode"
    others = [n for n in call.node.all_input_nodes if n is not written and not is_scalar(n)]
    for other in others if call.node.target not in _KEEP_DTYPE else ():
        if dtypes[written] is None or dtypes[written] != dtypes[other]:
            return _dtype_reason(written, other, dtypes)
    return _shared(call.node, written, rw, order)


def _dtype_reason(written: fx.Node, other: fx.Node, dtypes: Dtypes) -> str:
    if dtypes[written] is None or dtypes[other] is None:
        return f"the dtypes of `{written.name}` and `{other.name}` are not known without example inputs"
    return f"`{written.name}` is {dtypes[written]} and `{other.name}` {dtypes[other]}: a new tensor could be either"


def _shared(node: fx.Node, written: fx.Node, rw: Rewriter, order: dict[fx.Node, int]) -> str | None:
    """Say who else sees the memory that ``node`` overwrites, or None."""
    # what is taken from the tensor after it was overwritten reads the new one: only earlier values matter
    for other in sharing(written, rw.identify, among=lambda n: order[n] < order[node]):
        if other.op == "get_attr":
            return f"it writes into `{other.target}`, an attribute of the model"
        call = rw.identify(other)
        if not call.known and writes(call):
            return f"`{other.name}` may hold the memory that it writes into"
        late = [u for u in other.users if order[u] >= order[node]]
        if other is not written and late:
            return f"`{other.name}` may share the memory that it writes into, and {_reads(late[0], node)}"
    return None


def _reads(user: fx.Node, node: fx.Node) -> str:
    if user.op == "output":
        return "is returned"
    return f"is read by `{user.name}`" if user is node else f"is read later, by `{user.name}`"


def _replace(call: OpCall, rw: Rewriter, order: dict[fx.Node, int]) -> None:
    node, written = call.node, _written(call)
    assert written is not None
    if call.known:
        function, args, kwargs = canonical_call(call)
        rw.update(node, op="call_function", target=function, args=args, kwargs=kwargs)
    elif node.target in _OPERATORS:
        rw.update(node, target=_OPERATORS[node.target])
    else:
        rw.update(node, target=str(node.target).removesuffix("_"))
    rw.replace_uses(written, node, only=lambda user: order[user] > order[node])
