"""What a graph was traced on, as JSON: shapes, dtypes and plain values, by the name of the input.

A tensor is ``{"tensor": {"dtype": "float32", "shape": [1, 3, 224, 224]}}``, on whatever device it was; the rest is as
``fxq.storage.values`` has it.
"""

from __future__ import annotations

from typing import Any

import torch

from fxq.ir.shapes import TensorSpec
from fxq.storage.checks import MAX_DEPTH, array, fields, integer, mapping, refuse, short, text
from fxq.storage.dtypes import DTYPES, dtype_name
from fxq.storage.values import decode_value, encode_value

_WHERE = "the examples"


def encode_examples(examples: dict[str, Any]) -> dict[str, Any]:
    """Return what ``gm.meta["fxq_inputs"]`` holds as JSON.

    Raises:
        InputError: a value has no JSON.
    """
    return {name: _encode(value) for name, value in examples.items()}


def decode_examples(value: Any) -> dict[str, Any]:
    """Return the same again.

    Raises:
        StorageError: ``value`` is none.
    """
    return {text(name, _WHERE): _decode(part, 0) for name, part in mapping(value, _WHERE).items()}


def on_meta(value: Any) -> Any:
    """Return an example with tensors on the meta device in the place of their shapes.

    Raises:
        StorageError: a shape is absurd.
    """
    if isinstance(value, TensorSpec):
        try:
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        except RuntimeError as error:
            return refuse("an input has an absurd shape", _WHERE, error)
    if isinstance(value, list | tuple):
        return type(value)(on_meta(v) for v in value)
    return {k: on_meta(v) for k, v in value.items()} if isinstance(value, dict) else value


def _encode(value: Any) -> Any:
    if isinstance(value, TensorSpec):
        return {"tensor": {"dtype": dtype_name(value.dtype), "shape": list(value.shape)}}
    if type(value) is list:
        return [_encode(v) for v in value]
    if type(value) is tuple:
        return {"tuple": [_encode(v) for v in value]}
    if type(value) is dict:
        return {"dict": [[encode_value(k, _WHERE), _encode(v)] for k, v in value.items()]}
    return encode_value(value, _WHERE)


def _decode(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        refuse(f"an example is nested more than {MAX_DEPTH} deep", _WHERE)
    if isinstance(value, list):
        return [_decode(v, depth + 1) for v in value]
    tag = next(iter(value)) if isinstance(value, dict) and len(value) == 1 else None
    if tag == "tensor":
        known = fields(value[tag], _WHERE, "dtype shape")
        if not isinstance(known["dtype"], str) or known["dtype"] not in DTYPES:
            refuse(f"the unknown dtype {short(known['dtype'])}", _WHERE)
        return TensorSpec(tuple(integer(n, _WHERE) for n in array(known["shape"], _WHERE)), DTYPES[known["dtype"]])
    if tag == "tuple":
        return tuple(_decode(v, depth + 1) for v in array(value[tag], _WHERE))
    if tag == "dict":
        return _pairs([array(pair, _WHERE) for pair in array(value[tag], _WHERE)], depth)
    return decode_value(value, _WHERE)


def _pairs(pairs: list[list[Any]], depth: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pair in pairs:
        key = decode_value(pair[0], _WHERE) if len(pair) == 2 else []
        if not isinstance(key, str | int | float) or key in found:
            refuse("an example has a key that stands twice, or that is none", _WHERE)
        found[key] = _decode(pair[1], depth + 1)
    return found
