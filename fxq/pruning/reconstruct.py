"""Least-squares reconstruction: after pruning, each layer is fitted to what it gave in the original network.

He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017 (arXiv:1707.06168): the inputs X
come from the pruned network, the outputs Y from the original, so errors do not add up from layer to layer. Layers are
fitted one after the other: X is always from the network as it is by then.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from fxq.analysis.running import evaluation
from fxq.errors import InputError
from fxq.ir.ops import STATEFUL_MODULES, WEIGHTED
from fxq.ir.parameters import shared_tensors
from fxq.ir.rewriter import Rewriter
from fxq.progress import track
from fxq.pruning.columns import Columns
from fxq.pruning.least_squares import Fit, fit
from fxq.pruning.lockstep import Lockstep, gather
from fxq.pruning.reconstruction import LayerFit, Reconstruction, attach_reconstruction
from fxq.pruning.sampling import LayerMoments, Sampler
from fxq.pruning.walking import calls_of, private_copy
from fxq.structure.group import Group, Indices, Mask

#: Wider layers (in columns a part) are left out unless they are named: their x x^T alone takes gigabytes.
WIDEST = 8192


def reconstruct(
    pruned: fx.GraphModule,
    original: fx.GraphModule,
    batches: Any,
    layers: Iterable[str] | None = None,
    *,
    kept: Mapping[str, Any] | None = None,
    points: int | None = 10,
    ridge: float | None = None,
    seed: int = 0,
    memory: int = 1 << 30,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Fit the weights and biases of ``pruned``'s layers, in the order of execution, so that they give what
    ``original``'s gave on the same batches.

    No layer gets a worse squared error on the sampled outputs than it had. Layers without a bias get none. The batches
    are held in memory; of the values between layers at most ``memory`` bytes are, else a batch is run again from the
    start for every layer.

    Args:
        pruned: a graph; it stays as it is.
        original: the graph that it was pruned from, with the same module paths; it stays as it is.
        batches: a Calibration, an iterable of batches, or a callable that runs a model.
        layers: module paths of convolutions and linear layers, called once, with parameters of their own. None takes
            every layer that can be fitted; the result's table says why others were not.
        kept: for layers whose own outputs were pruned, which of the original's outputs they still have: indices or a
            mask, by module path; :func:`kept_outputs` makes it.
        points: output positions of each image for each layer; None takes all.
        ridge: the penalty on the change of the weights relative to the mean eigenvalue of X^T X. None chooses one for
            each layer on images that were not fitted on, and leaves layers as they are that no ridge improves there.
        seed: of the positions.
        memory: bytes.

    Returns:
        A new graph module; :func:`fxq.pruning.reconstruction.reconstruction_of` gives its table of errors.

    Raises:
        InputError: a named layer does not exist or cannot be fitted, or ``kept`` does not fit.
        CalibrationError: there is no batch, or one does not fit the models.
    """
    if ridge is not None and not ridge >= 0:
        raise InputError(f"ridge={ridge}", fix="give a number of at least 0, or None to choose one by data")
    chosen, left_out = _layers(pruned, original, layers, {p: _indices(k) for p, k in (kept or {}).items()})
    data = gather(batches, original)
    gm = _with_own_layers(pruned, chosen)
    running, reference = private_copy(gm), private_copy(original)
    found: dict[str, LayerFit] = {}
    with evaluation(running), evaluation(reference):
        steps = Lockstep(running, reference, data, memory)
        for path in track(list(chosen), "reconstructing", total=len(chosen), progress=progress):
            layer = Columns(gm.get_submodule(path), path)
            halves = steps.sample(layer, chosen[path], Sampler(points, seed))
            found[path] = _fit_layer(gm.get_submodule(path), layer, halves, ridge)
    found |= {path: LayerFit(path, note=reason) for path, reason in left_out.items()}
    attach_reconstruction(gm, Reconstruction(tuple(found[path] for path in _weighted(pruned) if path in found)))
    return gm


def kept_outputs(groups: Iterable[Group], masks: Mapping[str, Mask]) -> dict[str, Indices]:
    """Which outputs of each layer stay when ``masks`` are kept of the groups: what ``reconstruct`` takes as ``kept``.

    Args:
        groups: of the original.
        masks: bool of shape (size,) by the group's name; a group that is missing stays whole.
    """
    stays: dict[str, Mask] = {}
    for group in groups:
        for member in group.members:
            if group.name not in masks or member.role not in ("out", "scale") or member.kind not in WEIGHTED:
                continue
            if member.parameter == "weight":
                mask = np.append(masks[group.name], True)[member.units]  # unit -1 is of another group
                stays[member.path] = stays.get(member.path, np.ones(len(mask), dtype=np.bool_)) & mask
    return {path: np.flatnonzero(mask) for path, mask in stays.items()}


def _fit_layer(
    module: nn.Module, layer: Columns, halves: tuple[LayerMoments, LayerMoments], ridge: float | None
) -> LayerFit:
    found: Fit = fit(halves, ridge)
    if found.ridge is not None:
        any_module: Any = module
        any_module.weight.copy_(layer.weight_of(found.weights.matrix))
        if found.weights.bias is not None:
            any_module.bias.copy_(found.weights.bias.flatten())
        note = ""
    elif found.held_out is None:
        note = "as it was: nothing to mend"
    else:
        note = "as it was: no ridge lowers the error on images that were not fitted on"
    rows = sum(h.count for h in halves)
    return LayerFit(layer.path, found.before, found.after, found.held_out, found.ridge, rows, layer.width, note)


def _layers(
    pruned: fx.GraphModule, original: fx.GraphModule, layers: Iterable[str] | None, kept: Mapping[str, Indices]
) -> tuple[dict[str, Indices | None], dict[str, str]]:
    """The layers to fit in the order of execution, with the original's outputs that they have (None: all of them); and
    why others are left out."""
    named = None if layers is None else list(calls_of(pruned, dict.fromkeys(layers)))
    for path in kept:
        calls_of(pruned, [path])
    for path in named or ():
        Columns(pruned.get_submodule(path), path)
        calls_of(original, [path])
    chosen: dict[str, Indices | None] = {}
    left_out: dict[str, str] = {}
    for path in _weighted(pruned):
        if named is not None and path not in named:
            continue
        reason = _reason(pruned, original, path, kept.get(path), named is None)
        if reason and named is not None:
            raise InputError(f"`{path}` cannot be reconstructed", why=reason, fix="leave it out of layers=")
        if reason:
            left_out[path] = reason
        else:
            chosen[path] = kept.get(path)
    return chosen, left_out


def _reason(pruned: fx.GraphModule, original: fx.GraphModule, path: str, kept: Indices | None, automatic: bool) -> str:
    """Why the layer cannot be fitted; "" where it can."""
    calls = [sum(n.op == "call_module" and n.target == path for n in gm.graph.nodes) for gm in (pruned, original)]
    if calls[1] == 0 or STATEFUL_MODULES.get(type(original.get_submodule(path)), "") not in WEIGHTED:
        return "the original has no such layer"
    if calls != [1, 1]:
        return "it is called more than once"
    if shared_tensors(pruned, pruned.get_submodule(path)):
        return "it shares parameters with another layer"
    layer, source = Columns(pruned.get_submodule(path), path), Columns(original.get_submodule(path), path)
    if kept is None and layer.outputs != source.outputs:
        return f"it has {layer.outputs} of {source.outputs} outputs, and kept= does not say which"
    if kept is not None and (len(kept) != layer.outputs or kept.min() < 0 or kept.max() >= source.outputs):
        return f"it has {layer.outputs} outputs, and kept= names {len(kept)} of the original's {source.outputs}"
    if automatic and layer.width > WIDEST:
        return f"its {layer.width} columns take {layer.width**2 * 8 / 1e9:.0f} GB; name it in layers= to fit it still"
    return ""


def _weighted(gm: fx.GraphModule) -> list[str]:
    """Every convolution and linear layer that the graph calls, in the order of execution."""
    paths = dict.fromkeys(str(n.target) for n in gm.graph.nodes if n.op == "call_module")
    return [p for p in paths if STATEFUL_MODULES.get(type(gm.get_submodule(p)), "") in WEIGHTED]


def _with_own_layers(pruned: fx.GraphModule, chosen: Iterable[str]) -> fx.GraphModule:
    """A copy of ``pruned`` with copies of the chosen layers; everything else is shared."""
    rewriter = Rewriter(pruned, "reconstruct")
    for path, (node,) in calls_of(rewriter.gm, chosen).items():
        with rewriter.rule("least_squares", node):
            rewriter.set_module(node, copy.deepcopy(rewriter.gm.get_submodule(path)))
    return rewriter.finish()


def _indices(kept: Any) -> Indices:
    values = kept.cpu().numpy() if isinstance(kept, Tensor) else np.asarray(kept)
    if values.dtype == np.bool_:
        return np.flatnonzero(values)
    return values.astype(np.int64)
