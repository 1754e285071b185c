"""Run the calibration data through an observed graph."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.observed.layers import need_calibration
from fxq.passes.observed.repeats import repeats, without
from fxq.quant.calibration import Calibration
from fxq.quant.observers import Observer


@dataclass(frozen=True)
class Calibrate(Pass):
    """Fill the observers, each with every value once, however often it is moved.

    Before: ``MinMaxObserver[...] {nothing seen}``. After: ``MinMaxObserver[...] {[-2.1, 3.4]}``.

    Args:
        data: calibration data as :func:`fxq.compile` takes it; by default what the run was given. The observers of
            the graph that goes in stay as they were.
    """

    name: ClassVar[str] = "calibrate"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    data: Any = None

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        if self.data is not None:
            calibration = Calibration(self.data, rw.gm, context.inputs)
        else:
            calibration = need_calibration(context, self.name)
        copies: dict[str, Observer] = {}
        for call in rw.calls():
            path = str(call.node.target)
            if isinstance(call.module, Observer) and path not in copies:
                copies[path] = copy.deepcopy(call.module)
                rw.exchange_module(path, copies[path])
        for observer in copies.values():
            observer.active = True
        batches = calibration.run(without(rw.gm, repeats(rw)), context.progress)
        for observer in copies.values():
            observer.active = False
        context.note(f"{len(copies)} observers, {batches} batches")
