"""Everything that can be wrong with a call of fxq.compile: found before the work, explained, and nothing changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.errors import CalibrationError, FxqError, InputError, PassError, TargetError, TraceError

X = torch.randn(2, 4)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()


def spoilt(change: Callable[[Any], object]) -> nn.Module:
    out = model()
    change(out)
    return out


def training(layer: int) -> nn.Module:
    return spoilt(lambda m: m[layer].train())


def with_value(name: str, value: float) -> nn.Module:
    def change(m: nn.Module) -> None:
        (dict(m.named_parameters()) | dict(m.named_buffers()))[name].data.view(-1)[0] = value

    return spoilt(change)


CASES: dict[str, tuple[Callable[[], Any], type[FxqError], str]] = {
    "unknown recipe": (lambda: fxq.compile(model(), X, recipe="int"), InputError,
                       r"unknown recipe 'int'\n.*did you mean 'int8'"),
    "unknown target": (lambda: fxq.compile(model(), X, target="onedn"), TargetError,
                       r"unknown target 'onedn'\n.*did you mean 'onednn'"),
    "no module": (lambda: fxq.compile(lambda x: x, X), InputError, "the model is a function"),  # type: ignore[arg-type]
    "a class": (lambda: fxq.compile(nn.Linear, X), InputError, "the model is a type"),  # type: ignore[arg-type]
    "scripted": (lambda: fxq.compile(torch.jit.trace(model(), X), X, calibration=[X]), TraceError,
                 r"TorchScript module.*\n.*give the Python module that was scripted"),
    "int8 already": (lambda: fxq.compile(fxq.compile(model(), X, calibration=[X]), X, calibration=[X]), InputError,
                     r"the model is INT8 already\n.*\n.*give the float model, or passes="),
    "training": (lambda: fxq.compile(model().train(), X), InputError,
                 r"in training mode\n.*the root module, 0, 1\n.*\n.*model.eval\(\)"),
    "one layer training": (lambda: fxq.compile(training(1), X), InputError, r"in training mode\n  where: 1\n"),
    "NaN weight": (lambda: fxq.compile(with_value("3.weight", float("nan")), X), InputError,
                   r"`weight` holds NaN or infinity in 1 of 8 values\n.*layer `3`"),
    "infinite bias": (lambda: fxq.compile(with_value("0.bias", float("inf")), X), InputError, "layer `0`"),
    "infinite statistics": (lambda: fxq.compile(with_value("1.running_var", float("inf")), X), InputError,
                            r"`running_var` holds NaN or infinity in 1 of 4 values\n.*layer `1`"),
    "lazy": (lambda: fxq.compile(nn.Sequential(nn.LazyLinear(3)).eval(), X), InputError,
             r"`weight` has no values yet: run the model once\n.*layer `0`"),
    "meta": (lambda: fxq.compile(model().to("meta"), X), InputError, "lies on the meta device"),
    "int8 without data": (lambda: fxq.compile(model(), X, recipe="int8"), InputError,
                          r"needs calibration data\n.*nobody's data is invented\n.*recipe='float'"),
    "empty data": (lambda: fxq.compile(model(), X, calibration=[]), CalibrationError, "calibration data is empty"),
    "one batch": (lambda: fxq.compile(model(), calibration=X), InputError, "calibration is a Tensor"),
    "no data": (lambda: fxq.compile(model(), calibration=5), InputError, "calibration is a int"),
    "ints": (lambda: fxq.compile(model(), calibration=[1, 2]), CalibrationError, "batch 0 does not fit the model: it"),
    "callable without example": (lambda: fxq.compile(model(), calibration=lambda m: m(X)), InputError,
                                 r"no example inputs\n.*callable.*\n.*pass example_inputs"),
    "NaN batch": (lambda: fxq.compile(model(), calibration=[X, X * float("nan")]), CalibrationError,
                  r"calibration batch 1 holds NaN or infinity\n  where: the argument `input`\n"),
    "infinite by name": (lambda: fxq.compile(model(), calibration=[{"input": X / 0.0}]), CalibrationError,
                         r"calibration batch 0 holds NaN or infinity\n  where: the argument `input`\n"),
    "batches without elements": (lambda: fxq.compile(model(), X, calibration=[X[:0]]), CalibrationError,
                                 r"a value was never observed\n.*input(.|\n)*batches that are not empty"),
    "batch of another shape": (lambda: fxq.compile(model(), calibration=[X, torch.ones(2, 5)]), CalibrationError,
                               "the model fails on calibration batch 1: RuntimeError"),
    "batch under another name": (lambda: fxq.compile(model(), X, calibration=[X, {"images": X}]), CalibrationError,
                                 r"fails on calibration batch 1: .*\n.*keys 'images', the model takes 'input'\n"),
    "batch with no name": (lambda: fxq.compile(model(), X, calibration=[{}]), CalibrationError,
                           r"fails on calibration batch 0: .*\n.*without keys, the model takes 'input'\n"),
    "text first": (lambda: fxq.compile(model(), X, calibration=[("a", X)]), CalibrationError,
                   r"fails on calibration batch 0: (.|\n)*fxq.inputs"),
    "numbers in lists": (lambda: fxq.compile(model(), X, calibration=[X.tolist()]), CalibrationError,
                         "fails on calibration batch 0"),
    "meta batch": (lambda: fxq.compile(model(), X, calibration=[X, X.to("meta")]), CalibrationError,
                   r"calibration batch 1 holds a tensor on the meta device\n.*no values"),
    "sparse batch": (lambda: fxq.compile(model(), X, calibration=[X.to_sparse()]), CalibrationError,
                     r"calibration batch 0 holds a tensor of the layout sparse_coo\n.*to_dense"),
    "callable with NaN": (lambda: fxq.compile(model(), X, calibration=lambda m: [m(X), m(X / 0)]), CalibrationError,
                          "NaN or infinite\n.*calibration batch 1"),
    "example of another type": (lambda: fxq.compile(model(), 3), InputError, "example_inputs is a int"),
    "too many arguments": (lambda: fxq.compile(model(), (X, X)), InputError, "do not fit the model"),
    "no pass": (lambda: fxq.compile(model(), X, passes=[fxq.passes.Canonicalise]), InputError,
                r"is not a pass\n.*\n.*FoldBatchNorm\(\), not FoldBatchNorm"),
    "passes in the wrong order": (lambda: fxq.compile(model(), X, passes=[fxq.passes.LowerInt8()]), PassError,
                                  "takes a QDQ graph, this one is FLOAT"),
    "calibrate without data": (lambda: fxq.compile(model(), X, passes=fxq.pipeline(fxq.Recipe(), "reference")),
                               CalibrationError, "there is no calibration data"),
    "compiled twice": (lambda: fxq.compile(fxq.compile(model(), calibration=[X]), calibration=[X]), FxqError, "INT8"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_message_says_what_where_and_how_to_mend_it(case: str) -> None:
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert len(str(caught.value)) < 2500


@pytest.mark.parametrize(
    "options",
    [
        {"calibration": [X, X * float("nan")]},
        {"calibration": [X, torch.ones(2, 5)]},
        {"recipe": "int8"},
        {"example_inputs": X, "passes": [fxq.passes.LowerInt8()]},
        {"example_inputs": X, "calibration": lambda m: None},
        {"example_inputs": torch.ones(2, 7)},
    ],
)
def test_nothing_is_changed_by_a_call_that_fails(options: dict[str, Any]) -> None:
    given = model()
    given[0].register_forward_hook(lambda *_: None)
    before = {k: v.clone() for k, v in given.state_dict().items()}
    modes = [m.training for m in given.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in given.modules()]
    with pytest.raises(FxqError):
        fxq.compile(given, **options)
    assert all(torch.equal(v, before[k]) for k, v in given.state_dict().items())
    assert [m.training for m in given.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in given.modules()] == hooks


def test_a_directory_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    calls: list[int] = []

    class Loader:
        def __iter__(self) -> Any:
            calls.append(1)
            return iter([X])

    with pytest.raises(InputError, match="file"):
        fxq.compile(model(), calibration=Loader(), diagrams=tmp_path / "file" / "out")
    assert not calls


def test_a_pass_that_fails_leaves_a_report() -> None:
    with pytest.raises(PassError) as caught:
        fxq.compile(model(), X, passes=[fxq.passes.Functionalise(), fxq.passes.LowerInt8()])
    report = caught.value.report
    assert isinstance(report, fxq.Report)
    assert [p.name for p in report.passes] == ["functionalise", "lower_int8"]
    assert "FAILED" in str(report)


@pytest.mark.parametrize(
    ("arguments", "error", "source"),
    [
        ({"example_inputs": torch.randn(2, 7)}, InputError, "the example inputs"),
        ({"calibration": [torch.randn(2, 7)]}, CalibrationError, "the first calibration batch"),
    ],
)
def test_inputs_of_another_shape_are_named(arguments: dict[str, Any], error: type[Exception], source: str) -> None:
    with pytest.raises(error, match=rf"the model does not run on {source}\n  where: module `0`\n.*2x7 and 3x4"):
        fxq.compile(nn.Sequential(nn.Linear(3, 4)).eval(), **arguments)


def test_a_mask_of_minus_infinity_is_no_error() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.fc(x) @ x.transpose(-2, -1) + self.mask, -1)

    x = torch.randn(2, 4, 4)
    given = Masked().eval()
    torch.testing.assert_close(fxq.compile(given, calibration=[x])(x), given(x), atol=0.05, rtol=0.1)


def test_a_module_that_fxq_did_not_make_has_no_report() -> None:
    with pytest.raises(InputError, match=r"this Linear carries no report\n.*did not compile it"):
        fxq.report(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("use", [
    lambda gm: fxq.prepare_qat(gm, X),
    lambda gm: fxq.prune(gm, X, ratio=0.5),
    lambda gm: fxq.sensitivity(gm, X, calibration=[X]),
    lambda gm: fxq.autotune(gm, X, calibration=[X], evaluate=lambda _: 1.0),
])  # fmt: skip
def test_what_begins_with_a_float_model(use: Callable[[nn.Module], object]) -> None:
    with pytest.raises(InputError, match=r"the model is INT8 already(.|\n)*give the float model"):
        use(fxq.compile(model(), X, calibration=[X]))
    trained = fxq.prepare_qat(model(), X, calibration=[X]).eval()
    with pytest.raises(InputError, match=r"the model is (OBSERVED|prepared) already(.|\n)*give the float model"):
        use(trained)


def test_a_graph_that_is_not_the_model() -> None:
    class ByType(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if type(x) is Tensor else x * 3

    class ByChance(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + random.random()

    class Drawn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    x = torch.randn(2, 4)
    for model in (ByType(), ByChance()):
        with pytest.raises(TraceError, match=r"returns something else than the model\n.*root By(.|\n)*difference"):
            fxq.compile(model.eval(), x)
    fxq.compile(Drawn().eval(), x)


def _doubled(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (args[0] * 2,)


def test_hooks_of_the_model_itself() -> None:
    seen: list[int] = []
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(2, 4)
    model.register_forward_hook(lambda module, args, result: seen.append(1))
    gm = fxq.compile(model, x, recipe="float")
    assert "hooks of the model itself are not part of the graph" in fxq.report(gm).notes
    model.register_forward_pre_hook(_doubled)
    with pytest.raises(InputError, match=r"hooks of the model change what it takes or returns\n.*Sequential"):
        fxq.compile(model, x, recipe="float")
    model.register_forward_hook(lambda module, args, result: (result, result))
    with pytest.raises(InputError, match="hooks of the model change"):
        fxq.compile(model, x, recipe="float")


@pytest.mark.parametrize(
    "take",
    [
        lambda model, x: fxq.PassManager([fxq.passes.Canonicalise()])(model, x),
        lambda model, x: fxq.passes.Canonicalise()(model, x),
        lambda model, x: fxq.visualize.diagram(model),
    ],
)
def test_a_module_where_a_graph_is_asked_for(take: Callable[..., object]) -> None:
    with pytest.raises(InputError, match=r"a Linear is no graph module\n(.|\n)*fxq\.trace"):
        take(nn.Linear(4, 3).eval(), torch.randn(2, 4))


def test_models_to_time_without_names() -> None:
    models: Any = [nn.Linear(4, 3).eval()]
    with pytest.raises(InputError, match=r"models is a list\n.*give a dict"):
        fxq.benchmark(models, torch.randn(2, 4))


def test_no_passes_at_all() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4)
    gm = fxq.compile(model, x, passes=[])
    assert torch.equal(gm(x), model(x))
    assert [layer.kind for layer in fxq.report(gm).layers] == ["linear", "relu"]
