"""Where quantised images are stored as pixels of four bytes: in front of onednn convolutions of three channels."""

from __future__ import annotations

from torch import fx

from fxq.ir.rewriter import Rewriter
from fxq.nn import QConv2d, Quantize
from fxq.targets.suitability import reads_size_only


def store_pixels(rw: Rewriter) -> None:
    """Tell each ``Quantize`` that only such convolutions read."""
    for node in rw.nodes():
        module = rw.module_of(node)
        if type(module) is Quantize and node.users:
            module.pixels = all(reads_size_only(u) or _convolves_rgb(u, node, rw) for u in node.users)


def _convolves_rgb(user: fx.Node, image: fx.Node, rw: Rewriter) -> bool:
    layer = rw.module_of(user)
    if user.args[:1] != (image,) or image in user.args[1:]:
        return False
    if type(layer) is not QConv2d or layer.backend != "onednn":
        return False
    geometry = layer.geometry
    return geometry.in_channels == 3 and geometry.groups == 1 and max(geometry.kernel_size) > 1
