"""``MyFunction.apply(x)`` must not be traced through: its ``forward`` would be recorded and its ``backward`` lost.

``torch.utils.checkpoint`` is traced through, in both of its variants: it computes what its function does, twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

from fxq.tracing.proxies import first_proxy
from fxq.tracing.signals import UntraceableError


@contextmanager
def autograd_functions_refused() -> Iterator[None]:
    """Within this context a custom autograd function that is given a traced value raises ``UntraceableError``."""
    base: Any = torch.autograd.Function
    original = base.__dict__["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if first_proxy(args, kwargs) is not None:
            if cls is CheckpointFunction:
                function, _preserves_random_state, *inputs = args
                return function(*inputs)
            raise UntraceableError(f"the custom autograd function {cls.__name__} is applied to a traced value")
        return original.__get__(None, cls)(*args, **kwargs)

    base.apply = classmethod(apply)
    try:
        yield
    finally:
        base.apply = original
