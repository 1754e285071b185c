"""OpenVINO: float32, bfloat16, and int8 by NNCF's post-training quantisation, all with the latency hint."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import Peer, Prepared, folder_bytes, rebatch, scratch_folder


def _prepare(
    model: nn.Module, example: Tensor, calibration: Sequence[Tensor], *, int8: bool, precision: str | None
) -> Prepared:
    import openvino

    converted = convert(model, example)
    if int8:
        converted = quantise(converted, rebatch(calibration, len(example)))
    with scratch_folder() as folder:
        openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
        size = folder_bytes(folder, stem="model")
    return Prepared(infer(converted, precision), size)


def convert(model: nn.Module, example: Tensor) -> Any:
    """Return ``model`` as OpenVINO's, for batches of ``example``'s shape."""
    import openvino

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return openvino.convert_model(torch.export.export(model, (example,)), input=list(example.shape))


def quantise(
    converted: Any, batches: Sequence[Tensor], *, fast_bias_correction: bool = True, transformer: bool = False
) -> Any:
    """Return NNCF's int8 form of ``converted``, with affine activations where they have both signs."""
    import nncf

    dataset = nncf.Dataset(batches, lambda batch: batch.numpy())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return nncf.quantize(
            converted,
            dataset,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            fast_bias_correction=fast_bias_correction,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )


def infer(converted: Any, precision: str | None) -> Any:
    """Return a function that runs ``converted``, on as many threads as torch has.

    Args:
        precision: of what is not int8: "f32", "bf16", or None for OpenVINO's own choice.
    """
    import openvino

    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()

    def call(x: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0])

    return call


def _peer(name: str, title: str, *, int8: bool, precision: str | None, needs: tuple[str, ...]) -> Peer:
    return Peer(name, title, functools.partial(_prepare, int8=int8, precision=precision), needs=needs)


F32 = _peer("openvino", "OpenVINO f32", int8=False, precision="f32", needs=("openvino",))
BF16 = _peer("openvino-bf16", "OpenVINO bf16", int8=False, precision="bf16", needs=("openvino",))
INT8 = _peer("openvino-int8", "OpenVINO + NNCF int8", int8=True, precision=None, needs=("openvino", "nncf"))
