"""Quantisation: parameters, observers, calibration data and recipes."""
