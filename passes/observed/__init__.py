"""Graphs with observers: the layers that int8 will compute, and observers that count nothing new."""
