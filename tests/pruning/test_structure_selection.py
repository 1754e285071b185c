"""Scales change nothing at first; a block whose scale is 0 goes, exactly; other scales are folded."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import GraphError, InputError
from fxq.manager import PassManager
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.functionalise import Functionalise
from fxq.pruning.proximal import ProximalStep
from fxq.pruning.structure_selection import BlockScale, add_block_scales, block_scales, remove_blocks
from fxq.tracing import trace


class Block(nn.Module):
    """A basic block, with a projection shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(outputs) if norm else nn.Dropout(0.1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = Block(8, 8)
        self.two = Block(8, 12, 2)
        self.three = Block(12, 12, norm=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(self.two(self.one(F.relu(self.stem(x))))).mean((2, 3)))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def network(canonical: bool = True) -> fx.GraphModule:
    torch.manual_seed(0)
    model = Net().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    gm = trace(model, X)
    return PassManager([Functionalise(), Canonicalise()], verify=False)(gm, X)[0] if canonical else gm


def scaled(**values: float) -> fx.GraphModule:
    gm = add_block_scales(network())
    with torch.no_grad():
        for path, value in values.items():
            block_scales(gm)[f"{path}.block_scale"].fill_(value)
    return gm


def test_every_block_gets_a_scale_of_one_and_outputs_stay() -> None:
    gm = network()
    found = add_block_scales(gm)
    assert list(block_scales(found)) == ["one.block_scale", "two.block_scale", "three.block_scale"]
    assert all(float(s.detach()) == 1 and s.requires_grad for s in block_scales(found).values())
    assert torch.equal(found(X), gm(X))


def test_the_projection_is_the_shortcut() -> None:
    gm = scaled(two=0.0)
    modules = dict(remove_blocks(gm).named_modules())
    assert "two.downsample" in modules
    assert "two.conv1" not in modules
    assert "two.norm2" not in modules


@pytest.mark.parametrize("gone", [["one"], ["two"], ["three"], ["one", "three"], ["one", "two", "three"]])
def test_a_block_with_scale_zero_goes_exactly(gone: list[str]) -> None:
    gm = scaled(**dict.fromkeys(gone, 0.0))
    removed = remove_blocks(gm)
    assert torch.equal(removed(X), gm(X))
    assert not block_scales(removed)
    assert not any(f"{path}.conv" in str(removed.graph) for path in gone)
    assert sum(p.numel() for p in removed.parameters()) < sum(p.numel() for p in gm.parameters()) - 100 * len(gone)


def test_other_scales_are_folded_into_the_last_layer() -> None:
    gm = scaled(one=0.3, two=1.7, three=0.6)
    removed = remove_blocks(gm)
    torch.testing.assert_close(removed(X), gm(X), rtol=1e-5, atol=1e-6)
    assert not torch.equal(removed(X), scaled()(X))
    assert not any(isinstance(m, BlockScale) for m in removed.modules())
    assert len(list(removed.graph.nodes)) == len(list(network().graph.nodes))
    factors = {"one.norm2": 0.3, "two.norm2": 1.7, "three.conv2": 0.6}
    for path, factor in factors.items():
        before, after = gm.get_submodule(path), removed.get_submodule(path)
        torch.testing.assert_close(after.weight, before.weight * factor)
        torch.testing.assert_close(after.bias, before.bias * factor)


def test_a_batch_norm_without_weights_gets_them() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(3, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(self.conv(x))

    gm = add_block_scales(trace(Plain().eval(), X))
    with torch.no_grad():
        block_scales(gm)["block_scale"].fill_(0.5)
    removed = remove_blocks(gm)
    torch.testing.assert_close(removed(X), gm(X))
    assert torch.equal(removed.norm.weight, torch.full((3,), 0.5))


def test_a_branch_that_ends_otherwise_keeps_the_number() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.sigmoid(self.conv(x))

    gm = add_block_scales(trace(Gated().eval(), X))
    with torch.no_grad():
        block_scales(gm)["block_scale"].fill_(0.5)
    removed = remove_blocks(gm)
    assert torch.equal(removed(X), gm(X))
    assert not any(isinstance(m, BlockScale) for m in removed.modules())


def test_it_trains_and_what_it_was_made_from_does_not_change() -> None:
    gm = network()
    before, text = copy.deepcopy(gm.state_dict()), str(gm.graph)
    found = add_block_scales(gm)
    scales = list(block_scales(found).values())
    weights = [p for p in found.parameters() if all(p is not s for s in scales)]
    assert len(weights) == len(list(gm.parameters()))
    optimisers = [torch.optim.SGD(weights, 0.01), ProximalStep(scales, lr=0.1, strength=2.0)]
    for _ in range(20):
        found.zero_grad()
        found(X).square().mean().backward()
        for optimiser in optimisers:
            optimiser.step()
    assert any(float(s.detach()) == 0 for s in scales)
    removed = remove_blocks(found)
    torch.testing.assert_close(removed(X), found(X), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(v, before[n]) for n, v in gm.state_dict().items())
    assert str(gm.graph) == text


def test_removal_leaves_the_scaled_model_alone() -> None:
    gm = scaled(one=0.0, two=0.5)
    before, text, out = copy.deepcopy(gm.state_dict()), str(gm.graph), gm(X)
    remove_blocks(gm)
    assert all(torch.equal(v, before[n]) for n, v in gm.state_dict().items())
    assert str(gm.graph) == text
    assert torch.equal(gm(X), out)


def test_an_operation_that_overwrites_the_output_is_refused() -> None:
    gm = add_block_scales(network(canonical=False))
    with torch.no_grad():
        block_scales(gm)["one.block_scale"].zero_()
    with pytest.raises(GraphError, match=r"overwrites the block's output(.|\n)*Functionalise"):
        remove_blocks(gm)


def test_what_has_no_blocks_is_refused() -> None:
    plain = trace(nn.Sequential(nn.Linear(3, 3)).eval(), torch.randn(1, 3))
    with pytest.raises(InputError, match=r"no residual block(.|\n)*the graph adds no two values"):
        add_block_scales(plain)
    with pytest.raises(InputError, match="no block scales"):
        remove_blocks(plain)
    gm = scaled(one=float("nan"))
    with pytest.raises(InputError, match="block scales already"):
        add_block_scales(gm)
    with pytest.raises(InputError, match=r"the scale of `one\.block_scale` is nan"):
        remove_blocks(gm)
