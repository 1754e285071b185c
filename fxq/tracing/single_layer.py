"""A model that is one layer of torch.nn, as a model that calls this layer."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fxq.tracing.leaves import decide_leaf

#: Layers whose ``forward`` either cannot be traced, or falls apart into calls that no pass takes for a layer.
_KEPT_WHOLE = (
    nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer,
    nn.TransformerDecoder, nn.TransformerDecoderLayer, nn.Transformer,
)  # fmt: skip


def calling_layer(model: nn.Module) -> nn.Module:
    """Return a module that calls ``model`` where this is a recurrent or attention layer of torch.nn, else ``model``.

    The layer is at the path of its class's name in small letters, ``lstm``; the signature of ``forward`` is its own.
    """
    if not isinstance(model, _KEPT_WHOLE) or not decide_leaf(model).leaf:
        return model
    return _Calling(model)


class _Calling(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        name = type(layer).__name__
        self.add_module(name.lower(), layer)
        self.training = layer.training

        signature = inspect.signature(layer.forward)

        def forward(*args: Any, **kwargs: Any) -> Any:
            result = layer(*args, **kwargs)
            if signature.bind(*args, **kwargs).arguments.get("need_weights", True):
                return result
            return result[0], None  # the attention alone is used, which can be written out

        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward
