"""The passes that each recipe runs, in order."""

from __future__ import annotations

from fxq.manager import Pass, PassManager
from fxq.nn import BACKENDS
from fxq.passes.calibrate import Calibrate
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.convert_qdq import ConvertQDQ
from fxq.passes.correct_bias import CorrectBias
from fxq.passes.correct_bias_accurately import CorrectBiasAccurately
from fxq.passes.decompose_attention import DecomposeAttention
from fxq.passes.decompose_windows import DecomposeWindows
from fxq.passes.eliminate import Eliminate
from fxq.passes.equalise_layers import EqualiseLayers
from fxq.passes.fold_batch_norm import FoldBatchNorm
from fxq.passes.fold_constants import FoldConstants
from fxq.passes.fold_scale import FoldScale
from fxq.passes.form_segments import FormSegments
from fxq.passes.functionalise import Functionalise
from fxq.passes.fuse_activation import FuseActivation
from fxq.passes.fuse_residual import FuseResidual
from fxq.passes.inline_numbers import InlineNumbers
from fxq.passes.insert_observers import InsertObservers
from fxq.passes.lower_half import LowerHalf
from fxq.passes.lower_int8 import LowerInt8
from fxq.passes.quantise_dynamically import QuantiseDynamically
from fxq.passes.quantise_weights import QuantiseWeights
from fxq.passes.recognise_activations import RecogniseActivations
from fxq.passes.recognise_attention import RecogniseAttention
from fxq.passes.recognise_linear import RecogniseLinear
from fxq.passes.recognise_rms_norm import RecogniseRMSNorm
from fxq.passes.reestimate_batch_norm import ReestimateBatchNorm
from fxq.passes.round_adaptively import RoundAdaptively
from fxq.passes.settle_ranks import SettleRanks
from fxq.passes.smooth_quant import SmoothQuant
from fxq.passes.split_inputs import SplitInputs
from fxq.passes.split_projections import SplitProjections
from fxq.quant.overrides import Override
from fxq.quant.recipe import Recipe
from fxq.targets import resolve_target
from fxq.targets.attention import with_attention
from fxq.targets.half_support import HALF_TYPES
from fxq.targets.resolve import module_backend
from fxq.targets.saturation import guarded, why_reduced


def float_pipeline(verify: bool = True) -> PassManager:
    """Canonicalise, fold and fuse: nothing loses precision."""
    return PassManager(
        [
            Functionalise(),
            DecomposeWindows(),
            FoldConstants(),
            SettleRanks(),
            Canonicalise(),
            InlineNumbers(),
            Eliminate(),
            DecomposeAttention(),
            RecogniseAttention(),
            RecogniseLinear(),
            RecogniseRMSNorm(),
            RecogniseActivations(),
            FoldBatchNorm(),
            FoldScale(),
            FuseResidual(),
            FuseActivation(),
        ],
        verify=verify,
    )


def int8_pipeline(recipe: Recipe | None = None, target: str = "auto", verify: bool = True) -> PassManager:
    """The float pipeline, then observe, calibrate, correct as the recipe says, convert and lower."""
    recipe = with_attention(guarded(recipe or Recipe("int8"), module_backend(target)), resolve_target(target))
    manager = float_pipeline(verify)
    split = [SplitProjections(recipe)] if recipe.quantises_attention else []
    observed = (*_corrections_of_ranges(recipe), InsertObservers(recipe), Calibrate())
    for p in (*split, *observed, *_corrections_of_layers(recipe), ConvertQDQ(recipe), *_lowering(recipe, target)):
        manager = manager.append(p)
    return manager


def _corrections_of_ranges(recipe: Recipe) -> tuple[Pass, ...]:
    """The corrections that keep the float function and change the ranges of activations."""
    known: dict[str, Pass] = {"equalise": EqualiseLayers(recipe), "smooth": SmoothQuant(recipe)}
    return tuple(p for name, p in known.items() if name in recipe.corrections)


def _corrections_of_layers(recipe: Recipe) -> tuple[Pass, ...]:
    """The corrections that need the ranges of activations. Those of biases and weights take each other's place."""
    known: dict[str, Pass] = {
        "adaround": RoundAdaptively(recipe),
        "bias_accurate": CorrectBiasAccurately(recipe),
        "bias": CorrectBias(recipe),
    }
    layers = [p for name, p in known.items() if name in recipe.corrections][:1]
    first = [SplitInputs(recipe)] if "split_inputs" in recipe.corrections else []
    last = [ReestimateBatchNorm(recipe)] if "batch_norm" in recipe.corrections else []
    return (*first, *layers, *last)


def _lowering(recipe: Recipe, target: str) -> tuple[Pass, ...]:
    """For the engine, modules that define the right answer, which it then takes over."""
    if resolve_target(target) == "native":
        return LowerInt8("reference", recipe), FormSegments()
    return (LowerInt8(target, recipe),)


def weight_only_pipeline(bits: int, verify: bool = True, overrides: tuple[Override, ...] = ()) -> PassManager:
    """The float pipeline with quantised weights in linear layers, which are then called by themselves."""
    return float_pipeline(verify).insert_before("fuse_residual", QuantiseWeights(bits, overrides=overrides))


def dynamic_pipeline(
    target: str = "auto", verify: bool = True, only_if_faster: bool = False, overrides: tuple[Override, ...] = ()
) -> PassManager:
    """The float pipeline with int8 linear and recurrent layers that quantise their inputs at run time."""
    backend = target if target in BACKENDS and why_reduced(target) is None else "auto"
    quantise = QuantiseDynamically(backend=backend, only_if_faster=only_if_faster, overrides=overrides)
    return float_pipeline(verify).insert_before("fuse_residual", quantise)


def half_pipeline(recipe: Recipe, verify: bool = True) -> PassManager:
    """The float pipeline with large products in half precision: ``"bf16"`` or ``"fp16"``, the recipe's name."""
    return float_pipeline(verify).insert_before("fuse_residual", LowerHalf(recipe.name, overrides=recipe.overrides))


def mixed_pipeline(recipe: Recipe | None = None, target: str = "auto", verify: bool = True) -> PassManager:
    """The int8 pipeline for layers with weights alone, then bf16 for what lies between them.

    Convolutions and linear layers, with the residual and the activation fused into them: u8 inputs, s8 weights, as in
    "int8"; their results are u8 where the next such layer reads them, also through reshapes and max pools, else bf16
    where what follows computes in bf16, else float32. Every other operation computes on real values: in bf16 between
    such layers (sums, products, activations; norms and means with float32 inside), in float32 where that is not safe
    (softmax, attention, roots, ...) or would only be converted to bf16 and back. Large products that int8 leaves are in
    bf16. See :class:`fxq.passes.LowerHalf`, and :class:`fxq.Recipe` for when it pays. The engine has no bf16: for the
    target "native" single int8 modules run, too, as parts in the engine and bf16 operations of PyTorch's by turns take
    longer (their threads wait for each other's cores). What an override leaves in float is in float32.
    """
    recipe = recipe or Recipe("mixed")
    half = LowerHalf("bf16", overrides=recipe.overrides)
    return int8_pipeline(recipe, module_backend(target), verify).append(half)


def pipeline(recipe: Recipe, target: str, verify: bool = True) -> PassManager:
    """Return the passes of ``recipe`` for ``target``."""
    if recipe.name == "mixed":
        return mixed_pipeline(recipe, target, verify)
    if recipe.quantises:
        return int8_pipeline(recipe, target, verify)
    if recipe.name in ("dynamic", "auto"):
        return dynamic_pipeline(target, verify, recipe.name == "auto", recipe.overrides)
    if recipe.name in HALF_TYPES:
        return half_pipeline(recipe, verify)
    if recipe.weight_bits is not None:
        return weight_only_pipeline(recipe.weight_bits, verify, recipe.overrides)
    return float_pipeline(verify)
