"""Depthwise-separable convolutions: exact where the kernel is separable, refused where they do not pay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.analysis import profile
from fxq.errors import InputError
from fxq.ir import graph_text, take_snapshot
from fxq.manager import Pass, PassManager
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.fold_batch_norm import FoldBatchNorm
from fxq.passes.fuse_activation import FuseActivation
from fxq.passes.fuse_residual import FuseResidual
from fxq.passes.separate_convolutions import SeparateConvolutions
from fxq.tracing import trace
from tests.compression.lossy import UNFIT, Twice, reasons, run_lossy
from tests.conftest import Golden


def separable(layer: Any, seed: int = 0) -> Any:
    """Give a convolution a kernel whose slice of each input channel has rank 1."""
    generator = torch.Generator().manual_seed(seed)
    out, channels, *kernel = layer.weight.shape
    spatial = torch.randn(1, channels, *kernel, generator=generator)
    mixing = torch.randn(out, channels, *[1] * len(kernel), generator=generator)
    layer.weight = nn.Parameter(spatial * mixing / (channels * len(kernel) * 3) ** 0.5)
    return layer


KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(6, 8, 3), (6, 9, 9)),
    "stride and padding": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (6, 9, 9)),
    "without bias": (nn.Conv2d(6, 8, 3, bias=False), (6, 9, 9)),
    "dilated": (nn.Conv2d(6, 8, 3, dilation=2, padding="same"), (6, 9, 9)),
    "reflecting": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (6, 9, 9)),
    "rectangular": (nn.Conv2d(6, 8, (1, 5), padding=(0, 2)), (6, 9, 9)),
    "1d": (nn.Conv1d(6, 8, 5, stride=2), (6, 17)),
    "3d": (nn.Conv3d(4, 6, 3, padding=1), (4, 5, 5, 5)),
}


@pytest.mark.parametrize("name", KINDS)
def test_exact_where_the_kernel_is_separable(name: str) -> None:
    layer, shape = KINDS[name]
    model = nn.Sequential(separable(layer))
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    result = run_lossy(SeparateConvolutions(), model, x)
    assert len(result.matched) == 1
    torch.testing.assert_close(result.graph_module(x), model(x), rtol=1e-6, atol=1e-6)
    assert float(result.record.notes[0].rsplit(" ", 1)[1]) < 1e-6  # the relative error


def test_the_halves_share_out_what_the_layer_did() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=1, padding_mode="circular"))
    model[0].bias.requires_grad_(False)
    gm = run_lossy(SeparateConvolutions(), model, torch.randn(1, 6, 9, 9)).graph_module
    first: Any = gm.get_submodule("0.depthwise")
    second: Any = gm.get_submodule("0.pointwise")
    assert (first.in_channels, first.out_channels, first.groups, first.kernel_size) == (6, 6, 6, (3, 3))
    assert (first.stride, first.padding, first.padding_mode, first.bias) == ((2, 2), (1, 1), "circular", None)
    assert (second.in_channels, second.out_channels, second.kernel_size, second.stride) == (6, 8, (1, 1), (1, 1))
    assert (second.padding, second.padding_mode) == ((0, 0), "zeros")
    assert second.bias is model[0].bias
    assert first.weight.requires_grad
    assert second.weight.requires_grad
    assert not first.training


def test_the_multiply_adds_fall_as_promised() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1)).eval(), torch.randn(1, 16, 10, 10)
    result = run_lossy(SeparateConvolutions(), model, x)
    before, after = profile(model, x), profile(result.graph_module, x)
    assert after.macs / before.macs == pytest.approx(1 / 32 + 1 / 9, rel=1e-12)
    assert after.params < before.params
    assert "14.2% of its MACs" in result.record.notes[0]


def test_the_epilogue_and_the_residual_go_to_the_second_half() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = separable(nn.Conv2d(8, 8, 3, padding=1, bias=False)), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(self.conv(x)) + x.abs())

    first: tuple[Pass, ...] = (Canonicalise(), FoldBatchNorm(), FuseResidual(), FuseActivation())
    model, x = Block().eval(), torch.randn(2, 8, 6, 6)
    result = run_lossy(SeparateConvolutions(), model, x, first)
    assert str(result.graph_module.get_submodule("conv.pointwise").epilogue) == "add_relu"
    torch.testing.assert_close(result.graph_module(x), model(x), rtol=1e-5, atol=1e-5)


def test_batch_norms_fold_afterwards() -> None:
    model = nn.Sequential(separable(nn.Conv2d(6, 8, 3, bias=False)), nn.BatchNorm2d(8), nn.ReLU()).eval()
    x = torch.randn(2, 6, 7, 7)
    gm, _ = PassManager([Canonicalise(), SeparateConvolutions(), FoldBatchNorm(), FuseActivation()])(trace(model, x), x)
    assert [n.kind for n in take_snapshot(gm).nodes] == ["placeholder", "conv2d", "FusedConv2d", "output"]
    torch.testing.assert_close(gm(x), model(x), rtol=1e-5, atol=1e-5)


def test_golden(golden: Golden) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    result = run_lossy(SeparateConvolutions(), model, torch.randn(2, 3, 8, 8))
    golden("separate_convolutions", graph_text(take_snapshot(result.graph_module)))


def test_the_node_keeps_its_id_and_the_new_one_its_origin() -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU())
    result = run_lossy(SeparateConvolutions(), model, torch.randn(1, 6, 5, 5))
    old = result.record.before.nodes[1]
    depthwise, pointwise = result.record.after.nodes[1:3]
    assert (pointwise.id, pointwise.name, pointwise.module_path) == (old.id, old.name, "0")
    assert (depthwise.name, depthwise.target, depthwise.module_path) == ("_0_depthwise", "0.depthwise", "0")
    assert [o.rule for o in depthwise.origins] == ["separate_convolutions"]
    assert len(result.record.diff.added) == 1
    assert not result.record.diff.removed


REFUSED: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "1x1": (lambda: nn.Sequential(nn.Conv2d(8, 8, 1)), (8, 6, 6), "the kernel of `0` is 1x1 already"),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), (8, 6, 6), "`0` is grouped already"),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(8, 16, 3, groups=8)), (8, 6, 6), "`0` is depthwise already"),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3)), (8, 6, 6), "`0` is a transposed convolution"),
    "one output": (
        lambda: nn.Sequential(nn.Conv2d(8, 1, 3)),
        (8, 6, 6),
        "`0` would not get cheaper: 1 output channels are too few",
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(8, 8)), (8,), "`0` is a linear layer"),
    "twice": (Twice, (8, 6, 6), "`conv` is called twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, shape, reason = REFUSED[name]
    torch.manual_seed(0)
    result = run_lossy(SeparateConvolutions(), make(), torch.randn(2, *shape))
    assert set(reasons(result)) == {reason}
    assert not result.modified


@pytest.mark.parametrize("name", UNFIT)
def test_unfit(name: str) -> None:
    make, reason = UNFIT[name]
    result = run_lossy(SeparateConvolutions(), make(), torch.randn(2, 32))
    assert reason in reasons(result)
    assert not result.modified


def test_refused_where_the_error_is_too_large() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3), separable(nn.Conv2d(8, 8, 3)))
    result = run_lossy(SeparateConvolutions(max_error=0.1), model, torch.randn(1, 6, 9, 9))
    assert [m.where for m in result.matched] == ["1"]
    assert reasons(result)[0].startswith("the relative error of `0` would be 0.")


@pytest.mark.parametrize("error", [-0.1, 1.5, True, "low"])
def test_bad_options(error: Any) -> None:
    with pytest.raises(InputError, match=r"max_error is .*\n(.*\n)*.*from 0 to 1"):
        SeparateConvolutions(max_error=error)


def test_a_glob_that_matches_nothing() -> None:
    gm = Canonicalise()(trace(nn.Sequential(nn.Conv2d(6, 8, 3)))).graph_module
    with pytest.raises(InputError, match=r"the glob 'stem' matches no convolution or linear layer"):
        SeparateConvolutions(layers="stem")(gm)
