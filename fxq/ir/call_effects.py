"""What an operation does beside giving a value: writing into its inputs, keeping state, drawing random numbers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import fx, nn

from fxq.ir.identify import OpCall, has_hooks
from fxq.ir.names import DROPOUT_FUNCTIONS, function_name, is_in_place
from fxq.ir.ops import DROPOUTS, SPECS, WEIGHTED
from fxq.ir.shapes import tensor_spec

WRITES: Final = "it writes into its input"
CHECKS: Final = "it checks something or changes a setting"
_LIBRARIES: Final = ("torch", "fxq", "_operator", "math", "builtins")
_ENVIRONMENT: Final = ("set_", "use_", "manual_seed", "seed", "_assert", "init_")
_RANDOM: Final = frozenset({
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "multinomial",
    "normal", "poisson", "rrelu", "gumbel_softmax", "dropout", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout", "native_dropout", "fractional_max_pool2d", "fractional_max_pool3d", "binomial",
    "scaled_dot_product_attention", "stochastic_depth", "drop_block2d", "drop_block3d",
})  # fmt: skip
_STATELESS: Final = (*WEIGHTED, "layer_norm", "rms_norm", "group_norm", "prelu")
_CONTAINER_METHODS: Final = frozenset({*dir(list), *dir(dict), *dir(set)})


def writes(call: OpCall) -> bool:
    """Whether a call writes, or may write, into one of its inputs: in-place operations and code that fxq cannot see."""
    if call.inplace or call.known:
        return call.inplace
    target: Any = call.node.target
    if call.node.op == "call_module":
        return call.module is not None and not _is_library_module(call.module)
    if call.node.op not in ("call_function", "call_method"):
        return False
    if _says_so(call):
        return True
    if call.node.op == "call_method":
        return not _is_tensor_method(str(target), call.node.args[0])
    return not _is_library_function(target)


def surely_writes(call: OpCall) -> bool:
    """Whether a call is an in-place operation, and not code that fxq cannot see."""
    return call.inplace or (not call.known and _says_so(call))


def _says_so(call: OpCall) -> bool:
    node = call.node
    return is_in_place(node.op, node.target) or node.kwargs.get("out") is not None or _asks_for_inplace(call)


def effect(call: OpCall) -> str | None:
    """Say what a call does beside giving its value, or None: then a call that nobody uses can go."""
    if call.node.op == "get_attr":
        return None
    if writes(call):
        return (
            WRITES if call.inplace or is_in_place(call.node.op, call.node.target) else "its code may have side effects"
        )
    if call.kind in DROPOUTS:
        return "it draws random numbers, in training mode" if call.attrs["training"] else None
    if call.kind == "attention" and call.attrs["dropout_p"] == 0:
        return None
    if call.module is not None:
        return _module_effect(call)
    name = getattr(call.node.target, "__name__", str(call.node.target))
    if name in _RANDOM:
        return "it draws random numbers"
    return CHECKS if call.node.op == "call_function" and name.startswith(_ENVIRONMENT) else None


def _module_effect(call: OpCall) -> str | None:
    assert call.module is not None
    if call.kind in SPECS or call.kind in _STATELESS:
        return None
    parts = list(call.module.modules())
    if any(getattr(m, "max_norm", None) is not None for m in parts):
        return "it rescales its weight"
    if any(m.training for m in parts):
        return "it may update statistics or draw random numbers, in training mode"
    return None


def _is_library_module(module: nn.Module) -> bool:
    """Whether all code that a call of ``module`` runs is torch's or fxq's own, and none of it works in place."""
    if getattr(module, "inplace", False):
        return False
    for part in module.modules():
        if has_hooks(part) or not type(part).__module__.startswith(("torch.nn.modules.", "fxq.")):
            return False
    return True


def _is_result_class(target: Any) -> bool:
    """Whether ``target`` makes the result of a model: a dataclass, a named tuple, or a dict."""
    return isinstance(target, type) and (dataclasses.is_dataclass(target) or issubclass(target, tuple | dict))


def _is_tensor_method(name: str, owner: Any) -> bool:
    """Whether ``owner.name(...)`` is a method of a tensor; lists and dicts have some of these names, and write."""
    tensor = name not in _CONTAINER_METHODS or (isinstance(owner, fx.Node) and tensor_spec(owner) is not None)
    return tensor and hasattr(torch.Tensor, name) and name not in ("backward", "register_hook")


def _is_library_function(target: Callable[..., Any]) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable
    if function_name(target) in DROPOUT_FUNCTIONS or _is_result_class(target):
        return True
    module = str(getattr(target, "__module__", None) or "")
    return module.split(".")[0] in _LIBRARIES and not module.startswith("torch._ops")


def _asks_for_inplace(call: OpCall) -> bool:
    """Whether a function that the table lacks is called with ``inplace=True``."""
    if call.node.op != "call_function" or not inspect.isfunction(call.node.target):
        return False
    names = list(inspect.signature(call.node.target).parameters)
    if "inplace" not in names:
        return False
    at = names.index("inplace")
    given = call.node.kwargs.get("inplace", call.node.args[at] if at < len(call.node.args) else False)
    return given is not False
