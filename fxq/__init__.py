"""fxq: a compiler pass suite on torch.fx."""

from pathlib import Path as _Path

# In a checkout, passes/ and visualize/ lie beside this package and not inside it: let fxq.passes be found there.
if not (_Path(__file__).parent / "passes").is_dir():
    __path__.append(str(_Path(__file__).parent.parent))

__version__ = "0.1.0"
