"""Removing channels: what a criterion sees, how it scores, what is kept, and the smaller model that results."""
