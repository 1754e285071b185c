"""Example inputs, in the forms in which people have them, brought to one form: the arguments of ``forward``."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxq.errors import InputError

_FORMS = (
    "give a tensor, a tuple or list of positional arguments, a dict of keyword arguments, or a fxq.tracing.ModelInputs"
)


@dataclass(frozen=True)
class ModelInputs:
    """The arguments of one call of a model: ``model(*inputs.args, **inputs.kwargs)``."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def normalise_inputs(model: nn.Module, example_inputs: object) -> ModelInputs | None:
    """Return ``example_inputs`` as the arguments of ``model.forward``; tensors are neither copied nor moved.

    A tensor is the one positional argument; the elements of a tuple or list are the positional arguments; a dict is
    keyword arguments where its keys bind to the signature of ``forward``, else the one positional argument. ``None``
    stays ``None``.

    Raises:
        InputError: the arguments do not bind to the signature of ``forward``, or are of another type.
    """
    if example_inputs is None:
        return None
    signature = inspect.signature(model.forward)
    if isinstance(example_inputs, Mapping):
        return _from_mapping(model, signature, dict(example_inputs), example_inputs)
    inputs = _as_arguments(model, example_inputs)
    if not _binds(signature, inputs):
        raise _unbound(model, signature, inputs)
    return inputs


def clone_inputs(inputs: ModelInputs) -> ModelInputs:
    """Return ``inputs`` with every tensor detached and cloned, so that in-place operations leave the caller's alone.

    Tuples, lists, dicts, named tuples and dataclasses are rebuilt; a tensor that occurs twice is cloned once.
    """
    memo: dict[int, Any] = {}
    args = tuple(_clone(value, memo) for value in inputs.args)
    return ModelInputs(args, {name: _clone(value, memo) for name, value in inputs.kwargs.items()})


def _as_arguments(model: nn.Module, example_inputs: object) -> ModelInputs:
    if isinstance(example_inputs, ModelInputs):
        return example_inputs
    if isinstance(example_inputs, Tensor):
        return ModelInputs((example_inputs,))
    if isinstance(example_inputs, (tuple, list)):
        return ModelInputs(tuple(example_inputs))
    raise InputError(
        f"example_inputs is a {type(example_inputs).__name__}, which fxq cannot pass to a model",
        where=f"{type(model).__name__}.forward{inspect.signature(model.forward)}",
        fix=_FORMS,
    )


def _from_mapping(
    model: nn.Module, signature: inspect.Signature, values: dict[Any, Any], original: object
) -> ModelInputs:
    if all(isinstance(key, str) for key in values):
        keywords = ModelInputs((), values)
        if _binds(signature, keywords):
            return keywords
    single = ModelInputs((original,))
    if _takes_a_mapping(signature, values) and _binds(signature, single):
        return single
    raise _unbound(model, signature, ModelInputs((), {str(key): value for key, value in values.items()}))


def _takes_a_mapping(signature: inspect.Signature, values: dict[Any, Any]) -> bool:
    """Whether the first parameter may be a dict: keys that name parameters, or a Tensor annotation, say no."""
    if any(key in signature.parameters for key in values):
        return False
    first = next(iter(signature.parameters.values()), None)
    return first is not None and first.annotation not in (Tensor, "Tensor", "torch.Tensor")


def _binds(signature: inspect.Signature, inputs: ModelInputs) -> bool:
    try:
        signature.bind(*inputs.args, **inputs.kwargs)
    except TypeError:
        return False
    return True


def _unbound(model: nn.Module, signature: inspect.Signature, inputs: ModelInputs) -> InputError:
    given = [_describe(value) for value in inputs.args]
    given += [f"{name}={_describe(value)}" for name, value in inputs.kwargs.items()]
    try:
        signature.bind(*inputs.args, **inputs.kwargs)
        why = None
    except TypeError as error:
        why = str(error)
    return InputError(
        f"example_inputs do not fit the model: given ({', '.join(given)})",
        where=f"{type(model).__name__}.forward{signature}",
        why=why,
        fix=f"{_FORMS}; an argument that is itself a list is written ([a, b],)",
    )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _clone(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        memo[id(value)] = value.detach().clone()
        return memo[id(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_clone(item, memo) for item in value))
    if type(value) in (tuple, list, set, torch.Size):
        return type(value)(_clone(item, memo) for item in value)
    if isinstance(value, dict):
        return _clone_mapping(value, memo)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for entry in dataclasses.fields(value):
            object.__setattr__(twin, entry.name, _clone(getattr(value, entry.name), memo))
        return twin
    return value


def _clone_mapping(value: dict[Any, Any], memo: dict[int, Any]) -> dict[Any, Any]:
    twin = copy.copy(value)
    for key, item in value.items():
        twin[key] = _clone(item, memo)
    return twin
