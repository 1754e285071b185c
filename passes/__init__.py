"""The passes, one a file; imported as fxq.passes."""

if __name__ != "fxq.passes":
    raise ImportError("import this package as fxq.passes, not as passes")

from fxq.manager import Numerics as Numerics
from fxq.manager import Pass as Pass
from fxq.manager import PassContext as PassContext
from fxq.manager import PassResult as PassResult
from fxq.manager import RulePass as RulePass
from fxq.passes.calibrate import Calibrate as Calibrate
from fxq.passes.canonicalise import Canonicalise as Canonicalise
from fxq.passes.convert_fake_quant import ConvertFakeQuant as ConvertFakeQuant
from fxq.passes.convert_qdq import ConvertQDQ as ConvertQDQ
from fxq.passes.correct_bias import CorrectBias as CorrectBias
from fxq.passes.correct_bias_accurately import CorrectBiasAccurately as CorrectBiasAccurately
from fxq.passes.decompose_attention import DecomposeAttention as DecomposeAttention
from fxq.passes.decompose_windows import DecomposeWindows as DecomposeWindows
from fxq.passes.eliminate import Eliminate as Eliminate
from fxq.passes.equalise_layers import EqualiseLayers as EqualiseLayers
from fxq.passes.factorise import Factorise as Factorise
from fxq.passes.fold_batch_norm import FoldBatchNorm as FoldBatchNorm
from fxq.passes.fold_batch_norm_behind import FoldBatchNormBehind as FoldBatchNormBehind
from fxq.passes.fold_constants import FoldConstants as FoldConstants
from fxq.passes.fold_scale import FoldScale as FoldScale
from fxq.passes.form_segments import FormSegments as FormSegments
from fxq.passes.functionalise import Functionalise as Functionalise
from fxq.passes.fuse_activation import FuseActivation as FuseActivation
from fxq.passes.fuse_residual import FuseResidual as FuseResidual
from fxq.passes.inline_numbers import InlineNumbers as InlineNumbers
from fxq.passes.insert_fake_quantisers import InsertFakeQuantisers as InsertFakeQuantisers
from fxq.passes.insert_observers import InsertObservers as InsertObservers
from fxq.passes.lower_half import LowerHalf as LowerHalf
from fxq.passes.lower_int8 import LowerInt8 as LowerInt8
from fxq.passes.prune import Prune as Prune
from fxq.passes.prune_channels import PruneChannels as PruneChannels
from fxq.passes.quantise_dynamically import QuantiseDynamically as QuantiseDynamically
from fxq.passes.quantise_weights import QuantiseWeights as QuantiseWeights
from fxq.passes.recalibrate import Recalibrate as Recalibrate
from fxq.passes.recognise_activations import RecogniseActivations as RecogniseActivations
from fxq.passes.recognise_attention import RecogniseAttention as RecogniseAttention
from fxq.passes.recognise_linear import RecogniseLinear as RecogniseLinear
from fxq.passes.recognise_rms_norm import RecogniseRMSNorm as RecogniseRMSNorm
from fxq.passes.reestimate_batch_norm import ReestimateBatchNorm as ReestimateBatchNorm
from fxq.passes.round_adaptively import RoundAdaptively as RoundAdaptively
from fxq.passes.separate_convolutions import SeparateConvolutions as SeparateConvolutions
from fxq.passes.settle_ranks import SettleRanks as SettleRanks
from fxq.passes.share_weights import ShareWeights as ShareWeights
from fxq.passes.smooth_quant import SmoothQuant as SmoothQuant
from fxq.passes.sparsify import Sparsify as Sparsify
from fxq.passes.split_inputs import SplitInputs as SplitInputs
from fxq.passes.split_projections import SplitProjections as SplitProjections
