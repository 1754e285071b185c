"""How tensors, layers and the sizes that are written in a graph shrink."""
