"""What prunes channels, one file each, and their names."""

from __future__ import annotations

from benchmarks.pruning_peers import fxq_prune, torch_pruning
from benchmarks.pruning_peers.peer import Check, Peer

PEERS: dict[str, Peer] = {peer.name: peer for peer in (fxq_prune.PEER, torch_pruning.PEER)}

__all__ = ["PEERS", "Check", "Peer"]
