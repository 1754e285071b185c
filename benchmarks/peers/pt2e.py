"""torchao's PT2E static quantisation with the x86 quantizer, compiled by Inductor with frozen weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from benchmarks.peers.inductor import compile_frozen
from benchmarks.peers.peer import Peer, Prepared, rebatch


def _prepare(model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> Prepared:
    return Prepared(compile_frozen(quantise(model, example, calibration), example))


def quantise(model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> fx.GraphModule:
    """Return the exported graph with quantise/dequantise pairs, for batches of ``example``'s shape."""
    # Importing the quantizer also registers the Inductor passes that fuse its quantise/dequantise pairs.
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # The default, non-strict export makes one node of each call of a re-used ReLU share a partition, which the
        # quantizer refuses.
        exported = torch.export.export(model, (example,), strict=True).module()
        observed = prepare_pt2e(exported, quantizer)
        for batch in rebatch(calibration, len(example)):
            observed(batch)
        converted: fx.GraphModule = convert_pt2e(observed)
        return converted


PEER = Peer("pt2e", "torchao PT2E int8 + Inductor", _prepare, needs=("torchao",))
