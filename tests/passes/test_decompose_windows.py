from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from benchmarks.torchvision_shim import import_torchvision
from fxq.passes.decompose_windows import DecomposeWindows
from fxq.passes.functionalise import Functionalise

try:
    import_torchvision()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)


def network(version: int, **options: Any) -> nn.Module:
    from torchvision.models.swin_transformer import (
        PatchMerging,
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlock,
        SwinTransformerBlockV2,
    )

    block, merging = (SwinTransformerBlock, PatchMerging) if version == 1 else (SwinTransformerBlockV2, PatchMergingV2)
    torch.manual_seed(0)
    return SwinTransformer(  # type: ignore[no-any-return]
        [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10, block=block, downsample_layer=merging, **options
    )


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [(32, 32), (40, 52), (16, 64)])
def test_every_size_gives_what_the_model_gives(version: int, size: tuple[int, int]) -> None:
    model = network(version).eval()
    gm = fxq.compile(model, torch.randn(1, 3, 32, 32), recipe="float")
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(gm(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_projections_are_the_layers_of_the_model(version: int) -> None:
    model = network(version).eval()
    gm = fxq.trace(model, torch.randn(1, 3, 32, 32))
    result = DecomposeWindows()(gm)
    rules = [m.rule for m in result.matched]
    assert {r: rules.count(r) for r in set(rules)} == {
        "window_attention": 4, "relative_position_bias": 4, "patch_merging": 1
    }  # fmt: skip
    called = {str(n.target) for n in result.graph_module.graph.nodes if n.op == "call_module"}
    assert {"features.1.0.attn.qkv", "features.1.0.attn.proj", "features.3.1.attn.qkv"} <= called
    layer = result.graph_module.get_submodule("features.1.0.attn.qkv")
    assert layer.weight is gm.get_parameter("features.1.0.attn.qkv.weight")


def test_keys_have_no_bias_in_version_2() -> None:
    model = network(2).eval()
    nn.init.ones_(model.get_parameter("features.1.0.attn.qkv.bias"))
    gm = DecomposeWindows()(fxq.trace(model, torch.randn(1, 3, 32, 32))).graph_module
    bias = gm.get_parameter("features.1.0.attn.qkv.bias")
    assert bias.tolist() == [1.0] * 16 + [0.0] * 16 + [1.0] * 16
    assert model.get_parameter("features.1.0.attn.qkv.bias").tolist() == [1.0] * 48


def test_dropout_in_training_mode_is_refused() -> None:
    model = network(1, attention_dropout=0.5).train()
    gm = Functionalise()(fxq.trace(model, torch.randn(2, 3, 32, 32))).graph_module
    result = DecomposeWindows()(gm)
    refused = [r for r in result.refused if r.rule == "window_attention"]
    assert [r.reason for r in refused] == ["it drops values at random, in training mode"] * 4


@pytest.mark.parametrize("version", [1, 2])
def test_pruning_int8_and_saving(version: int, tmp_path: Any) -> None:
    model, x = network(version).eval(), torch.randn(2, 3, 32, 32)
    pruned = fxq.prune(model, x, ratio=0.5)
    assert fxq.profile(pruned, x).macs < 0.5 * fxq.profile(model, x).macs
    assert pruned(torch.randn(1, 3, 40, 24)).shape == (1, 10)
    gm = fxq.compile(pruned, x, calibration=[x], target="reference")
    assert sum(type(m).__name__ == "QLinear" for m in gm.modules()) >= 16
    fxq.save(gm, tmp_path / "swin.fxq")
    with torch.no_grad():
        assert torch.equal(fxq.load(tmp_path / "swin.fxq")(x), gm(x))


def test_weights_computed_in_the_graph_are_refused() -> None:
    from torchvision.models import swin_transformer

    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Parameter(torch.randn(24, 8)), nn.Parameter(torch.randn(8, 8))
            self.register_buffer("bias", torch.zeros(1, 2, 16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return swin_transformer.shifted_window_attention(  # type: ignore[no-any-return]
                x, self.qkv * 2, self.proj, self.bias, [4, 4], 2, [0, 0], training=False
            )

    result = DecomposeWindows()(fxq.trace(Computed().eval(), torch.randn(1, 8, 8, 8)))
    assert [r.reason for r in result.refused] == ["its qkv_weight is computed in the graph"]
