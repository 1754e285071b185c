from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq
from fxq.errors import InputError, PassError
from fxq.ir.metrics import distance
from fxq.passes.lower_half import LowerHalf
from fxq.pipelines import float_pipeline
from fxq.targets import half_support
from tests.passes.half_graphs import Gated, casts_of, dtypes_of

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class Vision(nn.Module):
    """A transformer over patches: positions added, norms, attention, a mean, a log softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 16, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.encoder(x)).mean(1)).log_softmax(-1)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, _) = self.rnn(x)
        return self.head(y[:, -1]) + h[-1].sum(-1, keepdim=True)


def _cnn() -> nn.Module:
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.MaxPool2d(2), Block(16), Block(16), *pool, nn.Linear(16, 10))


NETWORKS: list[Any] = [
    pytest.param(_cnn, (2, 3, 12, 12), id="cnn"),
    pytest.param(Vision, (2, 3, 16, 16), id="vit"),
    pytest.param(Tagger, (2, 6, 8), id="lstm"),
]


def _lower(model: nn.Module, x: Any, *args: Any, **options: Any) -> fx.GraphModule:
    lowering = LowerHalf(*args, **{"least_macs": 0, "anywhere": True, **options})
    return fxq.compile(model, x, passes=float_pipeline().insert_before("fuse_residual", lowering))


def _reasons(gm: fx.GraphModule) -> dict[str, str]:
    return {r.node: r.reason for r in fxq.report(gm)["lower_half"].refused}


@pytest.mark.parametrize(("name", "db"), [("bf16", 40.0), ("fp16", 55.0)])
@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_networks(make: Any, shape: tuple[int, ...], name: str, db: float) -> None:
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(shape)
    before, kept = model(x), x.clone()
    gm = _lower(model, x, name)
    after = gm(x)
    assert after.dtype is torch.float32
    assert db < distance(before, after).sqnr_db < 120
    assert torch.equal(x, kept)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert gm(torch.cat([x, x]))[:2].allclose(after, atol=1e-2)


def test_sensitive_operations_stay_in_float() -> None:
    torch.manual_seed(0)
    gm = _lower(Vision().eval(), torch.randn(2, 3, 16, 16))
    reasons = _reasons(gm)
    assert reasons["norm"] == "it divides by a deviation"
    assert reasons["mean"] == "it is a mean"
    assert reasons["log_softmax"] == reasons["encoder_layers_0_self_attn_attention"] == "it sums exponentials"
    for name in ("norm", "mean", "log_softmax", "encoder_layers_0_self_attn_attention"):
        assert dtypes_of(gm)[name] is torch.float32
    for name in ("patch", "encoder_layers_0_linear1", "head"):
        assert dtypes_of(gm)[name] is torch.bfloat16
    assert {x.name: x.why_float for x in fxq.report(gm).layers}["mean"] == "it is a mean"


def test_values_are_converted_once_and_never_back_and_forth() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x) + self.b(x)
            return self.c(y.relu()), y.softmax(-1)

    torch.manual_seed(0)
    gm = _lower(Shared().eval(), torch.randn(2, 8))
    casts = casts_of(gm)
    assert len(casts) == 3  # x, once for both layers; y for the softmax; the result of c
    assert not any(c.args[0] in casts for c in casts)
    assert all(t.dtype is torch.float32 for t in gm(torch.randn(3, 8)))


def test_parts_of_one_value_are_converted_in_one_go() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = nn.Linear(8, 12)

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = self.all(x).chunk(3, -1)
            return a.softmax(-1) * b.exp() + c.softmax(-1)

    gm = _lower(Parts().eval(), torch.randn(2, 8))
    assert [str(c.args[0]) for c in casts_of(gm)] == ["x", "all_1"]


def test_constants_and_weights_are_converted_when_the_pass_runs() -> None:
    torch.manual_seed(0)
    gm = _lower(Vision().eval(), torch.randn(2, 3, 16, 16))
    assert dict(gm.named_parameters())["positions_bf16"].dtype is torch.bfloat16
    assert gm.get_submodule("patch").weight.dtype is torch.bfloat16
    assert not any(c.args[0].op == "get_attr" for c in casts_of(gm))  # type: ignore[union-attr]


def test_a_layer_that_is_called_twice_has_one_set_of_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x).tanh())

    gm = _lower(Twice().eval(), torch.randn(2, 8))
    assert len({id(p) for p in gm.parameters()}) == 2


def test_small_products_follow_what_they_read() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4), nn.Softmax(-1), nn.Linear(4, 4)).eval()
    gm = _lower(model, torch.randn(4, 32), least_macs=4 * 32 * 64)
    assert [dtypes_of(gm)[n] for n in ("_0", "_2", "_4")] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert _reasons(gm)["_4"] == "its 64 multiply-adds do not pay for conversions"


def test_by_default_small_networks_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    x = torch.randn(2, 8)
    gm = fxq.compile(model, x, recipe="bf16")
    assert torch.equal(gm(x), model(x))


def test_operations_that_the_table_lacks_stay_in_float_and_are_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(self.fc(x), -1)

    gm = _lower(Odd().eval(), torch.randn(2, 8))
    assert _reasons(gm)["cumsum"] == "cumsum is not known to be safe in half precision"
    assert any("so in float: cumsum" in note for note in fxq.report(gm)["lower_half"].notes)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("mask", torch.tensor([0.0, -1e9] * 4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(x) + self.mask).softmax(-1) + (self.fc(x) * 1e6).tanh()


def test_masks_and_constants_out_of_the_range_of_fp16() -> None:
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(2, 8)
    gm = _lower(model, x, "fp16")
    assert torch.isfinite(gm(x)).all()
    assert distance(model(x), gm(x)).sqnr_db > 50
    reasons = _reasons(gm)
    assert "reach 1e+09 on the example inputs" in reasons["add"]
    assert reasons["mul"] == "the constant 1000000.0 is out of the range of half precision"


def test_a_mask_of_the_lowest_number_stays_one_in_bf16() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.register_buffer("mask", torch.full((8,), torch.finfo(torch.float32).min))

        def forward(self, x: Tensor) -> Tensor:
            return (self.fc(x) + self.mask).softmax(-1)

    torch.manual_seed(0)
    model, x = Hidden().eval(), torch.randn(2, 8)
    gm = _lower(model, x)
    assert _reasons(gm)["add"] == "its constant `mask` reaches numbers that are infinite in half precision"
    assert torch.allclose(gm(x), model(x))  # of -inf alone, softmax makes NaN


def test_weights_and_values_out_of_the_range_of_fp16() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    with torch.no_grad():
        model[0].weight[0, 0] = 1e5
        model[2].weight.mul_(1e-5)
    x = torch.randn(2, 8)
    gm = _lower(model, x, "fp16")
    reasons = _reasons(gm)
    assert reasons["_0"] == "its weight reaches 1e+05, which is too large for fp16"
    assert "on the example inputs: out of the range of fp16" in reasons["_1"]
    assert "too small for fp16" in reasons["_2"]
    assert torch.equal(gm(x), model(x))


def test_overrides_keep_layers_in_float() -> None:
    torch.manual_seed(0)
    model, x = _cnn().eval(), torch.randn(2, 3, 12, 12)
    gm = _lower(model, x, overrides=(fxq.Override("2.conv", quantise=False),))
    assert _reasons(gm)["_2_conv"] == "the recipe keeps `2.conv` in float"


def test_layers_with_hooks_and_other_dtypes() -> None:
    hooked = nn.Sequential(nn.Linear(8, 8)).eval()
    hooked[0].register_forward_hook(lambda module, args, result: None)
    assert set(_reasons(_lower(hooked, torch.randn(2, 8))).values()) == {"Linear has hooks"}
    wide = nn.Sequential(nn.Linear(8, 8)).double().eval()
    x = torch.randn(2, 8, dtype=torch.float64)
    gm = _lower(wide, x)
    assert _reasons(gm)["_0"] == "it gives f64[2, 8], half precision replaces float32"
    assert torch.equal(gm(x), wide(x))


def test_a_value_that_is_overwritten_in_place() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            y[:, 0] = 1.0
            return y * 2.0

    model, x = Writes().eval(), torch.randn(2, 8)
    gm = _lower(model, x)
    assert distance(model(x), gm(x)).sqnr_db > 40
    assert gm(x)[0, 0] == 2.0


def test_a_second_run_changes_nothing(tmp_path: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    gm = _lower(Vision().eval(), x)
    again = LowerHalf(least_macs=0, anywhere=True)(gm, x)
    assert not again.modified
    fxq.save(gm, tmp_path / "half.fxq")
    assert torch.equal(fxq.load(tmp_path / "half.fxq")(x), gm(x))


def test_a_cpu_without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxq.passes.lower_half.no_half_reason", lambda name: f"this CPU has no instructions for {name}")
    model, x = nn.Sequential(nn.Linear(8, 8)).eval(), torch.randn(2, 8)
    gm = _lower(model, x, anywhere=False)
    assert torch.equal(gm(x), model(x))
    assert "everything stays in float: this CPU has no instructions for bf16" in str(fxq.report(gm))
    assert half_support.no_half_reason("bf16") in (None, "this CPU has no instructions for bf16 (AVX512-BF16, AMX)")


def test_bad_options_and_missing_inputs() -> None:
    with pytest.raises(InputError, match=r"unknown half type 'bfloat16'\n.*did you mean 'bf16'"):
        LowerHalf("bfloat16")
    with pytest.raises(InputError, match="least_macs is -1"):
        LowerHalf(least_macs=-1)
    with pytest.raises(PassError, match="needs example inputs"):
        fxq.compile(nn.Sequential(nn.Linear(8, 8)).eval(), recipe="bf16")


@pytest.mark.parametrize("target", ["reference", "auto"])
def test_mixed_quantises_layers_alone_and_carries_bf16_between(target: str) -> None:
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(2, 8, 9, 9)
    gm = fxq.compile(model, x, calibration=[x], recipe="mixed", target=target)
    assert [type(m).__name__ for m in gm.modules()].count("QConv2d") == 3
    assert distance(model(x), gm(x)).sqnr_db > 25
    if half_support.no_half_reason("bf16") is None:
        assert dtypes_of(gm)["mul"] is torch.bfloat16
        assert next(iter(next(n for n in gm.graph.nodes if n.name == "mul").users)).name == "mul_quantize"
    int8 = fxq.compile(model, x, calibration=[x], recipe="int8", target="reference")
    assert "QMul" in {type(m).__name__ for m in int8.modules()}
    assert "QMul" not in {type(m).__name__ for m in gm.modules()}


def test_mixed_needs_data() -> None:
    with pytest.raises(InputError, match="needs calibration data"):
        fxq.compile(nn.Sequential(nn.Linear(8, 8)).eval(), torch.randn(2, 8), recipe="mixed")
