"""One saved network in a process of its own: load it, run it, print what memory that took as JSON.

    python -m benchmarks.memory_worker openvino model.xml input.npy --threads 2

Nothing is imported but the runtime itself, so that its memory is not that of the benchmark.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: Loads a file; returns the network as a function of a numpy array.
Load = Callable[[str], Callable[[Any], object]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_worker")
    parser.add_argument("runtime", choices=list(RUNTIMES))
    parser.add_argument("model")
    parser.add_argument("input", help="a .npy file")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--calls", type=int, default=20)
    options = parser.parse_args(arguments)
    import numpy as np

    x = np.load(options.input)
    load = RUNTIMES[options.runtime](options.threads)
    imported = status("VmRSS")
    forget_peak()
    call = load(options.model)
    call(x)
    loading = status("VmHWM")
    forget_peak()
    for _ in range(options.calls):
        call(x)
    found = {"imported": imported, "loading": loading - imported, "running": status("VmHWM") - imported}
    print(json.dumps(found))
    return 0


def status(field: str) -> int:
    """Return a field of this process's status in bytes: VmRSS, the memory in use, or VmHWM, the most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Let VmHWM start again from the memory in use."""
    Path("/proc/self/clear_refs").write_text("5")


def _fxq(threads: int) -> Load:
    import torch

    import fxq

    torch.set_num_threads(threads)

    def load(path: str) -> Callable[[Any], object]:
        gm = fxq.load(path)

        def call(x: Any) -> object:
            with torch.inference_mode():
                return gm(torch.from_numpy(x))

        return call

    return load


def _openvino(threads: int) -> Load:
    import openvino

    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}

    def load(path: str) -> Callable[[Any], object]:
        request = core.compile_model(path, "CPU", settings).create_infer_request()
        return lambda x: request.infer([x], share_inputs=True, share_outputs=True)[0]

    return load


def _onnx(threads: int) -> Load:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3

    def load(path: str) -> Callable[[Any], object]:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: session.run(None, {name: x})

    return load


#: Imports a runtime for a number of threads.
RUNTIMES: dict[str, Callable[[int], Load]] = {"fxq": _fxq, "openvino": _openvino, "onnx": _onnx}


if __name__ == "__main__":
    raise SystemExit(main())
