"""The dtypes that a file can hold: by name in the graph, by safetensors' own code in the header."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import torch


class Stored(NamedTuple):
    """How a dtype is stored.

    Attributes:
        code: safetensors' name.
        dtype: the real dtype that stands for it in the file; complex numbers are pairs in a last dimension of two.
        word: an integer dtype of the same size as the stored one, for bit patterns.
    """

    code: str
    dtype: torch.dtype
    word: torch.dtype


#: Every dtype that may be stored, by its name without ``torch.``.
STORED: Final[dict[str, Stored]] = {
    "bool": Stored("BOOL", torch.bool, torch.uint8),
    "uint8": Stored("U8", torch.uint8, torch.uint8),
    "int8": Stored("I8", torch.int8, torch.uint8),
    "int16": Stored("I16", torch.int16, torch.int16),
    "int32": Stored("I32", torch.int32, torch.int32),
    "int64": Stored("I64", torch.int64, torch.int64),
    "float16": Stored("F16", torch.float16, torch.int16),
    "bfloat16": Stored("BF16", torch.bfloat16, torch.int16),
    "float32": Stored("F32", torch.float32, torch.int32),
    "float64": Stored("F64", torch.float64, torch.int64),
    "complex64": Stored("F32", torch.float32, torch.int32),
    "complex128": Stored("F64", torch.float64, torch.int64),
}
#: Bytes of each code that may stand in the header.
WIDTHS: Final = {stored.code: stored.dtype.itemsize for stored in STORED.values()}
#: Every dtype that may be named in a graph: an argument may be any, a tensor one of ``STORED``.
DTYPES: Final[dict[str, torch.dtype]] = {
    str(value).removeprefix("torch."): value
    for value in (getattr(torch, name) for name in sorted(dir(torch)))
    if isinstance(value, torch.dtype) and not str(value).startswith("torch.q")
}
_UNSIGNED: Final = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def unsigned(width: int) -> Any:
    """Return NumPy's unsigned dtype of ``width`` bytes."""
    return _UNSIGNED[width]
