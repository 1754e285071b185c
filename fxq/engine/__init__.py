"""The native engine: int8 inference by kernels compiled when fxq is installed."""

from fxq.engine.segment import Segment as Segment

__all__ = ["Segment"]
