"""Corrections of observed graphs: float and int8 side by side on data, layer after layer, and what came of it."""
