"""Let the native engine run the parts of an int8 graph that it can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxq.engine.form import form_segments
from fxq.engine.masks import add_masks
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.targets.backends import exchange_backends
from fxq.targets.pixels import store_pixels
from fxq.targets.resolve import module_backend


@dataclass(frozen=True)
class FormSegments(Pass):
    """Exchange each of the largest convex parts that the engine can run for one module, ``fxq.engine.Segment``.

    Before: ``Quantize -> QConv2d -> QAdd -> ... -> QLinear``, a Python call each. After: one call, for which the engine
    plans memory and order once for every input size. A part is convex where no path leaves it and comes back. What the
    engine cannot run stays as it is, and the report says why; so does a part that computes nothing worth a call.

    Args:
        outside: what runs the int8 modules outside of the parts: ``"onednn"``, ``"reference"``, or ``"auto"`` for the
            best that this machine runs.
    """

    name: ClassVar[str] = "form_segments"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.INT8,)
    produces: ClassVar[Stage | None] = Stage.INT8
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    outside: str = "auto"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        add_masks(rw)
        form_segments(rw)
        exchange_backends(rw, module_backend("native" if self.outside == "auto" else self.outside))
        store_pixels(rw)
