"""The modules of a graph module as JSON: children before parents, each once, however many paths lead to it.

    {"type": "torch.nn.Conv2d", "settings": {...}, "training": false,
     "parameters": {"weight": 0, "bias": null}, "buffers": {"mask": [1, true]}, "children": {"0": 3}}

Children are indices of earlier modules; parameters and buffers are indices into the list of values (a buffer with
whether it is persistent), so that tied weights stay tied. A value is ``{"tensor": 0, "parameter": true,
"requires_grad": true}``, with an index into the list of tensors: two values on the same memory share one tensor. The
last module is the root, of the type "graph".
"""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from fxq.errors import InputError, nearest
from fxq.storage.checks import MAX_DEPTH
from fxq.storage.codec import Codec
from fxq.storage.fxq_layers import fxq_codecs
from fxq.storage.observers import observer_codecs
from fxq.storage.qat_layers import qat_codecs
from fxq.storage.tensors import TensorWriter
from fxq.storage.torch_layers import torch_codecs
from fxq.storage.transformers import transformer_codecs
from fxq.storage.weight_only import weight_only_codecs

#: Modules that hold others and compute nothing of their own.
CONTAINERS: Final[dict[str, type[nn.Module]]] = {
    "torch.nn.Module": nn.Module,
    "torch.nn.Sequential": nn.Sequential,
    "torch.nn.ModuleList": nn.ModuleList,
    "torch.nn.ModuleDict": nn.ModuleDict,
}
ROOT: Final = "graph"
_HOOKS: Final = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


@functools.cache
def codecs() -> dict[str, Codec]:
    """Return every type of module that a file may hold, beside the containers, by name."""
    own = (fxq_codecs(), weight_only_codecs(), observer_codecs(), qat_codecs())
    return {**torch_codecs(), **transformer_codecs(), **{name: codec for part in own for name, codec in part.items()}}


@functools.cache
def _names() -> dict[type[nn.Module], str]:
    found: dict[type[nn.Module], str] = {codec.cls: name for name, codec in codecs().items()}
    return {**found, **{cls: name for name, cls in CONTAINERS.items()}}


class TreeWriter:
    """Describes the modules below a graph module; ``modules`` and ``values`` are the lists for the file.

    Raises:
        InputError: a module is of a type that no file holds, or carries what no file holds; names its path.
    """

    def __init__(self, root: fx.GraphModule, tensors: TensorWriter) -> None:
        self.modules: list[dict[str, Any]] = []
        self.values: list[dict[str, Any]] = []
        self._tensors = tensors
        self._seen: dict[int, int] = {}
        self._value_index: dict[int, int] = {}
        self._memory: dict[Any, int] = {}
        self._add(root, "", ROOT)

    def _add(self, module: nn.Module, path: str, kind: str | None = None) -> int:
        """Add a module with all below it and return its index."""
        known = self._seen.get(id(module))
        if known is not None:
            return known
        if path.count(".") >= MAX_DEPTH:
            raise InputError(f"modules are nested more than {MAX_DEPTH} deep", where=path)
        name = kind or _names().get(type(module))
        _check(module, name, path)
        description: dict[str, Any] = {"type": name, "training": module.training}
        if name in codecs():
            description["settings"] = codecs()[name].read(module)
        prefix = f"{path}." if path else ""
        children = {key: self._add(child, prefix + key) for key, child in _present(module._modules)}
        parameters = {key: None if p is None else self._value(p, prefix + key) for key, p in module._parameters.items()}
        buffers = {
            key: [None if b is None else self._value(b, prefix + key), key not in module._non_persistent_buffers_set]
            for key, b in module._buffers.items()
        }
        parts = {"children": children, "parameters": parameters, "buffers": buffers}
        self.modules.append(description | {key: part for key, part in parts.items() if part})
        self._seen[id(module)] = len(self.modules) - 1
        return len(self.modules) - 1

    def _value(self, tensor: Tensor, path: str) -> int:
        known = self._value_index.get(id(tensor))
        if known is not None:
            return known
        memory = _memory(tensor)
        if memory is None or memory not in self._memory:
            index = self._tensors.add(tensor, path)
            if memory is not None:
                self._memory[memory] = index
        else:
            index = self._memory[memory]
        parameter = isinstance(tensor, nn.Parameter)
        self.values.append({"tensor": index, "parameter": parameter, "requires_grad": tensor.requires_grad})
        self._value_index[id(tensor)] = len(self.values) - 1
        return len(self.values) - 1


def _present(modules: dict[str, nn.Module | None]) -> list[tuple[str, nn.Module]]:
    return [(key, child) for key, child in modules.items() if child is not None]


def _memory(tensor: Tensor) -> Any:
    """What two tensors on the same memory, seen alike, have in common; None where that cannot be told."""
    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device)


def _check(module: nn.Module, name: str | None, path: str) -> None:
    """Raise InputError where ``module``, of the type that a file calls ``name``, cannot be saved."""
    where = f"module `{path}`" if path else "the graph module itself"
    if parametrize.is_parametrized(module):
        raise InputError("a module carries parametrisations, which are code", where=where,
                         fix="torch.nn.utils.parametrize.remove_parametrizations makes plain weights")  # fmt: skip
    if name is None:
        cls = type(module)
        raise InputError(
            f"a file cannot hold a module of the type {cls.__module__}.{cls.__qualname__}", where=where,
            why="fxq.load runs no code but its own and torch's, so it could not call this one",
            fix="compile the model, which turns layers that only add a constructor into torch's own; or rewrite this "
            "one with layers of torch.nn, so that it can be traced; or keep the model with torch.save. "
            "Of the types that a file holds, " + nearest(cls.__name__, [n.rpartition(".")[2] for n in codecs()]),
        )  # fmt: skip
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        raise InputError("a module carries hooks, which are code", where=where, fix="remove them before saving")
    if "forward" in module.__dict__:
        raise InputError("a module's forward was replaced", where=where, fix="remove the replacement before saving")
