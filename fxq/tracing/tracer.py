"""The ``torch.fx.Tracer`` behind ``fxq.trace``: one attempt at capturing a model with a given set of opaque modules."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy
from torch.fx._symbolic_trace import _patch_function
from torch.fx.graph_module import _CodeOnlyModule

from fxq.ir.names import is_in_place
from fxq.ir.provenance import MODULE_KEY, SOURCE_KEY
from fxq.ir.scalars import is_shape
from fxq.tracing.arguments import Arguments, arguments_for, placeholder_target
from fxq.tracing.autograd_functions import autograd_functions_refused
from fxq.tracing.builtin_calls import RECORDED_BUILTINS, BuiltinPatches, original_type
from fxq.tracing.constructors import CONSTRUCTORS, torch_functions_replaced
from fxq.tracing.facts import is_batch_size, is_fixed_parts, is_rank_fact, is_size, sample_of, split_dimension
from fxq.tracing.frames import is_running, is_user_code, line_of_forward, line_of_frame, user_frame
from fxq.tracing.guards import guard_at, tests_inside_call
from fxq.tracing.inputs import ModelInputs
from fxq.tracing.leaves import decide_leaf
from fxq.tracing.operations import autocast_state, user_globals
from fxq.tracing.probe import UNKNOWN, Probe
from fxq.tracing.proxies import StateProxy, ValueProxy
from fxq.tracing.record import OpaqueLeaf
from fxq.tracing.sequences import SEQUENCE_FUNCTIONS, sequences_made_unchecked
from fxq.tracing.signals import BuiltinNeededError, SizeBranchError, UntraceableError
from fxq.tracing.tensor_methods import tensor_methods_recorded

_TO_PYTHON = {"numpy": "numpy", "tolist": "a list", "__array__": "numpy"}


@dataclass
class TraceSettings:
    """What one attempt starts from. ``opaque``, ``builtins`` and ``followed`` grow from attempt to attempt.

    ``followed``: the paths of modules whose control flow on sizes goes the example's way.
    """

    inputs: ModelInputs | None = None
    opaque: dict[str, OpaqueLeaf] = field(default_factory=dict)
    builtins: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    specialise_numbers: bool = False
    followed: set[str] = field(default_factory=set)


def run_forward(forward: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call ``forward``. The frame of this function marks where the user's frames begin."""
    return forward(*args, **kwargs)


FORWARD_CODE: CodeType = run_forward.__code__


class ModelTracer(torch.fx.Tracer):
    """Captures a model's ``forward``; see ``fxq.tracing.trace`` for what it promises.

    After an attempt, successful or not: ``failure_stack`` holds the paths of the modules that were running when it
    failed, outermost first; ``leaves`` the opaque modules that the graph calls; ``notes`` remarks for the record.
    """

    def __init__(self, settings: TraceSettings | None = None) -> None:
        super().__init__(autowrap_functions=(*CONSTRUCTORS, *SEQUENCE_FUNCTIONS), param_shapes_constant=True)
        self._autowrap_search += [torch, torch.nn.utils.rnn]
        self.settings = settings or TraceSettings()
        self.arguments = Arguments()
        self.failure_stack: tuple[str, ...] = ()
        self.leaves: dict[str, OpaqueLeaf] = {}
        self.notes: list[str] = []
        self._failure: BaseException | None = None
        self._path = ""
        self._builtins = BuiltinPatches()
        self._state_names: dict[int, str] = {}
        self._mutated: dict[int, Node] = {}
        self._constants: dict[Node, Tensor] = {}
        self._probe: Probe | None = None
        self._autocast = autocast_state()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> Graph:
        """Capture ``root``. Every patch of torch and of user modules is undone on return, also after an error."""
        named = [*root.named_buffers(), *root.named_parameters()]
        self._state_names = {id(tensor): name for name, tensor in reversed(named)}
        with ExitStack() as stack:
            stack.callback(self._builtins.revert)
            stack.enter_context(autograd_functions_refused())
            stack.enter_context(torch_functions_replaced(self._record_random))
            stack.enter_context(tensor_methods_recorded())
            stack.enter_context(sequences_made_unchecked())
            for namespace, name in self.settings.builtins:
                self._builtins.apply(namespace, name)
            graph = super().trace(root)
        for part in reversed(self.arguments.parts):
            if not part.users:
                graph.erase_node(part)
        graph.output_node().type = None
        for node in graph.nodes:
            if id(node.target) in self._autowrap_function_ids:
                node.meta.pop("is_wrapped", None)  # this class knows them; generated code need not mark them
        return graph

    # ---- arguments -------------------------------------------------------------------------------------------------

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: dict[str, Any] | tuple[Any, ...] | None = None
    ) -> tuple[Any, list[Any]]:
        """Create the placeholders; return the function to run and its arguments."""
        if isinstance(self.root, _CodeOnlyModule):
            return self._args_for_generated_code(root_fn)
        self._builtins.apply(user_globals(self.root), "isinstance")
        signature = inspect.signature(self.root.forward)
        self.arguments = arguments_for(
            signature, self.settings.inputs, self.settings.specialise_numbers, self._placeholder
        )
        if self.settings.inputs is not None:
            self._probe = Probe(self.root, self.arguments.examples)
        return run_forward, [self.root.forward, self.arguments.args, self.arguments.kwargs]

    def _args_for_generated_code(self, root_fn: Any) -> tuple[Any, list[Any]]:
        """A pickled graph comes back as code: every argument is traced, every builtin in it is a node."""
        for name in RECORDED_BUILTINS:
            self._builtins.apply(root_fn.__globals__, name)
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        proxies: dict[str, Any] = {}
        for parameter in parameters:
            default = () if parameter.default is inspect.Parameter.empty else (parameter.default,)
            proxies[parameter.name] = self._placeholder(placeholder_target(parameter), default)
        # the code object keeps its variables in this order: named ones, then *args, then **kwargs
        ordered = sorted(parameters, key=lambda p: (p.kind in kinds, p.kind))
        if any(p.kind in kinds for p in parameters):
            root_fn = _patch_function(root_fn, 1 + len(parameters))
        return run_forward, [root_fn, [self.root, *(proxies[p.name] for p in ordered)], {}]

    def _placeholder(self, target: str, default: tuple[Any, ...]) -> Proxy:
        return self.create_proxy("placeholder", target, default, {})

    # ---- modules and their state -----------------------------------------------------------------------------------

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the graph calls ``m``; the reason is kept in ``leaves`` where it is not one of torch.nn's."""
        known = self.settings.opaque.get(module_qualified_name)
        if known is not None:
            self.leaves[module_qualified_name] = known
            return True
        decision = decide_leaf(m)
        if decision.reason is not None:
            source = line_of_forward(m).short
            leaf = OpaqueLeaf(module_qualified_name, type(m).__name__, decision.reason, source)
            self.leaves[module_qualified_name] = leaf
        return decision.leaf

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call of a leaf; run the ``forward`` of any other module, without hooks, on the traced values."""
        path = self.path_of_module(m)
        calls = self.num_calls.get(path, 0)
        self.num_calls[path] = calls + 1
        key = f"{path}@{calls}" if calls else path
        outer, outer_scope = self._path, (self.scope.module_path, self.scope.module_type)
        self._path = path
        self.scope.module_path, self.scope.module_type = path, type(m)
        self.module_stack[key] = (path, type(m))
        try:
            if self.is_leaf_module(m, path):
                return self.create_proxy("call_module", path, args, kwargs)
            self._builtins.apply(user_globals(m), "isinstance")
            return m.forward(*args, **kwargs)
        except Exception as error:
            if error is not self._failure:
                self._failure = error
                self.failure_stack = tuple(name for name, _ in self.module_stack.values())
            raise
        finally:
            self.module_stack.pop(key)
            self._path = outer
            self.scope.module_path, self.scope.module_type = outer_scope

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Proxy]) -> Any:
        """Return a traced value for a parameter or a buffer, so that an operation on it is a node."""
        name = self._state_names.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy(
                "get_attr", name, (), {}, proxy_factory_fn=lambda node: StateProxy(node, self, attr_val)
            )
        return parameter_proxy_cache[name]

    # ---- nodes -----------------------------------------------------------------------------------------------------

    def proxy(self, node: Node) -> Proxy:
        """Return the traced value of ``node``."""
        return ValueProxy(node, self)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
    ) -> Node:
        """Add a node, with the user's line and the module that it comes from in its ``meta``."""
        if kind == "call_method" and target in _TO_PYTHON:
            raise UntraceableError(f"a tensor is converted to {_TO_PYTHON[target]}, where a graph cannot follow")
        if autocast_state() != self._autocast:
            raise UntraceableError("autocast is switched within forward, which a graph cannot express")
        if is_in_place(kind, target) and args and isinstance(args[0], Node) and args[0] in self._constants:
            args = (self._fresh_constant(args[0]), *args[1:])
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta[SOURCE_KEY] = self._source(kind)
        node.meta[MODULE_KEY] = self._path
        return node

    def create_arg(self, a: Any) -> Any:
        """Turn ``a`` into what a node can hold."""
        if isinstance(a, Proxy):
            return a.node
        if isinstance(a, Tensor):
            return self._tensor_arg(a)
        if isinstance(a, type):
            return super().create_arg(original_type(a))
        if hasattr(type(a), "__fx_create_arg__"):  # torch.fx asks too late, where the value is a tuple as well
            return a.__fx_create_arg__(self)
        if isinstance(a, dict) and hasattr(a, "__dataclass_fields__"):
            return self._dict_dataclass_arg(a)
        if type(a) is OrderedDict:  # torch.fx would make a dict of it
            pairs = [(key, self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (pairs,), {})
        return super().create_arg(a)

    def _dict_dataclass_arg(self, output: Any) -> Node:
        """A dataclass that is a dict too keeps its type: its attributes are what its users read."""
        names = [entry.name for entry in dataclasses.fields(output) if entry.init]
        given = {name: getattr(output, name) for name in names if getattr(output, name) is not None}
        return self.create_node("call_function", type(output), (), {k: self.create_arg(v) for k, v in given.items()})

    def _tensor_arg(self, tensor: Tensor) -> Any:
        if id(tensor) in self._mutated:
            return self._mutated[id(tensor)]
        node: Any = super().create_arg(tensor)
        if str(node.target).startswith("_tensor_constant"):
            self._constants[node] = tensor
        return node

    def _fresh_constant(self, constant: Node) -> Node:
        """A tensor that forward makes and then changes in place must be made anew by every call of the graph."""
        tensor = self._constants[constant]
        if id(tensor) not in self._mutated:
            self._mutated[id(tensor)] = self.create_node("call_method", "clone", (constant,), {})
        return self._mutated[id(tensor)]

    def _record_random(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        probing = self._probe is not None and self._probe.active
        if probing or not is_running(FORWARD_CODE):
            return function(*args, **kwargs)
        return self.create_proxy("call_function", function, args, kwargs)

    def _source(self, kind: str) -> str:
        if kind not in ("placeholder", "output"):
            frame = user_frame(FORWARD_CODE)
            if frame is not None:
                return line_of_frame(frame).short
        return line_of_forward(self.root).short

    # ---- control flow ----------------------------------------------------------------------------------------------

    def to_bool(self, obj: Proxy) -> bool:
        """Answer a test: a check that only raises is recorded, a number of dimensions is looked up, others raise."""
        frame = sys._getframe(2)
        if is_user_code(frame.f_code):
            guard = guard_at(frame)
            if guard is not None:
                condition: Any = obj if guard.expected else operator.eq(obj, False)
                self.create_proxy("call_function", torch._assert, (condition, guard.text), {})
                return guard.expected
            if tests_inside_call(frame):
                name = next((n for n in ("max", "min") if n in frame.f_code.co_names and n not in frame.f_globals), "")
                if name:
                    raise BuiltinNeededError(name, frame)
        if self._probe is not None and (is_rank_fact(obj.node) or is_size(obj.node)):
            value = self._probe.value(obj.node)
            if value is not UNKNOWN:
                return bool(value) if is_rank_fact(obj.node) else self._follow(obj, bool(value))
        raise UntraceableError("control flow depends on a value that is only known when the model runs")

    def _follow(self, condition: Proxy, outcome: bool) -> bool:
        """Go the way that a condition on sizes takes on the example, where that is wanted, and record a check of it."""
        if self._path not in self.settings.followed:
            raise SizeBranchError("control flow depends on sizes, which are only known when the model runs")
        return self._checked(condition, outcome)

    def _checked(self, condition: Proxy, outcome: bool) -> bool:
        """Record a check that ``condition`` comes out as on the example, and a note."""
        line = self._source("call_function")
        text = f"{line} went another way on the sizes of example_inputs: compile the model for inputs of these sizes"
        self.create_proxy(
            "call_function", torch._assert, (condition if outcome else operator.eq(condition, False), text), {}
        )
        note = f"{line} branches on sizes: the graph holds for those that take the example's way, and checks it"
        if note not in self.notes:
            self.notes.append(note)
        return outcome

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """Iterate over a shape, parts of constant number, or a module's outputs, whose lengths do not vary."""
        node = obj.node
        if self._probe is not None and (is_shape(node) or is_fixed_parts(node) or node.op == "call_module"):
            value = self._probe.value(node)
            if isinstance(value, (tuple, list)):
                return iter([obj[index] for index in range(len(value))])  # type: ignore[index]
        parts = self._parts_of_size(obj)
        if parts is not None:
            return iter([obj[index] for index in range(parts)])  # type: ignore[index]
        raise UntraceableError("a value that is only known when the model runs is iterated over")

    def integer(self, obj: Proxy) -> int:
        """Answer a use as a Python integer: in the root, which cannot be opaque, with a size of the example, checked.

        The size of a batch is no such size: any goes with every graph.
        """
        node = obj.node
        if self._probe is not None and not self._path and is_size(node) and not is_batch_size(node):
            value = self._probe.value(node)
            if isinstance(value, int):
                condition: Any = operator.eq(obj, value)
                self._checked(condition, True)
                return value
        raise UntraceableError(
            "a value that is only known when the model runs is used as a Python integer (range, index)"
        )

    def _parts_of_size(self, obj: Proxy) -> int | None:
        """How many parts a split of a dimension behind the batch has on the example; the size is checked by the graph.

        As with branches on sizes, a module that hides no more than one layer is rather left opaque.
        """
        dim, source = split_dimension(obj.node), obj.node.args[0] if obj.node.args else None
        if dim is None or self._probe is None or not isinstance(source, Node):
            return None
        whole, parts = self._probe.value(source), self._probe.value(obj.node)
        if not isinstance(whole, Tensor) or not isinstance(parts, (tuple, list)) or dim % whole.dim() == 0:
            return None
        size = self.proxy(source).size(dim)
        condition: Any = operator.eq(size, whole.shape[dim])
        if self._path:
            self._follow(condition, True)
        else:
            self._checked(condition, True)  # the root cannot be opaque
        return len(parts)

    def proxy_is_instance(self, proxy: ValueProxy, classes: Any) -> bool:
        """``isinstance`` for the value that ``proxy`` stands for."""
        if isinstance(proxy, StateProxy):
            return isinstance(proxy._tensor, classes)
        if self._probe is not None:
            value = self._probe.value(proxy.node)
            if value is not UNKNOWN:
                return isinstance(value, classes)
        return isinstance(sample_of(proxy.node), classes)
