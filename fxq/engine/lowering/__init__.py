"""Lowering: from a graph of int8 modules to a plan of the engine, one kind of operation a file."""
