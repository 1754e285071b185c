"""Torch-Pruning (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023), as its README calls it."""

from __future__ import annotations

import importlib

from torch import Tensor, nn

from benchmarks.pruning_peers.peer import Peer


def classifiers(model: nn.Module) -> list[nn.Module]:
    """Return the last layer with weights: what gives the outputs, which Torch-Pruning must be told to leave alone.

    It is the last convolution or linear layer in the order of definition, and those as wide as it, as a second head.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d | nn.Linear)]
    classes = layers[-1].weight.shape[0]
    return [layer for layer in layers if layer.weight.shape[0] == classes]


def _prune(model: nn.Module, example: Tensor, ratio: float) -> nn.Module:
    tp = importlib.import_module("torch_pruning")
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=classifiers(model),
    )
    pruner.step()
    return model


PEER = Peer(
    "torch-pruning",
    "Torch-Pruning",
    _prune,
    "BasePruner(model, example, importance=GroupMagnitudeImportance(), pruning_ratio=RATIO, "
    "ignored_layers=[the classifier]).step(), all else by default",
    needs=("torch_pruning",),
)
