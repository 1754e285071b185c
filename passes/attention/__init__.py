"""Attention and transformer layers, written out node by node, and which of them int8 computes."""
