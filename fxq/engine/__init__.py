"""The native engine: int8 inference by kernels compiled when fxq is installed."""
