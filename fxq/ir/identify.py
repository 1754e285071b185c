"""What operation a node is, whichever way it is written."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxq.ir.ops import (
    DROPPED,
    FUNCTIONS,
    KEYWORDS,
    METHODS,
    RENAMED,
    REQUIRED,
    SPECS,
    STATEFUL_MODULES,
    STATELESS_MODULES,
    Kind,
    OpSpec,
    Spelling,
)
from fxq.ir.scalars import is_number, is_scalar, is_shape
from fxq.ir.shapes import recorded_value


@dataclass(frozen=True)
class OpCall:
    """A node read as an operation.

    Attributes:
        kind: the operation's name in the table, or the class, function or ``"method:name"`` that the table lacks.
        inputs: the tensor inputs in the operation's order (a list argument such as ``cat``'s is flattened; numbers
            stand for themselves, as in ``x + 1``).
        attrs: every attribute, defaults included, in one spelling.
        module: the module that the node calls, if it calls one.
        inplace: whether this spelling writes into its first input.
    """

    node: fx.Node
    kind: Kind
    inputs: tuple[Any, ...]
    attrs: dict[str, Any]
    module: nn.Module | None = None
    inplace: bool = False

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The inputs that are nodes."""
        return tuple(i for i in self.inputs if isinstance(i, fx.Node))

    @property
    def known(self) -> bool:
        """Whether the operation stands in the table."""
        return isinstance(self.kind, str) and not self.kind.startswith("method:")


def has_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` runs code of the user's around its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def get_module(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that ``node`` calls, or None where it calls none."""
    return find_module(gm, str(node.target)) if node.op == "call_module" else None


def find_module(root: nn.Module, path: str) -> nn.Module:
    """Return the submodule at ``path``, as ``root.get_submodule`` does in five times the time.

    Raises:
        AttributeError: there is none.
    """
    module = root
    for part in path.split("."):
        child = module._modules.get(part)
        if child is None:  # the root itself, or whatever a parent has under this name beside its modules
            return root.get_submodule(path)
        module = child
    return module


def read_attribute(gm: fx.GraphModule, node: fx.Node) -> Any:
    """Return what the ``get_attr`` node reads: a tensor, or whatever else lies there."""
    value: Any = gm
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def identify(node: fx.Node, gm: fx.GraphModule) -> OpCall:
    """Read ``node`` as an operation; one that the table lacks keeps its own target as its kind."""
    if node.op == "call_module":
        return identify_module(node, find_module(gm, str(node.target)))
    if node.op == "call_function":
        found = FUNCTIONS.get(node.target)  # type: ignore[arg-type]
        call = _bind(node, *found) if found else None
        if node.target is getattr and node.args[1:] == ("mT",):  # an attribute that computes
            swap = SPECS["transpose"].normalise({"dim0": -2, "dim1": -1})
            call = OpCall(node, "transpose", tuple(node.all_input_nodes), swap)
        return call or OpCall(node, node.target, tuple(node.all_input_nodes), dict(node.kwargs))
    if node.op == "call_method":
        found = METHODS.get(str(node.target))
        call = _bind(node, *found) if found else None
        return call or OpCall(node, f"method:{node.target}", tuple(node.all_input_nodes), dict(node.kwargs))
    return OpCall(node, node.op, tuple(node.all_input_nodes), {})


def identify_module(node: fx.Node, module: nn.Module) -> OpCall:
    """Read a call of ``module`` as an operation."""
    inputs = _arguments(node)
    kind = type(module)
    if has_hooks(module):
        return OpCall(node, kind, inputs, {}, module)
    if kind in STATEFUL_MODULES:
        return OpCall(node, STATEFUL_MODULES[kind], inputs, {}, module)
    positional = len(node.args) == 1 and not node.kwargs
    if kind not in STATELESS_MODULES or not (positional or (not node.args and set(node.kwargs) == {"input"})):
        return OpCall(node, kind, inputs, {}, module)
    name, names, fixed = STATELESS_MODULES[kind]
    if getattr(module, "return_indices", False) or len(inputs) != 1:
        return OpCall(node, kind, inputs, {}, module)
    values = {attr: getattr(module, source) for attr, source in names.items()}
    spec = SPECS[name]
    inplace = bool(getattr(module, "inplace", False))
    return OpCall(node, name, inputs, spec.normalise(values | fixed), module, inplace)


def _arguments(node: fx.Node) -> tuple[fx.Node, ...]:
    """Every node among the arguments, in order; one that is given twice (a layer that adds its input) counts twice."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return tuple(found)


def _bind(node: fx.Node, kind: str, spelling: Spelling) -> OpCall | None:
    """Bind the node's arguments to a spelling's parameters; None when they do not fit the canonical form."""
    values = _bind_arguments(node.args, node.kwargs, spelling)
    if values is None or values.pop("return_indices", False):
        return None
    inplace = spelling.inplace or bool(values.get("inplace", False))
    values = {RENAMED.get(k, k): v for k, v in values.items() if k not in DROPPED}
    spec = SPECS[kind]
    inputs = _inputs(spec, values)
    if inputs is None or any(k not in dict(spec.attrs) for k in values):
        return None
    if kind in ("add", "mul") and any(map(_is_sequence, inputs)):  # Python's: (x, y) + z
        return None
    if is_scalar(inputs[0]):
        # a number on the left: nothing is overwritten, and only some operations can be told the other way round
        if node.target is operator.truediv or all(map(is_scalar, inputs)):
            return None
        inplace = False
        inputs = inputs[::-1] if spec.commutative and values.get("alpha", 1) == 1 else inputs
    return OpCall(node, kind, tuple(inputs), spec.normalise(values), None, inplace)


def _is_sequence(value: Any) -> bool:
    seen = recorded_value(value) if isinstance(value, fx.Node) else value
    return isinstance(seen, tuple | list)


def _inputs(spec: OpSpec, values: dict[str, Any]) -> list[Any] | None:
    """Take the tensor inputs out of ``values``; None where a list of them is only known at run time."""
    found = [values.pop(name) for name in spec.inputs]
    if spec.inputs == ("tensors",):
        return list(found[0]) if isinstance(found[0], list | tuple) and found[0] else None
    while len(found) > 1 and found[-1] is None:
        found.pop()
    return found


def _bind_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], spelling: Spelling) -> dict[str, Any] | None:
    names = [name for name, _ in spelling.params]
    if spelling.variadic and len(args) > 1:
        single = args[1] if len(args) == 2 else None
        whole = isinstance(single, list | tuple) or is_shape(single)
        args = (args[0], single) if whole else (args[0], tuple(args[1:]))
    kwargs = {(k if k in names else KEYWORDS.get(k, k)): v for k, v in kwargs.items()}
    if len(args) > len(names) or any(k not in names for k in kwargs):
        return None
    values = dict(zip(names, args, strict=False))
    if set(values) & set(kwargs):
        return None
    values |= kwargs
    if spelling.variadic and not _is_size(values.get(spelling.variadic)):
        return None
    for name, default in spelling.params:
        if name not in values:
            if default is REQUIRED:
                return None
            values[name] = default
    return values


def _is_size(value: Any) -> bool:
    """Whether ``value`` is a list of dimensions: ``x.view(torch.int32)``'s argument is none."""
    if not isinstance(value, list | tuple):
        return is_shape(value)
    # a lone node may be a number or a whole shape: only what is known to be a number can stand in a tuple
    lone = value[0] if len(value) == 1 else 0
    return all(isinstance(v, int | fx.Node) for v in value) and (not isinstance(lone, fx.Node) or is_number(lone))


class ModuleLookup:
    """The module that a node calls, remembered by path: a walk down the module tree is slow in a large model."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._modules: dict[str, nn.Module] = {}

    def __call__(self, node: fx.Node) -> nn.Module | None:
        if node.op != "call_module":
            return None
        path = str(node.target)
        found = self._modules.get(path)
        if found is None:
            found = self._modules[path] = find_module(self._gm, path)
        return found

    def forget(self, path: str) -> None:
        """Look up ``path`` and what lies below it anew: another module was put there."""
        known = self._modules.pop(path, None)
        if known is None or known._modules:  # a container: whatever lay in it
            for below in [p for p in self._modules if p.startswith(f"{path}.")]:
                del self._modules[below]


class Identifier:
    """Identifies the nodes of one graph, remembering each answer while the node and its module stay as they are.

    ``lookup`` finds the module that a node calls; without it the module tree must stay as it is.
    """

    def __init__(self, gm: fx.GraphModule, lookup: ModuleLookup | None = None) -> None:
        self._gm = gm
        self._lookup = lookup or ModuleLookup(gm)
        self._calls: dict[fx.Node, tuple[Any, OpCall]] = {}

    def __call__(self, node: fx.Node) -> OpCall:
        module = self._lookup(node)
        key = (node.target, node.args, tuple(node.kwargs.items()), id(module))
        found = self._calls.get(node)
        if found is None or found[0] != key:
            found = (key, identify(node, self._gm) if module is None else identify_module(node, module))
            self._calls[node] = found
        return found[1]
