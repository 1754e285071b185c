"""Imported as fxq.visualize."""

if __name__ != "fxq.visualize":
    raise ImportError("import this package as fxq.visualize, not as visualize")
