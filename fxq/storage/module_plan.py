"""From the JSON of a module tree to modules: checked and built without values first, filled with values afterwards.

``plan_modules`` allocates nothing that depends on what the file claims: every parameter and buffer lies on torch's meta
device until all of the file has been checked. ``fill`` then puts the tensors in their places.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from fxq.errors import StorageError, TargetError
from fxq.storage.checks import MAX_DEPTH, array, boolean, fields, integer, mapping, refuse, short
from fxq.storage.codec import Codec
from fxq.storage.module_tree import CONTAINERS, ROOT, codecs
from fxq.storage.names import is_attribute
from fxq.storage.tensors import TensorPlan

#: Modules are shared in real models, but not so often: a walk over all names must end.
_MAX_PATHS: Final = 100_000
_NO_CODEC: Final = Codec(nn.Module, lambda m: {}, lambda s, w: nn.Module())


@dataclass(frozen=True)
class Value:
    """A parameter or a plain tensor: the index of its tensor, and how it is held."""

    tensor: int
    parameter: bool
    requires_grad: bool


@dataclass
class PlannedModule:
    """A module without values.

    Attributes:
        children: its children, by name.
        depth: how many modules stand on the longest way down.
        paths: how many ways down there are: a walk over all names takes as long.
        owned: whether a layer has it as one of the children that it makes itself.
        values: the index of the value of each parameter and buffer that is not None.
    """

    module: nn.Module
    codec: Codec
    where: str
    children: dict[str, PlannedModule]
    depth: int
    paths: int
    owned: bool = False
    values: dict[str, int] = field(default_factory=dict)

    @property
    def is_container(self) -> bool:
        """Whether it holds others and computes nothing."""
        return self.codec is _NO_CODEC


def plan_values(values: Any, tensors: Sequence[TensorPlan]) -> list[Value]:
    """Check the list of values against the tensors.

    Raises:
        StorageError: a value has no tensor, or cannot be differentiated although it says so; a tensor has no value.
    """
    found = []
    for i, value in enumerate(array(values, "the values")):
        where = f"value {i}"
        known = fields(value, where, "tensor parameter requires_grad")
        index = integer(known["tensor"], where, 0, len(tensors) - 1)
        grad = boolean(known["requires_grad"], where)
        if grad and not (tensors[index].dtype.is_floating_point or tensors[index].dtype.is_complex):
            refuse("integers require no gradients", where)
        found.append(Value(index, boolean(known["parameter"], where), grad))
    if {value.tensor for value in found} != set(range(len(tensors))):
        refuse("a tensor is no module's parameter or buffer", "the values")
    return found


def plan_modules(modules: Any, values: Sequence[Value], tensors: Sequence[TensorPlan]) -> list[PlannedModule]:
    """Build every module of the file, without values; the last is the root.

    Raises:
        StorageError: a type is unknown, settings make no sense, or the tensors do not fit them.
        TargetError: an int8 module needs a backend that this machine cannot run.
    """
    planned: list[PlannedModule] = []
    descriptions = array(modules, "the modules")
    for i, description in enumerate(descriptions):
        planned.append(_plan(description, planned, values, tensors, is_root=i == len(descriptions) - 1))
    if not planned:
        refuse("there is no root module", "the modules")
    used = {index for plan in planned for index in plan.values.values()}
    if used != set(range(len(values))):
        refuse("a value is no module's parameter or buffer", "the values")
    return planned


def fill(planned: Sequence[PlannedModule], values: Sequence[Value], tensors: Sequence[Tensor]) -> None:
    """Put the tensors into the modules.

    Raises:
        StorageError: the values make no sense in their module: scales that are not finite.
    """
    place(planned, values, tensors)
    for plan in planned:
        flaw = plan.codec.flaw(plan.module)
        if flaw is not None:
            refuse(flaw, plan.where)


def place(planned: Sequence[PlannedModule], values: Sequence[Value], tensors: Sequence[Tensor]) -> None:
    """Put the tensors into the modules, whatever their values."""
    made = [_made(value, tensors[value.tensor]) for value in values]
    for plan in planned:
        for name, index in plan.values.items():
            if name in plan.module._buffers:
                plan.module._buffers[name] = made[index]
            else:
                setattr(plan.module, name, made[index])  # recurrent layers keep a list of their weights up to date


def _made(value: Value, tensor: Tensor) -> Tensor:
    if value.parameter:
        return nn.Parameter(tensor, value.requires_grad)
    return tensor.detach().requires_grad_(value.requires_grad)


def _plan(
    description: Any, earlier: Sequence[PlannedModule], values: Sequence[Value], tensors: Sequence[TensorPlan], *,
    is_root: bool,
) -> PlannedModule:  # fmt: skip
    where = f"module {len(earlier)}"
    known = fields(description, where, "type training", "settings children parameters buffers")
    kind = known["type"]
    where = f"{where}, {short(kind)}"
    if (kind == ROOT) != is_root:
        refuse("the last module, and no other, is the root", where)
    children = {k: earlier[_child(v, earlier, where)] for k, v in mapping(known.get("children", {}), where).items()}
    parameters = _slots(known.get("parameters", {}), values, where)
    persistent: dict[str, bool] = {}
    buffers = _slots(_without_flags(known.get("buffers", {}), persistent, where), values, where)
    if any(i is not None and not values[i].parameter for i in parameters.values()):
        refuse("a parameter's value is no parameter", where)
    if set(parameters) & set(buffers) or set(children) & (set(parameters) | set(buffers)):
        refuse("a name stands twice", where)
    if is_root or (isinstance(kind, str) and kind in CONTAINERS):
        plan = _container(kind, known, children, where)
        _fill_container(plan.module, [*children, *parameters, *buffers], parameters, buffers, where)
    else:
        plan = _layer(kind, known, children, where)
        _check_slots(plan, parameters, buffers, values, tensors)
    plan.module.training = boolean(known["training"], where)
    _attach(plan)
    plan.module._non_persistent_buffers_set = {name for name, kept in persistent.items() if not kept}
    plan.values = {name: i for name, i in (*parameters.items(), *buffers.items()) if i is not None}
    return plan


def _planned(module: nn.Module, codec: Codec, children: dict[str, PlannedModule], where: str) -> PlannedModule:
    depth = 1 + max((child.depth for child in children.values()), default=0)
    paths = 1 + sum(child.paths for child in children.values())
    if depth > MAX_DEPTH or paths > _MAX_PATHS:
        refuse(f"modules are nested more than {MAX_DEPTH} deep, or have more than {_MAX_PATHS} names", where)
    return PlannedModule(module, codec, where, children, depth, paths)


def _container(kind: str, known: dict[str, Any], children: dict[str, PlannedModule], where: str) -> PlannedModule:
    if "settings" in known:
        refuse("a container has no settings", where)
    return _planned(CONTAINERS.get(kind, nn.Module)(), _NO_CODEC, children, where)


def _child(value: Any, earlier: Sequence[PlannedModule], where: str) -> int:
    return integer(value, where, 0, len(earlier) - 1)


def _slots(value: Any, values: Sequence[Value], where: str) -> dict[str, int | None]:
    slots = mapping(value, where)
    return {k: None if v is None else integer(v, where, 0, len(values) - 1) for k, v in slots.items()}


def _without_flags(value: Any, persistent: dict[str, bool], where: str) -> dict[str, Any]:
    """Split the buffers' ``[index, persistent]`` pairs."""
    found = {}
    for name, pair in mapping(value, where).items():
        if len(array(pair, where)) != 2:
            refuse("a buffer is a value and whether it is persistent", where)
        found[name] = pair[0]
        persistent[name] = boolean(pair[1], where)
    return found


def _fill_container(
    module: nn.Module, names: list[str], parameters: dict[str, Any], buffers: dict[str, Any], where: str
) -> None:
    for name in names:
        if not is_attribute(name):
            refuse(f"the name {name[:60]!r} cannot be an attribute", where)
    module._parameters = dict.fromkeys(parameters)
    module._buffers = dict.fromkeys(buffers)


def _layer(kind: Any, known: dict[str, Any], children: dict[str, PlannedModule], where: str) -> PlannedModule:
    codec = codecs().get(kind) if isinstance(kind, str) else None
    if codec is None:
        refuse(f"the type of module {short(kind)} is not in the list of those that fxq runs", where)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file's settings are as they were; whoever saved them was warned
            module = codec.build(mapping(known.get("settings"), where), where)
    except (StorageError, TargetError):
        raise
    except Exception as error:  # constructors raise whatever they like about settings that make no sense
        refuse("the settings of a module make no sense", where, error)
    return _planned(module, codec, children, where)


def _check_slots(
    plan: PlannedModule, parameters: dict[str, Any], buffers: dict[str, Any], values: Sequence[Value],
    tensors: Sequence[TensorPlan],
) -> None:  # fmt: skip
    """Check names, shapes and dtypes of a layer's tensors against those that its settings give it."""
    module = plan.module
    for found, wanted in ((parameters, module._parameters), (buffers, module._buffers)):
        if set(found) != set(wanted):
            differing = sorted(set(found) ^ set(wanted))[0]
            refuse(f"the layer and the file do not agree about {differing[:60]!r}", plan.where)
        for name, tensor in wanted.items():
            index = found[name]
            if (index is None) != (tensor is None):
                refuse(f"{name!r} is there in the file or in the layer, but not in both", plan.where)
            if index is not None and tensor is not None:
                _check_tensor(plan, name, tensor, tensors[values[index].tensor])


def _check_tensor(plan: PlannedModule, name: str, wanted: Tensor, found: TensorPlan) -> None:
    if name not in plan.codec.free and found.shape != tuple(wanted.shape):
        refuse(f"{name!r} has the shape {found.shape}, its layer's settings say {tuple(wanted.shape)}", plan.where)
    real = wanted.dtype.is_floating_point or wanted.dtype.is_complex
    varies = real and not plan.codec.exact and (found.dtype.is_floating_point or found.dtype.is_complex)
    if found.dtype != wanted.dtype and not varies:
        refuse(f"{name!r} is {found.dtype}, its layer's settings say {wanted.dtype}", plan.where)


def _attach(plan: PlannedModule) -> None:
    """Give a module its children; a layer's must be just like those that it makes itself."""
    module = plan.module
    if plan.is_container:
        module._modules = {name: child.module for name, child in plan.children.items()}
        return
    own = {name: child for name, child in module._modules.items() if child is not None}
    if {n: type(m) for n, m in own.items()} != {n: type(c.module) for n, c in plan.children.items()}:
        refuse("the layer has other children", plan.where)
    for name, child in plan.children.items():
        _own(child)
        if _shapes(own[name]) != _shapes(child.module):
            refuse(f"the child {name!r} has other shapes than the layer makes", plan.where)
        module._modules[name] = child.module


def _own(plan: PlannedModule) -> None:
    """Note that a layer has made this module with all in it: no more is ever made than what the file lists."""
    if plan.owned:
        refuse("two layers have one child in common", plan.where)
    plan.owned = True
    for child in plan.children.values() if plan.is_container else ():
        _own(child)


def _shapes(module: nn.Module) -> dict[str, Any]:
    state = module.state_dict(keep_vars=True)  # with the extra state of modules that have some
    return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
