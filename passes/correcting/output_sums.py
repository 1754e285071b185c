"""The outputs of a layer as matrix products, and their error as a function of its weights, from sampled positions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from torch import Tensor, nn

from fxq.nn import FUSED_LAYERS
from fxq.passes.correcting.side_by_side import Visit
from fxq.pruning.columns import Columns
from fxq.pruning.sampling import LayerMoments, Sampler
from fxq.quant.corrections.rounding import OutputError

#: Rows that are sampled at least, and for each column of the products.
_ROWS: Final = 4096
_ROWS_PER_COLUMN: Final = 4

_PLAIN: Final = {fused: plain for plain, fused in reversed(FUSED_LAYERS.items())}


def columns(layer: nn.Module, weight: Tensor | None = None) -> Columns:
    """Read a float layer, fused or not, as matrix products; with other values in the place of its weight's."""
    plain: Any = nn.Module.__new__(_PLAIN.get(type(layer), type(layer)))
    plain.__dict__.update({k: v for k, v in layer.__dict__.items() if k != "epilogue"})
    plain._parameters = dict(layer._parameters)
    if weight is not None:
        plain._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    return Columns(plain, "")


def output_error(visit: Visit, batches: Iterable[int], seed: int) -> OutputError:
    """The squared error of the layer's outputs, about their mean: the bias takes care of that.

    At random positions of each image the quantised run's inputs and the float run's outputs are summed up. A layer's
    positions depend on the seed and its path alone.

    Args:
        batches: the numbers of those to look at.
    """
    layer = columns(visit.original)
    moments = LayerMoments.empty(layer)
    targets, chosen = visit.targets, list(batches)
    images = sum(layer.grid(targets[i])[0] for i in chosen)
    wanted = max(_ROWS, _ROWS_PER_COLUMN * layer.width)
    sampler = Sampler(points=max(1, -(-wanted // max(images, 1))), seed=seed)
    generator = sampler.generator(str(visit.node.target))
    for i in chosen:
        count, size = layer.grid(targets[i])
        image, place = sampler.choose(count, size, generator)
        rows = layer.rows(visit.rounded[i][0], size, image, place)
        moments.add(rows, layer.results(targets[i], size, image, place))
    n = max(moments.count, 1)
    gram = moments.xx - moments.x.unsqueeze(2) * moments.x.unsqueeze(1) / n
    return OutputError(gram, moments.xy - moments.x.unsqueeze(2) * moments.y.unsqueeze(1) / n)
