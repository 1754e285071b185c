"""Exchange observers for fake quantisers, and layers for layers that train with their weights fake-quantised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxq.errors import CalibrationError, InputError, nearest
from fxq.ir.identify import OpCall
from fxq.ir.provenance import node_info
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn.fake_quantisers import FakeQuantise, LearnedFakeQuantise
from fxq.nn.trainable import TrainableLayer, TrainableNorm
from fxq.nn.weight_fake_quantisers import LearnedWeightFakeQuantise, WeightFakeQuantise
from fxq.passes.attention.int8 import round_attentions
from fxq.passes.layers.queries import epilogue_of
from fxq.passes.observed.layers import is_observed
from fxq.quant.observers import Observer
from fxq.quant.options import Options
from fxq.quant.recipe import Recipe
from fxq.targets.suitability import is_weighted

#: How scales of activations and weights come about: from what is observed, or by training.
SCALES: Final = ("observed", "learned")
_FOLD: Final = "fold_batch_norm"


@dataclass(frozen=True)
class InsertFakeQuantisers(Pass):
    """Prepare an observed graph for training.

    Before: ``%x_observer = MinMaxObserver[observers.x](%x)``, ``%conv = FusedConv2d[conv](%x_observer)``, where a batch
    norm was folded into the weights. After: ``%x_observer = FakeQuantise[observers.x](%x)``, ``%conv =
    TrainableLayer[conv](%x_observer)``, which has the parameters that the layer and its batch norm had before, and
    trains them.

    A range that the observers have seen is where the fake quantisers start. Values that shared an observer share a
    fake quantiser; it is told which of them it sees: ``FakeQuantise[observers.x](%y, 1)``. Layers that int8 will not
    compute get no quantiser; batch norms that stand alone become ones that can be frozen, and attention that int8 will
    compute rounds its exponentials.

    Args:
        recipe: as :class:`fxq.passes.InsertObservers` was given it.
        scales: ``"observed"`` (straight-through estimator) or ``"learned"`` (LSQ).
        originals: layers and batch norms as they were before folding, by the ids of the nodes that called them.
    """

    name: ClassVar[str] = "insert_fake_quantisers"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    recipe: Recipe = field(default_factory=Recipe)
    scales: str = "observed"
    originals: Mapping[int, nn.Module] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.scales not in SCALES:
            raise InputError(f"unknown scales {self.scales!r}", fix=nearest(str(self.scales), SCALES))

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        round_attentions(rw, self.recipe)
        made: dict[nn.Module, nn.Module] = {}  # a layer that is called twice trains its weights once
        choices = self.recipe.choices(rw.gm)
        for call in rw.calls():
            if call.module is None or isinstance(call.module, Observer):
                continue
            if call.module not in made:
                made[call.module] = self._trainable(call, choices.options(call.node), rw)
            if made[call.module] is not call.module:
                with rw.rule("layer", call.node):
                    rw.exchange_module(str(call.node.target), made[call.module])
                    rw.update(call.node)
        quantisers = 0
        for path, sites in _sites(rw).items():
            quantisers += 1
            options = choices.options(rw.identify(sites[0]).nodes[0])
            self._exchange_observer(path, sites, options.momentum, rw)
        layers = [m for m in made.values() if isinstance(m, TrainableLayer)]
        folded = sum(m.norm is not None for m in layers)
        context.note(
            f"{quantisers} fake quantisers of activations, {sum(m.quantiser is not None for m in layers)} of weights; "
            f"{folded} batch norms train folded"
        )

    def _trainable(self, call: OpCall, options: Options, rw: Rewriter) -> nn.Module:
        """Return the module that trains in the place of that of ``call``; the same where it trains as it is."""
        module = call.module
        assert module is not None
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            return TrainableNorm(module)
        if not is_weighted(call):
            return module
        layer, norm = self._parts(call)
        quantised = all(is_observed(rw.identify(n), rw) for n in rw.callers(module))
        if not quantised and norm is None:
            return module
        trainable = TrainableLayer(layer, norm, None, epilogue_of(module))
        if quantised:
            trainable.quantiser = self._weight_quantiser(trainable, options, f"`{call.node.target}`")
        return trainable

    def _parts(self, call: OpCall) -> tuple[nn.Module, nn.Module | None]:
        """The layer with its own parameters, and the batch norm that was folded into it."""
        info = node_info(call.node)
        folded = [o for o in info.origins if o.pass_name == _FOLD]
        assert call.module is not None
        if not folded:
            return call.module, None
        found = [m for s in folded[0].sources if (m := self.originals.get(s)) is not None]
        norm = next((m for m in found if isinstance(m, _BatchNorm)), None)
        return self.originals[info.id], norm

    def _weight_quantiser(self, layer: TrainableLayer, options: Options, label: str) -> WeightFakeQuantise:
        if self.scales == "observed":
            return WeightFakeQuantise(options, label)
        return LearnedWeightFakeQuantise(options, layer.rows(), layer.gain_size(), label)

    def _exchange_observer(self, path: str, sites: list[fx.Node], momentum: float, rw: Rewriter) -> None:
        observer = rw.module_of(sites[0])
        assert isinstance(observer, Observer)
        cls = FakeQuantise if self.scales == "observed" else LearnedFakeQuantise
        quantiser = cls(observer.label, momentum, len(sites))
        if observer.seen:
            quantiser.set_range(*_range(observer))
        with rw.rule("fake_quantise", *sites):
            rw.exchange_module(path, quantiser.train(rw.gm.training))
            for i, node in enumerate(sites):
                rw.update(node, args=(node.args[0], i) if i else (node.args[0],), kwargs={})


def _sites(rw: Rewriter) -> dict[str, list[fx.Node]]:
    """The calls of each observer, by path, in the order of execution."""
    found: dict[str, list[fx.Node]] = {}
    for call in _observers(rw):
        found.setdefault(str(call.node.target), []).append(call.node)
    return found


def _observers(rw: Rewriter) -> Iterator[OpCall]:
    return (call for call in rw.calls() if isinstance(call.module, Observer))


def _range(observer: Observer) -> tuple[float, float]:
    """The range that the observer's calibrator chooses."""
    try:
        return observer.qparams().range
    except CalibrationError:
        raise
    except InputError as error:
        raise CalibrationError("a range is not usable", where=observer.label, why=error.what) from error
