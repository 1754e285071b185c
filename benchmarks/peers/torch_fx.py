"""PyTorch's own FX graph-mode static quantisation (deprecated upstream, still the most used), on the oneDNN engine.

The oneDNN settings: weights per channel over all of s8, activations u8 from a histogram, and the residual additions
fused into convolutions, which only this engine can do.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import Peer, Prepared, state_dict_bytes


def _prepare(model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> Prepared:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.backend_config import get_onednn_backend_config
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    backend = get_onednn_backend_config()
    with warnings.catch_warnings(), torch.no_grad(), _onednn_engine():
        warnings.simplefilter("ignore")
        observed = prepare_fx(model, get_default_qconfig_mapping("onednn"), (example,), backend_config=backend)
        for batch in calibration:
            observed(batch)
        converted = convert_fx(observed, backend_config=backend)

    def call(x: Tensor) -> Tensor:
        with _onednn_engine():  # the fused additions ask for the engine again at run time
            y: Tensor = converted(x)
        return y

    return Prepared(call, state_dict_bytes(converted))


@contextmanager
def _onednn_engine() -> Iterator[None]:
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    try:
        yield
    finally:
        torch.backends.quantized.engine = engine


PEER = Peer("torch-fx", "torch FX int8 (oneDNN)", _prepare)
