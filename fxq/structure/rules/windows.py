"""Attention within windows: pixels are cut into windows and put back, channels stay what they are."""

from __future__ import annotations

from fxq.ir.identify import OpCall
from fxq.structure.analysis import Analysis, Value


def partitioned(an: Analysis, op: OpCall) -> Value:
    """``[N, H, W, C]`` -> ``[N * windows, pixels, C]``."""
    _keep_pixels(an, op)
    return (None, None, an.axes(op.inputs[0])[-1])


def reversed_windows(an: Analysis, op: OpCall) -> Value:
    """``[N * windows, pixels, C]`` -> ``[N, H, W, C]``; of the other input only the size is read."""
    _keep_pixels(an, op)
    return (None, None, None, an.axes(op.inputs[0])[-1])


def padded(an: Analysis, op: OpCall) -> Value:
    """``[N, H, W, C]`` with more pixels."""
    _keep_pixels(an, op)
    return (None, None, None, an.axes(op.inputs[0])[-1])


def biased(an: Analysis, op: OpCall) -> Value:
    """``[1, heads, pixels, pixels]``, repeated for each window; of the other input only the size is read."""
    an.protect(op.inputs[0], f"{an.where(op.node)} adds it for each pair of pixels", (0, 2, 3))
    return (None, an.axes(op.inputs[0])[1], None, None)


def looked_up(an: Analysis, op: OpCall) -> Value:
    """``[positions, heads]`` by an index -> ``[1, heads, pixels, pixels]``."""
    an.protect(op.inputs[0], f"{an.where(op.node)} looks it up by position", (0,))
    an.protect(op.inputs[1], f"{an.where(op.node)} looks up by it")
    return (None, an.axes(op.inputs[0])[1], None, None)


def _keep_pixels(an: Analysis, op: OpCall) -> None:
    for node in op.inputs:
        axes = an.axes(node)
        an.protect(node, f"{an.where(op.node)} cuts it into windows", range(len(axes) - 1))
