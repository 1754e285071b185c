"""ONNX Runtime: the exported network in float32, and quantised statically (QDQ, u8 activations, s8 weights)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import Peer, Prepared, folder_bytes, rebatch, scratch_folder

_INPUT = "input"


def _prepare(model: nn.Module, example: Tensor, calibration: Sequence[Tensor], *, int8: bool) -> Prepared:
    with scratch_folder() as folder:
        path = export(model, example, folder)
        if int8:
            path = quantise(path, rebatch(calibration, len(example)))
        return Prepared(session(path), folder_bytes(folder, stem=path.stem))


def export(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """Write ``model`` as ONNX into ``folder``, for batches of ``example``'s shape."""
    path = folder / "float.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (example,), path, input_names=[_INPUT], output_names=["output"], dynamo=True, verbose=False
        )
    return path


def quantise(path: Path, batches: Sequence[Tensor], method: str = "MinMax") -> Path:
    """Write the int8 form of the network at ``path`` beside it.

    Args:
        method: of calibration: "MinMax", "Entropy", "Percentile" or "Distribution".
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {_INPUT: batch.numpy()}

    prepared, quantised = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    quant_pre_process(path, prepared)
    quantize_static(
        prepared,
        quantised,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not _has_vnni(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )
    return quantised


def _has_vnni() -> bool:
    """Without VNNI, u8 times s8 saturates in 16 bits and ONNX Runtime's guide asks for 7-bit weights."""
    return bool(torch.cpu._is_vnni_supported())


def session(path: Path) -> Any:
    """Return a function that runs the network at ``path``, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Its threads must not spin on after a run: the next one belongs to another peer.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    running = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(x: Tensor) -> Tensor:
        return torch.from_numpy(running.run(None, {_INPUT: x.numpy()})[0])

    return call


_NEEDS = ("onnx", "onnxruntime", "onnxscript")
F32 = Peer("ort", "ONNX Runtime f32", functools.partial(_prepare, int8=False), needs=_NEEDS)
INT8 = Peer("ort-int8", "ONNX Runtime int8 (QDQ)", functools.partial(_prepare, int8=True), needs=_NEEDS)
