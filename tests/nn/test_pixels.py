"""Images stored with four bytes a pixel: the same codes, and the same convolutions of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fxq.nn import Epilogue, QConv2d, Quantize, fuse_layer, onednn_available, quantize, quantize_layer
from fxq.nn.pixels import four_channels, has_planes, quantize_pixels
from fxq.quant.qparams import QParams
from tests.nn.naive import codes


def _image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("zero_point", [0, 1, 57, 130, 254, 255])
@pytest.mark.parametrize("scale", [0.5, 0.1, 0.013])
def test_the_codes_are_those_of_quantize(scale: float, zero_point: int) -> None:
    x = _image(2, 3, 17, 9) * 40 * scale
    x.view(-1)[:6] = torch.tensor([scale / 2, -scale / 2, 1.5 * scale, 1e30, float("inf"), -float("inf")])
    before = x.clone()
    assert torch.equal(quantize_pixels(x, scale, zero_point), quantize(x, scale, zero_point))
    assert torch.equal(x, before)


def test_not_a_number_stays_in_its_pixel() -> None:
    x = _image(1, 3, 4, 4)
    expected = quantize(x, 0.1, 3)
    x[0, 1, 2, 2] = float("nan")
    elsewhere = torch.ones(4, 4, dtype=torch.bool)
    elsewhere[2, 2] = False
    assert torch.equal(quantize_pixels(x, 0.1, 3)[..., elsewhere], expected[..., elsewhere])


def test_only_plane_after_plane_is_rearranged() -> None:
    x = _image(2, 3, 4, 5)
    assert has_planes(x)
    assert has_planes(x[:0])
    others = [x[0], x[:, :2], x.double(), x[..., ::2], x.contiguous(memory_format=torch.channels_last)]
    assert not any(map(has_planes, others))
    module = Quantize(QParams(0.1, 3), pixels=True)
    for image in (x, *others):
        assert torch.equal(module(image), quantize(image, 0.1, 3))
    assert four_channels(module(x)) is not None
    assert four_channels(module(others[-1])) is None
    assert four_channels(Quantize(QParams(0.1, 3))(x)) is None
    assert "pixels=True" in repr(copy.deepcopy(module))


def test_memory_beyond_the_storage_is_never_read() -> None:
    storage = codes((4 * 6 - 1,), 0)
    strides = (24, 1, 12, 4)
    assert four_channels(storage.as_strided((1, 3, 2, 3), strides)) is None
    assert four_channels(codes((24,), 0).as_strided((1, 3, 2, 3), strides)) is not None
    assert four_channels(codes((25,), 0).as_strided((1, 3, 2, 3), strides, 1)) is not None
    assert four_channels(codes((25,), 0).as_strided((1, 3, 2, 3), strides, 2)) is None


@pytest.mark.skipif(not onednn_available(), reason="the reference kernel reads any layout")
@pytest.mark.parametrize("epilogue", [Epilogue(), Epilogue("relu"), Epilogue("gelu", ("none",))], ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 7, 2, 3),
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 5, 4, 4, bias=False),
    ],
    ids=["stem", "reflect", "patches"],
)
def test_convolutions_of_them_are_those_of_the_codes(layer: nn.Module, epilogue: Epilogue) -> None:
    x, y = QParams(0.05, 131), QParams(0.0137, 102)
    qdq = quantize_layer(fuse_layer(layer, epilogue))
    reference, onednn = (QConv2d.from_qdq(qdq, x, y, None, backend) for backend in ("reference", "onednn"))
    quantise = Quantize(x, pixels=True)
    for shape in ((2, 3, 16, 12), (1, 3, 16, 12), (0, 3, 16, 12)):
        q = quantise(_image(*shape))
        assert torch.equal(onednn(q), onednn(q.contiguous()))
        assert (onednn(q).int() - reference(q).int()).abs().sum() <= 2
    assert torch.equal(onednn(q.new_zeros(3, 16, 12)), reference(q.new_zeros(3, 16, 12)))


@pytest.mark.skipif(not onednn_available(), reason="the reference kernel reads any layout")
def test_the_fourth_byte_does_not_matter() -> None:
    qdq = quantize_layer(nn.Conv2d(3, 8, 3))
    module = QConv2d.from_qdq(qdq, QParams(0.05, 131), QParams(0.0137, 102), None, "onednn")
    q = codes((1, 4, 6, 6), 0).contiguous(memory_format=torch.channels_last)
    other = q.clone()
    other[:, 3] = 255 - other[:, 3]
    assert four_channels(q[:, :3]) is not None
    assert torch.equal(module(q[:, :3]), module(other[:, :3]))
