"""Imported as fxq.passes."""

if __name__ != "fxq.passes":
    raise ImportError("import this package as fxq.passes, not as passes")
