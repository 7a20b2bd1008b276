"""The methods by name. Importing this module does not import torch.

A package adds its own by the decorator :func:`vpeft_bench.methods.registry.register`, or by
``METHODS.add("my_method", "my_package.module:MyMethod")``: then the command line starts without
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpeft_bench.registry import Registry

if TYPE_CHECKING:
    from vpeft_bench.methods.base import Method

METHODS: Registry[type[Method]] = Registry("method")
