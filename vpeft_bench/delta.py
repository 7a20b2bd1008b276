"""Delta checkpoints: the file that holds what one attachment trained and stores."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vpeft_bench.backbones.checkpoint_files import not_finite
from vpeft_bench.errors import DeltaMismatchError

HEADER_KEY = "vpeft_bench"
DELTA_FORMAT = "vpeft_bench delta 1"


def read_delta(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
