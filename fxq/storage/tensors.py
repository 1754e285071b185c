"""Between tensors and the entries of a safetensors file.

A tensor becomes one entry of its own name (dense), or several: ``name:values`` or ``name:palette`` and ``name:codes``,
with ``name:bitmap``, ``name:patterns``, ``name:gaps`` and ``name:signs`` for zeros (see ``fxq.storage.encode``). The
name is a path of the tensor in the module. Beside the entries stands a description: dtype, shape, coding, order of
dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fxq.errors import InputError
from fxq.storage.checks import array, boolean, fields, integer, refuse, text
from fxq.storage.container import Entry, StoredFile
from fxq.storage.decode import WIDE_PARTS, check_sizes, decode, part_names
from fxq.storage.dtypes import STORED, WIDTHS, dtype_name, unsigned
from fxq.storage.encode import POSITIONS, VALUES, Coding, Encoded, encode

#: The largest tensor that a file may declare, in values: sizes stay far from overflowing 64 bits.
_MAX_VALUES = 2**48
_MAX_DIMS = 64


@dataclass(frozen=True)
class TensorPlan:
    """A tensor of a file, checked against the header but not read yet.

    Attributes:
        name: its entries' name.
        dtype, shape: of the tensor.
        order: its dimensions from the outermost in memory to the innermost: channels_last weights stay that.
        coding: how its values are stored.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    order: tuple[int, ...]
    coding: Coding

    @property
    def dense(self) -> bool:
        """Whether the tensor is one entry, just as it is."""
        return self.coding.positions == "all" and self.coding.values == "plain"

    @property
    def parts(self) -> dict[str, str]:
        """The name of the entry of each part."""
        return {part: self.name if self.dense else f"{self.name}:{part}" for part in part_names(self.coding)}

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """The shape as it lies in memory."""
        return tuple(self.shape[d] for d in self.order) + ((2,) if self.dtype.is_complex else ())


def stored_bytes(tensor: Tensor) -> int:
    """Return how many bytes ``fxq.save`` needs for the values of ``tensor``, in the smallest lossless coding.

    Raises:
        InputError: ``tensor`` has no values, or is of a kind that no file holds (sparse layouts, quantised dtypes).
    """
    return _encode(tensor, _order(tensor), "the tensor").nbytes


class TensorWriter:
    """Collects the entries of tensors, in ``entries``, and their descriptions, in ``descriptions``."""

    def __init__(self) -> None:
        self.entries: dict[str, Tensor] = {}
        self.descriptions: list[dict[str, Any]] = []
        self._memory: set[int] = set()

    def add(self, tensor: Tensor, name: str) -> int:
        """Add ``tensor`` and return the index of its description.

        Raises:
            InputError: no file holds a tensor of this kind.
        """
        order = _order(tensor)
        encoded = _encode(tensor, order, name)
        coding = encoded.coding
        stored = STORED[dtype_name(tensor.dtype)]
        description: dict[str, Any] = {"name": name, "dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape)}
        if order != tuple(range(tensor.dim())):
            description["order"] = list(order)
        self.descriptions.append(description)
        if coding.positions == "all" and coding.values == "plain":
            shape = [*(tensor.shape[d] for d in order), *([2] if tensor.is_complex() else [])]
            self.entries[name] = self._own(_words(tensor, order)).view(stored.dtype).reshape(shape)
            return len(self.descriptions) - 1
        description |= {"positions": coding.positions, "values": coding.values, "count": coding.count}
        if coding.positions == "gaps":
            description["gap_bits"] = coding.gap_bits
        if coding.signs:
            description["signs"] = True
        for part, items in encoded.parts.items():
            words = torch.from_numpy(np.ascontiguousarray(items).view(_signed(items.itemsize)))
            self.entries[f"{name}:{part}"] = words.view(stored.dtype) if part in WIDE_PARTS else words
        return len(self.descriptions) - 1

    def _own(self, words: Tensor) -> Tensor:
        """Return ``words``, as a copy where another entry lies in the same memory: safetensors refuses that."""
        memory = words.untyped_storage().data_ptr()
        if memory in self._memory:
            return words.clone()
        self._memory.add(memory)
        return words


def plan_tensor(description: Any, entries: Mapping[str, Entry], where: str) -> TensorPlan:
    """Check a description against the entries of the file; read nothing.

    Raises:
        StorageError: they do not fit together.
    """
    known = fields(description, where, "name dtype shape", "order positions values count gap_bits signs")
    name, dtype = text(known["name"], where), text(known["dtype"], where)
    where = f"{where}, {name:.200}"
    if dtype not in STORED:
        refuse(f"a tensor has the unknown dtype {dtype!r:.60}", where)
    shape = tuple(integer(n, where, 0, _MAX_VALUES) for n in array(known["shape"], where))
    if len(shape) > _MAX_DIMS or math.prod(n or 1 for n in shape) > _MAX_VALUES:
        refuse("a tensor has an absurd shape", where)
    order = tuple(integer(n, where, 0, _MAX_DIMS) for n in array(known.get("order", list(range(len(shape)))), where))
    if sorted(order) != list(range(len(shape))):
        refuse("the order of dimensions is no permutation", where)
    plan = TensorPlan(name, getattr(torch, dtype), shape, order, _coding(known, _total(dtype, shape), where))
    _check_entries(plan, entries, where)
    return plan


def load_tensor(plan: TensorPlan, file: StoredFile) -> Tensor:
    """Read and decode a tensor that ``plan_tensor`` has checked.

    Raises:
        StorageError: the contents of its entries do not fit together.
    """
    stored = STORED[dtype_name(plan.dtype)]
    words = torch.empty(_total(dtype_name(plan.dtype), plan.shape), dtype=stored.word, device="cpu")
    word = unsigned(stored.dtype.itemsize)
    out = words.numpy().view(word)
    where = f"tensor {plan.name}"
    if plan.dense:
        file.read(plan.name, out)
    else:
        parts = {}
        for part, entry in plan.parts.items():
            parts[part] = np.empty(file.entries[entry].shape[0], word if part in WIDE_PARTS else np.uint8)
            file.read(entry, parts[part])
        decode(plan.coding, out, parts, where)
    if plan.dtype is torch.bool and out.size and int(out.max()) > 1:
        refuse("a flag is neither 0 nor 1", where)
    tensor = words.view(stored.dtype).reshape(plan.memory_shape)
    if plan.dtype.is_complex:
        tensor = torch.view_as_complex(tensor)
    return tensor.permute([plan.order.index(d) for d in range(len(plan.order))])


def _coding(known: dict[str, Any], total: int, where: str) -> Coding:
    if "positions" not in known:
        return Coding("all", "plain", total)
    positions, values = text(known["positions"], where), text(known.get("values"), where)
    if positions not in POSITIONS or values not in VALUES:
        refuse(f"the unknown coding {positions!r:.60}, {values!r:.60}", where)
    gap_bits = integer(known.get("gap_bits"), where, 1, 32) if positions == "gaps" else 0
    signs = boolean(known.get("signs", False), where)
    if signs and positions == "all":
        refuse("there are signs of zeros, but no zeros", where)
    return Coding(positions, values, integer(known.get("count"), where, 0, total), gap_bits, signs)


def _check_entries(plan: TensorPlan, entries: Mapping[str, Entry], where: str) -> None:
    code = STORED[dtype_name(plan.dtype)].code
    items = {}
    for part, name in plan.parts.items():
        entry = entries.get(name)
        if entry is None:
            refuse(f"there is no entry {name!r:.200}", where)
        wanted = code if part in WIDE_PARTS else "U8"
        if entry.code != wanted:
            refuse(f"the entry {name!r:.200} is {entry.code}, not {wanted}", where)
        if entry.shape != plan.memory_shape if plan.dense else len(entry.shape) != 1:
            refuse(f"the entry {name!r:.200} has another shape than the tensor", where)
        items[part] = math.prod(entry.shape)
    check_sizes(plan.coding, _total(dtype_name(plan.dtype), plan.shape), WIDTHS[code], items, where)


def _total(dtype: str, shape: tuple[int, ...]) -> int:
    """The number of real values."""
    return math.prod(shape) * (2 if dtype.startswith("complex") else 1)


def _order(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions as they lie in memory; the usual order where they overlap or leave gaps."""
    plain = tuple(range(tensor.dim()))
    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return plain
    strides = tensor.stride()
    order = tuple(sorted(plain, key=lambda d: (-strides[d], -tensor.shape[d], d)))
    return order if tensor.permute(order).is_contiguous() else plain


def _encode(tensor: Tensor, order: tuple[int, ...], name: str) -> Encoded:
    reason = _unstorable(tensor)
    if reason is not None:
        raise InputError(f"a tensor cannot be stored: it {reason}", where=name,
                         fix="make it an ordinary tensor with values first")  # fmt: skip
    words = _words(tensor, order)
    return encode(words.numpy().view(unsigned(words.element_size())))


def _unstorable(tensor: Tensor) -> str | None:
    if is_lazy(tensor):
        return "has no values yet (run the model once)"
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"is a {type(tensor).__name__}"
    if tensor.layout is not torch.strided:
        return f"has the layout {tensor.layout}"
    if tensor.is_meta:
        return "lies on the meta device and has no values"
    return None if dtype_name(tensor.dtype) in STORED else f"has the dtype {tensor.dtype}"


def _words(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The bit patterns as one flat integer tensor on the CPU, in the order of memory."""
    stored = STORED[dtype_name(tensor.dtype)]
    values = tensor.detach().resolve_conj().resolve_neg().permute(order).cpu().contiguous()
    real = torch.view_as_real(values) if values.is_complex() else values
    return real.reshape(-1).view(stored.word)


def _signed(width: int) -> Any:
    """The integer dtype that torch has for items of ``width`` bytes."""
    return {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[width]
