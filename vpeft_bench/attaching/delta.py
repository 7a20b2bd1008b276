"""Delta checkpoints: the file that holds what one attachment trained and stores."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vpeft_bench.backbones.checkpoint_files import not_finite
from vpeft_bench.errors import DeltaMismatchError
from vpeft_bench.methods.base import Method
from vpeft_bench.traits import Trait

HEADER_KEY = "vpeft_bench"
DELTA_FORMAT = "vpeft_bench delta 1"


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a delta checkpoint; the header is empty where the file has none.

    Raises:
        DeltaMismatchError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
    except (SafetensorError, OSError, ValueError) as error:
        raise DeltaMismatchError(f"{path} cannot be read as a delta checkpoint: {error}") from error
    return header, tensors


def header(method: Method, base_fingerprint: str) -> dict[str, str]:
    """What the file says of itself."""
    return {
        "format": DELTA_FORMAT,
        "method": method.name,
        "options": json.dumps(method.options(), sort_keys=True),
        "base_fingerprint": base_fingerprint,
    }


def header_differences(
    found: Mapping[str, Any], expected: Mapping[str, str], method: Method, traits: Collection[Trait]
) -> list[str]:
    """Where a file's header says something else than it should, each in one line."""
    return [
        f"{key}: file {found.get(key, 'nothing')}, model {value}"
        for key, value in expected.items()
        if found.get(key) != value and not (key == "options" and _equal(found, method, traits))
    ]


def _equal(found: Mapping[str, Any], method: Method, traits: Collection[Trait]) -> bool:
    """Whether the options of a file differ from those of ``method`` only by what counts not."""
    if found.get("method") != method.name:
        return False
    try:
        stored = json.loads(found["options"])
    except (KeyError, TypeError, ValueError):
        return False
    try:
        then = type(method)(**method.completed(stored))
    except TypeError:  # options of another version, or none at all
        return False
    return _counted(then, traits) == _counted(method, traits)


def _counted(method: Method, traits: Collection[Trait]) -> dict[str, Any]:
    """The options that make the method what it is on a backbone with ``traits``."""
    uncounted = method.uncounted(traits)
    return {k: v for k, v in method.options().items() if k not in uncounted}


def differences(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``tensors`` of a file from taking the place of ``own``, each in one line."""
    found = [f"missing tensor {name}" for name in own if name not in tensors]
    found += [f"unexpected tensor {name}" for name in tensors if name not in own]
    for name in own:
        if (stored := tensors.get(name)) is None:
            continue
        if stored.shape != own[name].shape:
            found.append(f"{name}: file {tuple(stored.shape)}, model {tuple(own[name].shape)}")
        elif stored.is_floating_point() != own[name].is_floating_point():
            found.append(f"{name}: file {stored.dtype}, model {own[name].dtype}")
    return found or not_finite(tensors)


def not_ours(path: str | os.PathLike[str], found: list[str]) -> DeltaMismatchError:
    """The error that lists all differences."""
    listing = "\n".join(f"  - {difference}" for difference in found)
    return DeltaMismatchError(f"{path} does not belong to this model and method:\n{listing}")
