"""A benchmark harness for parameter-efficient fine-tuning of vision models.

Used from Python, on any timm model with a block map::

    attached = vpeft_bench.attach(model, "lora", rank=8)
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpeft_bench.attaching.attachment import Attached, attach
    from vpeft_bench.attaching.stacking import Attachments, attachments
    from vpeft_bench.methods.registry import list_methods
    from vpeft_bench.serving import load_run

__all__ = ["Attached", "Attachments", "attach", "attachments", "list_methods", "load_run"]

try:
    __version__ = version("vpeft_bench")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import torch only when a name that needs it is used: the command line starts without it."""
    if name in ("Attached", "attach"):
        from vpeft_bench.attaching import attachment

        return getattr(attachment, name)
    if name in ("Attachments", "attachments"):
        from vpeft_bench.attaching import stacking

        return getattr(stacking, name)
    if name == "list_methods":
        from vpeft_bench.methods.registry import list_methods

        return list_methods
    if name == "load_run":
        from vpeft_bench.serving import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
