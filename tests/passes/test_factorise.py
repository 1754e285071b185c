"""Low-rank pairs: exact at the rank of the weights, as cheap as promised, refused where they do not pay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxq.analysis import profile
from fxq.errors import InputError
from fxq.ir import graph_text, take_snapshot
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.factorise import Factorise
from fxq.passes.fuse_activation import FuseActivation
from fxq.tracing import trace
from tests.compression.lossy import UNFIT, Twice, reasons, run_lossy
from tests.conftest import Golden


def low_rank(layer: Any, rank: int, seed: int = 0) -> Any:
    """Give a layer weights of this rank."""
    generator = torch.Generator().manual_seed(seed)
    out, inputs = layer.weight.flatten(1).shape
    left = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
    layer.weight = nn.Parameter((left @ right / (rank * inputs) ** 0.5).float().reshape(layer.weight.shape))
    return layer


KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(24, 20), (24,)),
    "linear without bias": (nn.Linear(24, 20, bias=False), (5, 24)),
    "conv2d": (nn.Conv2d(6, 16, 3, stride=2, padding=1), (6, 9, 9)),
    "reflecting": (nn.Conv2d(6, 16, 3, padding=1, padding_mode="reflect"), (6, 9, 9)),
    "dilated": (nn.Conv2d(6, 16, 3, dilation=2, padding="same", bias=False), (6, 9, 9)),
    "pointwise": (nn.Conv2d(16, 16, 1), (16, 5, 5)),
    "conv1d": (nn.Conv1d(6, 16, 5), (6, 17)),
    "conv3d": (nn.Conv3d(4, 12, 2), (4, 5, 5, 5)),
}


@pytest.mark.parametrize("name", KINDS)
def test_exact_at_the_rank_of_the_weights(name: str) -> None:
    layer, shape = KINDS[name]
    model = nn.Sequential(low_rank(layer, 4))
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    result = run_lossy(Factorise(energy=1.0), model, x)
    assert len(result.matched) == 1
    assert "rank 4 of" in result.record.notes[0]
    torch.testing.assert_close(result.graph_module(x), model(x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["linear", "conv2d", "pointwise"])
def test_the_error_is_that_of_the_truncated_svd(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = KINDS[name]
    model: Any = nn.Sequential(layer)
    result = run_lossy(Factorise(rank=3), model, torch.randn(2, *shape))
    gm = result.graph_module
    reduce, expand = (gm.get_parameter(f"0.{half}.weight").detach().flatten(1) for half in ("reduce", "expand"))
    weight = model[0].weight.detach().flatten(1)
    error = float((expand @ reduce - weight).norm() / weight.norm())
    singular = torch.linalg.svdvals(weight.double())
    assert error == pytest.approx(float(singular[3:].norm() / singular.norm()), rel=1e-4)
    assert f"relative error {error:.3g}" in result.record.notes[0]


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_the_ratio_bounds_multiply_adds_and_weights(ratio: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.Flatten(), nn.Linear(32 * 36, 64, bias=False)).eval()
    x = torch.randn(1, 16, 8, 8)
    gm = run_lossy(Factorise(ratio=ratio), model, x).graph_module
    before, after = profile(model, x), profile(gm, x)
    assert 0.9 * ratio < after.macs / before.macs <= ratio
    assert 0.9 * ratio < after.params / before.params <= ratio


def test_energy_is_the_default_and_what_is_kept() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(200, 30, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(0, -3, 30)[:, None])
    results = [run_lossy(p, model, torch.randn(2, 200)) for p in (Factorise(), Factorise(energy=0.9))]
    singular = torch.linalg.svdvals(model[0].weight.detach().double()).square()
    rank = int((singular.cumsum(0) < 0.9 * singular.sum()).sum()) + 1
    for result in results:
        assert result.graph_module.get_parameter("0.reduce.weight").shape == (rank, 200)


def test_the_epilogue_and_the_bias_go_to_the_second_half() -> None:
    model: Any = nn.Sequential(low_rank(nn.Conv2d(6, 16, 3, stride=2, padding=1), 3), nn.ReLU()).eval()
    x = torch.randn(2, 6, 9, 9)
    gm = run_lossy(Factorise(energy=1.0), model, x, (Canonicalise(), FuseActivation())).graph_module
    first: Any = gm.get_submodule("0.reduce")
    second: Any = gm.get_submodule("0.expand")
    assert (first.stride, first.padding, first.bias) == ((2, 2), (1, 1), None)
    assert str(second.epilogue) == "relu"
    assert second.bias is model[0].bias
    assert first.weight.requires_grad
    assert second.weight.requires_grad
    torch.testing.assert_close(gm(x), model(x), rtol=1e-5, atol=2e-6)


def test_golden(golden: Golden) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    result = run_lossy(Factorise(rank=2), model, torch.randn(2, 4, 6, 6))
    golden("factorise", graph_text(take_snapshot(result.graph_module)))


REFUSED: dict[str, tuple[Any, Any, tuple[int, ...], str]] = {
    "full rank": (
        Factorise(energy=1.0),
        lambda: nn.Sequential(nn.Linear(20, 16)),
        (20,),
        "`0` would not get cheaper: it needs rank 16 of 16",
    ),
    "rank too high": (
        Factorise(rank=10),
        lambda: nn.Sequential(nn.Linear(20, 16)),
        (20,),
        "`0` would not get cheaper at rank 10",
    ),
    "ratio too low": (
        Factorise(ratio=0.1),
        lambda: nn.Sequential(nn.Linear(20, 16)),
        (20,),
        "`0` would keep 11% of its MACs at rank 1",
    ),
    "grouped": (Factorise(), lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), (8, 6, 6), "`0` is grouped already"),
    "depthwise": (
        Factorise(),
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)),
        (8, 6, 6),
        "`0` is depthwise already",
    ),
    "transposed": (
        Factorise(),
        lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3)),
        (8, 6, 6),
        "`0` is a transposed convolution",
    ),
    "twice": (Factorise(), Twice, (8, 6, 6), "`conv` is called twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    p, make, shape, reason = REFUSED[name]
    torch.manual_seed(0)
    result = run_lossy(p, make(), torch.randn(2, *shape))
    assert set(reasons(result)) == {reason}
    assert not result.modified


@pytest.mark.parametrize("name", UNFIT)
def test_unfit(name: str) -> None:
    make, reason = UNFIT[name]
    result = run_lossy(Factorise(rank=2), make(), torch.randn(2, 32))
    assert reason in reasons(result)
    assert not result.modified


def test_its_own_halves_are_left_alone() -> None:
    torch.manual_seed(0)
    gm = run_lossy(Factorise(rank=4), nn.Sequential(nn.Linear(64, 64)), torch.randn(2, 64)).graph_module
    again = Factorise(rank=1)(gm)
    assert reasons(again) == [f"`0.{half}` is one half of a pair already" for half in ("reduce", "expand")]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "two": ({"rank": 2, "energy": 0.5}, r"energy and rank are given together\n(.*\n)*.*give one"),
    "energy 0": ({"energy": 0.0}, r"energy is 0.0\n(.*\n)*.*a share above 0 and up to 1"),
    "energy 2": ({"energy": 2}, "energy is 2"),
    "rank 0": ({"rank": 0}, r"rank is 0\n(.*\n)*.*a positive whole number"),
    "rank 2.5": ({"rank": 2.5}, "rank is 2.5"),
    "energy as text": ({"energy": "0.5"}, "energy is '0.5'"),
    "ratio 1": ({"ratio": 1.0}, r"ratio is 1.0\n(.*\n)*.*a share between 0 and 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        Factorise(**options)


def test_a_glob_that_matches_nothing() -> None:
    gm = Canonicalise()(trace(nn.Sequential(nn.Linear(6, 8)))).graph_module
    with pytest.raises(InputError, match=r"the glob 'head' matches no convolution or linear layer"):
        Factorise(exclude="head")(gm)
