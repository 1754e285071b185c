"""What is saved comes back: outputs bit for bit, names, modes, provenance, the report."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

import fxq
from fxq.errors import TargetError
from fxq.ir import graph_text, stage_of, take_snapshot
from fxq.ir.provenance import node_info
from fxq.ir.stage import graph_state
from fxq.storage import load, save
from tests.storage.models import CASES, Tied, images, residual


def assert_same(expected: Any, actual: Any) -> None:
    wanted, structure = tree_flatten(expected)
    got, other = tree_flatten(actual)
    assert structure == other
    assert wanted
    for a, b in zip(wanted, got, strict=True):
        if isinstance(a, Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
        else:
            assert type(a) is type(b)
            assert a == b


def round_trip(gm: fx.GraphModule, folder: Path) -> fx.GraphModule:
    save(gm, folder / "model.fxq")
    return load(folder / "model.fxq")


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    make, inputs = CASES[request.param]
    return make(), inputs()


def test_outputs_are_bit_for_bit_the_same_through_every_copy(
    case: tuple[fx.GraphModule, tuple[Any, ...]], tmp_path: Path
) -> None:
    gm, inputs = case
    loaded = round_trip(gm, tmp_path)
    with torch.no_grad():
        expected = gm(*inputs)
    assert_same(expected, loaded(*inputs))
    assert_same(expected, copy.deepcopy(loaded)(*inputs))
    assert_same(expected, pickle.loads(pickle.dumps(loaded))(*inputs))
    twin = round_trip(gm, tmp_path)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.zero_()
    twin.load_state_dict(loaded.state_dict())
    assert_same(expected, twin(*inputs))
    assert_same(expected, round_trip(loaded, tmp_path)(*inputs))


def test_everything_around_the_graph_comes_back(case: tuple[fx.GraphModule, tuple[Any, ...]], tmp_path: Path) -> None:
    gm, _ = case
    loaded = round_trip(gm, tmp_path)
    assert type(loaded).__name__ == type(gm).__name__
    assert loaded.code == gm.code
    loaded.graph.lint()
    assert graph_state(loaded) == graph_state(gm)
    assert loaded.meta["fxq_trace"] == gm.meta["fxq_trace"]
    kept = ("fxq", "fxq_tensor", "fxq_source", "fxq_module")
    for a, b in zip(gm.graph.nodes, loaded.graph.nodes, strict=True):
        assert (a.name, a.op, a.target, str(a.args), str(a.kwargs)) == (
            b.name,
            b.op,
            b.target,
            str(b.args),
            str(b.kwargs),
        )
        assert {k: a.meta[k] for k in kept if k in a.meta} == b.meta
    assert {n: (type(m).__name__, m.training) for n, m in gm.named_modules(remove_duplicate=False)} == {
        n: (type(m).__name__, m.training) for n, m in loaded.named_modules(remove_duplicate=False)
    }
    assert list(gm.state_dict()) == list(loaded.state_dict())
    assert {n: p.requires_grad for n, p in gm.named_parameters()} == {
        n: p.requires_grad for n, p in loaded.named_parameters()
    }
    assert_same(dict(gm.named_buffers()) or 0, dict(loaded.named_buffers()) or 0)
    assert take_snapshot(loaded) == take_snapshot(gm)


def test_the_report_prints_the_same(tmp_path: Path) -> None:
    gm = CASES["reference"][0]()
    loaded = round_trip(gm, tmp_path)
    assert fxq.report(loaded) == fxq.report(gm)
    assert str(fxq.report(loaded)) == str(fxq.report(gm))
    assert fxq.report(loaded).to_dict() == fxq.report(gm).to_dict()


def test_every_stage_of_a_compilation_can_be_saved_and_compiled_on(tmp_path: Path) -> None:
    stages = []

    manager = fxq.pipeline(fxq.Recipe("int8"), "reference")
    context = fxq.manager.PassContext(
        fxq.tracing.normalise_inputs(residual(), images()),
        fxq.quant.calibration.Calibration([images()], residual()),
    )
    gm = fxq.trace(residual(), images())
    for p in manager.passes:
        gm = p(gm, context=context).graph_module
        loaded = round_trip(gm, tmp_path)
        assert_same(gm(images()), loaded(images()))
        assert graph_text(take_snapshot(loaded)) == graph_text(take_snapshot(gm))
        gm = loaded
        stages.append(str(stage_of(gm)))
    assert list(dict.fromkeys(stages)) == ["FLOAT", "CANONICAL", "FUSED", "OBSERVED", "QDQ", "INT8"]
    assert_same(gm(images()), CASES["reference"][0]()(images()))


def test_tied_weights_and_modules_with_two_names_stay_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gm = fxq.trace(Tied().eval())
    loaded = round_trip(gm, tmp_path)
    assert loaded.head.weight is loaded.embed.weight
    assert len(list(loaded.parameters())) == len(list(gm.parameters()))
    node = next(n for n in loaded.graph.nodes if n.op == "call_module")
    assert node_info(node) if "fxq" in node.meta else node.meta["fxq_module"]


def test_two_tensors_on_one_memory_share_it_again(tmp_path: Path) -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(1000))
            self.register_buffer("view", self.w.detach())
            self.register_buffer("part", self.w.detach()[3:])

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w + self.view + self.part.sum()

    loaded = round_trip(fxq.trace(Alias()), tmp_path)
    assert loaded.w.data_ptr() == loaded.view.data_ptr()
    assert isinstance(loaded.w, nn.Parameter)
    assert not isinstance(loaded.view, nn.Parameter)
    assert (tmp_path / "model.fxq").stat().st_size < 12_000


def test_sparse_and_shared_weights_make_a_small_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(torch.rand_like(layer.weight) < 0.1)
        model[2].weight.copy_((model[2].weight * 100).round() / 100)
    gm = fxq.trace(model)
    loaded = round_trip(gm, tmp_path)
    assert_same(dict(gm.named_parameters()), dict(loaded.named_parameters()))
    stored = sum(fxq.storage.stored_bytes(p) for p in model.parameters())
    size = (tmp_path / "model.fxq").stat().st_size
    assert stored < size < stored + 4000
    assert size < 0.15 * 2 * 256 * 256 * 4


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_memory_formats_and_half_precision_come_back(layout: torch.memory_format, tmp_path: Path) -> None:
    gm = fxq.trace(residual().to(memory_format=layout).bfloat16(), images().bfloat16())
    loaded = round_trip(gm, tmp_path)
    assert loaded.stem.weight.stride() == gm.stem.weight.stride()
    assert loaded.stem.weight.dtype is torch.bfloat16


def test_training_mode_and_frozen_parameters_come_back(tmp_path: Path) -> None:
    model = residual().train()
    model.bn.eval()
    model.stem.weight.requires_grad_(False)
    loaded = round_trip(fxq.trace(model, images()), tmp_path)
    assert loaded.training
    assert loaded.dropout.training
    assert not loaded.bn.training
    assert not loaded.stem.weight.requires_grad
    assert loaded.conv.weight.requires_grad
    loaded(images()).sum().backward()
    assert loaded.conv.weight.grad is not None


def test_saving_and_loading_leave_everything_as_it_was(tmp_path: Path) -> None:
    gm = CASES["float"][0]()
    state = {k: v.clone() for k, v in gm.state_dict().items()}
    random, code, meta = torch.get_rng_state(), gm.code, dict(gm.meta)
    round_trip(gm, tmp_path)
    assert torch.equal(random, torch.get_rng_state())
    assert (code, meta) == (gm.code, gm.meta)
    assert_same(state, dict(gm.state_dict()))


def test_the_same_module_makes_the_same_file(tmp_path: Path) -> None:
    gm = CASES["reference"][0]()
    for i in range(4):
        save(gm, tmp_path / str(i))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    save(load(tmp_path / "0"), tmp_path / "0")
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_defaults_of_torch_do_not_matter(tmp_path: Path) -> None:
    gm = CASES["reference"][0]()
    expected = gm(images())
    save(gm, tmp_path / "m")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            loaded = load(tmp_path / "m")
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(expected, loaded(images()))


@pytest.mark.skipif("onednn" not in CASES, reason="this machine has no onednn kernels")
def test_a_machine_without_the_kernels_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(CASES["onednn"][0](), tmp_path / "m")
    monkeypatch.setattr("fxq.nn.kernels.onednn_unavailable_reason", lambda *_: "no such instructions")
    with pytest.raises(TargetError, match=r"'onednn'(.|\n)*no such instructions"):
        load(tmp_path / "m")


_PROCESS = """
import pathlib, pickle, sys, torch
import fxq
from fxq.storage import load
torch.set_num_threads(int(sys.argv[2]))
for name, (path, inputs, expected) in pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()).items():
    actual = load(path)(*inputs)
    from torch.utils._pytree import tree_leaves
    for a, b in zip(tree_leaves(expected), tree_leaves(actual), strict=True):
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        assert same, name
assert not any(m.startswith("tests") for m in sys.modules)
print("same")
"""


def test_a_fresh_process_computes_the_same_without_the_classes(tmp_path: Path) -> None:
    jobs = {}
    for name, (make, inputs) in CASES.items():
        gm = make()
        path = tmp_path / f"{name}.fxq"
        save(gm, path)
        with torch.no_grad():
            jobs[name] = (str(path), inputs(), gm(*inputs()))
    (tmp_path / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        _PROCESS,
        str(tmp_path / "jobs.pickle"),
        str(torch.get_num_threads()),
    ]
    root = Path(fxq.__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    assert done.stdout == "same\n", done.stderr
