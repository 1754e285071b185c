"""From what was observed to the range that is quantised."""

from fxq.quant.calibrators.choose import CALIBRATORS, check_calibrator, range_of
from fxq.quant.calibrators.percentile import check_percentile

__all__ = ["CALIBRATORS", "check_calibrator", "check_percentile", "range_of"]
