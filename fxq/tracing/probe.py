"""What a traced value will be, found by running the graph so far on the example, on fake tensors if that will do.

Only asked for facts that do not depend on the data or on sizes: how many dimensions a tensor has, its dtype, how many
outputs a module returns.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx._symbolic_trace import _maybe_revert_all_patches
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

UNKNOWN = object()


class Probe:
    """Evaluates nodes of an unfinished graph.

    Args:
        root: the model that is traced; its tensors are read and not changed.
        examples: what each placeholder stands for, by name.

    ``active`` is true while modules run on examples: what they do then is not to be recorded.
    """

    def __init__(self, root: nn.Module, examples: dict[str, Any]) -> None:
        self.active = False
        self._evaluators = (_FakeEvaluator(root, examples), _RealEvaluator(root, examples))

    def value(self, node: Node) -> Any:
        """Return the value of ``node``, or ``UNKNOWN`` where it cannot be had.

        Fake tensors cost nothing; a module that looks at its data needs real ones, and runs as a copy.
        """
        with _maybe_revert_all_patches(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.active = True
            try:
                return self._first_answer(node)
            finally:
                self.active = False

    def _first_answer(self, node: Node) -> Any:
        for evaluator in self._evaluators:
            try:
                return evaluator.value(node)
            except Exception:  # whatever a user's module raises means the same here: not known
                continue
        return UNKNOWN


class _Evaluator:
    def __init__(self, root: nn.Module, examples: dict[str, Any]) -> None:
        self._root = root
        self._examples = examples
        self._values: dict[Node, Any] = {}

    def value(self, node: Node) -> Any:
        wanted = _ancestors(node)
        with self.context():
            for step in node.graph.nodes:
                if step in wanted and step not in self._values:
                    self._values[step] = self._run(step)
        return self._values[node]

    def context(self) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def tensor(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError

    def _run(self, node: Node) -> Any:
        args = map_arg(node.args, lambda n: self._values[n])
        kwargs = map_arg(node.kwargs, lambda n: self._values[n])
        if node.op == "placeholder":
            return tree_map_only(Tensor, self.tensor, self._examples[str(node.target)])
        if node.op == "get_attr":
            value: Any = self._root
            for atom in str(node.target).split("."):
                value = getattr(value, atom)
            return tree_map_only(Tensor, self.tensor, value)
        if node.op == "call_module":
            return self.call(self._root.get_submodule(str(node.target)), args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        target: Any = node.target
        return target(*args, **kwargs)


class _FakeEvaluator(_Evaluator):
    """Shapes and dtypes only. Modules run on fake parameters and buffers: the real ones would be written to."""

    _mode: Any = None

    def context(self) -> AbstractContextManager[Any]:
        if self._mode is None:
            self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        mode: AbstractContextManager[Any] = self._mode
        return mode

    def tensor(self, value: Tensor) -> Tensor:
        fake: Tensor = self._mode.from_tensor(value)
        return fake

    def call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        fakes = {name: self.tensor(value) for name, value in state.items()}
        return torch.func.functional_call(module, fakes, args, kwargs)


class _RealEvaluator(_Evaluator):
    """The example itself, on copies of tensors and of modules."""

    def context(self) -> AbstractContextManager[Any]:
        return torch.random.fork_rng(devices=[])

    def tensor(self, value: Tensor) -> Tensor:
        return value.detach().clone()

    def call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return copy.deepcopy(module)(*args, **kwargs)


def _ancestors(node: Node) -> set[Node]:
    found = {node}
    stack = [node]
    while stack:
        for parent in stack.pop().all_input_nodes:
            if parent not in found:
                found.add(parent)
                stack.append(parent)
    return found
