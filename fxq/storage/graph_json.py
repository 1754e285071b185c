"""The nodes of a graph as JSON, in order:

    {"name": "add", "op": "call_function", "target": "operator.add", "args": [{"node": 3}, 1], "kwargs": {"alpha": 2},
     "info": {provenance}, "value": {"dtype": "float32", "shape": [1, 8]}, "source": "net.py:12", "module": "block"}

Empty parts are left out. A node that is ``"unchecked": true`` gives what the shapes of its inputs do not tell: loading
takes it as it was recorded. Functions and methods are names from a list (``fxq.storage.operations``), modules and
tensors are paths in the module tree, arguments are as ``fxq.storage.values`` has it and refer to earlier nodes only.
A result of a class of the user's is a call of ``fxq.nn.named_result`` (``fxq.storage.results``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import fx, nn
from torch.fx.graph import CodeGen

from fxq.errors import InputError
from fxq.ir.provenance import INFO_KEY, MODULE_KEY, SOURCE_KEY, NodeInfo
from fxq.ir.shapes import TENSOR_KEY, TensorSpec
from fxq.nn.named_results import named_result
from fxq.storage.checks import MAX_DEPTH, array, fields, integer, mapping, refuse, short, text
from fxq.storage.dtypes import DTYPES, dtype_name
from fxq.storage.module_tree import CONTAINERS
from fxq.storage.names import is_identifier, is_path, is_placeholder
from fxq.storage.operations import ATTRIBUTES, METHODS, function_name, function_named, functions
from fxq.storage.records import RecordReader, RecordWriter
from fxq.storage.results import Classes, check_call, without_class
from fxq.storage.values import decode_value, encode_value
from fxq.tracing.tracer import ModelTracer

_OPS: Final = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")


def encode_graph(graph: fx.Graph) -> list[dict[str, Any]]:
    """Return the nodes of ``graph``.

    Raises:
        InputError: a node calls something, or has an argument, that a file cannot hold; names the node.
    """
    if type(graph._codegen) is not CodeGen:
        raise InputError(
            f"the graph's inputs are taken apart by a {type(graph._codegen).__name__}", where="the graph",
            fix="trace the model with fxq.trace, which takes structured arguments apart with nodes",
        )  # fmt: skip
    index = {node: i for i, node in enumerate(graph.nodes)}
    return [_encode_node(node, index) for node in graph.nodes]


def _encode_node(node: fx.Node, index: dict[fx.Node, int]) -> dict[str, Any]:
    where = f"node `{node.name}`"
    target: Any = node.target
    args: tuple[Any, ...] = node.args
    kwargs: dict[str, Any] = node.kwargs
    if isinstance(target, type) and target not in functions().values():
        args, kwargs, target = without_class(target, args, kwargs, where), {}, named_result
    called = _target(node.op, target, args, kwargs, where)
    encoded: dict[str, Any] = {"name": node.name, "op": node.op, "target": called}
    if args:
        encoded["args"] = [encode_value(a, where, index.__getitem__) for a in args]
    if kwargs:
        encoded["kwargs"] = {k: encode_value(v, where, index.__getitem__) for k, v in kwargs.items()}
    if INFO_KEY in node.meta:
        encoded["info"] = RecordWriter().encode(node.meta[INFO_KEY])
    if TENSOR_KEY in node.meta:
        encoded["value"] = _encode_recorded(node.meta[TENSOR_KEY])
    for key, name in ((SOURCE_KEY, "source"), (MODULE_KEY, "module")):
        if isinstance(node.meta.get(key), str):
            encoded[name] = node.meta[key]
    return encoded


def _target(op: str, called: Any, args: Sequence[Any], kwargs: Any, where: str) -> str:
    if op == "call_function":
        name = function_name(called)
        if name is None:
            raise _unknown_function(called, where)
        if called is getattr and not _reads_attribute(args, kwargs):
            raise InputError(
                f"an attribute is read off a value: {list(args[1:])}", where=where,
                why="a file may only read shapes, dtypes and the like",
                fix="give dataclass inputs as dicts or tuples, and compute what is read as an attribute",
            )  # fmt: skip
        return name
    target = str(called)
    if op == "call_method" and target not in METHODS:
        raise InputError(f"a file cannot hold a call of the method `{target}`", where=where,
                         fix="write it with the operations that torch.nn.functional has")  # fmt: skip
    return target


def _unknown_function(target: Any, where: str) -> InputError:
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"
    return InputError(f"a file cannot hold a call of {name}", where=where, why="fxq.load runs no code but torch's",
                      fix="write it with torch's own functions; compiling may replace it, too")  # fmt: skip


def _reads_attribute(args: Sequence[Any], kwargs: Any) -> bool:
    if len(args) != 2 or kwargs or not isinstance(args[0], fx.Node):
        return False
    return isinstance(args[1], str) and args[1] in ATTRIBUTES


def _encode_recorded(value: Any) -> Any:
    """What a run recorded: a TensorSpec, the name of a type, a tuple of them."""
    if isinstance(value, TensorSpec):
        return {"dtype": dtype_name(value.dtype), "shape": list(value.shape)}
    return [_encode_recorded(v) for v in value] if isinstance(value, tuple) else value


def decode_graph(nodes: Any, root: nn.Module, classes: Classes) -> tuple[fx.Graph, frozenset[fx.Node]]:
    """Build the graph; ``root`` holds the modules and tensors that it names, with or without values.

    Returns:
        The graph, and the nodes whose shapes are not checked.

    Raises:
        InputError: a class that the user gave is not the one that the graph has.
        StorageError: a name is not a plain identifier, a target is not in the lists, an argument is no earlier node.
    """
    graph = fx.Graph(tracer_cls=ModelTracer)
    made: list[fx.Node] = []
    seen: set[str] = set()
    encoded = array(nodes, "the graph")
    for i, node in enumerate(encoded):
        made.append(_decode_node(graph, node, made, seen, root, is_last=i == len(encoded) - 1))
        if made[-1].target is named_result:
            _exchange_class(made[-1], classes)
    unchecked = [n for n, e in zip(made, encoded, strict=True) if e.get("unchecked", False) is not False]
    if not made:
        refuse("the graph has no nodes", "the graph")
    _check_placeholders([n for n in made if n.op == "placeholder"])
    return graph, frozenset(unchecked)


def _decode_node(
    graph: fx.Graph, encoded: Any, made: list[fx.Node], seen: set[str], root: nn.Module, *, is_last: bool
) -> fx.Node:
    where = f"node {len(made)}"
    known = fields(encoded, where, "name op target", "args kwargs info value source module unchecked")
    name, op = text(known["name"], where), text(known["op"], where)
    if not is_identifier(name) or name in seen:
        refuse(f"the name {name[:60]!r} cannot be a variable of its own", where)
    where = f"node `{name[:200]}`"
    if op not in _OPS or (op == "output") != is_last:
        refuse("the last node, and no other, is the output" if op in _OPS else f"the unknown op {op[:60]!r}", where)
    args = tuple(decode_value(a, where, made) for a in array(known.get("args", []), where))
    kwargs = {k: decode_value(v, where, made) for k, v in mapping(known.get("kwargs", {}), where).items()}
    if not all(map(is_identifier, kwargs)):
        refuse("a keyword is no identifier", where)
    target = _decode_target(op, known["target"], args, kwargs, root, where)
    node = graph.create_node(op, target, args, kwargs, name=name)
    if node.name != name:
        refuse(f"the name {name[:60]!r} cannot be a variable of its own", where)
    seen.add(name)
    _decode_meta(node, known, where)
    return node


def _decode_target(
    op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], root: nn.Module, where: str
) -> Any:
    target = text(target, where)
    if op == "call_function":
        function = function_named(target, where)
        if function is getattr and not _reads_attribute(args, kwargs):
            refuse("an attribute is read that is not in the list of those that may be", where)
        if function is named_result:
            check_call(args, kwargs, where)
        return function
    if op == "call_method":
        if target not in METHODS or not args or not isinstance(args[0], fx.Node):
            refuse(f"the method {target[:60]!r} is not in the list of those that fxq calls on values", where)
    elif op == "placeholder":
        if not is_placeholder(target) or len(args) > 1 or kwargs or _has_nodes(args):
            refuse(f"the input {target[:60]!r} is no parameter that a function can have", where)
    elif op == "output":
        if target != "output" or len(args) != 1 or kwargs:
            refuse("the output has one argument", where)
    else:
        _check_path(op, target, args, kwargs, root, where)
    return target


def _exchange_class(node: fx.Node, classes: Classes) -> None:
    """Let a result be of the user's class again, where it was given."""
    call = classes.call(node.args)
    if call is not None:
        node.target, (node.args, node.kwargs) = call


def _has_nodes(args: Any) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(args, found.append)
    return bool(found)


def _check_path(op: str, path: str, args: Any, kwargs: Any, root: nn.Module, where: str) -> None:
    if not is_path(path):
        refuse(f"the path {path[:60]!r} is not made of attribute names", where)
    *way, last = path.split(".")
    module: nn.Module | None = root
    for part in way:
        module = module._modules.get(part) if module is not None else None
    if module is None:
        refuse(f"there is no module at {path[:200]!r}", where)
    if op == "get_attr":
        held = module._parameters if last in module._parameters else module._buffers
        if args or kwargs or last not in held:
            refuse(f"there is no parameter or buffer at {path[:200]!r}", where)
    elif type(module._modules.get(last)) in (type(None), *CONTAINERS.values()):
        refuse(f"there is no layer at {path[:200]!r}", where)


def _check_placeholders(nodes: list[fx.Node]) -> None:
    """Check that the inputs make the parameters of a function: no name twice, defaults and stars where they may be."""
    stars = [str(n.target).count("*") for n in nodes]
    names = {str(n.target).strip("*") for n in nodes}
    defaults = [bool(n.args) for n in nodes]
    keyword = next((i for i, s in enumerate(stars) if s), len(nodes))  # behind *args, defaults may come in any order
    positional = defaults[:keyword]
    good = (
        len(names) == len(nodes)
        and positional == sorted(positional)
        and stars.count(1) <= 1
        and 2 not in stars[:-1]
        and not any(s and d for s, d in zip(stars, defaults, strict=True))
    )
    if not good:
        refuse("the inputs are no parameters that a function can have", "the graph")


def _decode_meta(node: fx.Node, known: dict[str, Any], where: str) -> None:
    if "info" in known:
        node.meta[INFO_KEY] = RecordReader(where=where).decode(NodeInfo, known["info"])
    if "value" in known:
        node.meta[TENSOR_KEY] = _decode_recorded(known["value"], where)
    for key, name in ((SOURCE_KEY, "source"), (MODULE_KEY, "module")):
        if name in known:
            node.meta[key] = text(known[name], where)


def _decode_recorded(value: Any, where: str, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        refuse("a recorded value is nested too deep", where)
    if isinstance(value, list):
        return tuple(_decode_recorded(v, where, depth + 1) for v in value)
    if value is None or isinstance(value, str):
        return value
    known = fields(value, where, "dtype shape")
    if not isinstance(known["dtype"], str) or known["dtype"] not in DTYPES:
        refuse(f"the unknown dtype {short(known['dtype'])}", where)
    return TensorSpec(tuple(integer(n, where) for n in array(known["shape"], where)), DTYPES[known["dtype"]])
