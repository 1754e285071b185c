"""fxq.benchmark: what it returns, what it refuses, what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.analysis.benchmark import benchmark
from fxq.errors import InputError
from fxq.tracing import trace

X = torch.ones(2, 4)


@pytest.fixture
def linear() -> nn.Module:
    return nn.Linear(4, 4).eval()


@pytest.fixture(autouse=True)
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_rows_come_in_the_order_of_the_models(linear: nn.Module) -> None:
    result = benchmark({"float": linear, "function": lambda x: x + 1}, X, budget_s=0.01)
    assert [row.name for row in result.rows] == ["float", "function"]
    assert result["float"].ratio == 1.0
    assert result["function"].ratio == result["float"].median_s / result["function"].median_s
    assert result.shapes == ((2, 4),)
    with pytest.raises(KeyError, match="int8"):
        result["int8"]


def test_a_slower_model_has_a_smaller_ratio(linear: nn.Module) -> None:
    result = benchmark({"once": linear, "often": lambda x: [linear(x) for _ in range(50)]}, X, budget_s=0.05)
    assert result["often"].ratio < 0.5


def test_the_table_states_the_conditions(linear: nn.Module) -> None:
    text = str(benchmark({"float": linear}, X, budget_s=0.01, threads=1))
    assert "[2, 4], 1 thread, torch " + torch.__version__ in text
    assert "1.00x" in text


def test_the_dict_is_json(linear: nn.Module) -> None:
    plain = json.loads(json.dumps(benchmark({"float": linear}, X, budget_s=0.01).to_dict()))
    assert plain["shapes"] == [[2, 4]]
    assert set(plain["rows"][0]) == {"name", "median_s", "iqr_s", "min_s", "ratio", "samples"}


def test_keyword_and_several_inputs() -> None:
    def add(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    assert benchmark({"add": add}, {"x": X, "y": X[:1]}, budget_s=0.01).shapes == ((2, 4), (1, 4))
    assert benchmark({"add": add}, (X, X[:1]), budget_s=0.01).shapes == ((2, 4), (1, 4))


def test_threads_are_set_while_measuring_and_restored_also_after_an_error() -> None:
    torch.set_num_threads(2)
    seen: set[int] = set()

    def model(x: Tensor) -> None:
        seen.add(torch.get_num_threads())
        raise RuntimeError("broken model")

    with pytest.raises(RuntimeError, match="broken model"):
        benchmark({"broken": model}, X, threads=1)
    assert seen == {1}
    assert torch.get_num_threads() == 2


def test_a_progress_bar_is_shown_when_asked_for(
    linear: nn.Module, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take the captured stream for a terminal
    benchmark({"float": linear}, X, budget_s=0.01, progress=False)
    assert capsys.readouterr().err == ""
    benchmark({"float": linear}, X, budget_s=0.01, progress=True)
    assert "benchmark" in capsys.readouterr().err


def test_no_gradients_are_recorded(linear: nn.Module) -> None:
    seen: set[bool] = set()
    benchmark({"float": lambda x: seen.add(linear(x).requires_grad)}, X, budget_s=0.01)
    assert seen == {False}


def test_a_model_that_writes_into_its_input_disturbs_nobody() -> None:
    inputs = X.clone()
    largest: list[float] = []
    models = {"writes": lambda x: x.add_(1), "reads": lambda x: largest.append(float(x.max()))}
    benchmark(models, inputs, budget_s=0.01)
    assert torch.equal(inputs, X)
    assert set(largest) == {1.0}


def test_a_module_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with pytest.raises(InputError, match=r"'float' is in training mode[\s\S]*call \.eval\(\)"):
        benchmark({"float": model}, torch.ones(1, 3, 2, 2))
    model.eval()
    model[1].train()
    with pytest.raises(InputError, match=r"where: 1 \(BatchNorm2d\)"):
        benchmark({"float": model}, torch.ones(1, 3, 2, 2))
    assert not any(model[1].state_dict()["num_batches_tracked"].flatten())


def test_a_graph_module_of_an_evaluated_model_is_accepted() -> None:
    graph_module = torch.fx.symbolic_trace(nn.Sequential(nn.Sequential(nn.Linear(4, 4))).eval())
    assert graph_module.get_submodule("0").training  # the container that torch.fx makes
    assert benchmark({"traced": graph_module}, X, budget_s=0.01)["traced"].samples > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"budget_s": 0}, "budget_s is 0"), ({"warmup": -1}, "warmup is -1"), ({"threads": 0}, "threads is 0")],
)
def test_numbers_out_of_range_are_refused(linear: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        benchmark({"float": linear}, X, **options)


def test_nothing_to_measure_is_refused(linear: nn.Module) -> None:
    with pytest.raises(InputError, match="no model to measure"):
        benchmark({}, X)
    with pytest.raises(InputError, match="'float' is a str"):
        benchmark({"float": "resnet18"}, X)  # type: ignore[dict-item]
    with pytest.raises(InputError, match="needs example_inputs"):
        benchmark({"float": linear}, None)
    with pytest.raises(InputError, match="example_inputs do not fit the model"):
        benchmark({"float": linear}, (X, X))


def test_state_of_a_model_is_as_before() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + self.calls

    model = Counts().eval()
    benchmark({"counts": model, "also": trace(model)}, torch.randn(2), budget_s=0.01, progress=False)
    assert model.calls == 0
    assert not model.calls.is_inference()
