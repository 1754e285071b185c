from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from benchmarks.zoo import build
from fxq.errors import VerifyError
from fxq.ir import graph_text, take_snapshot
from fxq.ir.metrics import distance
from fxq.ir.shapes import run_recorded
from fxq.manager import PassManager
from fxq.manager.base import PassResult
from fxq.nn import QLinear
from fxq.nn.dynamic import DynamicLinear
from fxq.passes.attention import multi_head, transformer
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


# -- attention weights --------------------------------------------------------------------------------------------


def weights_used(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    out, weights = m.attn(x, y, z)
    return {"out": out, "weights": weights * 2}


def both_returned(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    return m.attn(x, y, z)


def weights_of_each_head(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    out, weights = m.attn(x, x, x, average_attn_weights=False)
    return out, weights


def weights_under_a_mask(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    shut = torch.ones(x.size(1), y.size(1), dtype=torch.bool).triu(2)
    return m.attn(x, y, z, attn_mask=shut)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("function", [weights_used, both_returned, weights_of_each_head])
def test_attention_weights_that_are_used(function: Callable[..., Any], batch_first: bool, run_pass: RunPass) -> None:
    model = Attends(function, batch_first=batch_first)
    inputs, others = (sequences(*sizes, batch_first=batch_first) for sizes in ((2, 5, 3), (3, 4, 6)))
    result = run_pass(DecomposeAttention(), model, inputs, others)
    assert len(result.matched) == 1
    kept = DecomposeAttention(weights=False)(trace(model, inputs))
    assert not kept.modified


def test_attention_weights_under_a_mask(run_pass: RunPass) -> None:
    model = Attends(weights_under_a_mask, batch_first=True)
    assert len(run_pass(DecomposeAttention(), model, sequences(2, 5, 3)).matched) == 1


@pytest.mark.parametrize("function", [weights_used, both_returned])
@pytest.mark.parametrize("recipe", ["int8", "dynamic"])
def test_projections_beside_weights_that_are_used_are_quantised(
    function: Callable[..., Any], recipe: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, inputs = Attends(function, batch_first=True), sequences(4, 9, 7)
    data = [inputs] if recipe == "int8" else None
    gm = fxq.compile(model, inputs, calibration=data, recipe=recipe, target="reference")
    assert sum(isinstance(m, QLinear | DynamicLinear) for m in gm.modules()) == 4
    assert distance(model(*inputs), gm(*inputs)).sqnr_db > 25
    fxq.save(gm, tmp_path / "attends.fxq")
    assert distance(fxq.load(tmp_path / "attends.fxq")(*inputs), gm(*inputs)).equal


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


PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])
INNER = torch.tensor([[False, True, False, False, False], [False, False, False, True, True]])


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("added", [(), ("mask",), ("padding",), ("mask", "padding")])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
def test_padding_beside_a_mask(
    need_weights: bool, added: tuple[str, ...], batch_first: bool, run_pass: RunPass
) -> None:
    def function(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return m.attn(x, x, x, attn_mask=y, key_padding_mask=z, need_weights=need_weights)[0]

    mask = CAUSAL.float().mul(-1e9) if "mask" in added else CAUSAL
    padding = PADDING.float().mul(-1e9) if "padding" in added else PADDING
    x = torch.randn(2, 5, 8) if batch_first else torch.randn(5, 2, 8)
    result = run_pass(DecomposeAttention(), Attends(function, batch_first=batch_first), (x, mask, padding))
    assert len(result.matched) == 1


@pytest.mark.parametrize("padding", [PADDING, PADDING.float().mul(-1e9)])
def test_padding_alone(padding: Tensor, run_pass: RunPass) -> None:
    def function(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return m.attn(x, y, y, key_padding_mask=z)[0]

    model = Attends(function, batch_first=True)
    one = torch.randn(1, 3, 8), torch.randn(1, 5, 8), padding[1:]
    result = run_pass(DecomposeAttention(), model, (torch.randn(2, 3, 8), torch.randn(2, 5, 8), padding), one)
    assert len(result.matched) == 1


def test_is_causal_is_a_hint_beside_the_mask(run_pass: RunPass) -> None:
    def function(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return m.attn(x, x, x, attn_mask=y, is_causal=True, need_weights=False)[0]

    x = torch.randn(2, 5, 8)
    assert len(run_pass(DecomposeAttention(), Attends(function, batch_first=True), (x, CAUSAL, x)).matched) == 1


# -- refusals -----------------------------------------------------------------------------------------------------


def weights_alone(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    return m.attn(x, y, z)[1] * 2


def none_for_weights(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    return m.attn(x, y, z, need_weights=False)


def used_whole(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
    return m.attn(x, y, z)[:1][0]


REFUSED: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "weights alone": (weights_alone, {}, "its attention weights alone are used"),
    "none for weights": (none_for_weights, {}, "whether it gives attention weights is only known when it runs, or it"),
    "used whole": (used_whole, {}, "its results are used together, by `getitem`"),
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


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
def test_refused_with_a_mask_of_another_dtype() -> None:
    def function(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return m.attn(x, x, x, attn_mask=y, key_padding_mask=z, need_weights=False)[0]

    model = Attends(function, batch_first=True).bfloat16()
    x, mask, padding = torch.randn(2, 5, 8).bfloat16(), torch.zeros(5, 5), PADDING.bfloat16()
    assert reasons(recorded(model, (x, mask, padding))) == [
        "its mask of the scores is neither boolean nor of the dtype of the query, in 2 or 3 dimensions"
    ]


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


class Calls(nn.Module):
    """Calls a transformer with ``names`` of its arguments, in order."""

    def __init__(self, inner: nn.Module, *names: str, **fixed: Any) -> None:
        super().__init__()
        self.inner, self.names, self.fixed = inner, names, fixed

    def forward(self, *values: Tensor) -> Any:
        return self.inner(**dict(zip(self.names, values, strict=True)), **self.fixed)


@pytest.mark.parametrize("names", [("src_mask",), ("src_key_padding_mask",), ("src_mask", "src_key_padding_mask")])
def test_encoder_layer_with_masks(names: tuple[str, ...], run_pass: RunPass) -> None:
    masks = {"src_mask": CAUSAL, "src_key_padding_mask": PADDING}
    model = Calls(randomised(encoder_layer(norm_first=True)), "src", *names).eval()
    inputs = (torch.randn(2, 5, 8), *(masks[n] for n in names))
    assert [m.rule for m in run_pass(DecomposeAttention(), model, inputs).matched] == ["encoder_layer"]


@pytest.mark.parametrize("padding", [PADDING, INNER, PADDING.float().mul(-1e9)])
@pytest.mark.parametrize("options", [{}, {"mask": CAUSAL}, {"is_causal": True, "mask": CAUSAL}])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
def test_encoder_with_padding(padding: Tensor, options: dict[str, Any], nested: bool, run_pass: RunPass) -> None:
    encoder = nn.TransformerEncoder(encoder_layer(), 2, nn.LayerNorm(8), enable_nested_tensor=nested)
    names = ("src", "src_key_padding_mask", *(n for n in ("mask",) if n in options))
    model = Calls(randomised(encoder), *names, **{k: v for k, v in options.items() if k == "is_causal"}).eval()
    x, masks = torch.randn(2, 5, 8), [options["mask"]] if "mask" in options else []
    result = run_pass(DecomposeAttention(), model, (x, padding, *masks), (x.flip(0), padding, *masks))
    assert [m.rule for m in result.matched] == ["encoder"]
    merged = [n for n in result.record.after.nodes if n.kind == "unflatten"]
    assert len(merged) == 2, "the mask is merged once for all layers"


def decoder_layer(**options: Any) -> nn.TransformerDecoderLayer:
    return nn.TransformerDecoderLayer(8, 2, 16, **{"batch_first": True, **options})


@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"batch_first": False, "activation": "gelu"}])
def test_decoder_layer(options: dict[str, Any], run_pass: RunPass) -> None:
    names = ("tgt", "memory", "tgt_mask", "memory_key_padding_mask")
    model = Calls(randomised(decoder_layer(**options)), *names, tgt_is_causal=True).eval()
    first = options.get("batch_first", True)
    sequences = [torch.randn(2, n, 8) if first else torch.randn(n, 2, 8) for n in (3, 5)]
    result = run_pass(DecomposeAttention(), model, (*sequences, CAUSAL[:3, :3], PADDING))
    assert [m.rule for m in result.matched] == ["decoder_layer"]
    targets = [str(n.target) for n in result.graph_module.graph.nodes if n.op == "call_module"]
    assert "inner.self_attn.in_proj" in targets
    assert {"inner.multihead_attn.q_proj", "inner.multihead_attn.k_proj", "inner.norm3"} <= set(targets)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_transformer(masked: bool, run_pass: RunPass) -> None:
    whole = nn.Transformer(8, 2, 1, 2, 16, batch_first=True, norm_first=True)
    masks = {"src_mask": CAUSAL, "tgt_mask": CAUSAL[:4, :4], "memory_mask": CAUSAL[:4], "src_key_padding_mask": INNER,
             "tgt_key_padding_mask": PADDING[:, 1:]} if masked else {}  # fmt: skip
    model = Calls(randomised(whole), "src", "tgt", *masks).eval()
    inputs = (torch.randn(2, 5, 8), torch.randn(2, 4, 8), *masks.values())
    result = run_pass(DecomposeAttention(), model, inputs)
    assert [m.rule for m in result.matched] == ["transformer"]
    assert "inner.decoder.layers.1.multihead_attn.v_proj" in {str(n.target) for n in result.graph_module.graph.nodes}


def with_hook() -> nn.Module:
    layer = encoder_layer()
    layer.linear1.register_forward_hook(lambda *_: None)
    return layer


class Mine(nn.TransformerEncoderLayer):
    pass


def stack(layer: nn.TransformerEncoderLayer, norm: nn.Module | None = None) -> nn.Module:
    return nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)


REFUSED_LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
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


def test_refused_transformer() -> None:
    whole = nn.Transformer(8, 2, 1, 1, 16, batch_first=True, custom_encoder=stack(Mine(8, 2, 16, batch_first=True)))
    inputs = (torch.randn(2, 5, 8), torch.randn(2, 4, 8))
    assert reasons(recorded(Calls(whole, "src", "tgt").eval(), inputs)) == ["a Mine is one of its layers"]
    whole.encoder = nn.Identity()
    assert transformer.transformer_reason(whole, {}) == "its encoder is a Identity"


def test_refused_layer_in_training_mode() -> None:
    model = nn.Sequential(encoder_layer()).train()
    assert reasons(recorded(model, (torch.randn(2, 5, 8),))) == ["it drops values at random, in training mode"]


# -- a control, and a network -------------------------------------------------------------------------------------


def test_wrong_maths_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = Attends(attend_to_itself, batch_first=True), sequences(2, 5, 3)
    right = multi_head.linear
    monkeypatch.setattr(multi_head, "linear", lambda w, b, training: right(w * 1.01, b, training))
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
