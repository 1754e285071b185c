"""Generated code that checks the arguments which became constants of the graph.

A graph is captured for the arguments of its example: a mask that the example lacks is not in it, and a number is the
example's. Code that took another value without a word would give the wrong result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor
from torch.fx import Graph

from fxq.errors import InputError
from fxq.ir.metrics import tensors_in

#: ``gm.meta["fxq_fixed"]``: by its name, the value of each argument that is a constant of the graph.
FIXED_KEY: Final = "fxq_fixed"
_PLAIN: Final = (bool, int, float, str)
Lines = list[str]


def check_fixed_arguments(
    graph: Graph, fixed: Mapping[str, Any], earlier: Callable[[Lines], Lines] | None
) -> Callable[[Lines], Lines]:
    """Return a transformer for ``Graph.on_generate_code`` that applies ``earlier``, then puts the checks in front."""

    def transform(lines: Lines) -> Lines:
        lines = lines if earlier is None else earlier(lines)
        unread = [n for n in graph.nodes if n.op == "placeholder" and not n.users and str(n.target) in fixed]
        checks = [f"self._check_fixed({str(n.target)!r}, {n.target}, {(*n.args,)!r})\n" for n in unread]
        return [*checks, *lines]

    return transform


def check_fixed(name: str, value: Any, taken: tuple[Any, ...]) -> None:
    """Raise InputError where a graph is called with another value for an argument than those that it takes.

    Tensors, alone or in tuples, lists and dicts, and plain values are looked at. Other values are let through: tracers
    put their own in the place of arguments.
    """
    if isinstance(value, Tensor | tuple | list | dict) and any(True for _ in tensors_in(value)):
        given = "given"
    elif isinstance(value, _PLAIN) and value not in taken:
        given = repr(value)
    else:
        return
    known = " or ".join(dict.fromkeys(map(repr, taken)))
    raise InputError(
        f"the argument `{name}` is {given}, and the graph was made for {known}",
        why="what example_inputs do not give, and what is no tensor, is a constant of the graph",
        fix=f"compile again with this `{name}` in example_inputs",
    )
