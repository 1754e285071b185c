"""Accuracy held: which layers quantisation hurts, and the search for the fastest module that keeps a metric."""
