"""Sparse weights: which go, which layers are left alone, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxq.compression import magnitude
from fxq.errors import InputError
from fxq.manager import PassManager
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.fold_batch_norm import FoldBatchNorm
from fxq.passes.fuse_activation import FuseActivation
from fxq.passes.sparsify import Sparsify
from fxq.tracing import trace
from tests.compression.lossy import UNFIT, Twice, reasons, run_lossy
from tests.conftest import Golden


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.wise = nn.Conv2d(16, 16, 3, groups=16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.up(self.wise(x)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


LAYERS = ("stem", "wise", "up", "head")
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def weights(module: nn.Module) -> list[Tensor]:
    return [module.get_parameter(f"{name}.weight").detach() for name in LAYERS]


@pytest.mark.parametrize("scope", ["global", "layer", "lamp"])
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_the_scope_says_which_weights_go(scope: str, sparsity: float) -> None:
    model = net()
    result = run_lossy(Sparsify(sparsity, scope=scope), model, X)
    masks = {"global": magnitude.global_masks, "layer": magnitude.layer_masks, "lamp": magnitude.lamp_masks}[scope]
    for old, new, mask in zip(
        weights(model), weights(result.graph_module), masks(weights(model), sparsity), strict=True
    ):
        assert torch.equal(new, old * mask)
    assert [m.rule for m in result.matched] == ["sparsify"] * 4
    assert not result.refused


def test_after_fusion_the_folded_weights_are_pruned() -> None:
    result = run_lossy(Sparsify(0.5, "layer"), net(), X, (Canonicalise(), FoldBatchNorm(), FuseActivation()))
    for weight in weights(result.graph_module):
        assert int((weight == 0).sum()) == weight.numel() // 2
    stem = result.graph_module.get_submodule("stem")
    assert type(stem).__name__ == "FusedConv2d"
    assert str(stem.epilogue) == "relu"


@pytest.mark.parametrize("scope", ["global", "lamp", "layer"])
def test_no_layer_goes_empty_at_99_percent(scope: str) -> None:
    model = net()
    with torch.no_grad():
        model.head.weight.mul_(1e-6)
    result = run_lossy(Sparsify(0.99, scope), model, X)
    assert all(int((w != 0).sum()) >= 1 for w in weights(result.graph_module))


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (3, 8)])
def test_a_pattern_keeps_n_of_every_m_inputs(pattern: tuple[int, int]) -> None:
    n, m = pattern
    model = net()
    result = run_lossy(Sparsify(pattern=pattern), model, X)
    stem, _, up, head = weights(result.graph_module)
    inputs_last = [head, up.reshape(2, 8, 4, 2, 2).movedim(1, -1)] + ([stem.movedim(1, -1)] if m == 4 else [])
    for rows in inputs_last:
        groups = rows.reshape(-1, m)
        assert bool(((groups != 0).sum(1) == n).all())
    old, new = model.head.weight.detach().reshape(-1, m).abs(), head.reshape(-1, m)
    assert bool((old.masked_fill(new == 0, 9.0).amin(1) > old.masked_fill(new != 0, 0.0).amax(1)).all())
    assert reasons(result) == [f"each output of `wise` has 1 inputs at a position, {n} of which stay"]


def test_the_layer_keeps_its_node_path_bias_and_gradient() -> None:
    model = net()
    model.head.weight.requires_grad_(False)
    result = run_lossy(Sparsify(0.5, exclude="stem"), model, X)
    gm = result.graph_module
    assert gm.get_submodule("stem") is model.stem
    assert gm.get_submodule("wise") is not model.wise
    assert gm.get_parameter("wise.bias") is model.wise.bias
    assert gm.get_parameter("wise.weight").requires_grad
    assert not gm.get_parameter("head.weight").requires_grad
    before, after = result.record.before.nodes, result.record.after.nodes
    assert [(n.id, n.name, n.target) for n in before] == [(n.id, n.name, n.target) for n in after]
    origins = {n.target: [o.pass_name for o in n.origins] for n in after}
    assert origins["wise"][-1] == "sparsify"
    assert "sparsify" not in origins["stem"]


def test_layers_and_exclude_are_globs() -> None:
    result = run_lossy(Sparsify(0.5, layers=("*e*",), exclude=["ste*"]), net(), X)
    assert [m.where for m in result.matched] == ["wise", "head"]
    assert reasons(result) == ["`stem` is excluded by 'ste*'", "`up` is not among the chosen layers"]


def test_a_layer_that_is_called_twice_is_pruned_once() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 6)
    result = run_lossy(Sparsify(0.5), Twice(), x)
    assert len(result.matched) == 1
    assert len(result.matched[0].nodes) == 2
    assert int((result.graph_module.get_parameter("conv.weight") == 0).sum()) == 288


@pytest.mark.parametrize("name", UNFIT)
def test_refused(name: str) -> None:
    make, reason = UNFIT[name]
    torch.manual_seed(0)
    result = run_lossy(Sparsify(0.5), make(), torch.randn(2, 32))
    assert reason in reasons(result)
    assert not result.matched
    assert not result.modified


def test_refused_inside_a_module_that_is_also_called_whole() -> None:
    class Opaque(nn.Sequential):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Opaque(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.block[0](self.block(x))
            return y

    class Leaf(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, Opaque | nn.Linear)

    model = Model().eval()
    gm = fx.GraphModule(model, Leaf().trace(model))
    result = Sparsify(0.5)(Canonicalise()(gm).graph_module)
    assert reasons(result) == ["`block.0` is also called by `block`, of which it is a part"]


def test_nothing_to_prune() -> None:
    result = run_lossy(Sparsify(0.0), net(), X)
    assert reasons(result) == [f"no weight of `{name}` would go, or only zeros" for name in LAYERS]
    sparse = run_lossy(Sparsify(0.5, "layer"), net(), X).graph_module
    assert not Sparsify(0.3, "layer")(sparse).modified


def test_more_go_step_by_step() -> None:
    half = run_lossy(Sparsify(0.5, "lamp"), net(), X).graph_module
    most = Sparsify(0.9, "lamp")(half).graph_module
    for before, after in zip(weights(half), weights(most), strict=True):
        assert bool((after[before == 0] == 0).all())
    assert sum(int((w == 0).sum()) for w in weights(most)) == round(0.9 * 1056)


def test_the_note_tells_how_much_went() -> None:
    result = run_lossy(Sparsify(0.5, "layer"), net(), X)
    (note,) = result.record.notes
    assert note == "528 of 1,056 weights in 4 layers are zero (50.0%), from 50.0% in `head` to 50.0% in `wise`"


def test_golden(golden: Golden) -> None:
    result = run_lossy(Sparsify(0.75, "lamp"), net(), X)
    lines = [f"{m.rule} {m.where}" for m in result.matched] + list(result.record.notes)
    zeros = [
        f"{name}: {int((w == 0).sum())} of {w.numel()}"
        for name, w in zip(LAYERS, weights(result.graph_module), strict=True)
    ]
    golden("sparsify", "\n".join(lines + zeros))


def test_the_manager_measures_the_error() -> None:
    gm = trace(net(), X)
    _, report = PassManager([Canonicalise(), Sparsify(0.2)])(gm, X)
    step = report.passes[-1].step
    assert step is not None
    assert 10.0 < step.sqnr_db < 60.0


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "all": ({"sparsity": 1.0}, r"sparsity is 1.0\n(.*\n)*.*at least 0 and below 1"),
    "negative": ({"sparsity": -0.1}, "sparsity is -0.1"),
    "nan": ({"sparsity": float("nan")}, "sparsity is nan"),
    "bool": ({"sparsity": False}, "sparsity is False"),
    "scope": ({"scope": "lampp"}, r"unknown scope 'lampp'\n(.*\n)*.*did you mean 'lamp'"),
    "four of two": ({"pattern": (4, 2)}, r"pattern is \(4, 2\)\n(.*\n)*.*0 < n < m"),
    "pattern of one": ({"pattern": (2,)}, r"pattern is \(2,\)"),
    "fractions": ({"pattern": (0.5, 4)}, r"pattern is \(0.5, 4\)"),
    "both": ({"pattern": (2, 4), "sparsity": 0.9}, r"pattern is given beside a sparsity or a scope\n(.*\n)*.*of 0.5"),
    "pattern and scope": ({"pattern": (2, 4), "scope": "lamp"}, "pattern is given beside a sparsity or a scope"),
    "text": ({"sparsity": "0.5"}, "sparsity is '0.5'"),
    "no globs": ({"layers": 3}, "layers is 3"),
    "globs": ({"exclude": (1,)}, r"exclude is \(1,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        Sparsify(**options)


@pytest.mark.parametrize("option", ["exclude", "layers"])
def test_a_glob_that_matches_nothing(option: str) -> None:
    p: Any = Sparsify(0.5, **{option: ("heads",)})
    with pytest.raises(InputError, match="the glob 'heads' matches no convolution") as caught:
        p(Canonicalise()(trace(net(), X)).graph_module)
    assert "did you mean 'head'?" in str(caught.value)
    assert f"the option {option}" in str(caught.value)
