"""The quantisers that the fidelity benchmark compares, one file a package, and their names."""

from __future__ import annotations

from benchmarks.quantisers import fxq_qat, fxq_tool, nncf, onnx_runtime, pt2e
from benchmarks.quantisers.tool import Coverage, Quantised, Tool

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        fxq_tool.tool("int8"),
        fxq_tool.tool("int8_accurate"),
        fxq_tool.tool("int8_rounded"),
        fxq_qat.TOOL,
        nncf.FAST,
        nncf.ACCURATE,
        pt2e.TOOL,
        *onnx_runtime.TOOLS.values(),
    )
}

__all__ = ["TOOLS", "Coverage", "Quantised", "Tool"]
