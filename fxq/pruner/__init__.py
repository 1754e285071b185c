"""A prune from end to end: what ``fxq.prune`` does with what ``fxq.pruning`` decides."""
