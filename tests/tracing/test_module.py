from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from fxq.tracing import OpaqueLeaf, TracedModule, TraceRecord, trace

Same = Callable[..., None]


@torch.fx.wrap
def halve_wide(x: Tensor) -> Tensor:
    return x / 2 if x.shape[-1] > 3 else x


class Choosy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.choosy = nn.Sequential(Choosy(), nn.Dropout())
        self.register_buffer("shift", torch.ones(4), persistent=False)

    def forward(self, x: Tensor, *, flag: bool = True) -> Tensor:
        n = len(x) + int(x.shape[1] / 2)
        x = halve_wide(self.choosy(self.fc(x))) + self.shift + torch.zeros(x.shape[0], 4) + torch.ones(4)
        return x * n if flag else x


X = torch.randn(2, 4)


def origins(gm: nn.Module) -> list[tuple[str, str, str]]:
    return [(n.name, n.meta["fxq_source"], n.meta["fxq_module"]) for n in gm.graph.nodes]  # type: ignore[union-attr]


def test_a_wrapped_function_is_one_node(same: Same) -> None:
    model = Net().eval()
    gm = trace(model, X)
    assert "halve_wide" in {getattr(n.target, "__name__", "") for n in gm.graph.nodes}
    same(model, gm, torch.randn(5, 4))


def test_a_deep_copy_keeps_everything(same: Same) -> None:
    model = Net().eval()
    gm = trace(model, X)
    twin = copy.deepcopy(gm)
    assert isinstance(twin, TracedModule)
    assert twin.meta == gm.meta
    assert origins(twin) == origins(gm)
    assert twin.fc.weight is not gm.fc.weight
    same(model, twin, X)


def test_pickling_keeps_graph_record_origins_and_mode(same: Same) -> None:
    model = Net().eval()
    model.choosy[1].train()
    model.choosy[1].p = 0.0
    gm = trace(model, X)
    twin = pickle.loads(pickle.dumps(gm))
    assert isinstance(twin, TracedModule)
    assert twin.meta == gm.meta
    assert isinstance(twin.meta["fxq_trace"], TraceRecord)
    assert isinstance(twin.meta["fxq_trace"].leaf("choosy.0"), OpaqueLeaf)
    assert twin.code == gm.code
    assert origins(twin) == origins(gm)
    assert twin.state_dict().keys() == gm.state_dict().keys()
    assert "shift" not in twin.state_dict()
    assert {p: m.training for p, m in twin.named_modules()} == {p: m.training for p, m in gm.named_modules()}
    same(model, twin, torch.randn(5, 4))
    assert pickle.loads(pickle.dumps(twin)).code == gm.code


def test_functions_that_are_methods_of_tensors_are_pickled(same: Same) -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(0, 1)

    gm = trace(Turned().eval(), X)
    (turned,) = (n for n in gm.graph.nodes if n.op == "call_method")
    with gm.graph.inserting_after(turned):
        packed = gm.graph.call_function(torch.Tensor.contiguous, (turned,), {"memory_format": torch.contiguous_format})
    turned.replace_all_uses_with(packed, delete_user_cb=lambda user: user is not packed)
    gm.recompile()
    twin = pickle.loads(pickle.dumps(gm))
    restored = list(twin.graph.nodes)[2]
    assert (restored.op, restored.target, restored.kwargs) == (packed.op, packed.target, packed.kwargs)
    same(gm, twin, torch.randn(3, 4))
    assert twin(X).is_contiguous()


def test_a_graph_module_comes_back_as_a_copy(same: Same) -> None:
    source = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval())
    source.meta["mine"] = 1
    code, keys = source.code, set(source.__dict__)
    gm = trace(source, X)
    assert gm is not source
    assert gm.graph is not source.graph
    assert gm.code == code
    assert gm.get_submodule("0") is source.get_submodule("0")
    assert gm.meta["mine"] == 1
    assert gm.meta["fxq_trace"] == TraceRecord()
    assert [n.meta["fxq_module"] for n in gm.graph.nodes] == ["", "0", "1", ""]
    assert set(source.__dict__) == keys
    assert gm.training is False
    same(source, gm, torch.randn(5, 4))


def test_tracing_twice_keeps_the_record() -> None:
    gm = trace(Net(), X)
    again = trace(gm, X)
    assert again.meta["fxq_trace"] == gm.meta["fxq_trace"]
    assert origins(again) == origins(gm)


def test_a_graph_module_inside_a_model_is_traced_through(same: Same) -> None:
    model = nn.Sequential(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), nn.ReLU())
    gm = trace(model, X)
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["0.0", "0.1", "1"]
    same(model, gm, torch.randn(5, 4))


def test_code_is_generated_when_it_is_asked_for(same: Same) -> None:
    model = Net().eval()
    gm = trace(model, X)
    assert "_code" not in vars(gm)
    assert list(inspect.signature(gm.forward).parameters) == ["x", "flag"]
    assert "_code" in vars(gm)
    assert "self.fc" in trace(model, X).code
    assert "self.fc" in str(trace(model, X))
    same(model, trace(model, X), X)


def test_a_graph_that_was_edited_and_not_recompiled_keeps_its_code() -> None:
    gm = trace(nn.Sequential(nn.ReLU(), nn.Tanh()).eval(), X)
    expected = gm(X)
    last = list(gm.graph.nodes)[-1]
    last.args = (X.tolist(),)
    assert torch.equal(gm(X), expected)
    gm.recompile()
    assert gm(X) == X.tolist()


def test_many_threads_may_call_first() -> None:
    gm = trace(nn.Sequential(*(nn.Linear(4, 4) for _ in range(30))).eval(), X)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(gm, [X] * 8))
    assert all(torch.equal(y, found[0]) for y in found)
