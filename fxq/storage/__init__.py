"""Graph modules in files: ``fxq.save(gm, path)`` and ``fxq.load(path)``.

The format, version 1
---------------------

A file is a safetensors file (https://github.com/huggingface/safetensors#format): the length of the header in 8 bytes,
the header as JSON, the data of the entries without holes. Any safetensors reader can open it.

- The header's ``__metadata__`` holds strings: ``format`` is "fxq", ``format_version`` "1"; ``fxq`` and ``torch`` are
  the versions that wrote it; ``blake2b`` is the BLAKE2b-256 of the whole file in hex, taken with 64 zeros in its place.
- The entry ``fxq:graph`` (U8) is zlib-compressed JSON, an object of these: ``class``, the name of the model's class;
  ``state``, the stage and the next node id; ``trace``, what the tracer noted, or null; ``nodes``, see
  ``fxq.storage.graph_json``; ``modules`` and ``values``, see ``fxq.storage.module_tree``; ``tensors``, a description of
  each tensor: name, dtype, shape and, where they are not the usual ones, order of dimensions and coding. ``examples``,
  where the graph was traced on some, has the shape and dtype of each input (``fxq.storage.examples``).
- The entry ``fxq:report`` (U8), where there is one, is zlib-compressed JSON too: ``report`` with the fields of
  ``fxq.Report``, in which snapshots refer to the records in ``nodes`` by index; ``sections``, see
  ``fxq.storage.sections``.
- Every other entry belongs to one tensor. A dense tensor ``layer.weight`` is the entry of that name, in the order of
  memory. A compact one is ``layer.weight:values`` (or ``:palette`` and ``:codes``) with ``:bitmap``, ``:patterns``,
  ``:gaps``, ``:signs``: see ``fxq.storage.encode`` for what they hold and how long they are. Complex numbers are pairs.

JSON holds None, booleans, strings, integers of 64 bits, finite floats and arrays as themselves; other arguments are
objects with one name (``fxq.storage.values``). Records of fxq are objects with the names of their fields.

What a reader relies on: nodes refer to earlier nodes and modules to earlier modules, so that there are no cycles; names
are ASCII identifiers; functions, methods, module types and dtypes are looked up in tables and never imported; what a
layer's settings say about the shapes of its tensors is so, and the shapes of the examples go through the graph: they
are followed (``fxq.storage.propagate``) before any tensor has values, in bounded time and memory. Sizes are checked
from the inside out before any tensor is allocated: JSON unpacks to at most 100 times its bytes (and 64 KiB), and a
tensor to at most 512 times those of its entries, of which each belongs to one tensor. Neither pickle nor any code from
the file is ever run; torch.fx generates ``forward`` from the checked graph.

To let files hold another type of module, add its constructor's arguments to the table in
``fxq.storage.torch_layers``, or its settings with their types to the one in ``fxq.storage.fxq_layers``.
"""

from fxq.storage.load import load as load
from fxq.storage.save import save as save
from fxq.storage.tensors import stored_bytes as stored_bytes

__all__ = ["load", "save", "stored_bytes"]
