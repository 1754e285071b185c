from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fxq.errors import VerifyError
from fxq.ir import Stage, diff, take_snapshot
from fxq.ir.stage import set_graph_state
from fxq.manager import PassManager
from fxq.manager.base import PassResult
from fxq.passes.fold_batch_norm import FoldBatchNorm
from fxq.passes.fuse_activation import FuseActivation
from fxq.passes.layers import affine
from fxq.tracing import trace


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics that matter, and put the model into evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
            for tensor in (module.running_mean, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.normal_(generator=generator)
            if module.running_var is not None:
                module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


def fold(model: nn.Module, x: Tensor) -> PassResult:
    """Run the pass on the traced model; the graph that went in must stay as it was."""
    gm = trace(model, x)
    before = take_snapshot(gm)
    result = FoldBatchNorm()(gm, x)
    assert not diff(before, take_snapshot(gm)).modified
    return result


def reasons(result: PassResult) -> list[str]:
    return [r.reason for r in result.refused]


def check_folded(model: nn.Module, x: Tensor, other: Tensor, tolerance: float = 1e-5) -> PassResult:
    """The batch norm is gone, and the outputs agree at both sizes."""
    result = fold(model, x)
    out = result.graph_module
    kinds = [n.kind for n in take_snapshot(out).nodes]
    assert "batch_norm" not in kinds
    for inputs in (x, other):
        torch.testing.assert_close(out(inputs), model(inputs), rtol=tolerance, atol=tolerance)
    return result


BEHIND = {
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), (4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (4, 9, 9)),
    "conv2d without bias": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (4, 9, 9)),
    "conv3d": (nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), (2, 5, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (4, 9, 9)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8), (4, 9, 9)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (4, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (4, 9, 9)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (4, 9, 9)),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d(6), (4, 4, 4, 4)),
    "linear": (nn.Linear(5, 7), nn.BatchNorm1d(7), (5,)),
    "linear without bias": (nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), (5,)),
    "without gamma and beta": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (4, 9, 9)),
    "large eps, no momentum": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.5, momentum=None), (4, 9, 9)),
    "synchronised": (nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6), (4, 9, 9)),
}


@pytest.mark.parametrize("name", BEHIND)
def test_behind_a_layer(name: str) -> None:
    layer, norm, shape = BEHIND[name]
    torch.manual_seed(0)
    model = trained(nn.Sequential(layer, norm))
    result = check_folded(model, torch.randn(3, *shape), torch.randn(5, *shape))
    assert len(result.matched) == 1
    assert not result.refused


IN_FRONT = {
    "conv2d": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), (4, 9, 9)),
    "conv2d without bias": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, bias=False, padding="valid"), (4, 9, 9)),
    "grouped": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2, dilation=2), (4, 9, 9)),
    "depthwise": (nn.BatchNorm1d(4), nn.Conv1d(4, 8, 3, groups=4), (4, 9)),
    "pointwise, padding same": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, padding="same"), (4, 9, 9)),
    "reflecting": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 9, 9)),
    "circular": (nn.BatchNorm3d(2), nn.Conv3d(2, 4, 3, padding=1, padding_mode="circular"), (2, 4, 4, 4)),
    "linear": (nn.BatchNorm1d(5), nn.Linear(5, 7, bias=False), (5,)),
}


@pytest.mark.parametrize("name", IN_FRONT)
def test_in_front_of_a_layer(name: str) -> None:
    norm, layer, shape = IN_FRONT[name]
    torch.manual_seed(0)
    model = trained(nn.Sequential(norm, layer))
    result = check_folded(model, torch.randn(3, *shape), torch.randn(5, *shape))
    assert [m.rule for m in result.matched] == ["fold_into_next_layer"]
    assert not result.refused


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
    ],
)
def test_in_front_of_padding_only_without_a_shift(layer: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 7, 7)
    model = trained(nn.Sequential(nn.BatchNorm2d(4), layer))
    result = fold(model, x)
    assert not result.modified
    assert "its shift cannot become a bias at the border" in reasons(result)[0]

    norm = model[0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    norm.running_mean.zero_()
    nn.init.zeros_(norm.bias)
    check_folded(model, x, torch.randn(3, 4, 7, 7))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.bfloat16, 0.1), (torch.float16, 1e-2)])
def test_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).to(dtype)
    x = torch.randn(2, 4, 6, 6, dtype=dtype)
    result = check_folded(model, x, torch.randn(3, 4, 6, 6, dtype=dtype), tolerance)
    assert {p.dtype for p in result.graph_module.parameters()} == {dtype}
    PassManager([FoldBatchNorm()])(trace(model, x), x)  # the tolerance of the check knows the dtype


def test_a_float32_batch_norm_behind_a_bfloat16_layer_keeps_the_layers_dtype() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3).bfloat16(), nn.BatchNorm2d(6)))
    result = fold(model, torch.randn(2, 4, 6, 6, dtype=torch.bfloat16))
    assert {p.dtype for p in result.graph_module.parameters()} == {torch.bfloat16}


def test_the_maths_is_done_in_float64() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    conv, norm = model[0], model[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    folded = fold(model, torch.randn(2, 4, 6, 6)).graph_module.get_submodule("0")
    assert torch.equal(folded.weight, (conv.weight.double() * scale.reshape(-1, 1, 1, 1)).float())


def test_the_layer_keeps_its_node_and_gets_a_module_of_its_own() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    x = torch.randn(2, 4, 6, 6)
    gm = trace(model, x)
    out, record = FoldBatchNorm()(gm, x)
    before, after = record.before.nodes[1], record.after.nodes[1]
    assert (after.id, after.name, after.target, after.module_path) == (before.id, before.name, "0", "0")
    assert [(o.pass_name, o.rule) for o in after.origins] == [("fold_batch_norm", "fold_into_conv")]
    assert [n.name for n in record.diff.removed] == [record.before.nodes[2].name]
    assert out.get_submodule("0") is not model[0]
    assert gm.get_submodule("0") is model[0]
    assert not any(p.requires_grad for p in out.parameters())
    assert "1" not in dict(out.named_children())


def test_a_hook_on_the_folded_layer_stays_off_the_original() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    out = fold(model, torch.randn(2, 4, 6, 6)).graph_module
    out.get_submodule("0").register_forward_hook(lambda *_: None)
    assert not model[0]._forward_hooks


def test_two_batch_norms_behind_one_layer() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)))
    assert len(check_folded(model, torch.randn(2, 4, 6, 6), torch.randn(3, 4, 6, 6)).matched) == 2


def test_a_transposed_convolution_that_is_told_its_output_size() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 6, 3, stride=2)
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.up(x, output_size=[10, 10]))
            return y

    check_folded(trained(Model()), torch.randn(2, 4, 4, 4), torch.randn(3, 4, 4, 4))


def test_one_batch_norm_module_behind_two_layers_is_folded_into_both() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.a(x)) + self.norm(self.b(x))
            return y

    assert len(check_folded(trained(Model()), torch.randn(2, 4, 6, 6), torch.randn(3, 4, 6, 6)).matched) == 2


def test_idempotent() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    x = torch.randn(2, 4, 6, 6)
    once = fold(model, x)
    again = FoldBatchNorm()(once.graph_module, x)
    assert once.modified
    assert not again.modified
    assert not again.matched
    assert not again.refused


def test_channels_last_weights_stay_so() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).to(memory_format=torch.channels_last)
    weight = fold(model, torch.randn(2, 4, 6, 6)).graph_module.get_submodule("0").weight
    assert isinstance(weight, Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)


# -- refusals ------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(self.conv(x)))
        return y


class Used(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.norm(y) + y
        return z


class Returned(Twice):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.norm(y), y


class Tied(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(4, 4, 1)
        self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)) + self.other(x)
        return y


class BehindCat(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(torch.cat([x[:, :2], x[:, 2:]], 1))
        return y


class Overwritten(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x.add_(1.0)
        z: Tensor = self.conv(y)
        return z


class Special(nn.Conv2d):
    pass


def training_mode() -> nn.Module:
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    model[1].train()
    return model


def not_finite(path: str) -> nn.Module:
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    model.state_dict()[path][0] = float("nan")
    return model


def overflowing() -> nn.Module:
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    model.state_dict()["1.weight"][0] = 3e38
    model.state_dict()["1.running_var"][0] = 0.0
    return model


def hooked() -> nn.Module:
    conv = nn.Conv2d(4, 4, 1)
    conv.register_forward_hook(lambda *_: None)
    return nn.Sequential(conv, nn.BatchNorm2d(4))


def hooked_norm() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm.register_forward_hook(lambda *_: None)
    return nn.Sequential(nn.Conv2d(4, 4, 1), norm)


REFUSED = {
    "called twice": (Twice, "`conv` is called twice"),
    "used": (Used, "the value of `conv` is also used by `add`"),
    "returned": (Returned, "the value of `conv` is returned"),
    "tied": (Tied, "`conv` shares its weight with another module"),
    "behind cat": (BehindCat, "not after a convolution or linear layer, but after cat"),
    "first": (lambda: nn.Sequential(nn.BatchNorm2d(4)), "not after a convolution or linear layer, but after an input"),
    "overwritten": (Overwritten, "`add_` may write in place between `norm` and `conv`"),
    "training": (training_mode, "`1` is in training mode: it normalises with the statistics of each batch"),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        "`1` has no running statistics: it normalises with those of each batch",
    ),
    "not finite": (lambda: not_finite("1.running_var"), "`1.running_var` is not finite"),
    "weight not finite": (lambda: not_finite("0.weight"), "`0.weight` is not finite"),
    "overflow": (overflowing, "the folded weight of `0` is not finite in torch.float32"),
    "subclass": (
        lambda: nn.Sequential(Special(4, 4, 1), nn.BatchNorm2d(4)),
        "`0` is an opaque module (Special)",
    ),
    "hooks": (hooked, "`0` is an opaque module (Conv2d, which has hooks)"),
    "hooks of the batch norm": (hooked_norm, "`1` is an opaque module (BatchNorm2d, which has hooks)"),
    "parametrised": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)),
        "`0` is an opaque module (ParametrizedConv2d)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, reason = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    if name != "training":
        model.eval()
    result = fold(model, torch.randn(3, 4, 5, 5))
    assert reasons(result) == [reason]
    assert not result.matched
    assert not result.modified


def test_refused_behind_an_epilogue() -> None:
    x = torch.randn(2, 4, 5, 5)
    gm = trace(trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))), x)
    set_graph_state(gm, stage=Stage.CANONICAL)
    result = FoldBatchNorm()(FuseActivation()(gm).graph_module, x)
    assert reasons(result) == ["`0` ends in an epilogue (relu), which stands between"]
    assert not result.modified


def test_refused_where_the_channels_are_another_axis() -> None:
    torch.manual_seed(0)
    behind = trained(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)))
    in_front = trained(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6)))
    for model in (behind, in_front):
        result = fold(model, torch.randn(2, 6, 6))
        assert "are another axis than those of" in reasons(result)[0]
        assert not result.modified


def test_refused_for_an_unbatched_convolution() -> None:
    model = trained(nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)))
    result = fold(model, torch.randn(3, 8))  # gives (channels, 6), which the batch norm reads as (batch, channels)
    assert reasons(result) == ["the channels of `1` are another axis than those of `0`"]


def test_without_example_inputs() -> None:
    linear = trained(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    conv = trained(nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)))
    refused = FoldBatchNorm()(trace(linear))
    assert [r.reason.split(" is ")[-1] for r in refused.refused] == ["not known without example inputs"]
    assert FoldBatchNorm()(trace(conv)).modified


# -- a control -----------------------------------------------------------------------------------------------------


def test_wrong_maths_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)))
    x = torch.randn(2, 4, 8, 8)
    PassManager([FoldBatchNorm()])(trace(model, x), x)
    monkeypatch.setattr("fxq.passes.fold_batch_norm.fold_behind", lambda layer, affine: _wrong(layer, affine))
    with pytest.raises(VerifyError, match=r"`fold_batch_norm` promises CLOSE and changed the output") as caught:
        PassManager([FoldBatchNorm()])(trace(model, x), x)
    assert "module `2`" in str(caught.value)


def _wrong(layer: nn.Module, exact: affine.ChannelAffine) -> nn.Module:
    return affine.fold_behind(layer, affine.ChannelAffine(exact.scale, exact.shift + 0.01))
