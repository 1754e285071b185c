"""The peers, one file each, and their names."""

from __future__ import annotations

from benchmarks.peers import eager, fxq_peers, inductor, onnx_runtime, openvino, pt2e, torch_fx
from benchmarks.peers.peer import Peer, Prepared

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        eager.PEER,
        fxq_peers.FLOAT,
        fxq_peers.AUTO,
        fxq_peers.NATIVE,
        fxq_peers.ONEDNN,
        fxq_peers.REFERENCE,
        inductor.F32,
        inductor.BF16,
        torch_fx.PEER,
        pt2e.PEER,
        onnx_runtime.F32,
        onnx_runtime.INT8,
        openvino.F32,
        openvino.BF16,
        openvino.INT8,
    )
}

__all__ = ["PEERS", "Peer", "Prepared"]
