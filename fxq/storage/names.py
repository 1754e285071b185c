"""Which names from a file may become attributes and variables.

torch.fx writes Python source from the names of nodes, of placeholders and of attributes, and runs it. Nothing but plain
identifiers (and the digits of ``layers.0``) may therefore come out of a file, no keywords, and no name that a module
already has for something else: an attribute called ``forward`` or ``__class__`` would replace a method.
"""

from __future__ import annotations

import functools
import keyword
import re

from torch import nn
from torch.fx import Graph

from fxq.ir.module import TracedModule

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,999}")
_ATTRIBUTE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,199}")
LONGEST_PATH = 2000


def is_identifier(name: str) -> bool:
    """Whether ``name`` may be a variable of generated code beside ``self``."""
    if _IDENTIFIER.fullmatch(name) is None or name == "self":
        return False
    return not keyword.iskeyword(name) and not name.startswith("__")


def is_placeholder(target: str) -> bool:
    """Whether ``target`` may be a parameter of the generated ``forward``: ``x``, ``*args`` or ``**kwargs``."""
    stars = len(target) - len(target.lstrip("*"))
    name = target[stars:]
    return stars <= 2 and is_identifier(name)


def is_attribute(name: str) -> bool:
    """Whether ``name`` may be a parameter, a buffer or a child of a module that has no attributes of its own."""
    return (
        _ATTRIBUTE.fullmatch(name) is not None
        and not keyword.iskeyword(name)
        and not name.startswith("__")
        and name not in _taken()
    )


def is_path(path: str) -> bool:
    """Whether ``path`` is attribute names with dots between them."""
    return len(path) <= LONGEST_PATH and all(_ATTRIBUTE.fullmatch(part) is not None for part in path.split("."))


@functools.cache
def _taken() -> frozenset[str]:
    """Every name that a graph module has before anything is put into it."""
    graph = Graph()
    graph.output(None)
    gm = TracedModule(nn.Module(), graph)
    gm.recompile()  # which leaves its code and what goes with it among the attributes
    return frozenset(dir(TracedModule)) | frozenset(vars(gm))
