"""The functions, methods and attributes that a graph in a file may name. What is not in these lists is neither written
nor read: a name from a file is looked up here, never imported.

Everything here computes values from values. Nothing reads or writes files, resizes or re-points memory, changes
settings of torch, or calls back.
"""

from __future__ import annotations

import builtins
import collections
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.nn.utils import rnn

from fxq import nn as fnn
from fxq.ir.ops import METHODS as TABLE_METHODS
from fxq.nn import windows
from fxq.storage.checks import refuse, short

Function = Callable[..., Any]

_TORCH: Final = """
_assert abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr adjoint all allclose amax amin aminmax angle
any arange arccos arcsin arctan argmax argmin argsort as_tensor asin asinh atan atan2 atanh atleast_1d atleast_2d
atleast_3d avg_pool1d baddbmm bernoulli bilinear bincount bitwise_and bitwise_left_shift bitwise_not bitwise_or
bitwise_right_shift bitwise_xor block_diag bmm broadcast_shapes broadcast_tensors broadcast_to bucketize cat cdist ceil
celu chain_matmul channel_shuffle cholesky chunk clamp clamp_max clamp_min clip clone column_stack complex concat
concatenate conj conj_physical constant_pad_nd copysign corrcoef cos cosh cosine_similarity count_nonzero cov cross
cummax cummin cumprod cumsum cumulative_trapezoid deg2rad det detach diag diag_embed diagflat diagonal diff dist div
divide dot dropout dsplit dstack einsum empty empty_like eq equal erf erfc erfinv exp exp2 expm1 eye fill
finfo fix flatten flip fliplr flipud float_power floor floor_divide fmax fmin fmod frac frexp full full_like gather gcd
ge greater greater_equal gt hamming_window hann_window heaviside histc hsplit hstack hypot iinfo imag index_add
index_copy index_fill index_select inner instance_norm is_complex is_floating_point is_nonzero is_tensor isclose
isfinite isin isinf isnan isneginf isposinf isreal kron kthvalue layer_norm lcm ldexp le lerp less less_equal lgamma
linspace log log10 log1p log2 log_softmax logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or
logical_xor logit logspace logsumexp lt masked_fill masked_scatter masked_select matmul matrix_exp matrix_power max
max_pool1d max_pool2d max_pool3d maximum mean median meshgrid min minimum mm mode moveaxis movedim mul multinomial
multiply mv mvlgamma nan_to_num nanmean nanmedian nanquantile nansum narrow ne neg negative nextafter nonzero norm
normal not_equal numel ones ones_like outer permute pinverse pixel_shuffle pixel_unshuffle poisson polar polygamma
positive pow prelu prod promote_types quantile rad2deg rand rand_like randint randint_like randn randn_like randperm
range ravel real reciprocal relu relu_ remainder renorm repeat_interleave reshape rms_norm roll rot90 round rrelu rsqrt
rsub scalar_tensor scatter scatter_add scatter_reduce searchsorted select select_scatter selu sgn sigmoid sigmoid_ sign
signbit sin sinc sinh slice_scatter softmax sort split sqrt square squeeze stack std std_mean sub subtract sum swapaxes
swapdims t take take_along_dim tan tanh tanh_ tensor tensor_split tensordot threshold tile topk trace transpose
trapezoid tril tril_indices triu triu_indices true_divide trunc unbind unflatten unique unique_consecutive unravel_index
unsqueeze vander var var_mean vdot view_as_complex view_as_real view_copy vsplit vstack where xlogy zeros zeros_like
alpha_dropout feature_alpha_dropout group_norm batch_norm embedding conv1d conv2d conv3d conv_transpose1d
conv_transpose2d conv_transpose3d adaptive_avg_pool1d adaptive_max_pool1d empty_strided
"""

_FUNCTIONAL: Final = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu celu_ channel_shuffle conv1d conv2d
conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dropout dropout1d dropout2d dropout3d elu
elu_ embedding embedding_bag feature_alpha_dropout fold gelu glu grid_sample group_norm gumbel_softmax hardshrink
hardsigmoid hardswish hardtanh hardtanh_ instance_norm interpolate layer_norm leaky_relu leaky_relu_ linear
local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d max_pool1d max_pool2d max_pool3d max_unpool1d
max_unpool2d max_unpool3d mish normalize one_hot pad pairwise_distance pixel_shuffle pixel_unshuffle prelu relu relu6
relu_ rms_norm rrelu rrelu_ scaled_dot_product_attention selu selu_ sigmoid silu softmax softmin softplus softshrink
softsign tanh tanhshrink threshold threshold_ unfold upsample upsample_bilinear upsample_nearest
multi_head_attention_forward max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
"""

_OPERATOR: Final = """
abs add and_ eq floordiv ge getitem gt iadd iand ifloordiv imatmul imod imul invert ior ipow isub itruediv ixor
le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift setitem sub truediv truth xor is_ is_not contains
"""

_MATH: Final = "ceil cos exp fabs floor gcd isfinite isinf isnan log log10 log2 pow prod sin sqrt tanh trunc"
_BUILTINS: Final = "abs bool float getattr int len max min round slice sum tuple list"
_SPECIAL: Final = "erf erfinv exp2 expit expm1 gammaln log1p logit logsumexp round sinc softmax log_softmax"
_WINDOWS: Final = "pad_to_multiple window_partition window_reverse window_bias relative_position_bias"
_SEQUENCES: Final = """
pack_padded_sequence pad_packed_sequence pack_sequence unpack_sequence pad_sequence unpad_sequence PackedSequence
"""
_LINALG: Final = "cross det inv matmul matrix_norm multi_dot norm solve vector_norm vecdot"

#: Read by ``getattr(value, name)``: facts of a tensor, of a dtype (``finfo``), parts of a named result and of a packed
#: sequence.
_ATTRIBUTES: Final = """
shape dtype device ndim T mT H mH real imag is_cuda is_sparse is_quantized layout requires_grad itemsize nbytes
values indices min max eps tiny smallest_normal resolution bits data batch_sizes sorted_indices unsorted_indices
"""
ATTRIBUTES: Final = frozenset(_ATTRIBUTES.split())

#: Beside those of the table of operations.
_METHODS: Final = """
__getitem__ __setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__
__ixor__ abs_ absolute acos add_ addbmm addcdiv addcdiv_ addcmul addcmul_ addmm addmm_ all allclose amax amin aminmax
any argmax argmin argsort asin atan atan2 baddbmm bernoulli bfloat16 bitwise_and bitwise_not bitwise_or bitwise_xor
bmm bool broadcast_to byte ceil ceil_ clamp_max clamp_max_ clamp_min clamp_min_ clone conj copy_ copysign cos cosh
count_nonzero cpu cross cummax cummin cumprod cumsum det detach diag diag_embed diagonal diff dim div_ divide dot
double element_size eq eq_ erf erfinv exp2 expand expand_as expm1 fill_ fill_diagonal_ flip fliplr flipud float
float_power floor floor_ floor_divide floor_divide_ fmax fmin fmod frac gather ge gt half hardshrink hypot index_add
index_add_ index_copy index_copy_ index_fill index_fill_ index_put index_put_ index_select int is_complex
is_contiguous is_floating_point isclose isfinite isinf isnan item keys items kthvalue le lerp lerp_ lgamma log log10
log1p log2 log_ logcumsumexp logical_and logical_not logical_or logical_xor logit logsumexp long lt masked_fill
masked_fill_ masked_scatter masked_scatter_ masked_select max maximum median min minimum mm mode moveaxis movedim
msort mul_ multinomial multiply mv nan_to_num nan_to_num_ nansum narrow ndimension ne neg_ nelement new_empty new_full
new_ones new_tensor new_zeros nonzero norm numel outer pow pow_ prelu prod quantile ravel reciprocal reciprocal_
remainder renorm repeat repeat_interleave reshape_as roll rot90 round round_ rsqrt rsqrt_ scatter scatter_ scatter_add
scatter_add_ scatter_reduce scatter_reduce_ select sgn short sigmoid_ sign signbit sin sinh size softmax sort sqrt_
square square_ squeeze_ std stride sub_ subtract sum sum_to_size swapaxes t take take_along_dim tan tanh_ tensor_split
tile to topk trace transpose_ tril tril_ triu triu_ true_divide trunc type_as unfold unique unsqueeze_ values var
view_as where xlogy zero_
"""

METHODS: Final = frozenset(_METHODS.split()) | frozenset(TABLE_METHODS)

#: (prefix of the name, where to look, names): the first that has a function names it.
_SOURCES: Final[tuple[tuple[str, Any, str], ...]] = (
    ("torch", torch, _TORCH),
    ("torch.nn.functional", F, _FUNCTIONAL),
    ("operator", operator, _OPERATOR),
    ("math", math, _MATH),
    ("builtins", builtins, _BUILTINS),
    ("torch.special", torch.special, _SPECIAL),
    ("torch.linalg", torch.linalg, _LINALG),
    ("torch.nn.utils.rnn", rnn, _SEQUENCES),
    ("torch.Tensor", torch.Tensor, "contiguous"),
    ("collections", collections, "OrderedDict"),
    ("fxq.nn", fnn, "quantize dequantize named_result"),
    ("fxq.nn.windows", windows, _WINDOWS),
)


@functools.cache
def functions() -> dict[str, Function]:
    """Return every function that a graph may call, by name."""
    return {f"{prefix}.{name}": getattr(source, name) for prefix, source, names in _SOURCES for name in names.split()}


@functools.cache
def _names() -> dict[Function, str]:
    found: dict[Function, str] = {}
    for name, function in functions().items():
        found.setdefault(function, name)
    return found


def function_name(function: Any) -> str | None:
    """Return the name of ``function``, or None where no file may call it."""
    try:
        return _names().get(function)
    except TypeError:  # a callable that cannot be hashed
        return None


def function_named(name: Any, where: str) -> Function:
    """Return the function of this name.

    Raises:
        StorageError: it is not in the list.
    """
    found = functions().get(name) if isinstance(name, str) else None
    if found is None:
        refuse(f"the graph calls {short(name)}, which is not in the list of functions that fxq runs", where)
    return found
