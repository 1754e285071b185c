from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.errors import InputError
from fxq.pruner.api import plan_of, prune, prune_report
from fxq.pruner.latency import Stopwatch
from fxq.pruning.criteria import L1
from fxq.pruning.masking import Equivalence
from fxq.pruning.plan import Plan
from fxq.pruning.view import GroupView
from tests.pruning.networks import grouped, images, residual, vgg16, widths


def pruned(model: nn.Module, **options: Any) -> fx.GraphModule:
    return prune(model, images(), **{"round_to": 1, **options})


def test_a_ratio_removes_the_same_share_of_every_group() -> None:
    gm = pruned(residual(), ratio=0.4)
    assert widths(gm) == {"stem": 10, "conv1": 15, "conv2": 10, "last": 20, "fc": 10}
    assert gm(images(3)).shape == (3, 10)


def test_what_is_kept_are_the_largest_filters() -> None:
    model = residual()
    gm = pruned(model, ratio=0.5)
    norms = model.conv1.weight.detach().abs().sum((1, 2, 3))
    wanted = norms.topk(12).indices.sort().values
    kept_inputs = torch.tensor(prune_report(gm)["stem"].kept)
    assert torch.equal(gm.get_parameter("conv1.weight"), model.conv1.weight[wanted][:, kept_inputs])
    assert prune_report(gm)["conv1"].kept == tuple(wanted.tolist())


def test_the_model_and_its_mode_and_its_inputs_stay_as_they_are() -> None:
    model, x = residual(), images()
    state, given = copy.deepcopy(model.state_dict()), x.clone()
    gm = prune(model, x, ratio=0.5)
    gm.get_parameter("fc.weight").data.zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert torch.equal(x, given)
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_ratio_zero_leaves_the_output() -> None:
    model = residual()
    assert torch.equal(pruned(model, ratio=0)(images()), model(images()))


def test_grouped_layers_keep_equally_many_in_each_group() -> None:
    gm = pruned(grouped(), ratio=0.3)  # 24 - 7 = 17, and at least as many as three groups can share: 18
    assert widths(gm) == {"0": 18, "2": 18, "4": 5}
    assert gm.get_submodule("2").groups == 3


def test_kept_channels_are_multiples() -> None:
    assert widths(pruned(residual(), ratio=0.4, round_to=8)) == {
        "stem": 16,
        "conv1": 16,
        "conv2": 16,
        "last": 24,
        "fc": 10,
    }
    assert widths(pruned(residual(), ratio=0.4, round_to="auto", target="reference"))["stem"] == 10


def test_options_for_single_layers() -> None:
    gm = pruned(residual(), ratio=0.5, protect=["stem"], ratios={"conv1": 0.25}, bounds={"last": (0.75, 1.0)})
    assert widths(gm) == {"stem": 16, "conv1": 18, "conv2": 16, "last": 24, "fc": 10}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.4}, {"macs": 0.2}])
def test_a_budget_is_met_within_two_hundredths(budget: dict[str, float], scope: str) -> None:
    model = residual(32, 48)
    gm = pruned(model, scope=scope, **budget)
    ((kind, value),) = budget.items()
    dense, small = fxq.profile(model, images()), fxq.profile(gm, images())
    assert abs(getattr(small, kind) / getattr(dense, kind) - value) <= 0.02


def test_the_floor_of_a_budget() -> None:
    with pytest.raises(InputError, match=r"(?s)macs=0.1 cannot be met.*0.2\d+ of the dense cost remains"):
        pruned(residual(), macs=0.1, bounds={"*": (0.5, 1)})


def test_steps_so_large_that_a_budget_is_missed_are_said() -> None:
    gm = pruned(residual(), macs=0.7, round_to=16)
    assert "macs=0.7 was asked for, 0.614 is as near" in str(fxq.report(gm))
    with pytest.raises(InputError, match="lower round_to"):
        pruned(residual(), macs=0.5, round_to=16)


def test_multiples_that_nobody_asked_for_give_way_to_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxq.pruner.api.block_of", lambda _: 16)
    model, x = residual(64, 64), images()
    for macs, multiple in ((0.75, 16), (0.5, 8), (0.9, 4)):
        gm = prune(model, x, macs=macs)
        report = prune_report(gm)
        assert report.after.macs / report.before.macs == pytest.approx(macs, abs=0.02)
        assert math.gcd(*(widths(gm)[name] for name in ("stem", "conv1", "last"))) == multiple


def test_network_slimming() -> None:
    """One threshold on all |gamma|, strict; the largest of a group stays."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for i, o in ((3, 16), (16, 24), (24, 8)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
        nn.init.normal_(layers[-2].weight)
    model = nn.Sequential(*layers, nn.Conv2d(8, 4, 1)).eval()
    gammas = [model.get_parameter(f"{i}.weight").detach().abs() for i in (1, 4, 7)]
    threshold = torch.cat(gammas).sort().values[int(48 * 0.6)]
    gm = pruned(model, ratio=0.6, criterion="bn_scale", scope="global")
    for path, gamma in zip(("0", "3", "6"), gammas, strict=True):
        kept = (gamma > threshold).nonzero().flatten().tolist() or [int(gamma.argmax())]
        assert list(prune_report(gm)[path].kept) == kept


def test_a_criterion_of_one_s_own() -> None:
    def last_ones(group: GroupView) -> Tensor:
        return torch.arange(group.size)

    gm = pruned(residual(), ratio=0.5, criterion=last_ones)
    assert prune_report(gm)["conv1"].kept == tuple(range(12, 24))
    assert prune_report(gm).criterion == "last_ones"


def test_greedy_norms_leave_out_what_was_removed_before() -> None:
    """The second layer's filters are ranked by the kernels that read what is left of the first."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1)).eval()
    greedy = prune_report(pruned(model, ratio=0.5, criterion=L1(greedy=True)))
    left = list(greedy["0"].kept)
    norms = model.get_parameter("2.weight").detach()[:, left].abs().sum((1, 2, 3))
    assert list(greedy["2"].kept) == norms.topk(8).indices.sort().values.tolist()
    assert greedy["2"].kept != prune_report(pruned(model, ratio=0.5))["2"].kept


def test_data_for_criteria() -> None:
    batches = [(images(4), torch.tensor([0, 1, 2, 3]))]
    for criterion in ("taylor", "activation", "thinet", "lasso"):
        assert widths(pruned(residual(), ratio=0.5, criterion=criterion, data=batches))["conv1"] == 12


def test_mending() -> None:
    """Reconstruction comes nearer to the dense model; batch norms get the statistics of what they now see."""
    model, batches = residual(), [images(16), images(12)]
    plain, mended = (pruned(model, ratio=0.5, data=batches, reconstruct=r) for r in (False, True))
    with torch.no_grad():
        errors = [float((gm(batches[0]) - model(batches[0])).norm()) for gm in (plain, mended)]
    assert errors[1] < 0.8 * errors[0]
    report = prune_report(mended)
    assert report.plan == plan_of(plain)
    assert all(check.holds for check in report.checks)
    assert report.reconstruction is not None
    assert "Least-squares reconstruction" in str(fxq.report(mended))

    gm = pruned(model, ratio=0.5, data=(b for b in batches), reestimate=True)
    stem = gm.get_submodule("stem")(torch.cat(batches))
    assert torch.allclose(gm.get_buffer("norm.running_mean"), stem.mean((0, 2, 3)), atol=1e-5)


def test_steps_end_where_one_step_does() -> None:
    seen: list[dict[str, int]] = []

    def finetune(gm: fx.GraphModule) -> None:
        seen.append(widths(gm))
        gm.train()
        with torch.no_grad():
            gm.get_parameter("conv1.weight").mul_(-1)

    model = residual()
    gm = pruned(model, ratio=0.75, steps=3, finetune=finetune)
    assert [s["conv1"] for s in seen] == [18, 12]
    assert widths(gm) == widths(pruned(model, ratio=0.75))
    report = prune_report(gm)
    assert len(report.checks) == 3
    assert not any(m.training for m in gm.modules() if isinstance(m, nn.BatchNorm2d))
    kept = list(report["conv1"].kept)
    inputs = list(report["stem"].kept)
    assert torch.equal(gm.get_parameter("conv1.weight"), model.conv1.weight[kept][:, inputs])  # twice times -1


def test_steps_towards_a_budget() -> None:
    model = residual(32, 48)
    costs: list[float] = []
    total = fxq.profile(model, images()).macs
    gm = pruned(model, macs=0.4, steps=2, finetune=lambda g: costs.append(fxq.profile(g, images()).macs / total))
    assert costs == [pytest.approx(0.7, abs=0.02)]
    assert fxq.profile(gm, images()).macs / total == pytest.approx(0.4, abs=0.02)


def test_weights_that_fine_tuning_broke() -> None:
    def finetune(gm: fx.GraphModule) -> None:
        gm.get_parameter("conv1.weight").data.fill_(torch.nan)

    with pytest.raises(InputError, match="`weight` holds NaN"):
        pruned(residual(), ratio=0.5, steps=2, finetune=finetune)


def test_a_plan_replays_on_other_weights() -> None:
    gm = pruned(residual(), ratio=0.5, steps=2)
    other = residual()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    plan = Plan.from_json(plan_of(gm).to_json())
    again = prune(other, images(), plan=plan)
    assert plan_of(again) == plan
    assert widths(again) == widths(gm)
    kept, inputs = list(prune_report(gm)["conv1"].kept), list(prune_report(gm)["stem"].kept)
    assert torch.equal(again.get_parameter("conv1.weight"), other.conv1.weight[kept][:, inputs])
    with pytest.raises(InputError, match="another model"):
        prune(residual(inner=20), images(), plan=plan)


def test_li_s_configuration_of_vgg16() -> None:
    """Li et al. (ICLR 2017), table 1: 313 M multiply-adds of convolutions become 206 M."""
    model, x = vgg16(), images(1, 32)
    convs = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    gm = prune(model, x, ratio=0, ratios=dict.fromkeys((convs[0], *convs[7:]), 0.5), check=False)
    assert list(widths(gm).values())[:13] == [32, 64, 128, 128, *[256] * 9]
    macs = [sum(r.macs for r in fxq.profile(m, x).layers if r.kind == "conv2d") for m in (model, gm)]
    assert macs == [313_196_544, 206_143_488]


def test_the_result_is_a_module_like_others() -> None:
    gm = pruned(residual(), ratio=0.5)
    expected = gm(images(2)).detach()
    assert torch.equal(pickle.loads(pickle.dumps(gm))(images(2)), expected)
    assert torch.allclose(fxq.compile(gm, images())(images(2)), expected, atol=1e-5)
    quantised = fxq.compile(gm, calibration=[images(4)], target="reference")
    assert torch.allclose(quantised(images(2)), expected, atol=0.1 * float(expected.abs().max()))
    gm.train()(images(2)).sum().backward()
    assert all(p.grad is not None for p in gm.parameters())


def test_a_result_that_is_not_the_masked_model(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Equivalence(0.5, "conv1", 3)
    monkeypatch.setattr("fxq.pruner.stepping.compare_with_masked", lambda *_: found)
    with pytest.raises(fxq.VerifyError, match=r"(?s)does not equal the masked dense model.*`conv1`.*0.5"):
        pruned(residual(), ratio=0.5)
    found = Equivalence(1e-6, "conv1", 3)
    assert "DIFFERS FROM the masked dense model" in str(fxq.report(pruned(residual(), ratio=0.5)))


def test_a_graph_that_does_not_run_in_float64() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.first(x).float())
            return y

    gm = pruned(Cast().eval(), ratio=0.5)
    assert widths(gm) == {"first": 4, "last": 2}
    assert "not checked, the graph does not run in float64" in str(fxq.report(gm))


def test_opaque_operations_are_named_and_keep_their_channels() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.third(self.second(self.first(x).sort(1).values))
            return y

    report = prune_report(pruned(Sorted().eval(), ratio=0.5))
    assert any("sort" in o.kind for o in report.opaque)
    assert (report["first"].after, report["second"].after) == (8, 4)
    assert "sort" in str(report["first"].protected)


def test_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stopwatch that counts channels in place of seconds."""
    asked: list[int] = []

    def tick(self: Stopwatch, gm: fx.GraphModule) -> float:
        asked.append(sum(widths(gm).values()))
        self.seconds = (1.0, asked[-1] / dense)
        return self.seconds[1]

    monkeypatch.setattr(Stopwatch, "__call__", tick)
    model = residual()
    dense = sum(widths(model).values())
    gm = pruned(model, latency=0.6)
    assert sum(widths(gm).values()) / dense == pytest.approx(0.6, abs=0.02)
    assert len(asked) < 10
    report = prune_report(gm)
    assert report.latency == (1.0, asked[-1] / dense)
    assert "latency: 1000.00 ms -> " in str(fxq.report(gm))
    with pytest.raises(InputError, match=r"latency=0.1 cannot be met"):
        pruned(model, latency=0.1, bounds={"*": (0.5, 1)})


def test_masks_are_what_the_graph_has() -> None:
    gm = pruned(residual(), ratio=0.5)
    report = prune_report(gm)
    for record in report.groups:
        assert len(record.kept) == record.after
        assert np.all(np.diff(record.kept) > 0)
