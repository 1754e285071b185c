"""Methods of an ordinary tensor that are given a traced size: ``self.table[:n]``, ``torch.arange(4).expand(n, 4)``.

torch looks for traced values among tensor arguments only, and would ask a traced size for its integer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fxq.tracing.proxies import first_proxy

_METHODS = (
    "__getitem__",
    "expand",
    "view",
    "reshape",
    "repeat",
    "tile",
    "narrow",
    "roll",
    "unflatten",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
)


@contextmanager
def tensor_methods_recorded() -> Iterator[None]:
    """Within this context these methods become nodes when an argument is traced, and are themselves otherwise."""
    own = {name: torch.Tensor.__dict__[name] for name in _METHODS if name in torch.Tensor.__dict__}
    try:
        for name in _METHODS:
            setattr(torch.Tensor, name, _recorder(name, getattr(torch.Tensor, name)))
        yield
    finally:
        for name in _METHODS:
            if name in own:
                setattr(torch.Tensor, name, own[name])
            else:
                delattr(torch.Tensor, name)


def _recorder(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        proxy = first_proxy(args, kwargs)
        if proxy is None:
            return method(tensor, *args, **kwargs)
        return proxy.tracer.create_proxy("call_method", name, (tensor, *args), kwargs)

    return call
