"""The canonical call of an operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from fxq.ir.identify import OpCall
from fxq.ir.ops import SPECS

Spelled = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def canonical_call(call: OpCall) -> Spelled:
    """Return function, arguments and keywords of the one spelling of ``call``, an operation of the table.

    Tensor inputs are positional (``cat`` and ``stack`` take one list of them), attributes are keywords.
    """
    assert isinstance(call.kind, str)
    spec = SPECS[call.kind]
    if call.kind == "getitem":  # Python's operator takes no keywords
        return spec.function, (call.inputs[0], call.attrs["index"]), {}
    args: tuple[Any, ...] = ([*call.inputs],) if spec.inputs == ("tensors",) else call.inputs
    attrs = dict(call.attrs)
    if call.kind == "squeeze" and attrs["dim"] is None:
        del attrs["dim"]  # torch.squeeze knows no dim=None
    return spec.function, args, attrs


def is_spelled(node: fx.Node, spelled: Spelled) -> bool:
    """Whether ``node`` already is that call."""
    target, args, kwargs = spelled
    here = (node.op, node.target, _plain(node.args), _plain(node.kwargs))
    return here == ("call_function", target, _plain(args), _plain(kwargs))


def _plain(value: Any) -> Any:
    """Tell a list from a tuple and 1 from True, which compare equal in a node's own arguments."""
    if isinstance(value, tuple | list):
        return (isinstance(value, list), [_plain(v) for v in value])
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return (type(value), value)
