"""Fine-tuning sparse weights without losing a zero."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxq.errors import InputError


class KeptZeros:
    """What :func:`keep_zeros` returns: :meth:`remove` ends it; leaving it as a context does the same."""

    def __init__(self, guards: Iterable[tuple[nn.Module, _Guard]]) -> None:
        self._guards = [(module, guard, guard.attach(module)) for module, guard in guards]

    @property
    def layers(self) -> int:
        """How many layers keep their zeros."""
        return len(self._guards)

    def apply(self) -> None:
        """Set the zeros now; a forward pass and ``state_dict`` do so by themselves."""
        for module, guard, _ in self._guards:
            guard.apply(module)

    def remove(self) -> None:
        """Set the zeros once more, and let the module be as it was: no hooks, plain weights."""
        self.apply()
        for _, guard, handles in self._guards:
            guard.detach()
            for handle in handles:
                handle.remove()
        self._guards = []

    def __enter__(self) -> KeptZeros:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def keep_zeros(module: nn.Module) -> KeptZeros:
    """Keep the weights of ``module`` that are zero now at zero, while it trains.

    The gradient of such a weight is zero, and what an optimiser makes of it all the same (momentum from before, noise)
    is undone before the next forward pass and before ``state_dict``. The module keeps its classes, parameters and
    ``state_dict`` keys, so that optimisers made before and after work alike. A ``deepcopy`` keeps its zeros too, on its
    own, and so does a pickled module; ``keep_zeros(copy)`` takes over there, and gives what ends it.

    Call ``remove()`` on the result before compiling: fxq leaves layers with hooks as they are.

        student = fxq.passes.Sparsify(0.9)(graph).graph_module
        with fxq.compression.keep_zeros(student):
            train(student)

    Args:
        module: every ``weight`` of two or more dimensions in it that holds a zero is kept so; embeddings, whose zero
            rows are padding, are not.

    Raises:
        InputError: no weight holds a zero.
    """
    found = []
    for layer in module.modules():
        weight = layer._parameters.get("weight")
        if weight is None or weight.dim() < 2 or isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            continue
        zero = weight.detach() == 0
        if bool(zero.any()):
            found.append((layer, _Guard(zero)))
    if not found:
        raise InputError("no weight of the module holds a zero", where=type(module).__name__,
                         fix="make it sparse first: fxq.passes.Sparsify")  # fmt: skip
    return KeptZeros(found)


class _Guard:
    """Holds where the weight of one layer is zero; the hooks of a copied layer get a copy of it."""

    def __init__(self, zero: Tensor) -> None:
        self._zero = zero
        self._parameter: weakref.ref[Tensor] | None = None  # the one whose gradient is masked
        self._gradient_hook: Any = None

    def attach(self, module: nn.Module) -> list[Any]:
        """Add the hooks to ``module``, in the place of those that it has, and return their handles."""
        for hooks in (module._forward_pre_hooks, module._state_dict_pre_hooks):
            for key, hook in list(hooks.items()):
                guard = getattr(hook, "__self__", None)
                if isinstance(guard, _Guard):
                    guard.detach()
                    del hooks[key]
        return [
            module.register_forward_pre_hook(self._before_forward),
            module.register_state_dict_pre_hook(self.apply),  # type: ignore[no-untyped-call]
        ]

    def detach(self) -> None:
        """Let gradients be."""
        if self._gradient_hook is not None:
            self._gradient_hook.remove()
        self._parameter = self._gradient_hook = None

    def apply(self, module: nn.Module, *_: object) -> None:
        """Set the zeros in the weight of ``module``."""
        weight = module._parameters["weight"]
        assert weight is not None
        self._zero = self._zero.to(weight.device)
        # .data: autograd may hold the weight for a backward pass, where these values are the same
        weight.data.masked_fill_(self._zero, 0.0)

    def _before_forward(self, module: nn.Module, _: object) -> None:
        self.apply(module)
        self._mask_gradient(module)

    def _mask_gradient(self, module: nn.Module) -> None:
        """Mask the gradient of the layer's present parameter: a copied layer has another one, without hooks."""
        weight = module._parameters["weight"]
        assert weight is not None
        if not weight.requires_grad or (self._parameter is not None and self._parameter() is weight):
            return
        self.detach()
        self._parameter = weakref.ref(weight)
        mask = partial(torch.masked_fill, mask=self._zero, value=0.0)
        self._gradient_hook = weight.register_hook(mask)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {"_zero": self._zero, "_parameter": None, "_gradient_hook": None}
