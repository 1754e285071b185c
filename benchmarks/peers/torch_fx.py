"""PyTorch's own FX graph-mode static quantisation (deprecated upstream, still the most used), on the oneDNN engine.

The oneDNN settings: weights per channel over all of s8, activations u8 from a histogram, and the residual additions
fused into convolutions, which only this engine can do.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import Peer, Prepared, state_dict_bytes


def _prepare(model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> Prepared:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.backend_config import get_onednn_backend_config
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    engine = torch.backends.quantized.engine
    backend = get_onednn_backend_config()
    try:
        torch.backends.quantized.engine = "onednn"
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            observed = prepare_fx(model, get_default_qconfig_mapping("onednn"), (example,), backend_config=backend)
            for batch in calibration:
                observed(batch)
            converted = convert_fx(observed, backend_config=backend)
            converted(example)
    finally:
        torch.backends.quantized.engine = engine
    return Prepared(converted, state_dict_bytes(converted))


PEER = Peer("torch-fx", "torch FX int8 (oneDNN)", _prepare)
