"""fxq.profile: exact counts of known networks, what each column holds, and what it leaves alone."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune

from fxq.analysis import profile
from fxq.analysis.costs import CONVENTION, format_bytes, format_count
from fxq.errors import GraphError, InputError
from fxq.nn import Epilogue, QConv2d, fuse_layer, quantize_layer
from fxq.nn.weight_only import Weight4Linear, Weight8Linear
from fxq.quant.qparams import QParams
from fxq.tracing import trace

X = torch.zeros(1, 3, 8, 8)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    ).eval()  # fmt: skip


SMALL_MACS = 64 * 4 * 27 + 256 * 5


def torchvision_model(name: str) -> nn.Module:
    shim = pytest.importorskip("benchmarks.torchvision_shim")
    try:
        torchvision = shim.import_torchvision()
    except ImportError as error:
        pytest.skip(str(error))
    with torch.device("meta"):  # the shapes are enough: nothing of the network's size is allocated
        model: nn.Module = torchvision.models.get_model(name, weights=None).eval()
    return model


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet18", 1_814_073_344),
        ("resnet50", 4_089_184_256),
        ("vgg16", 15_470_264_320),
        ("vit_b_16", 17_563_828_224),
    ],
)
def test_networks_have_their_closed_form_macs(name: str, macs: int) -> None:
    model = torchvision_model(name)
    found = profile(model, torch.zeros(1, 3, 224, 224, device="meta"))
    assert found.macs == macs
    assert found.flops == 2 * macs
    assert found.params == sum(p.numel() for p in model.parameters()) == sum(layer.params for layer in found.layers)
    assert found.notes == ()


def test_vgg16_convolutions_alone() -> None:
    layers = profile(torchvision_model("vgg16"), torch.zeros(1, 3, 224, 224)).layers
    assert sum(layer.macs for layer in layers if layer.kind == "conv2d") == 15_346_630_656


def test_the_columns_of_a_pointwise_convolution() -> None:
    conv = nn.Conv2d(16, 32, 1)
    (cost,) = profile(nn.Sequential(conv), torch.zeros(1, 16, 7, 9)).layers
    assert (cost.name, cost.module_path, cost.kind) == ("_0", "0", "conv2d")
    assert (cost.input_shapes, cost.output_shape) == (((1, 16, 7, 9),), (1, 32, 7, 9))
    assert cost.params == 16 * 32 + 32
    assert cost.macs == 63 * 16 * 32
    assert cost.flops == 2 * cost.macs
    assert cost.activations == 63 * 32
    assert cost.access_elements == 63 * (16 + 32) + 16 * 32  # H * W * (C_in + C_out) + C_in * C_out
    assert cost.access_bytes == 4 * (cost.access_elements + 32)
    assert cost.bytes == 4 * cost.params


def test_counts_are_for_the_given_inputs() -> None:
    one, two = (profile(small(), torch.zeros(n, 3, 8, 8)) for n in (1, 2))
    assert (one.macs, two.macs) == (SMALL_MACS, 2 * SMALL_MACS)
    assert one.params == two.params


def test_half_precision_moves_half_the_bytes() -> None:
    full, half = profile(small(), X), profile(small().bfloat16(), X.bfloat16())
    convolution = [p["0"] for p in (full, half)]
    assert convolution[0].access_bytes == 2 * convolution[1].access_bytes
    assert convolution[0].access_elements == convolution[1].access_elements


def graph_of(layer: nn.Module) -> nn.Module:
    """Return a graph of one call, as passes make it."""
    graph = fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    return fx.GraphModule(nn.ModuleDict({"layer": layer}), graph)


class Positive(nn.Module):
    """Looks at values, which fake tensors do not have: a profile has to run on the real ones."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("first", [nn.Identity, Positive])
def test_whatever_kernel_multiplies_by_codes_has_the_macs_of_its_float_layer(bits: int, first: type[nn.Module]) -> None:
    layer = nn.Linear(64, 48)
    made = Weight8Linear.from_layer(layer) if bits == 8 else Weight4Linear.from_layer(layer, 32)
    for rows in (3, 300):
        assert profile(nn.Sequential(first(), made).eval(), torch.randn(rows, 64)).macs == rows * 64 * 48


def test_every_stage_of_a_convolution_has_the_same_macs() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1).eval()
    fused = fuse_layer(conv, Epilogue("relu"))
    qdq = quantize_layer(fused)
    int8 = QConv2d.from_qdq(qdq, QParams(0.1, 3), QParams(0.2, 0))  # type: ignore[arg-type]
    costs = [profile(graph_of(m), X)["layer"] for m in (conv, fused, qdq)]
    costs.append(profile(graph_of(int8), X.to(torch.uint8))["layer"])
    assert [c.macs for c in costs] == [64 * 4 * 27] * 4
    assert [c.params for c in costs] == [4 * 27 + 4] * 4
    assert [c.kind for c in costs] == ["conv2d", "FusedConv2d", "QDQConv2d", "QConv2d"]
    assert costs[3].bytes == 4 * 27 + 4 * (4 + 4)  # int8 weights, float biases and scales
    assert costs[3].access_bytes == 3 * 64 + 4 * 64 + costs[3].bytes
    assert int8._derived is None  # what the layer packed for the run is gone


def test_masks_and_parametrisations_change_no_counts() -> None:
    plain, masked = profile(small(), X), small()
    prune.ln_structured(masked[0], "weight", amount=0.5, n=1, dim=0)  # type: ignore[no-untyped-call]
    normed = small()
    parametrizations.weight_norm(normed[0])
    assert profile(masked, X).macs == profile(normed, X).macs == plain.macs
    assert profile(masked, X).params == plain.params


def test_functional_calls_own_the_parameters_that_they_read() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.zeros(4, 3, 3, 3))
            self.matrix = nn.Parameter(torch.zeros(5, 144))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.conv2d(x, self.kernel).flatten(1), self.matrix)

    convolution, linear = profile(Functional(), X).layers
    assert (convolution.params, convolution.macs) == (108, 36 * 108)
    assert (linear.params, linear.macs) == (720, 720)
    assert convolution.input_shapes == ((1, 3, 8, 8),)
    assert convolution.access_elements == 192 + 108 + 144


def test_a_shared_layer_counts_once_in_the_total_and_runs_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))  # type: ignore[no-any-return]

    found = profile(Twice(), torch.zeros(1, 4))
    assert [layer.params for layer in found.layers] == [20, 20]
    assert (found.params, found.bytes, found.macs) == (20, 80, 32)


def test_views_cost_nothing_and_are_left_out() -> None:
    found = profile(small(), X)
    assert [layer.kind for layer in found.layers] == ["conv2d", "batch_norm", "relu", "linear"]
    assert (found["2"].macs, found["2"].activations, found["2"].access_elements) == (0, 256, 512)


def test_an_embedding_reads_the_rows_that_it_looks_up() -> None:
    (cost,) = profile(nn.Sequential(nn.Embedding(1000, 8)), torch.zeros(2, 3, dtype=torch.long)).layers
    assert cost.params == 8000
    assert cost.access_elements == 6 + 48 + 48
    assert cost.access_bytes == 6 * 8 + 4 * (48 + 48)


class DataDependent(nn.Module):
    """Looks at its data, keeps state, and holds a convolution."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) if float(x.sum()) == 0 else x


def test_an_opaque_module_is_counted_inside_and_named() -> None:
    opaque = DataDependent().eval()
    found = profile(nn.Sequential(opaque, nn.ReLU()), X)
    assert found["0"].macs == found.macs == 64 * 12
    assert len(found.notes) == 1
    assert found.notes[0].startswith("`0` (DataDependent) is one call")
    assert float(opaque.calls) == 0  # a copy ran


def test_a_model_that_cannot_be_traced_is_one_layer() -> None:
    found = profile(DataDependent(), X)
    assert [(layer.kind, layer.macs) for layer in found.layers] == [("DataDependent", 64 * 12)]
    assert found.notes[0].startswith("the model is counted as a whole")


def test_parameters_that_nothing_reads_are_noted() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = small(), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    found = profile(Part(), X)
    assert found.params == sum(layer.params for layer in found.layers) + 9
    assert "9 of the parameters are not read on these inputs" in found.notes


def test_an_encoder_layer_has_no_hidden_products() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    assert profile(layer, torch.zeros(2, 5, 8)).macs == 10 * (4 * 64 + 2 * 8 * 16) + 2 * (2 * 25 * 8)
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_graph_modules_and_keyword_inputs() -> None:
    assert profile(trace(small(), X), X).macs == SMALL_MACS
    assert profile(small(), {"input": X}).macs == SMALL_MACS


def state(model: nn.Module) -> list[tuple[Any, ...]]:
    return [(name, m.training, set(m.__dict__), len(m._forward_hooks)) for name, m in model.named_modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_changed_also_after_an_error(fails: bool) -> None:
    model = nn.Sequential(small(), nn.Dropout(), nn.BatchNorm1d(5), nn.Linear(9 if fails else 5, 5)).train()
    inputs, before = torch.randn(2, 3, 8, 8), state(model)
    tensors, kept = copy.deepcopy(model.state_dict()), inputs.clone()
    random = torch.random.get_rng_state()
    if fails:
        with pytest.raises(GraphError, match="the model fails at `_3`"):
            profile(model, inputs)
    else:
        profile(model, inputs)
    assert state(model) == before
    assert all(torch.equal(t, tensors[name]) for name, t in model.state_dict().items())
    assert torch.equal(inputs, kept)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="a profile needs example_inputs"):
        profile(small(), None)
    with pytest.raises(InputError, match="do not fit the model"):
        profile(small(), (X, X))


def test_the_print_states_the_convention_and_the_totals() -> None:
    text = str(profile(small(), X))
    assert text.splitlines()[0] == CONVENTION
    assert "1 MAC = 1 multiply-add; FLOPs = 2 x MACs" in text
    total = text.splitlines()[-1].split()
    assert total[:5] == ["total", "1.41", "k", "8.19", "k"]
    assert text.isprintable() or set(text) - {c for c in text if c.isprintable()} == {"\n"}


def test_the_dict_is_json_of_whole_numbers() -> None:
    plain = json.loads(json.dumps(profile(small(), X).to_dict()))
    assert plain["total"]["macs"] == SMALL_MACS
    assert plain["layers"][0]["inputs"] == [{"shape": [1, 3, 8, 8], "dtype": "float32"}]
    assert all(isinstance(value, int) for value in plain["total"].values())


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (9996, "10.0 k"), (25_557_032, "25.6 M"), (4_089_184_256, "4.09 G")],
)
def test_counts_print_with_three_digits(count: int, text: str) -> None:
    assert format_count(count) == text


def test_bytes_print_in_decimal_units() -> None:
    assert [format_bytes(n) for n in (12, 1234, 102_441_032)] == ["12 B", "1.23 kB", "102 MB"]


def test_an_embedding_that_looks_up_a_buffer() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("places", torch.arange(5))
            self.table = nn.Embedding(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table(self.places)

    layer = profile(Positions().eval(), torch.randn(2, 5, 3))["table"]
    assert layer.params == 21
    assert layer.access_elements == 2 * 15
