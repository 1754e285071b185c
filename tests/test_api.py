"""fxq.compile as a user calls it."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, TensorDataset

import fxq
from fxq.ir import Stage, graph_text, stage_of, take_snapshot
from fxq.ir.metrics import distance
from fxq.nn import onednn_available

TARGETS = ["reference", pytest.param("onednn", marks=pytest.mark.skipif(not onednn_available(), reason="no onednn"))]


class Net(nn.Module):
    """A residual block, a pool, a classifier, and a gain that callers may give."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.conv(x) + x)
        return self.fc(self.dropout(x.mean((2, 3)) * gain))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    model.bn.running_mean.normal_()  # type: ignore[union-attr]
    return model.eval()


def images(count: int = 4, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(count)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("target", TARGETS)
def test_int8_is_near_the_model_at_every_batch_size(target: str) -> None:
    model, data = net(), images()
    gm = fxq.compile(model, calibration=data, target=target)
    assert isinstance(gm, fx.GraphModule)
    assert stage_of(gm) is Stage.INT8
    for shape in ((1, 3, 8, 8), (8, 3, 8, 8), (3, 3, 12, 10)):
        x = torch.randn(shape)
        assert distance(model(x), gm(x)).sqnr_db > 20


def test_float_keeps_the_output() -> None:
    model, (x, *_) = net(), images()
    gm = fxq.compile(model, x)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-5, atol=1e-6)
    assert stage_of(gm) is Stage.FUSED
    assert "FusedConv2d" in {n.kind for n in take_snapshot(gm).nodes}
    assert any("calibration data would unlock" in note for note in fxq.report(gm).notes)


def test_float_without_any_input() -> None:
    model, (x, *_) = net(), images()
    torch.testing.assert_close(fxq.compile(model, recipe="float")(x), model(x), rtol=1e-5, atol=1e-6)


FORMS: dict[str, Any] = {
    "loader": lambda data: DataLoader(TensorDataset(torch.cat(data), torch.arange(8)), batch_size=2),
    "generator": lambda data: (x for x in data),
    "tuples": lambda data: [(x, 1) for x in data],
    "dicts": lambda data: [{"x": x, "label": 1} for x in data],
    "inputs": lambda data: fxq.inputs([{"image": x} for x in data], lambda b: b["image"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_graph(form: str) -> None:
    model, data = net(), images()
    wanted = graph_text(take_snapshot(fxq.compile(model, calibration=data)))
    assert graph_text(take_snapshot(fxq.compile(model, calibration=FORMS[form](data)))) == wanted


def test_a_callable_runs_the_model() -> None:
    model, data = net(), images()
    gm = fxq.compile(model, data[0], calibration=lambda m: [m(x) for x in data])
    assert distance(model(data[0]), gm(data[0])).sqnr_db > 20


def test_calibration_with_larger_batches_than_the_example() -> None:
    model, data = net(), images()
    gm = fxq.compile(model, data[0][:1], calibration=[torch.cat(data)])
    assert gm(data[0]).shape == (2, 4)


def test_the_model_and_the_data_stay_as_they_were() -> None:
    class InPlace(Net):
        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            x.mul_(0.5)
            return super().forward(x, gain)

    torch.manual_seed(0)
    model, data = InPlace().eval(), images()
    calls: list[int] = []
    model.conv.register_forward_hook(lambda *_: calls.append(1))
    model.conv.weight.requires_grad_(False)
    model.bn.running_mean.normal_()  # type: ignore[union-attr]
    before, batches = state(model), [x.clone() for x in data]
    names = [(n, type(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()]
    example = torch.randn(1, 3, 8, 8)
    kept = example.clone()
    fxq.compile(model, example, calibration=data)
    assert torch.equal(example, kept)
    assert all(torch.equal(a, b) for a, b in zip(data, batches, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [(n, type(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()] == names
    assert [p.requires_grad for p in model.parameters()].count(False) == 1


def test_twice_gives_the_same_graph_and_the_same_output() -> None:
    data = images()
    first, second = (fxq.compile(net(), calibration=data) for _ in range(2))
    assert graph_text(take_snapshot(first)) == graph_text(take_snapshot(second))
    assert torch.equal(first(data[0]), second(data[0]))


@pytest.mark.parametrize("target", TARGETS)
def test_copies_and_files(target: str) -> None:
    data = images()
    gm = fxq.compile(net(), calibration=data, target=target)
    wanted = gm(data[1])
    twin = copy.deepcopy(gm)
    assert torch.equal(twin(data[1]), wanted)
    buffer = io.BytesIO()
    torch.save(gm, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded(data[1]), wanted)
    assert str(fxq.report(loaded)) == str(fxq.report(gm)) == str(fxq.report(twin))
    other = fxq.compile(net(), calibration=data, target=target)
    other.load_state_dict(gm.state_dict())
    assert torch.equal(other(data[1]), wanted)


class Mixed(nn.Module):
    """Padding, two branches that are concatenated, a table, a pool, and normalisation in float in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(i, 4, 3, padding=1) for i in (3, 4, 4))
        self.norm, self.head, self.fc = nn.LayerNorm(4), nn.Conv2d(8, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.pad(self.stem(x), (1, 1, 1, 1), value=0.5), 2)
        left, right = self.left(x), self.right(x)
        weights = torch.softmax(left, 1)  # in float, while the other reader of `left` is int8
        x = self.head(torch.cat([torch.sigmoid(left), right], 1))
        return self.fc(self.norm(x.mean((2, 3)) + weights.mean((2, 3))))


@pytest.mark.parametrize("target", TARGETS)
def test_the_state_dict_carries_the_whole_calibration(target: str) -> None:
    torch.manual_seed(0)
    model, data = Mixed().eval(), images()
    wide = [5 * x + 2 for x in data]
    a, b = (fxq.compile(model, data[0], calibration=c, recipe="int8", target=target) for c in (data, wide))
    kinds = {n.kind for n in take_snapshot(a).nodes}
    assert {"Quantize", "Dequantize", "QPad", "cat", "QLookup", "QMaxPool", "layer_norm", "softmax"} <= kinds
    wanted = b(wide[1])
    assert not torch.equal(a(wide[1]), wanted)
    a.load_state_dict(b.state_dict())
    assert torch.equal(a(wide[1]), wanted)
    assert graph_text(take_snapshot(a)) == graph_text(take_snapshot(b))
    file = io.BytesIO()
    torch.save(a, file)
    file.seek(0)
    for twin in (copy.deepcopy(a), torch.load(file, weights_only=False)):
        assert torch.equal(twin(wide[1]), wanted)


def test_one_module_in_many_threads() -> None:
    data = images(8)
    gm = fxq.compile(net(), calibration=data)
    wanted = [gm(x) for x in data]
    fresh = copy.deepcopy(gm)  # packs its weights at the first call, in whichever thread that is
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fresh, data * 4))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 4, strict=True))


def test_training_mode_afterwards_does_no_harm() -> None:
    data = images()
    gm = fxq.compile(net(), calibration=data)
    wanted = gm(data[0])
    assert torch.equal(gm.train()(data[0]), wanted)
    assert torch.equal(gm.eval()(data[0]), wanted)


def test_a_graph_module_as_the_model() -> None:
    data = images()
    gm = fxq.compile(fx.symbolic_trace(net(), concrete_args={"gain": 1.0}), calibration=data)
    assert distance(net()(data[0]), gm(data[0])).sqnr_db > 20


def test_arguments_that_are_no_tensors() -> None:
    model, data = net(), images()
    gm = fxq.compile(model, {"x": data[0], "gain": 2.0}, calibration=[{"x": x, "gain": 2.0} for x in data])
    assert distance(model(data[0], gain=2.0), gm(x=data[0], gain=2.0)).sqnr_db > 20


@dataclasses.dataclass
class Output:
    logits: Tensor
    features: Tensor


def test_dict_inputs_and_structured_outputs() -> None:
    class Structured(nn.Module):
        def __init__(self, kind: type) -> None:
            super().__init__()
            self.a, self.b, self.kind = nn.Linear(4, 8), nn.Linear(8, 3), kind

        def forward(self, batch: dict[str, Tensor]) -> Any:
            x = F.relu(self.a(batch["x"] * batch["scale"]))
            return self.kind(logits=self.b(x), features=x)

    batch = {"x": torch.randn(2, 4), "scale": torch.ones(2, 1)}
    for kind in (dict, Output):
        model = Structured(kind).eval()
        gm = fxq.compile(model, (batch,), calibration=[(batch,)])
        found, wanted = gm(batch), model(batch)
        assert type(found) is type(wanted)
        assert distance(wanted, found).sqnr_db > 20


def test_own_passes_as_a_list_and_as_a_manager() -> None:
    model, data = net(), images()
    only = [fxq.passes.Functionalise(), fxq.passes.Canonicalise()]
    for passes in (only, iter(only), fxq.PassManager(only)):
        gm = fxq.compile(model, data[0], passes=passes)
        assert stage_of(gm) is Stage.CANONICAL
        assert torch.equal(gm(data[0]), model(data[0]))
        assert fxq.report(gm).options["passes"] == "given"


def test_own_passes_calibrate_on_the_data_of_the_call() -> None:
    model, data = net(), images()
    manager = fxq.pipeline(fxq.Recipe(), "reference").without("lower_int8")
    gm = fxq.compile(model, calibration=data, passes=manager)
    assert stage_of(gm) is Stage.QDQ
    assert distance(model(data[0]), gm(data[0])).sqnr_db > 20


@pytest.mark.parametrize(
    "recipe",
    [fxq.Recipe(activation="moving_average"), fxq.Recipe(weight="per_tensor"), fxq.Recipe("float"), "float", "int8"],
)
def test_recipes(recipe: Any) -> None:
    model, data = net(), images()
    gm = fxq.compile(model, calibration=data, recipe=recipe)
    assert distance(model(data[0]), gm(data[0])).sqnr_db > 15


def test_without_verification() -> None:
    model, data = net(), images()
    gm = fxq.compile(model, calibration=data, verify=False)
    assert torch.equal(gm(data[0]), fxq.compile(model, calibration=data)(data[0]))


def test_the_report_tells_what_happened(tmp_path: Path) -> None:
    data = images()
    report = fxq.report(fxq.compile(net(), calibration=data, target="reference"))
    text = str(report)
    for words in ("recipe=int8", "target=reference", "fold_batch_norm", "1 fold_into_conv", "4 batches", " dB",
                  "QConv2d", "Quantize", "stem", "u8[2, 8, 8, 8]"):  # fmt: skip
        assert words in text, words
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [p["name"] for p in plain["passes"]] == [p.name for p in report.passes]
    assert all(layer["value"] for layer in plain["layers"])
    page = report.html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "fold_batch_norm" in page


def test_the_report_says_why_layers_stay_in_float() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2), nn.Softmax(-1)).eval()
    x = torch.randn(3, 4)
    layers = {layer.kind: layer for layer in fxq.report(fxq.compile(model, calibration=[x])).layers}
    assert layers["layer_norm"].why_float == "no int8 kernel for layer_norm"
    assert layers["softmax"].why_float == "no int8 kernel for softmax"
    assert layers["QLinear"].scale is None
    assert layers["Quantize"].scale is not None


def test_diagrams_are_written(tmp_path: Path) -> None:
    gm = fxq.compile(net(), calibration=images(), diagrams=tmp_path / "out")
    written = fxq.report(gm).diagrams
    assert any(path.endswith(".dot") and "fold_batch_norm" in path for path in written)
    assert all(Path(path).is_file() for path in written)


def test_progress_bars_do_not_change_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    data = images()

    def stream() -> Iterator[Tensor]:
        yield from data

    quiet = fxq.compile(net(), calibration=data, progress=False)
    loud = fxq.compile(net(), calibration=stream(), progress=True)
    assert torch.equal(quiet(data[0]), loud(data[0]))
    assert capsys.readouterr().out == ""


def test_the_float_weights_are_gone() -> None:
    def size(module: nn.Module) -> int:
        return sum(t.numel() * t.element_size() for t in module.state_dict().values() if isinstance(t, Tensor))

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    gm = fxq.compile(model, calibration=[torch.randn(4, 64)])
    assert size(gm) < 0.3 * size(model)
    assert not list(gm.parameters())


@pytest.mark.parametrize(("recipe", "least"), [("weight8", 30.0), ("weight4", 12.0)])
def test_weight_only_recipes_need_no_data(recipe: str, least: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    x = torch.randn(16, 64)
    gm = fxq.compile(model, x, recipe=recipe)
    assert distance(model(x), gm(x)).sqnr_db > least
    assert [type(m).__name__ for m in gm.children()].count(f"Weight{recipe[-1]}Linear") == 2


@pytest.mark.parametrize("recipe", ["int8", "dynamic", "weight8"])
def test_weights_that_are_not_float32_are_noted(recipe: str) -> None:
    model, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval().bfloat16(), torch.randn(2, 32)
    gm = fxq.compile(model, x.bfloat16(), calibration=[x.bfloat16()] if recipe == "int8" else None, recipe=recipe)
    assert [note for note in fxq.report(gm).notes if note.startswith("2 of 2 weights are bfloat16")]
