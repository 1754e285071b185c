"""Which part of an epilogue a onednn operator applies itself, and how the rest is arranged around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxq.nn.epilogue import Epilogue
from fxq.nn.geometry import ConvGeometry
from fxq.nn.kernels.availability import onednn_gives_bf16
from fxq.nn.kernels.kernel import Quantisation
from fxq.quant.qparams import QParams


@dataclass(frozen=True)
class PostOp:
    """The part of an epilogue that the operator applies (its ``attr``, ``scalars`` and ``algorithm``), and the rest.

    Args:
        clip: (lowest, highest) code to clip the result to, or None.
        binary: the operator adds the residual.
        in_float: the operator returns float32 and the whole epilogue follows.
    """

    attr: str = "none"
    scalars: tuple[float, ...] = ()
    algorithm: str = ""
    clip: tuple[int, int] | None = None
    binary: bool = False
    in_float: bool = False

    def describe(self, operator: str, epilogue: Epilogue) -> str:
        """The kernel's name in the report."""
        if not epilogue:
            return f"onednn.{operator}"
        return f"onednn.{operator}, float {epilogue}" if self.in_float else f"onednn.{operator}+{epilogue}"


_IN_FLOAT = PostOp(in_float=True)


def conv_post_op(geometry: ConvGeometry, quantisation: Quantisation) -> PostOp:
    """How the convolution operator can do this epilogue."""
    epilogue = quantisation.epilogue
    fused = None if geometry.dims == 3 else _shared_post_op(epilogue.activation, epilogue.params)
    return _plan(quantisation, fused, can_add=geometry.dims < 3)


def linear_post_op(quantisation: Quantisation) -> PostOp:
    """How the linear operator can do this epilogue."""
    epilogue = quantisation.epilogue
    fused: PostOp | None
    match epilogue.activation:
        case "leaky_relu":
            fused = PostOp("leaky_relu", (float(epilogue.params[0]),))
        case "gelu":
            fused = PostOp("gelu", (), str(epilogue.params[0]))
        case "tanh":
            fused = PostOp("tanh")
        case _:
            fused = _shared_post_op(epilogue.activation, epilogue.params)
    return _plan(quantisation, fused, can_add=True)


def _plan(quantisation: Quantisation, fused: PostOp | None, can_add: bool) -> PostOp:
    epilogue, output = quantisation.epilogue, quantisation.output
    if output is None:
        native = quantisation.dtype is torch.float32 or onednn_gives_bf16()
        return _IN_FLOAT if fused is None or epilogue.add or not native else fused
    clip = None if epilogue.bounds is None else _clip_codes(epilogue.bounds, output)
    if epilogue.add:
        if can_add and epilogue.activation in (None, "relu"):
            return PostOp(epilogue.activation or "none", binary=True)
        if can_add and clip is not None:
            return PostOp(clip=clip, binary=True)
        return _IN_FLOAT
    if fused is not None:
        return fused
    if epilogue.activation is None:
        return PostOp()
    return _IN_FLOAT if clip is None else PostOp(clip=clip)


def _shared_post_op(activation: str | None, params: tuple[float | str, ...]) -> PostOp | None:
    match activation:
        case None:
            return PostOp()
        case "relu":
            return PostOp("relu")
        case "relu6":
            return PostOp("hardtanh", (0.0, 6.0))
        case "hardtanh":
            return PostOp("hardtanh", (float(params[0]), float(params[1])))
        case "hardswish":
            return PostOp("hardswish")
        case "silu":
            return PostOp("swish")
        case _:
            return None


def _clip_codes(bounds: tuple[float, float], output: QParams) -> tuple[int, int]:
    return output.code(bounds[0]), output.code(bounds[1])
