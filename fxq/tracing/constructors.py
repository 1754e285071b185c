"""Functions that make a tensor (or read a dtype) from plain values: torch cannot see that a size is traced.

Called with a traced value they become nodes, which torch.fx does for every function in ``CONSTRUCTORS`` (through its
list of functions to wrap). Random ones become nodes always: a graph that returns the same noise each time is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fxq.tracing.builtin_calls import traced_is_tensor

CONSTRUCTORS: tuple[Callable[..., Any], ...] = (
    torch.arange,
    torch.range,
    torch.zeros,
    torch.ones,
    torch.full,
    torch.empty,
    torch.empty_strided,
    torch.linspace,
    torch.logspace,
    torch.eye,
    torch.tensor,
    torch.as_tensor,
    torch.scalar_tensor,
    torch.tril_indices,
    torch.triu_indices,
    torch.hann_window,
    torch.hamming_window,
    torch.broadcast_shapes,
    torch.promote_types,
    torch.finfo,
    torch.iinfo,
)

RANDOM_CONSTRUCTORS = ("rand", "randn", "randint", "randperm", "normal")


@contextmanager
def torch_functions_replaced(record: Callable[[Callable[..., Any], Any, Any], Any]) -> Iterator[None]:
    """Within this context ``torch.rand`` and its kin call ``record(function, args, kwargs)``.

    ``torch.is_tensor``, which asks ``isinstance``, answers for traced values too.
    """
    originals = {name: getattr(torch, name) for name in (*RANDOM_CONSTRUCTORS, "is_tensor")}
    try:
        for name in RANDOM_CONSTRUCTORS:
            setattr(torch, name, _recorder(originals[name], record))
        setattr(torch, "is_tensor", traced_is_tensor)  # noqa: B010, the replacement is of a plainer type
        yield
    finally:
        for name, function in originals.items():
            setattr(torch, name, function)


def _recorder(
    function: Callable[..., Any], record: Callable[[Callable[..., Any], Any, Any], Any]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return record(function, args, kwargs)

    return call
