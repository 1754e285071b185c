"""Choose ranges anew from what calibration has collected."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from fxq.errors import CalibrationError
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.quant.calibrators import check_calibrator, check_percentile
from fxq.quant.observers import HistogramObserver, Observer


@dataclass(frozen=True)
class Recalibrate(Pass):
    """Let every observer take its range with another calibrator, without running the model again.

    Before: ``HistogramObserver[...] {mse, [-2.1, 3.4]}``. After: ``HistogramObserver[...] {entropy, [-2.1, 3.4]}``.

        steps = fxq.pipeline(fxq.Recipe(corrections=("bias",)), "auto")
        observe = steps.without("convert_qdq").without("lower_int8")
        observed = fxq.compile(model, calibration=loader, passes=observe)
        for name in ("minmax", "percentile", "mse", "entropy"):
            finish = fxq.PassManager([Recalibrate(name), ConvertQDQ(), LowerInt8()])
            print(name, evaluate(finish(observed, example).graph_module))

    Corrections that look at ranges (``"bias_accurate"``) fit those that they saw: they belong behind this pass.

    Args:
        calibrator: "minmax", "percentile", "mse", "entropy" or "auto", as in :class:`fxq.Recipe`.
        percentile: for "percentile".

    Raises:
        CalibrationError: an observer has kept no histogram, as those of "minmax" and "moving_average" do not.
        InputError: the calibrator is unknown, or the percentile out of range.
    """

    name: ClassVar[str] = "recalibrate"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    calibrator: str = "auto"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        check_calibrator(self.calibrator)
        check_percentile(self.percentile)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        done: set[str] = set()
        for call in rw.calls():
            path = str(call.node.target)
            if not isinstance(call.module, Observer) or path in done:
                continue
            if not isinstance(call.module, HistogramObserver):
                raise CalibrationError(
                    "an observer has no histogram to take another range from", where=call.module.label,
                    why=f"a {type(call.module).__name__} keeps two numbers",
                    fix="calibrate with a recipe whose activation is 'mse', 'auto', 'percentile' or 'entropy'",
                )  # fmt: skip
            done.add(path)
            rw.exchange_module(path, self._changed(call.module))
        context.note(f"{len(done)} ranges taken with {self.calibrator!r}")

    def _changed(self, observer: HistogramObserver) -> HistogramObserver:
        changed = copy.copy(observer)  # the histogram itself never changes, so both may hold it
        changed._buffers = dict(observer._buffers)
        changed.calibrator, changed.percentile = self.calibrator, self.percentile
        return changed
