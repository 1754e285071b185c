from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir import Stage, graph_text, identify, stage_of, take_snapshot
from fxq.ir.identify import get_module
from fxq.ir.provenance import node_info
from fxq.manager.base import PassResult
from fxq.manager.stages import stage_violation
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.functionalise import Functionalise
from fxq.tracing import trace
from tests.conftest import Golden
from tests.ir.spellings import BINARY, IMAGE, UNARY, Calls, Spelling
from tests.passes.conftest import RunPass


def reasons(result: PassResult) -> list[str]:
    return [r.reason for r in result.refused]


def calls_of(gm: fx.GraphModule) -> list[tuple[Any, ...]]:
    return [(n.target, len(n.args), repr(dict(n.kwargs))) for n in gm.graph.nodes if n.op.startswith("call_")]


PAIR = (torch.rand(3, 3) + 1, torch.rand(3, 3) + 1)


@pytest.mark.parametrize("kind", [k for k in UNARY if "dropout" not in k])
def test_every_spelling_becomes_one(kind: str, run_pass: RunPass) -> None:
    results = [run_pass(Canonicalise(), Calls(spelling), (IMAGE,)) for spelling in UNARY[kind]]
    assert len({calls_of(r.graph_module)[-1] for r in results}) == 1
    for result in results:
        assert stage_of(result.graph_module) is Stage.CANONICAL
        assert stage_violation(result.graph_module) is None


@pytest.mark.parametrize("kind", BINARY)
def test_every_spelling_of_two_inputs_becomes_one(kind: str, run_pass: RunPass) -> None:
    results = [run_pass(Canonicalise(), Calls(spelling), PAIR) for spelling in BINARY[kind]]
    assert len({calls_of(r.graph_module)[-1] for r in results}) == 1


class Mixed(nn.Module):
    """Many spellings in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU()
        self.proj_weight = nn.Parameter(torch.randn(5, 4 * 8 * 8))
        self.proj_bias = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Any:
        y = self.relu(self.conv(input=x))
        y = 1 + y.view(y.size(0), -1)
        z = F.linear(y, self.proj_weight, bias=self.proj_bias)
        return z.softmax(-1), x.shape[0] * 2


def test_golden(golden: Golden, run_pass: RunPass) -> None:
    result = run_pass(Canonicalise(), Mixed().eval(), torch.randn(2, 3, 8, 8), torch.randn(5, 3, 8, 8))
    golden("canonicalise", graph_text(take_snapshot(result.graph_module)))
    rules = [m.rule for m in result.matched]
    assert sorted(rules) == ["function_to_module", *["one_spelling"] * 4, "positional_inputs"]
    assert not result.refused


def test_nodes_keep_name_and_provenance(run_pass: RunPass) -> None:
    result = run_pass(Canonicalise(), Mixed().eval(), torch.randn(2, 3, 8, 8))
    before = {n.name: n for n in result.record.before.nodes}
    for node in result.record.after.nodes:
        was = before[node.name]
        assert (node.id, node.module_path, node.source) == (was.id, was.module_path, was.source)
    relu = next(n for n in result.graph_module.graph.nodes if n.name == "relu")
    assert [(o.pass_name, o.rule) for o in node_info(relu).origins] == [("canonicalise", "one_spelling")]


def test_sizes_and_what_the_table_lacks_stay() -> None:
    def function(x: Any) -> Any:
        n = x.size(0) * 2 + x.shape[1]
        return torch.where(x > 0, x, -1.0 / x).expand(n, -1, -1), x.shape

    result = Canonicalise()(fx.symbolic_trace(function))
    assert not result.matched
    assert not result.refused


def test_in_place_operations_stay(run_pass: RunPass) -> None:
    def function(x: Tensor) -> Any:
        y = x * 1
        v = y.view(-1)
        y.relu_()
        return v

    result = run_pass(Canonicalise(), Calls(function), (IMAGE,), first=(Functionalise(),))
    assert [(r.node, r.reason) for r in result.refused] == [("relu_", "it writes in place")]
    assert stage_violation(result.graph_module) is None


# -- functional layers --------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Applies ``function`` to itself and the input; has the parameters and buffers given."""

    def __init__(self, function: Callable[..., Any], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def rand(*shape: int) -> nn.Parameter:
    generator = torch.Generator().manual_seed(sum(shape))
    return nn.Parameter(torch.rand(*shape, generator=generator) + 0.5)


LINE, CUBE, ROWS = torch.randn(2, 4, 9), torch.randn(2, 4, 5, 5, 5), torch.randn(2, 3, 6)

FUNCTIONAL: dict[str, tuple[Callable[..., Any], Tensor, dict[str, Tensor], str]] = {
    "conv1d": (lambda m, x: F.conv1d(x, m.weight, m.bias, 2, 1), LINE,
               {"weight": rand(6, 4, 3), "bias": rand(6)}, "conv1d"),
    "conv2d": (lambda m, x: F.conv2d(x, m.weight, stride=(2, 1), padding=1, dilation=2), IMAGE,
               {"weight": rand(6, 4, 2, 2)}, "conv2d"),
    "conv2d, grouped": (lambda m, x: F.conv2d(x, m.w, m.b, padding="same", groups=2), IMAGE,
                        {"w": rand(6, 2, 3, 3), "b": rand(6)}, "w_conv2d"),
    "conv3d": (lambda m, x: F.conv3d(x, weight=m.weight), CUBE, {"weight": rand(2, 4, 2, 2, 2)}, "conv3d"),
    "conv_transpose1d": (lambda m, x: F.conv_transpose1d(x, m.weight, m.bias), LINE,
                         {"weight": rand(4, 6, 3), "bias": rand(6)}, "conv_transpose1d"),
    "conv_transpose2d": (lambda m, x: F.conv_transpose2d(x, m.up_weight, None, 2, 1, 1, 2), IMAGE,
                         {"up_weight": rand(4, 3, 3, 3)}, "up"),
    "conv_transpose3d": (lambda m, x: F.conv_transpose3d(x, m.weight, dilation=2), CUBE,
                         {"weight": rand(4, 3, 2, 2, 2)}, "conv_transpose3d"),
    "linear": (lambda m, x: F.linear(x, m.fc_weight, m.fc_bias), ROWS,
               {"fc_weight": rand(5, 6), "fc_bias": rand(5)}, "fc"),
    "linear with a buffer": (lambda m, x: F.linear(x, m.table), ROWS, {"table": torch.randn(5, 6)}, "table_linear"),
    "batch_norm": (lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, eps=1e-3), IMAGE,
                   {"running_mean": rand(4).data, "running_var": rand(4).data, "weight": rand(4), "bias": rand(4)},
                   "batch_norm"),
    "batch_norm of rows": (lambda m, x: F.batch_norm(x, m.mean, m.var), ROWS,
                           {"mean": rand(3).data, "var": rand(3).data}, "mean_batch_norm"),
    "layer_norm": (lambda m, x: F.layer_norm(x, (3, 6), m.weight, m.bias, 1e-3), ROWS,
                   {"weight": rand(3, 6), "bias": rand(3, 6)}, "layer_norm"),
    "layer_norm without parameters": (lambda m, x: F.layer_norm(x, [6]), ROWS, {}, "layer_norm"),
    "rms_norm": (lambda m, x: F.rms_norm(x, (6,), m.weight), ROWS, {"weight": rand(6)}, "rms_norm"),
    "group_norm": (lambda m, x: F.group_norm(x, 2, m.weight, m.bias), IMAGE,
                   {"weight": rand(4), "bias": rand(4)}, "group_norm"),
    "prelu": (lambda m, x: F.prelu(x, m.weight), IMAGE, {"weight": rand(4)}, "prelu"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_layers_become_modules(name: str, run_pass: RunPass) -> None:
    function, x, tensors, path = FUNCTIONAL[name]
    model = Layer(function, **tensors)
    result = run_pass(Canonicalise(), model, x, torch.cat([x, -x]))
    gm = result.graph_module
    node = next(n for n in gm.graph.nodes if n.op == "call_module")
    assert node.target == path
    assert [m.rule for m in result.matched] == ["function_to_module"]
    assert not any(n.op == "get_attr" for n in gm.graph.nodes)
    assert identify(node, gm).kind == name.split()[0].rstrip(",")
    module = gm.get_submodule(path)
    assert not module.training
    for parameter in module.parameters():
        shared = [t for t in tensors.values() if t.data_ptr() == parameter.data_ptr()]
        assert len(shared) == 1
        assert shared[0] is parameter or not isinstance(shared[0], nn.Parameter)


def test_embedding(run_pass: RunPass) -> None:
    model = Layer(lambda m, x: F.embedding(x, m.weight, padding_idx=-1), weight=rand(7, 3))
    result = run_pass(Canonicalise(), model, torch.tensor([[1, 6], [0, 2]]), torch.tensor([3]))
    module = result.graph_module.get_submodule("embedding")
    assert isinstance(module, nn.Embedding)
    assert module.weight is model.weight


def test_one_module_for_one_layer_called_twice(run_pass: RunPass) -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        h = F.linear(x, m.w)
        return F.linear(F.relu(h), m.w) + F.linear(h, m.w, m.b)

    result = run_pass(Canonicalise(), Layer(function, w=rand(6, 6), b=rand(6)), ROWS)
    targets = [n.target for n in result.graph_module.graph.nodes if n.op == "call_module"]
    assert targets == ["w_linear", "w_linear", "w_linear_1"]


def test_a_parameter_of_a_called_layer_leaves_that_layer_alone(run_pass: RunPass) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.fc(x), self.fc.weight)

    model = Tied().eval()
    result = run_pass(Canonicalise(), model, ROWS)
    targets = [n.target for n in result.graph_module.graph.nodes if n.op == "call_module"]
    assert targets == ["fc", "fc_linear"]
    assert not list(model.fc.children())


def computed(m: Any, x: Tensor) -> Any:
    return F.linear(x, m.weight * 2)


def from_input(m: Any, x: Tensor) -> Any:
    return F.linear(x, x[0])


def at_run_time(m: Any, x: Tensor) -> Any:
    return F.layer_norm(x, x.shape[2:])


def vector(m: Any, x: Tensor) -> Any:
    return F.linear(x, m.vector)


def per_batch(m: Any, x: Tensor) -> Any:
    return F.batch_norm(x, None, None, training=True)


def written(m: Any, x: Tensor) -> Any:
    y = F.linear(x, m.table)
    m.table.add_(1)
    return y


def unknown_scale(m: Any, x: Tensor) -> Any:
    return F.group_norm(x, 1)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "computed": (computed, "its weight is computed, by `mul`"),
    "from_input": (from_input, "its weight is computed, by `getitem`"),
    "at_run_time": (at_run_time, "its normalized_shape is only known at run time"),
    "vector": (vector, "its weight has 1 dimension"),
    "per_batch": (per_batch, "it normalises with the statistics of each batch"),
    "written": (written, "its weight may be written, by `add_`"),
    "unknown_scale": (unknown_scale, "it lacks weight or bias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, reason = REFUSED[name]
    model = Layer(function, weight=rand(6, 6), vector=rand(6), table=torch.randn(6, 6))
    gm = trace(model, ROWS)
    result = Canonicalise()(gm)
    assert reason in reasons(result)
    assert not any(m.rule == "function_to_module" for m in result.matched)
    kept = [n.target for n in gm.graph.nodes if n.target in (F.linear, F.layer_norm, F.batch_norm, F.group_norm)]
    assert [n.target for n in result.graph_module.graph.nodes if n.target in kept] == kept


def test_refused_where_the_batch_norm_is_frozen_in_training() -> None:
    model = Layer(lambda m, x: F.batch_norm(x, m.mean, m.var), mean=rand(3).data, var=rand(3).data).train()
    result = Canonicalise()(trace(model, ROWS))
    assert reasons(result) == ["it keeps its running statistics, which a module in training mode would not"]


def test_batch_norm_without_example_inputs() -> None:
    model = Layer(lambda m, x: F.batch_norm(x, m.mean, m.var), mean=rand(3).data, var=rand(3).data)
    result = Canonicalise()(trace(model))
    assert reasons(result) == ["the number of dimensions of its input is not known without example inputs"]
    behind = Layer(lambda m, x: F.batch_norm(F.conv2d(x, m.w), m.mean, m.var), w=rand(3, 3, 1, 1), mean=rand(3).data,
                   var=rand(3).data)  # fmt: skip
    assert not Canonicalise()(trace(behind)).refused


def test_other_keywords_of_a_module_stay(run_pass: RunPass) -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Any:
            return self.up(input=x, output_size=[14, 14])

    result = run_pass(Canonicalise(), Up().eval(), IMAGE)
    node = next(n for n in result.graph_module.graph.nodes if n.op == "call_module")
    assert (len(node.args), list(node.kwargs)) == (1, ["output_size"])


def test_random_state_is_left_alone() -> None:
    gm = trace(Mixed().eval(), torch.randn(2, 3, 8, 8))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    Canonicalise()(gm)
    assert torch.equal(torch.get_rng_state(), state)


def spelled_with(spelling: Spelling) -> str:
    result = Canonicalise()(trace(Calls(spelling), (IMAGE,)))
    return graph_text(take_snapshot(result.graph_module)).splitlines()[-2].strip()


def test_two_settings_stay_two() -> None:
    assert spelled_with(nn.MaxPool2d(2)) != spelled_with(nn.MaxPool2d(2, 1))
    assert spelled_with(nn.GELU()) != spelled_with(nn.GELU("tanh"))


class Conv3x3(nn.Conv2d):
    """A class that only adds a constructor, as many models have."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, bias=False)

    @staticmethod
    def stride_of_downsampling() -> int:
        return 1


class StandardisedConv(nn.Conv2d):
    """A class that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Normed(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) / 2


def test_a_class_that_only_adds_a_constructor_is_its_base(run_pass: RunPass) -> None:
    model = nn.Sequential(Conv3x3(4), StandardisedConv(4, 4, 1), nn.Flatten(), Normed(4 * 36, 2)).eval()
    out, record = run_pass(Canonicalise(), model, torch.randn(2, 4, 6, 6))
    kinds = {n.name: type(get_module(out, n)) for n in out.graph.nodes if n.op == "call_module"}
    assert kinds["_0"] is nn.Conv2d
    assert list(kinds.values()).count(nn.Conv2d) == 1
    assert [m.rule for m in record.matched].count("plain_class") == 1
    assert type(model[0]) is Conv3x3


def test_a_layer_with_hooks_stays_what_it_is(run_pass: RunPass) -> None:
    model = nn.Sequential(Conv3x3(4)).eval()
    model[0].register_forward_hook(lambda m, a, y: y + 1)
    _, record = run_pass(Canonicalise(), model, torch.randn(1, 4, 5, 5))
    assert "plain_class" not in [m.rule for m in record.matched]


def test_a_shared_layer_stays_shared(run_pass: RunPass) -> None:
    conv = Conv3x3(4)
    model = nn.Sequential(conv, nn.ReLU(), conv).eval()
    out, _ = run_pass(Canonicalise(), model, torch.randn(1, 4, 5, 5))
    found = [get_module(out, n) for n in out.graph.nodes if n.op == "call_module"]
    assert found[0] is found[1]


class Joined(nn.Module):
    def forward(self, x: Tensor) -> Any:
        pair = torch.split(x, [1, 2], -1)
        return (x * 2,) + pair[1:]  # noqa: RUF005 - the spelling under test


def test_tuples_are_joined_by_python(run_pass: RunPass) -> None:
    gm = run_pass(Canonicalise(), Joined(), torch.randn(4, 3)).graph_module
    first, second = gm(torch.ones(4, 3))
    assert (first.shape, second.shape) == ((4, 3), (4, 2))


class Sums(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(x.size()[:-1] + (2, -1)).transpose(1, 2)  # noqa: RUF005 - the spelling under test
        return heads.reshape((-1,) + x.shape[1:2] + (3,))  # noqa: RUF005


def test_sums_of_shapes_are_spread(run_pass: RunPass) -> None:
    gm = run_pass(Canonicalise(), Sums(), torch.randn(4, 5, 6), torch.randn(2, 7, 6)).graph_module
    shapes = [n.kwargs["shape"] for n in gm.graph.nodes if n.target is torch.reshape]
    assert [[s if isinstance(s, int) else str(s.target.__name__) for s in shape] for shape in shapes] == [  # type: ignore[union-attr]
        ["getitem", "getitem", 2, -1], [-1, "getitem", 3],
    ]  # fmt: skip


def test_without_a_record_sums_of_shapes_stay() -> None:
    gm = Canonicalise()(trace(Sums())).graph_module
    assert all(isinstance(n.kwargs["shape"], fx.Node) for n in gm.graph.nodes if n.target is torch.reshape)
