"""Twenty networks in float: what comes out is the model, in fewer operations. Ten of them in int8 elsewhere."""

from __future__ import annotations

import pytest
