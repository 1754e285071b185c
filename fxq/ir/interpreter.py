"""Running a graph node by node."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx.immutable_collections import immutable_dict, immutable_list


class GraphInterpreter(fx.Interpreter):
    """An ``fx.Interpreter`` that passes fresh lists and dicts, which may be written to, as the compiled graph does."""

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of ``n``, nodes exchanged for their values."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(map(_plain, args)), {name: _plain(value) for name, value in kwargs.items()}


def _plain(value: Any) -> Any:
    if type(value) is immutable_list:
        return [_plain(v) for v in value]
    if type(value) is immutable_dict:
        return {k: _plain(v) for k, v in value.items()}
    if type(value) is tuple:
        return tuple(map(_plain, value))
    return value
