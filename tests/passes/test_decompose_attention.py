from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo import build
from fxq.errors import VerifyError
from fxq.ir import graph_text, take_snapshot
from fxq.ir.shapes import run_recorded
from fxq.manager import PassManager
from fxq.manager.base import PassResult
from fxq.passes import _attention
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.decompose_attention import DecomposeAttention
from fxq.tracing import trace
from tests.conftest import Golden
from tests.passes.conftest import RunPass


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter random values: attention starts with biases of zero, norms with ones and zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0, 0.5, generator=generator)
    return module.eval()


class Attends(nn.Module):
    """Applies ``function`` to itself and its inputs; ``attn`` is its attention."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.function = function
        self.attn = nn.MultiheadAttention(8, 2, **options)
        randomised(self)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return self.function(self, x, y, z)


def sequences(batch: int, length: int, keys: int, *, batch_first: bool = True, kdim: int = 8, vdim: int = 8) -> Any:
    generator = torch.Generator().manual_seed(batch)
    shapes = ((batch, length, 8), (batch, keys, kdim), (batch, keys, vdim))
    made = (torch.randn(*shape, generator=generator) for shape in shapes)
    return tuple(x if batch_first else x.transpose(0, 1).contiguous() for x in made)


def attend_to_itself(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    return m.attn(x, x, x, need_weights=False)[0]


def attend_to_others(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    out, _ = m.attn(query=x, key=y, value=z)
    return out + 1


def reasons(result: PassResult) -> list[str]:
    return [r.reason for r in result.refused]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("function", [attend_to_itself, attend_to_others])
def test_attention(function: Callable[..., Any], bias: bool, batch_first: bool, run_pass: RunPass) -> None:
    model = Attends(function, bias=bias, batch_first=batch_first)
    inputs = (sequences(2, 5, 3, batch_first=batch_first), sequences(4, 3, 7, batch_first=batch_first))
    result = run_pass(DecomposeAttention(), model, *inputs)
    assert [m.rule for m in result.matched] == ["attention"]
    names = ["in_proj"] if function is attend_to_itself else ["q_proj", "k_proj", "v_proj"]
    gm = result.graph_module
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == [f"attn.{n}" for n in (*names, "out_proj")]
    assert {type(gm.get_submodule(f"attn.{n}")) for n in names} == {nn.Linear}


def test_separate_widths(run_pass: RunPass) -> None:
    model = Attends(attend_to_others, batch_first=True, kdim=6, vdim=4)
    result = run_pass(
        DecomposeAttention(), model, sequences(2, 5, 3, kdim=6, vdim=4), sequences(3, 2, 4, kdim=6, vdim=4)
    )
    assert result.graph_module.get_submodule("attn.k_proj").in_features == 6


def test_golden(golden: Golden, run_pass: RunPass) -> None:
    model = Attends(attend_to_itself, batch_first=True)
    result = run_pass(DecomposeAttention(), model, sequences(2, 5, 3), first=(Canonicalise(),))
    out = PassManager([Canonicalise(), DecomposeAttention()])(trace(model, sequences(2, 5, 3)), sequences(2, 5, 3))
    golden("decompose_attention", graph_text(take_snapshot(out.graph_module)))
    assert {n.module_path for n in result.record.diff.added} == {"attn", "attn.in_proj", "attn.out_proj"}
    assert {o.rule for n in result.record.diff.added for o in n.origins} == {"attention"}


def test_the_new_layers_share_the_parameters(run_pass: RunPass) -> None:
    packed = Attends(attend_to_itself, batch_first=True)
    gm = run_pass(DecomposeAttention(), packed, sequences(2, 5, 3)).graph_module
    assert gm.get_submodule("attn.in_proj").weight is packed.attn.in_proj_weight
    assert gm.get_submodule("attn.in_proj").bias is packed.attn.in_proj_bias
    assert gm.get_submodule("attn.out_proj").weight is packed.attn.out_proj.weight
    assert list(dict(packed.attn.named_children())) == ["out_proj"]

    apart = Attends(attend_to_others, batch_first=True)
    gm = run_pass(DecomposeAttention(), apart, sequences(2, 5, 3)).graph_module
    key = gm.get_submodule("attn.k_proj").weight
    assert isinstance(key, nn.Parameter)
    assert key.data_ptr() == apart.attn.in_proj_weight[8:].data_ptr()


def test_called_twice(run_pass: RunPass) -> None:
    def function(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return m.attn(m.attn(x, x, x)[0], y, z)[0]

    result = run_pass(DecomposeAttention(), Attends(function, batch_first=True), sequences(2, 5, 3), sequences(3, 4, 4))
    assert len(result.matched) == 2
    assert not result.refused


def test_dynamic_sizes_leave_no_trace_in_the_graph(run_pass: RunPass) -> None:
    result = run_pass(DecomposeAttention(), Attends(attend_to_itself, batch_first=True), sequences(2, 5, 3))
    assert "size" not in {n.kind for n in result.record.after.nodes}


# -- masks --------------------------------------------------------------------------------------------------------

CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
SHUT = CAUSAL | (torch.arange(5) == 2)[:, None]  # the third query has no key at all
MASKS = {
    "boolean": CAUSAL,
    "added": torch.randn(5, 5),
    "added, shut": torch.zeros(5, 5).masked_fill(SHUT, float("-inf")),
    "boolean, shut": SHUT,
    "boolean, for each head": torch.randn(4, 5, 5) > 1.0,
    "added, for each head": torch.randn(4, 5, 5),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
def test_masks(mask: str, need_weights: bool, run_pass: RunPass) -> None:
    def function(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return m.attn(x, x, x, attn_mask=z, need_weights=need_weights)[0]

    model = Attends(function, batch_first=False)
    x = torch.randn(5, 2, 8)
    result = run_pass(DecomposeAttention(), model, (x, x, MASKS[mask]))
    assert len(result.matched) == 1
    kinds = {n.kind for n in result.record.after.nodes}
    assert ("softmax" in kinds) == need_weights
    assert ("attention" in kinds) != need_weights


# -- refusals -----------------------------------------------------------------------------------------------------


def weights_used(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    out, weights = m.attn(x, y, z)
    return out, weights * 2


def both_returned(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    return m.attn(x, y, z)


def used_whole(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    return m.attn(x, y, z)[:1][0]


def padded(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    return m.attn(x, y, z, key_padding_mask=y[..., 0] > 0)[0]


def causal(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    return m.attn(x, y, z, attn_mask=x[0] @ y[0].t(), is_causal=True, need_weights=False)[0]


REFUSED: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "weights used": (weights_used, {}, "its attention weights are used, by `mul`"),
    "both returned": (both_returned, {}, "its attention weights are returned"),
    "used whole": (used_whole, {}, "its results are used together, by `getitem`"),
    "padded": (padded, {}, "it is given key_padding_mask"),
    "causal": (causal, {}, "it is given is_causal"),
    "added biases": (attend_to_others, {"add_bias_kv": True}, "it has biases that are added to keys and values"),
    "added zero": (attend_to_others, {"add_zero_attn": True}, "it attends to an added zero"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, options, reason = REFUSED[name]
    model = Attends(function, batch_first=True, **options)
    result = recorded(model, sequences(2, 5, 3))
    assert len(result.refused) == 1
    assert reason in reasons(result)[0]
    assert not result.modified


def recorded(model: nn.Module, inputs: Any, *, record: bool = True) -> PassResult:
    """Run the pass on a graph on which a run was recorded, without running what came out."""
    gm = trace(model, inputs)
    if record:
        run_recorded(gm, inputs)
    return DecomposeAttention()(gm)


def test_refused_with_hooks() -> None:
    for path in ("attn", "attn.out_proj"):
        model = Attends(attend_to_itself, batch_first=True)
        model.get_submodule(path).register_forward_hook(lambda *_: None)
        assert reasons(recorded(model, sequences(2, 5, 3))) == ["it has hooks"]


def test_refused_while_it_drops_weights() -> None:
    model = Attends(attend_to_itself, batch_first=True, dropout=0.1).train()
    assert reasons(recorded(model, sequences(2, 5, 3))) == ["it drops attention weights at random, in training mode"]
    assert recorded(model.eval(), sequences(2, 5, 3)).modified
    assert recorded(Attends(attend_to_itself, batch_first=True).train(), sequences(2, 5, 3)).modified


def test_refused_without_a_batch_or_a_recorded_run() -> None:
    model = Attends(attend_to_itself, batch_first=True)
    rows = tuple(s[0] for s in sequences(1, 5, 3))
    assert reasons(recorded(model, rows)) == ["its input has no batch dimension"]
    unknown = recorded(model, sequences(2, 5, 3), record=False)
    assert reasons(unknown) == ["the number of dimensions of its input is not known without example inputs"]


# -- encoder layers -----------------------------------------------------------------------------------------------


def encoder_layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, **{"batch_first": True, **options})


@pytest.mark.parametrize("options", [
    {}, {"norm_first": True}, {"activation": "gelu"}, {"activation": nn.GELU(), "bias": False}, {"batch_first": False},
    {"activation": torch.relu, "norm_first": True, "batch_first": False},
])  # fmt: skip
def test_encoder_layer(options: dict[str, Any], run_pass: RunPass) -> None:
    model = nn.Sequential(randomised(encoder_layer(**options)), nn.Linear(8, 3)).eval()
    result = run_pass(DecomposeAttention(), model, torch.randn(2, 5, 8), torch.randn(4, 3, 8))
    assert [m.rule for m in result.matched] == ["encoder_layer"]
    targets = [n.target for n in result.graph_module.graph.nodes if n.op == "call_module"]
    inner = ["self_attn.in_proj", "self_attn.out_proj", "norm1", "linear1", "linear2", "norm2"]
    if options.get("norm_first"):
        inner = ["norm1", "self_attn.in_proj", "self_attn.out_proj", "norm2", "linear1", "linear2"]
    assert targets == [*(f"0.{name}" for name in inner), "1"]
    assert result.graph_module.get_submodule("0.linear1") is model[0].linear1


@pytest.mark.parametrize("norm", [None, nn.LayerNorm(8)])
def test_encoder(norm: nn.Module | None, run_pass: RunPass) -> None:
    model = nn.TransformerEncoder(encoder_layer(), 2, norm, enable_nested_tensor=False)
    model = nn.Sequential(randomised(model))
    result = run_pass(DecomposeAttention(), model, torch.randn(2, 5, 8), torch.randn(4, 3, 8))
    assert [m.rule for m in result.matched] == ["encoder"]
    targets = [n.target for n in result.graph_module.graph.nodes if n.op == "call_module"]
    assert targets[0] == "0.layers.0.self_attn.in_proj"
    assert targets[-1] == ("0.norm" if norm is not None else "0.layers.1.norm2")
    names = [n for n in targets if "layers.1" in str(n)]
    assert len(names) == 6


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = encoder_layer()

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, src_mask=x[0, :, :5])


def with_hook() -> nn.Module:
    layer = encoder_layer()
    layer.linear1.register_forward_hook(lambda *_: None)
    return layer


class Mine(nn.TransformerEncoderLayer):
    pass


def stack(layer: nn.TransformerEncoderLayer, norm: nn.Module | None = None) -> nn.Module:
    return nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)


REFUSED_LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "masked": (Masked, "it is given src_mask"),
    "hooks": (with_hook, "it has hooks"),
    "activation": (lambda: encoder_layer(activation=F.silu), "its activation is neither ReLU nor exact GELU"),
    "approximate": (lambda: encoder_layer(activation=nn.GELU("tanh")), "its activation is neither ReLU nor exact GELU"),
    "own layer": (lambda: stack(Mine(8, 2, 16, batch_first=True)), "a Mine is one of its layers"),
    "own norm": (lambda: stack(encoder_layer(), nn.RMSNorm(8)), "its norm is a RMSNorm"),
}


@pytest.mark.parametrize("name", REFUSED_LAYERS)
def test_refused_layers(name: str) -> None:
    make, reason = REFUSED_LAYERS[name]
    result = recorded(nn.Sequential(make()).eval(), (torch.randn(2, 5, 8),))
    assert reasons(result) == [reason]
    assert not result.modified


def test_refused_layer_in_training_mode() -> None:
    model = nn.Sequential(encoder_layer()).train()
    assert reasons(recorded(model, (torch.randn(2, 5, 8),))) == ["it drops values at random, in training mode"]


# -- a control, and a network -------------------------------------------------------------------------------------


def test_wrong_maths_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = Attends(attend_to_itself, batch_first=True), sequences(2, 5, 3)
    right = _attention.linear
    monkeypatch.setattr(_attention, "linear", lambda w, b, training: right(w * 1.01, b, training))
    with pytest.raises(VerifyError, match="`decompose_attention` promises CLOSE and changed the output"):
        PassManager([DecomposeAttention()])(trace(model, inputs), inputs)


@pytest.mark.zoo
@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_vision_transformer() -> None:
    model, x = build("vit_b_16")
    gm, report = PassManager([Canonicalise(), DecomposeAttention()])(trace(model, x), x)
    assert len(report["decompose_attention"].matched) == 12
    assert not report["decompose_attention"].refused
    two = torch.cat([x, x.flip(-1)])
    with torch.no_grad():
        torch.testing.assert_close(gm(two), model(two), rtol=1e-4, atol=1e-4)
