"""Graphs run on the meta device: shapes and dtypes without values, in a fraction of the time of a large model's run."""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from fxq.ir.identify import get_module, has_hooks
from fxq.ir.names import redefined
from fxq.ir.shapes import Recorder, TensorSpec, bind_placeholders, recorded_value

_TORCH = "torch.nn.modules."
_PLAIN = {torch.float32, torch.float64}
#: What gives a floating tensor of its input's shape, and takes half a millisecond on the meta device all the same.
_UNARY_MODULES: Final = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Dropout, nn.Identity,
)  # fmt: skip
_UNARY: Final = {torch.relu, torch.sigmoid, F.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid}
#: Modes of ``interpolate`` whose shapes are those of the default, which is found a hundred times as fast.
_SMOOTH: Final = ("bilinear", "bicubic")
_BINARY: Final = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}


def on_meta(values: Any) -> Any:
    """Return ``values`` with every tensor replaced by one of its shape, strides and dtype that has no memory."""
    return tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), values)


class OnMeta(fx.Interpreter):
    """Runs a graph on meta tensors, whatever device its weights lie on; a mixin for interpreters."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a twin of the layer whose weights lie on the meta device."""
        module = self.fetch_attr(target)
        keeps = len(args) == 1 and not kwargs and _keeps_shape(module, args[0])
        return args[0] if keeps else meta_twin(module)(*args, **kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function, unless it is known to give what its first input is."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        if len(tensors) == len(args) and target in (_UNARY if len(args) == 1 else _BINARY):
            first, last = tensors[0], tensors[-1]
            if len(args) <= 2 and first.is_floating_point() and (first.shape, first.dtype) == (last.shape, last.dtype):
                return first
        if target is F.interpolate and kwargs.get("mode") in _SMOOTH and tensors[0].dim() == 4:
            kwargs = {k: v for k, v in kwargs.items() if k in ("size", "scale_factor", "recompute_scale_factor")}
        return super().call_function(target, args, kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read an attribute."""
        return on_meta(self.fetch_attr(target))


class _MetaRecorder(OnMeta, Recorder):
    """Records what it sees."""


def record_on_meta(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Record shapes and dtypes without computing anything; the inputs are left as they are.

    Returns:
        Whether it is certain that the graph runs. So all inputs, weights and values must be of one floating dtype,
        float32 or float64: integers may be indices out of range, and of mixed dtypes the meta device takes more than
        others do. Else, or where a node fails here, a run on real data has to say.
    """
    tensors = [*(v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)), *gm.parameters()]
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) != 1 or not dtypes <= _PLAIN or not runs_on_meta(gm, tensors):
        return False
    with torch.no_grad():
        try:
            _MetaRecorder(gm).run(*bind_placeholders(gm, *on_meta((args, kwargs))))
        except Exception:  # whatever it is, a run on real data shows it
            return False
    return {spec.dtype for n in gm.graph.nodes if n.op != "get_attr" for spec in _specs(recorded_value(n))} == dtypes


def runs_on_meta(gm: fx.GraphModule, tensors: list[Tensor]) -> bool:
    """Whether ``gm`` calls PyTorch's own layers alone, and ``tensors`` lie on one device.

    Any other layer might keep or print something of what it is shown.
    """
    called = {id(m): m for n in gm.graph.nodes if (m := get_module(gm, n)) is not None}.values()
    return len({t.device for t in tensors}) == 1 and all(map(_is_pytorchs, called))


def meta_twin(module: nn.Module) -> nn.Module:
    """Return a module like ``module``, which is left as it is, whose parameters and buffers lie on the meta device."""
    twin = object.__new__(type(module))  # copy.copy takes longer than most layers do on the meta device
    twin.__dict__.update(module.__dict__)
    for table in ("_parameters", "_buffers"):
        tensors = getattr(module, table).items()
        twin.__dict__[table] = {k: None if t is None else torch.empty_like(t, device="meta") for k, t in tensors}
    twin.__dict__["_modules"] = {k: None if m is None else meta_twin(m) for k, m in module._modules.items()}
    return twin


def _is_pytorchs(module: nn.Module) -> bool:
    """Whether no code but PyTorch's runs when ``module`` is called, and it keeps no statistics."""
    kind = type(module)
    base = next(c for c in kind.__mro__ if c.__module__.startswith(_TORCH))
    own = kind is base or (base is not nn.Module and not redefined(kind, base))
    return own and not module.training and not has_hooks(module) and all(map(_is_pytorchs, module.children()))


def _keeps_shape(module: nn.Module, x: Any) -> bool:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    if isinstance(module, _BatchNorm):
        module._check_input_dim(x)  # type: ignore[no-untyped-call]
        return x.shape[1] == module.num_features
    if isinstance(module, nn.LayerNorm):
        return x.shape[-len(module.normalized_shape) :] == module.normalized_shape
    return isinstance(module, _UNARY_MODULES)


def _specs(value: Any) -> list[TensorSpec]:
    if isinstance(value, tuple):
        return [spec for part in value for spec in _specs(part)]
    return [value] if isinstance(value, TensorSpec) else []
