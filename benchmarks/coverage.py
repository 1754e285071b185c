"""Which networks of the transformers library compile, and how much of them becomes int8.

    pip install transformers
    python -m benchmarks.coverage

Small networks of each architecture with seeded random weights: the code is the library's own, sizes do not matter for
what can be traced. Each is traced, compiled to int8 and run on another batch (and sequence length) than the example's.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

import fxq
from benchmarks.measure import quiet, sqnr_db
from benchmarks.torchvision_shim import import_torchvision
from fxq.engine.form import segments
from fxq.errors import FxqError

_WIDTH = 132
_TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
         "vocab_size": 500}  # fmt: skip
_IMAGE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
          "image_size": 32, "patch_size": 8}  # fmt: skip
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
Inputs = Callable[[int, int], dict[str, Any]]


@dataclass(frozen=True)
class Architecture:
    """A model class and its settings; ``inputs(count, length)`` makes the arguments of a call."""

    model: str
    config: str
    settings: dict[str, Any]
    inputs: Inputs


def tokens(count: int, length: int) -> dict[str, Any]:
    """Token numbers, the second half of the first sequence masked."""
    mask = torch.ones(count, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    return {"input_ids": torch.randint(3, 500, (count, length)), "attention_mask": mask}


def uncached(count: int, length: int) -> dict[str, Any]:
    """Token numbers for a decoder, which is not to return its cache of keys and values."""
    return {"input_ids": torch.randint(3, 500, (count, length)), "use_cache": False}


def pictures(count: int, length: int) -> dict[str, Any]:
    """Images of the size that the settings name."""
    return {"pixel_values": torch.randn(count, 3, 32, 32)}


def spectrograms(count: int, length: int) -> dict[str, Any]:
    """Mel spectrograms of the length that the settings name."""
    return {"input_features": torch.randn(count, 16, 100)}


ARCHITECTURES = {
    "BERT": Architecture("BertModel", "BertConfig", _TEXT, tokens),
    "BERT classifier": Architecture("BertForSequenceClassification", "BertConfig", _TEXT, tokens),
    "DistilBERT": Architecture(
        "DistilBertModel", "DistilBertConfig",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 500}, tokens,
    ),
    "RoBERTa": Architecture("RobertaModel", "RobertaConfig", _TEXT, tokens),
    "ELECTRA": Architecture("ElectraModel", "ElectraConfig", _TEXT, tokens),
    "ALBERT": Architecture("AlbertModel", "AlbertConfig", _TEXT, tokens),
    "MPNet": Architecture("MPNetModel", "MPNetConfig", _TEXT, tokens),
    "DeBERTa v2": Architecture(
        "DebertaV2Model", "DebertaV2Config",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32}, tokens,
    ),
    "GPT-2": Architecture(
        "GPT2Model", "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500, "bos_token_id": 1, "eos_token_id": 2}, uncached,
    ),
    "Llama": Architecture("LlamaModel", "LlamaConfig", _TEXT, uncached),
    "T5 encoder": Architecture(
        "T5EncoderModel", "T5Config",
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 500}, tokens,
    ),
    "ViT": Architecture("ViTModel", "ViTConfig", _IMAGE, pictures),
    "DeiT": Architecture("DeiTModel", "DeiTConfig", _IMAGE, pictures),
    "CLIP vision": Architecture("CLIPVisionModel", "CLIPVisionConfig", _IMAGE, pictures),
    "DINOv2": Architecture("Dinov2Model", "Dinov2Config", _IMAGE, pictures),
    "ConvNeXt": Architecture(
        "ConvNextModel", "ConvNextConfig", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}, pictures
    ),
    "SegFormer": Architecture(
        "SegformerModel", "SegformerConfig", {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}, pictures
    ),
    "ResNet": Architecture(
        "ResNetModel", "ResNetConfig", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}, pictures
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Covered:
    """What became of one network; ``failure`` says why nothing did.

    Attributes:
        int8: linear and convolution layers on codes; ``layers``: all of them, opaque modules' among them.
        segments: parts that the engine runs.
        sqnr_db: of the first output on other inputs than those that the network was compiled with.
    """

    name: str
    int8: int = 0
    layers: int = 0
    segments: int = 0
    sqnr_db: float = float("nan")
    failure: str = ""


def cover(name: str, architecture: Architecture) -> Covered:
    """Compile one network and run it on another batch and length."""
    import transformers

    torch.manual_seed(0)
    settings = getattr(transformers, architecture.config)(**architecture.settings)
    model = getattr(transformers, architecture.model)(settings).eval()
    example, other = architecture.inputs(2, 16), architecture.inputs(3, 11)
    try:
        gm = fxq.compile(model, example, calibration=[architecture.inputs(4, 16) for _ in range(4)], progress=False)
        with torch.no_grad():
            wanted, got = _first(model(**other)), _first(gm(**other))
    except FxqError as error:
        return Covered(name, failure=str(error).split("\n")[0])
    layers = sum(isinstance(m, _WEIGHTED) or type(m).__name__ == "Conv1D" for m in model.modules())
    int8 = {layer.module_path for layer in fxq.report(gm).layers if layer.kind in ("QLinear", "QConv1d", "QConv2d")}
    return Covered(name, len(int8), layers, len(_segments(gm)), sqnr_db(wanted, got))


def _first(output: Any) -> Tensor:
    found: Tensor = output[0]
    return found


def _segments(gm: fx.GraphModule) -> list[Any]:
    return list(segments(gm))


def table(rows: Sequence[Covered]) -> Table:
    """Return the rows as a table."""
    made = Table("network", "layers in int8", "segments", "SQNR on other inputs", "")
    for row in rows:
        if row.failure:
            made.add_row(row.name, "", "", "", row.failure)
        else:
            made.add_row(row.name, f"{row.int8} of {row.layers}", str(row.segments), f"{row.sqnr_db:.1f} dB", "")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Cover the networks that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    import_torchvision()  # the library's image models import it
    rows = []
    for name in options.networks:
        with warnings.catch_warnings(), quiet(), console.status(name):
            warnings.simplefilter("ignore")
            rows.append(cover(name, ARCHITECTURES[name]))
    console.print(table(rows))
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
