"""Writes nodes in the place of one that is written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from fxq.ir.ops import SPECS
from fxq.ir.provenance import node_info, set_node_info
from fxq.ir.rewriter import Rewriter


@dataclass(frozen=True)
class Writer:
    """Inserts nodes in front of ``at``, whose place they take, and modules at or below ``path``."""

    rw: Rewriter
    at: fx.Node
    path: str

    def below(self, name: str) -> Writer:
        """Return a writer for the submodule ``name``."""
        return replace(self, path=f"{self.path}.{name}")

    def operation(self, kind: str, *inputs: fx.Node, **attrs: Any) -> fx.Node:
        """Insert an operation of the table, in its canonical spelling."""
        spec = SPECS[kind]
        values = spec.normalise(attrs)
        return self.rw.call_function(spec.function, inputs, values, before=self.at, like=self.at, name=self._name(kind))

    def function(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Insert a call of a function that the table lacks, or that takes no keywords."""
        name = self._name(function.__name__)
        return self.rw.call_function(function, args, before=self.at, like=self.at, name=name)

    def module(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        """Insert a call of ``module`` at ``name`` below the path, or beside it where that is taken."""
        path = self.rw.free_path(f"{self.path}.{name}")
        node = self.rw.call_module(path, module, (x,), before=self.at, like=self.at, name=self._name(name))
        set_node_info(node, replace(node_info(node), module_path=f"{self.path}.{name}"))
        return node

    def layer(self, path: str, module: nn.Module, x: fx.Node) -> fx.Node:
        """Insert a call of ``module``, which the module tree has at ``path``."""
        name = self._name(path.rpartition(".")[2])
        node = self.rw.call_shared_module(path, module, (x,), before=self.at, name=name)
        set_node_info(node, replace(node_info(node), module_path=path))
        return node

    def _name(self, name: str) -> str:
        inner = self.path.removeprefix(str(self.at.target)).replace(".", "_") if self.at.op == "call_module" else ""
        return f"{self.at.name}{inner}_{name}"
