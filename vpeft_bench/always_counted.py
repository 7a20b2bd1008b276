"""The keys and options that belong to a run's identity at every value.

Up to version 5 of the record every key of a configuration was a part of ``config_hash``. Those of
that time still are, so that every record, checkpoint and cost card made then keeps its name. Keys
and options that came later count where they are not neutral. ``always_counted.json`` never grows.

Importing this module does not import torch.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("always_counted.json")


@functools.cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


@functools.cache
def config_keys() -> frozenset[str]:
    """Dotted keys of the configuration."""
    return frozenset(_content()["keys"])


def options(method: str) -> frozenset[str]:
    """Names of options of a method; none for a method that came later."""
    return frozenset(_content()["methods"].get(method, ()))
