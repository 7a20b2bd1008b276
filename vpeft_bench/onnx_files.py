"""ONNX files: a network as a graph, for runtimes that know no PyTorch; the extra ``onnx``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpeft_bench.errors import ConfigError, Problem, VpeftBenchError

NEEDED = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "pip install 'vpeft-bench[onnx]'"
INPUT, OUTPUT = "images", "logits"
LARGEST = 2**31 - 1
"""Bytes: an ONNX file is one protocol buffer."""


def require_onnx() -> None:
    """Refuse to go on where the libraries are missing.

    Raises:
        ConfigError: names them, and says what to type.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        listed = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise ConfigError([Problem("--format onnx", listed, INSTALL)])


def write_onnx(model: nn.Module, images: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    """Write ``model`` as it answers ``images``, for batches of any size.

    Args:
        model: (B, 3, H, W) to (B, classes), in evaluation mode.
        metadata: is written as JSON under the key ``vpeft_bench``.

    Raises:
        VpeftBenchError: the weights are more than one ONNX file can hold.
    """
    tensors = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > LARGEST:
        what = f"the weights have {size / 2**30:.1f} GiB, and an ONNX file can hold 2"
        raise VpeftBenchError(f"{path}: {what}; --format timm has no such limit")
    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["vpeft_bench"] = json.dumps(metadata)
    program.save(str(path), external_data=False)


def answers(path: Path, images: Tensor) -> Tensor:
    """What onnxruntime makes of ``images`` with the file, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
    return torch.from_numpy(logits)
