"""Recipes: what to quantise, and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from torch import fx

from fxq.errors import InputError, nearest
from fxq.quant.options import Options
from fxq.quant.overrides import Choices, Override
from fxq.quant.presets import PRESETS


@dataclass(frozen=True)
class Recipe:
    """How a model is quantised.

    Functions that take a recipe take the name of a preset as well: ``"int8_fast"`` (whole ranges, biases corrected for
    errors of weights alone: the least time to compile), ``"int8"`` (these defaults), ``"int8_accurate"`` (ranges evened
    out between layers, the network's input at half the step, products of squeeze-and-excitation and of attention in
    float), ``"int8_rounded"`` (the same, with weights rounded for the outputs of their layers: the most exact, and the
    longest to compile).

    When ``"mixed"`` is worth it: where int8 loses too much in what lies between the layers (squeeze-and-excitation,
    gates, products, averages), and there is no engine. Measured on two cores with AVX512-BF16, without AMX, on
    PyTorch's operators: EfficientNet-B0 gains 1.7 dB over int8 and takes as long at batch 1, 1.2 times as long at 16
    (with float32 between the layers, 1.15 to 1.25 times as long as with bf16). ViT-B/16, whose int8 has float between
    its layers anyway, gains nothing: 66 and 65 ms; bf16 takes 113 ms and has 16 dB more. The engine runs int8 in a
    quarter to three quarters of int8's time there, so try ``"int8"`` and ``"int8_accurate"`` first.

    Attributes:
        name: ``"float"`` (canonicalise, fold and fuse only), ``"int8"`` (static int8), ``"dynamic"`` (linear and
            recurrent layers with int8 weights, activations quantised at run time), ``"weight8"`` or ``"weight4"``
            (linear layers with int8 or int4 weights, activations in float), ``"bf16"`` or ``"fp16"`` (large products in
            half precision, float32 where it must stay), ``"mixed"`` (convolutions and linear layers in static int8, and
            what lies between them in bf16 where that is safe), ``"auto"`` (dynamic int8 where that makes most of the
            model faster, else float).
        activation: how the range of an activation is found: ``"minmax"``, ``"moving_average"`` (of each batch's range),
            or from a histogram: ``"percentile"``, ``"mse"`` (least squared error), ``"entropy"`` (TensorRT's), or
            ``"auto"``, the one with the least expected error for each tensor.
        weight: the granularity of weight scales: ``"per_channel"`` (of the output) or ``"per_tensor"``.
        weight_range: how much of a weight's range its codes span: ``"minmax"`` (all) or ``"mse"`` (least error).
        momentum: weight of a new batch in the moving average, in (0, 1].
        percentile: for ``"percentile"``: per cent of the values that lie within the range, in (0, 100].
        overrides: other options for some layers, see :class:`fxq.Override`; a later one wins. Recipes that do not
            quantise activations statically know ``quantise=False`` alone, and ``"float"`` none.
        corrections: what mends the errors of rounding, by name, in any order. For biases and weights one of these:
            ``"bias"`` (each layer's mean error, from those of its weights), ``"bias_accurate"`` (the default: mean and
            slope, layer by layer, on quantised inputs), ``"adaround"`` (weights rounded for the output of their layer,
            and biases corrected); a later one in this list takes the place of those before it, and fewer than 16
            samples make of ``"bias_accurate"`` ``"bias"``. ``"equalise"``
            (cross-layer equalisation: ranges of channels move between layers with ReLU between them) and ``"smooth"``
            (SmoothQuant: they move from layer norms into linear layers) come before calibration and keep the float
            function; so does ``"split_inputs"``, behind it (a layer that reads the network's input reads two copies,
            half a step apart). ``"batch_norm"`` comes last: batch norms that no layer took in get statistics of the
            quantised values.
        reduce_range: whether int8 weights have 7 bits, codes in [-63, 63]: True, False, or None, which means only for a
            CPU and a target whose instructions saturate 8-bit products; the report says so.
        gates_in_float: whether squeeze-and-excitation reads what it scales in float, for the mean and for the product:
            more accurate, and slower. The layers between them are int8.
        attention_in_float: whether attention's two products stay in float where int8 layers give its queries, keys and
            values: True, False, or None, which means only for a target without a kernel for them (``"onednn"``). On the
            engine they take half of the time in int8 (u8 queries, keys and values, exponentials of 16 bits). ViT-B/16
            and BERT with random weights lose nothing that can be measured; trained networks may lose some tenths of a
            decibel.

    Raises:
        InputError: an option is unknown (the nearest names are suggested), or a number is out of range.
    """

    name: str = "int8"
    activation: str = "mse"
    weight: str = "per_channel"
    weight_range: str = "minmax"
    momentum: float = 0.1
    percentile: float = 99.99
    overrides: tuple[Override, ...] = ()
    corrections: tuple[str, ...] = ("bias_accurate",)
    reduce_range: bool | None = None
    gates_in_float: bool = False
    attention_in_float: bool | None = None

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise InputError(f"unknown recipe {self.name!r}", fix=nearest(str(self.name), _NAMES))
        object.__setattr__(self, "overrides", tuple(self.overrides))
        for override in self.overrides:
            if not isinstance(override, Override):
                raise InputError(f"an override is a {type(override).__name__}", fix="give fxq.Override(where, ...)")
            self._check_use(override)
        object.__setattr__(self, "corrections", _checked_corrections(self.corrections))
        for name in ("reduce_range", "gates_in_float", "attention_in_float"):
            known = (True, False) if name == "gates_in_float" else (True, False, None)
            if not any(getattr(self, name) is value for value in known):
                raise InputError(f"{name} is {getattr(self, name)!r}", fix=f"give {', '.join(map(str, known))}")
        assert self.options is not None  # checks the options

    def _check_use(self, override: Override) -> None:
        """Raise InputError for an override that says what this recipe does not look at."""
        if self.name == "float":
            raise InputError(f"the recipe 'float' has an override for `{override.name}`", why="it quantises nothing",
                             fix="leave the override out")  # fmt: skip
        if self.quantises or self.name == "auto" or not override.options:
            return
        raise InputError(f"the override for `{override.name}` sets {', '.join(override.options)}",
                         why=f"the recipe {self.name!r} has no such option for a layer",
                         fix="give quantise=False alone, which leaves the layers in float")  # fmt: skip

    @property
    def quantises(self) -> bool:
        """Whether the recipe quantises activations, and so needs calibration data."""
        return self.name in ("int8", "mixed")

    @property
    def quantises_attention(self) -> bool:
        """Whether attention computes in int8 where it can."""
        return self.name == "int8" and not self.attention_in_float

    @property
    def weight_bits(self) -> int | None:
        """How many bits the weights have where only they are quantised; None where activations are, or nothing is."""
        return {"weight8": 8, "weight4": 4}.get(self.name)

    @property
    def options(self) -> Options:
        """The options of every layer that no override picks."""
        return Options(self.activation, self.weight, self.weight_range, self.momentum, self.percentile,
                       bool(self.reduce_range))  # fmt: skip

    def choices(self, gm: fx.GraphModule) -> Choices:
        """Return the options of each node of ``gm``."""
        return Choices(gm, self.options, self.overrides)


_NAMES = ("float", "int8", "dynamic", "weight8", "weight4", "bf16", "fp16", "mixed", "auto")

CORRECTIONS: Final = ("bias", "bias_accurate", "adaround", "equalise", "smooth", "split_inputs", "batch_norm")


def _checked_corrections(given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InputError(f"corrections is {given!r}", fix="give a tuple of names, such as ('bias',)")
    names = tuple(given)
    for name in names:
        if name not in CORRECTIONS:
            raise InputError(f"unknown correction {name!r}", fix=nearest(str(name), CORRECTIONS))
    return tuple(dict.fromkeys(names))


def resolve_recipe(recipe: str | Recipe, calibrated: bool) -> Recipe:
    """Return the recipe that a name stands for, or a preset's; ``"auto"`` is int8 where there is calibration data.

    Raises:
        InputError: the name is unknown; the nearest names are suggested.
    """
    if isinstance(recipe, Recipe):
        return replace(recipe, name="int8") if recipe.name == "auto" and calibrated else recipe
    if recipe == "auto" and calibrated:
        return Recipe("int8")
    if recipe in PRESETS:
        return Recipe("int8", **PRESETS[recipe])
    if recipe not in _NAMES:
        raise InputError(f"unknown recipe {recipe!r}", fix=nearest(str(recipe), {*_NAMES, *PRESETS}))
    return Recipe(recipe)
