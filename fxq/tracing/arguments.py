"""The placeholders of a graph, and what ``forward`` is called with while it is traced."""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node, Proxy
from torch.nn.utils.rnn import PackedSequence

from fxq.tracing.inputs import ModelInputs
from fxq.tracing.record import SpecialisedArgument

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, enum.Enum)
_NAMES = inspect.Parameter
MakePlaceholder = Callable[[str, tuple[Any, ...]], Proxy]


@dataclass
class Arguments:
    """The call of ``forward`` on traced values, and what was learnt on the way.

    Args:
        args: positional arguments: proxies, structures of proxies, constants.
        kwargs: keyword arguments.
        examples: the example of each placeholder by its target, for those that have one.
        specialised: the arguments that became constants.
        parts: the nodes that take structured arguments apart, in order; the unused ones may be erased.
    """

    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    examples: dict[str, Any] = field(default_factory=dict)
    specialised: list[SpecialisedArgument] = field(default_factory=list)
    parts: list[Node] = field(default_factory=list)


def arguments_for(
    signature: inspect.Signature, inputs: ModelInputs | None, specialise_numbers: bool, placeholder: MakePlaceholder
) -> Arguments:
    """Make a placeholder for each parameter of ``signature`` and return what to call ``forward`` with.

    With ``inputs``: tensors become traced values, the structure around them (tuples, dicts, dataclasses) stays
    Python's, and everything else is the constant that it is in the example or in the signature. Without: required
    parameters are traced values, those with a default are constants; numbers only if ``specialise_numbers``.
    """
    result = Arguments()
    given = None if inputs is None else signature.bind(*inputs.args, **inputs.kwargs).arguments
    has_default = False
    for name, parameter in signature.parameters.items():
        proxy = placeholder(placeholder_target(parameter), _default(parameter, has_default))
        has_default = has_default or parameter.default is not _NAMES.empty
        if given is None:
            value = _without_example(result, name, parameter, proxy, specialise_numbers)
        elif name in given:
            result.examples[placeholder_target(parameter)] = given[name]
            value = _structure(result, name, given[name], proxy)
        else:
            value = _absent(result, name, parameter)
            result.examples[placeholder_target(parameter)] = value
        # as the example's call does: decorators of forward look at what is given, and how
        if given is None or name in given:
            _pass(result, parameter, value, by_name=inputs is not None and name in inputs.kwargs)
    return result


def placeholder_target(parameter: inspect.Parameter) -> str:
    """Return the target of the placeholder for ``parameter``: its name, with the stars that torch.fx expects."""
    if parameter.kind is _NAMES.VAR_POSITIONAL:
        return f"*{parameter.name}"
    return f"**{parameter.name}" if parameter.kind is _NAMES.VAR_KEYWORD else parameter.name


def _default(parameter: inspect.Parameter, has_default: bool) -> tuple[Any, ...]:
    """Return the default that the graph's signature shows: constants only, since a graph can write no other."""
    if parameter.kind in (_NAMES.VAR_POSITIONAL, _NAMES.VAR_KEYWORD):
        return ()
    if parameter.default is _NAMES.empty:
        # a required keyword after optional ones: the generated signature has no bare *, so it needs a default
        return (None,) if has_default else ()
    return (parameter.default if _is_constant(parameter.default) else None,)


def _pass(result: Arguments, parameter: inspect.Parameter, value: Any, *, by_name: bool) -> None:
    if parameter.kind is _NAMES.VAR_POSITIONAL:
        result.args.extend(value)
    elif parameter.kind is _NAMES.VAR_KEYWORD:
        result.kwargs.update(value)
    elif parameter.kind is _NAMES.KEYWORD_ONLY or (by_name and parameter.kind is _NAMES.POSITIONAL_OR_KEYWORD):
        result.kwargs[parameter.name] = value
    else:
        result.args.append(value)


def _without_example(
    result: Arguments, name: str, parameter: inspect.Parameter, proxy: Proxy, specialise_numbers: bool
) -> Any:
    if parameter.kind in (_NAMES.VAR_POSITIONAL, _NAMES.VAR_KEYWORD):
        return _absent(result, name, parameter)
    number = isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool)
    if parameter.default is _NAMES.empty or (number and not specialise_numbers):
        return proxy
    return _absent(result, name, parameter)


def _absent(result: Arguments, name: str, parameter: inspect.Parameter) -> Any:
    if parameter.kind is _NAMES.VAR_POSITIONAL:
        return ()
    if parameter.kind is _NAMES.VAR_KEYWORD:
        return {}
    result.specialised.append(SpecialisedArgument(name, repr(parameter.default), "its default; no example gives it"))
    return parameter.default


def _structure(result: Arguments, name: str, example: Any, proxy: Proxy) -> Any:
    """Return ``example`` with a traced value in place of each tensor, taken out of ``proxy`` the way Python would.

    A packed sequence stays one value: recurrent layers take it as that, and its constructor looks at its tensors.
    """
    if isinstance(example, Tensor):
        return proxy
    if isinstance(example, dict):
        parts = {key: _item(result, f"{name}[{key!r}]", value, proxy, key) for key, value in example.items()}
        twin = copy.copy(example)
        for key, value in parts.items():
            dict.__setitem__(twin, key, value)
        return twin
    if isinstance(example, (tuple, list)) and not isinstance(example, torch.Size | PackedSequence):
        items = [_item(result, f"{name}[{index}]", value, proxy, index) for index, value in enumerate(example)]
        return type(example)(*items) if hasattr(example, "_fields") else type(example)(items)
    if dataclasses.is_dataclass(example) and not isinstance(example, type):
        return _dataclass(result, name, example, proxy)
    if _is_constant(example):
        result.specialised.append(SpecialisedArgument(name, repr(example), "its value in example_inputs"))
        return example
    return proxy


def _item(result: Arguments, name: str, example: Any, proxy: Proxy, key: Any) -> Any:
    if _is_constant(example):
        return _structure(result, name, example, proxy)
    part = proxy[key]  # type: ignore[index]
    result.parts.append(part.node)
    return _structure(result, name, example, part)


def _dataclass(result: Arguments, name: str, example: Any, proxy: Proxy) -> Any:
    twin = copy.copy(example)
    for entry in dataclasses.fields(example):
        value = getattr(example, entry.name)
        part = proxy
        if not _is_constant(value):
            part = getattr(proxy, entry.name)
            result.parts.append(part.node)
        object.__setattr__(twin, entry.name, _structure(result, f"{name}.{entry.name}", value, part))
    return twin


def _is_constant(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_constant(item) for item in value)
    if isinstance(value, dict):
        return bool(value) and all(_is_constant(item) for item in value.values())
    return isinstance(value, _PLAIN)
