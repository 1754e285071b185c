"""bf16 between int8 layers: who gives it, who reads it, and what is rounded to it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq
from fxq.engine.library import unavailable_reason
from fxq.ir import graph_text, take_snapshot
from fxq.ir.metrics import distance
from fxq.passes import FormSegments
from fxq.passes.half.table import FLOAT_INSIDE
from fxq.passes.lower_half import LowerHalf
from fxq.targets.half_support import no_half_reason
from tests.passes.half_graphs import Gated, casts_of, dtypes_of

pytestmark = pytest.mark.skipif(no_half_reason("bf16") is not None, reason=str(no_half_reason("bf16")))


class Excited(nn.Module):
    """A block of EfficientNet's kind, with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.depth(F.silu(self.expand(x))))
        factor = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((self.project(y * factor) + x).mean((2, 3)))


class Encoder(nn.Module):
    """Tokens, a norm, and transformer layers."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", norm_first=norm_first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.norm(self.embed(ids))).mean(1))


def _mixed(model: nn.Module, data: list[Any], target: str = "reference", recipe: str = "mixed") -> fx.GraphModule:
    return fxq.compile(model, data[0], calibration=data, recipe=recipe, target=target, progress=False)


def _images(shape: tuple[int, ...] = (2, 8, 9, 9)) -> list[Any]:
    torch.manual_seed(1)
    return [torch.randn(shape) for _ in range(3)]


def _tokens() -> list[Any]:
    torch.manual_seed(1)
    return [torch.randint(0, 50, (2, 7)) for _ in range(3)]


GOLDEN = """\
graph INT8:
  %x = placeholder -> f32[2, 8, 9, 9]
  %x_quantize = Quantize[x_quantize](%x) {...} -> u8[2, 8, 9, 9]
  %a = QConv2d[a](%x_quantize) {...} -> bf16[2, 8, 7, 7]
  %b = QConv2d[b](%x_quantize) {...} -> bf16[2, 8, 7, 7]
  %mul = mul(%a, %b) -> bf16[2, 8, 7, 7]
  %mul_quantize = Quantize[mul_quantize](%mul) {...} -> u8[2, 8, 7, 7]
  %c = QConv2d[c](%mul_quantize) {...} -> f32[2, 8, 5, 5]
  return %c"""


def test_golden() -> None:
    torch.manual_seed(0)
    text = graph_text(take_snapshot(_mixed(Gated().eval(), _images())))
    assert re.sub(r"\{[^}]*\}", "{...}", text) == GOLDEN


TARGETS = ["reference", "onednn", "native"]
NETWORKS = [
    pytest.param(Excited, _images, id="cnn"),
    pytest.param(lambda: Encoder(norm_first=True), _tokens, id="transformer"),
    pytest.param(lambda: Encoder(norm_first=False), _tokens, id="transformer, norms behind"),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("make", "data"), NETWORKS)
def test_networks(make: Any, data: Any, target: str, tmp_path: Any) -> None:
    try:
        fxq.targets.resolve_target(target)
    except fxq.errors.TargetError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    model, batches = make().eval(), data()
    expected = model(batches[0])
    gm = _mixed(model, batches, target)
    actual = gm(batches[0])
    assert actual.dtype is torch.float32
    assert distance(expected, actual).sqnr_db > 22
    assert distance(_mixed(model, batches)(batches[0]), actual).sqnr_db > 35  # what the reference gives
    assert gm(batches[0][:1]).shape == expected[:1].shape
    fxq.save(gm, tmp_path / "mixed.fxq")
    assert torch.equal(fxq.load(tmp_path / "mixed.fxq")(batches[0]), actual)


def test_everything_between_the_layers_of_a_cnn_is_bf16() -> None:
    torch.manual_seed(0)
    gm = _mixed(Excited().eval(), _images())
    dtypes = dtypes_of(gm)
    assert {n for n, d in dtypes.items() if d is torch.float32} == {"x", "head", "output"}
    assert dtypes["adaptive_avg_pool2d"] is dtypes["mul"] is dtypes["mean"] is torch.bfloat16
    assert {x.name: x.value for x in fxq.report(gm).layers}["mul"] == "bf16[2, 16, 9, 9]"


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_residual_stream_of_a_transformer_is_bf16(norm_first: bool) -> None:
    torch.manual_seed(0)
    gm = _mixed(Encoder(norm_first).eval(), _tokens())
    dtypes = dtypes_of(gm)
    for name in ("layers_layers_0_self_attn_out_proj", "layers_layers_0_norm2", "layers_layers_1_linear2", "mean"):
        assert dtypes[name] is torch.bfloat16
    assert {n for n in dtypes if n.endswith("_add")} == {n for n, d in dtypes.items() if n.endswith("_add")
                                                         and d is torch.bfloat16}  # fmt: skip
    # attention stays in float32, and what leads to it is given so at once
    assert dtypes["layers_layers_1_self_attn_in_proj"] is dtypes["layers_layers_1_self_attn_attention"] is torch.float32
    assert [n.name for n in casts_of(gm)] == ["norm_bf16"]  # the embeddings' norm, where the stream begins


def test_diagrams_show_the_dtype(tmp_path: Any) -> None:
    torch.manual_seed(0)
    fxq.compile(Gated().eval(), _images()[0], calibration=_images(), recipe="mixed", target="reference",
                diagrams=tmp_path, progress=False)  # fmt: skip
    assert any("bf16" in f.read_text() for f in tmp_path.rglob("*.dot"))


@pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")
def test_the_engine_leaves_bf16_to_pytorch() -> None:
    torch.manual_seed(0)
    data = _tokens()
    gm = _mixed(Encoder(norm_first=True).eval(), data)
    formed = FormSegments()(gm, data[0])
    reasons = {r.node: r.reason for r in formed.record.refused}
    assert reasons["layers_layers_0_linear2"] == "it gives bfloat16, which the engine does not have"
    assert "bf16[2, 7, 32], the engine has codes and float32" in reasons["layers_layers_0_norm2"]
    assert any(type(m).__name__ == "Segment" for m in formed.graph_module.modules())
    assert distance(gm(data[0]), formed.graph_module(data[0])).sqnr_db > 35


@pytest.mark.parametrize("where", ["b", nn.Conv2d, "mul", torch.mul])
def test_overrides_keep_layers_in_float32(where: Any) -> None:
    torch.manual_seed(0)
    data = _images()
    recipe = fxq.Recipe("mixed", overrides=(fxq.Override(where, quantise=False),))
    gm = fxq.compile(Gated().eval(), data[0], calibration=data, recipe=recipe, progress=False)
    kept = {"b": ["b"], nn.Conv2d: ["a", "b", "c"]}.get(where, ["mul"])
    assert all(dtypes_of(gm)[name] is torch.float32 for name in kept)
    kinds = {name: type(module).__name__ for name, module in gm.named_modules()}
    assert [name for name in "abc" if kinds[name] != "QConv2d"] == [name for name in kept if name != "mul"]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        mask = (1.0 - keep) * torch.finfo(torch.float32).min
        return self.b((self.a(x) + mask).softmax(-1))


def test_masks_of_the_lowest_number_stay_in_float() -> None:
    torch.manual_seed(0)
    model, x, nothing = Masked().eval(), torch.randn(4, 3, 8), torch.zeros(4, 1, 8)
    gm = _mixed(model, [(x, torch.ones(4, 1, 8)), (x, nothing)])
    assert dtypes_of(gm)["add"] is torch.float32
    assert torch.isfinite(gm(x, nothing)).all()  # in bf16 that number would be an infinity, and its softmax NaN


def test_codes_that_float_reads_are_dequantised_to_bf16() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 1) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.d(self.c(x) * y) + self.b(y)

    torch.manual_seed(0)
    gm = _mixed(Read().eval(), _images())
    border = next(m for m in gm.modules() if type(m).__name__ == "Dequantize")
    assert border.dtype is torch.bfloat16
    assert dtypes_of(gm)["mul"] is torch.bfloat16


def test_a_layer_that_is_called_twice_gives_what_each_reader_wants() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.fc(x)
            return self.last(y * self.last(x)), self.fc(x.neg())

    torch.manual_seed(0)
    model, data = Twice().eval(), _images((4, 8))
    gm = _mixed(model, data)
    dtypes = dtypes_of(gm)
    assert [dtypes["fc"], dtypes["fc_1"]] == [torch.bfloat16, torch.float32]
    for expected, actual in zip(model(data[0]), gm(data[0]), strict=True):
        assert distance(expected, actual).sqnr_db > 22


def test_what_both_read_is_converted_once() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            return self.c(y * self.b(x)), y.exp()

    torch.manual_seed(0)
    gm = _mixed(Both().eval(), _images((4, 8)))
    assert dtypes_of(gm)["a"] is dtypes_of(gm)["mul"] is torch.bfloat16
    assert [n.name for n in casts_of(gm)] == ["a_float"]


def test_a_second_run_changes_nothing() -> None:
    torch.manual_seed(0)
    data = _images()
    gm = _mixed(Excited().eval(), data)
    assert not LowerHalf()(gm, data[0]).modified


def test_fp16_is_converted_by_itself() -> None:
    torch.manual_seed(0)
    model, data = Gated().eval(), _images()
    int8 = fxq.compile(model, data[0], calibration=data, recipe=fxq.Recipe("int8", overrides=(
        fxq.Override("mul", quantise=False),)), target="reference", progress=False)  # fmt: skip
    gm = LowerHalf("fp16", anywhere=True, least_macs=0)(int8, data[0]).graph_module
    assert set(dtypes_of(gm).values()) <= {torch.float32, torch.uint8, torch.float16}
    assert torch.isfinite(gm(data[0])).all()


INSIDE = {
    "layer_norm": nn.LayerNorm(9),
    "group_norm": nn.GroupNorm(2, 6),
    "instance_norm": nn.InstanceNorm2d(6, affine=True),
    "batch_norm": nn.BatchNorm2d(6),
    "mean": lambda x: x.mean((2, 3)),
    **{f"avg_pool{n}d": getattr(nn, f"AvgPool{n}d")(2) for n in (1, 2)},
    **{f"adaptive_avg_pool{n}d": getattr(nn, f"AdaptiveAvgPool{n}d")(2) for n in (1, 2)},
}


def test_the_kernels_of_the_table_are_all_tried() -> None:
    assert INSIDE.keys() == FLOAT_INSIDE


@pytest.mark.parametrize("kind", sorted(INSIDE))
@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_compute_in_float32_inside(kind: str, channels_last: bool) -> None:
    """PyTorch's own bf16 kernels, with weights in float32, give the float32 result, rounded once."""
    torch.manual_seed(0)
    module = INSIDE[kind]
    if isinstance(module, nn.Module):
        module.eval()
        for parameter in module.parameters():
            nn.init.uniform_(parameter, 0.5, 2.0)
    shape = (4, 6, 9) if kind.endswith("1d") else (4, 6, 7, 9)
    x = (torch.randn(shape) * 3 + 1).to(torch.bfloat16)
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        actual, expected = module(x), module(x.float()).to(torch.bfloat16)
    assert actual.dtype is torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-6)  # one step
    assert (actual != expected).float().mean() < 1e-3
