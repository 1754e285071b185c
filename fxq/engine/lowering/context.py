"""What lowering rules work with: the values of nodes that were lowered before, and the builder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxq.engine.abi import Code
from fxq.engine.plan.builder import Builder
from fxq.engine.plan.layout import any_region
from fxq.engine.plan.views import View, maps
from fxq.errors import TargetError
from fxq.ir.identify import OpCall


class BatchSize:
    """The number of images as a number in the graph: known at run time only."""

    def __repr__(self) -> str:
        return "N"


#: What ``x.shape[0]`` gives while a plan is made.
N = BatchSize()


@dataclass(frozen=True)
class Fixed:
    """A tensor that the graph holds, the same for all images. ``repeated``: expanded along its first dimension."""

    tensor: torch.Tensor
    repeated: bool = False


@dataclass
class Lowering:
    """One graph on its way to a plan.

    Attributes:
        values: what each node that was lowered gives: a view, a tuple of some, a number, ``N``, a ``Fixed``.
    """

    builder: Builder = field(default_factory=Builder)
    values: dict[fx.Node, Any] = field(default_factory=dict)

    def view(self, value: Any) -> View:
        """Return the tensor that a node (or an argument) stands for.

        Raises:
            TargetError: it is no tensor of the engine's.
        """
        found = self.values.get(value) if isinstance(value, fx.Node) else value
        if not isinstance(found, View):
            raise TargetError("it takes a tensor that does not depend on the images")
        return found

    def number(self, value: Any) -> Any:
        """Return an argument with the numbers that its nodes stand for."""
        return fx.map_arg(value, self._known)

    def _known(self, node: fx.Node) -> Any:
        found = self.values.get(node)
        if isinstance(found, View | Fixed) or node not in self.values:
            raise TargetError("its settings are tensors")
        return found

    def settings(self, call: OpCall) -> Mapping[str, Any]:
        """Return the attributes of a call with every number known."""
        return {name: self.number(value) for name, value in call.attrs.items()}

    def same_shape(self, code: Code, view: View, **fields: Any) -> View:
        """Emit an operation that treats every element alike, and return its result, laid out as ``view``."""
        source, letters = any_region(self.builder, view)
        target = maps(self.builder.like(source, fields.pop("type", None)), "n" + "".join(letters))
        region, _ = any_region(self.builder, target)
        self.builder.emit(code, [source], region, **fields)
        return target
