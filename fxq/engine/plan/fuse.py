"""Two steps as one, where an operation can do what follows it on the values that it has in registers.

- A step that gives float32 and the quantisation that alone reads it.
- A convolution that gives float32 and the sum that alone reads it: the other operand is its residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxq.engine.abi import Code, Type
from fxq.engine.plan.builder import Outside, Step
from fxq.engine.plan.operations import Slot
from fxq.engine.plan.views import Buffer, Region

#: Operations that round to codes themselves.
_ROUNDING = (
    Code.LAYER_NORM, Code.RMS_NORM, Code.ATTENTION, Code.ADD_F32, Code.UNARY_F32, Code.SOFTMAX, Code.MUL, Code.RESIZE
)  # fmt: skip


def fused(steps: Sequence[Step]) -> list[Step]:
    """Return the steps with those that are one joined; the order of all others stays."""
    found = list(steps)
    i = 0
    while i < len(found):
        readers = _readers(found, found[i].output)
        joined = _join(found, i, readers[0]) if len(readers) == 1 else None
        if joined is None:
            i += 1
            continue
        at = readers[0]
        if found[at].code is Code.QUANTISE:
            found[i] = joined
            del found[at]
        else:  # the other operand may be computed in between
            found[at] = joined
            del found[i]
    return found


def _join(steps: Sequence[Step], i: int, reader: int) -> Step | None:
    step, after = steps[i], steps[reader]
    if step.output.buffer.type is not Type.F32 or not _same(step.output, after.inputs):
        return None
    copies = step.code is Code.RESIZE and not step.ints.get(0)
    if after.code is Code.QUANTISE and step.code in _ROUNDING and not copies:
        ints = {**step.ints, Slot.ZERO_POINT: after.ints.get(0, 0), Slot.LOWEST: 0, Slot.HIGHEST: 255}
        return replace(step, output=after.output, ints=ints, floats={**step.floats, 2: after.floats[0]})
    if after.code is Code.ADD_F32 and step.code in (Code.CONV, Code.DEPTHWISE) and not step.ints.get(Slot.FUNCTION):
        return _with_residual(step, after)
    return None


def _with_residual(step: Step, after: Step) -> Step | None:
    others = [r for r in after.inputs if r is not None and r.buffer is not step.output.buffer]
    if len(others) != 1 or any(r is not None for r in step.inputs[1:]):
        return None
    if others[0].size != step.output.size or after.ints.get(Slot.FUNCTION) or after.constants:
        return None
    other = others[0]
    if other.buffer.type is not Type.F32 or after.output.buffer.type is not Type.F32:
        return None
    ints = {**step.ints, Slot.RESIDUAL: 2}
    return replace(step, inputs=(step.inputs[0], other), output=after.output, ints=ints, name=after.name)


def _same(region: Region, inputs: Sequence[Region | None]) -> bool:
    """Whether one of the inputs is ``region``, all of its buffer."""
    buffer = region.buffer
    if buffer.parent is not None or isinstance(buffer, Outside) or region.size != _size(buffer):
        return False
    return any(r is not None and r.buffer is buffer and r.size == region.size and r.plain for r in inputs)


def _size(buffer: Buffer) -> tuple[int, int, int]:
    return buffer.height, buffer.width, buffer.channels


def _readers(steps: Sequence[Step], region: Region) -> list[int]:
    root, _ = region.buffer.root()
    return [i for i, s in enumerate(steps) for r in s.inputs if r is not None and r.buffer.root()[0] is root]
