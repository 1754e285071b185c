"""Targets: what runs an int8 graph, and the int8 module for each operation."""

from fxq.targets.resolve import resolve_target as resolve_target
