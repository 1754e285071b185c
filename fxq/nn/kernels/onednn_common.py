"""Arguments that the onednn operators share, and what is done after them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxq.nn.kernels.kernel import Quantisation
from fxq.nn.kernels.post_op import PostOp


def unary_output(quantisation: Quantisation, plan: PostOp) -> tuple[object, ...]:
    """The operators' arguments from ``output_scale`` to the end."""
    post_op = (plan.attr, list(plan.scalars), plan.algorithm)
    if plan.in_float:
        return 1.0, 0, torch.float32, *post_op
    if quantisation.output is None:
        return 1.0, 0, quantisation.dtype, *post_op
    return quantisation.output.scale, quantisation.output.zero_point, torch.uint8, *post_op


def sum_output(quantisation: Quantisation, plan: PostOp) -> tuple[object, ...]:
    """The same of the operators that add."""
    output, residual = quantisation.output, quantisation.residual
    assert output is not None, "a plan adds codes only where codes come out"
    assert residual is not None, "an epilogue that adds has residual parameters"
    addend = (residual.scale, residual.zero_point, "sum", 1.0)
    return output.scale, output.zero_point, torch.uint8, *addend, plan.attr, [], ""


def finish(quantisation: Quantisation, plan: PostOp) -> Callable[[Tensor, Tensor | None], Tensor]:
    """What remains to be done after the operator; its result is a fresh tensor, so codes are clipped in place."""
    if plan.in_float:
        return quantisation.finish
    clip = plan.clip

    def clipped(y: Tensor, residual: Tensor | None) -> Tensor:
        quantisation.epilogue.check(residual)
        return y if clip is None else y.clamp_(*clip)

    return clipped
