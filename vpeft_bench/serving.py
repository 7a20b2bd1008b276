"""A finished run, ready to predict with, and its weights in a form for use elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.config.schema import from_plain
from vpeft_bench.data.dataset import Dataset
from vpeft_bench.data.loading import Preprocessing, as_input
from vpeft_bench.data.pictures import read_picture
from vpeft_bench.errors import NotMergeableError, VpeftBenchError
from vpeft_bench.files import replacing, replacing_folder, write_atomically
from vpeft_bench.onnx_files import answers, require_onnx, write_onnx
from vpeft_bench.records.run_record import RECORD_NAME, RunRecord
from vpeft_bench.runs.finished import finished_model, finished_run
from vpeft_bench.runs.run_files import EVALUATION
from vpeft_bench.tasks.names import kind_of
from vpeft_bench.tensor_files import save_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""The files of a folder that timm reads as ``local-dir:FOLDER``."""
FORMATS = {"timm": "", "safetensors": ".safetensors", "onnx": ".onnx"}
"""Forms of an exported model, with the ending of the file; a folder has none."""
PROBES = 4
"""Random inputs that an exported model must answer as the run does."""
TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit."""


@dataclass(frozen=True)
class Predictor:
    """The classifier that a run has trained.

    Attributes:
        model: in evaluation mode: (B, 3, H, W) normalised pictures to (B, classes) logits.
        preprocessing: how pictures become its input.
        class_names: one for each class; their numbers where the data set has no names.
        attached: the method on the backbone.
        record: of the run.
    """

    model: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    attached: Attached
    record: RunRecord

    def transform(self, picture: Image.Image | str | os.PathLike[str]) -> Tensor:
        """A picture, or the path of one, as (3, H, W) float32 input of the model.

        Raises:
            VpeftBenchError: it cannot be read.
        """
        background = self.record.asked["data"].get("background")
        if isinstance(picture, Image.Image):
            image = picture.convert("RGB")
        else:
            image = read_picture(os.fspath(picture), background)
        return self.preprocessing.normalize(as_input(image, self.preprocessing)[None])[0]

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image | str | os.PathLike[str]]) -> Tensor:
        """(B, classes) logits of some pictures, in one batch, where the model lies."""
        device = next(self.model.parameters()).device
        batch = torch.stack([self.transform(picture) for picture in pictures])
        logits: Tensor = self.model(batch.to(device))
        return logits


def load_run(run: str | os.PathLike[str]) -> Predictor:
    """The classifier of a finished run, by its directory; the data set need not be there.

    Raises:
        VpeftBenchError: there is no finished run, it is not one of classification, or its files are
            not what its record vouches for.
    """
    directory = Path(run)
    directory = directory.parent if directory.name == RECORD_NAME else directory
    record = finished_run(directory)
    config = from_plain(record.asked)
    if not kind_of(config).classifies:
        what = f"it is a run of {config.task['name']}; show {directory} draws what it predicts"
        raise VpeftBenchError(f"{directory}: only classifiers are loaded: {what}")
    names = _class_names(directory)
    dataset = Dataset(config.data.name, len(names), record.where.data_fingerprint or "", {})
    config.hardware.gradient_checkpointing = False
    model, task = finished_model(config, dataset, directory, record)
    network = task.model.eval().requires_grad_(False)
    return Predictor(network, model.preprocessing, names, model.attached, record)


def _class_names(directory: Path) -> tuple[str, ...]:
    """From the scores of the single classes, of which there is one each."""
    path = directory / EVALUATION
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))["classes"]
        return tuple(str(one["class"] if one["name"] is None else one["name"]) for one in classes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{path} does not say which classes there are: {error}"
        raise VpeftBenchError(f"{what}; rerun=true makes it again") from error


# ---- export -------------------------------------------------------------------------------------


def export(run: Path, out: Path, kind: str = "timm") -> Path:
    """Write the weights of a run with its method merged into them, as a plain timm model, or ONNX.

    What was written is loaded back and must give the logits of the run.

    Args:
        run: directory of the run.
        out: folder for ``timm``, file for ``safetensors``.
        kind: ``timm``: a folder that ``timm.create_model("local-dir:FOLDER")`` reads;
            ``safetensors``: the weights alone; ``onnx``: a graph, which has room for a method
            that cannot be merged.

    Raises:
        NotMergeableError: the method cannot be folded into the weights; says why.
        ConfigError: the libraries for ONNX are not installed.
        VpeftBenchError: see :func:`load_run`; or the written model answers otherwise.
    """
    if kind == "onnx":
        require_onnx()
    predictor = load_run(run)
    height, width = predictor.preprocessing.height_and_width
    probes = torch.randn(PROBES, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = predictor.model(probes)
    settings = _timm_config(predictor)
    if kind == "onnx":
        with contextlib.suppress(NotMergeableError):
            predictor.attached.merge()
        with replacing(out) as path:
            write_onnx(predictor.model, probes, path, settings)
            for batch in (slice(None), slice(1)):  # batches of any size
                _require_same(answers(path, probes[batch]), expected[batch], out)
        return out
    merged = predictor.attached.merge()
    state = merged.state_dict()
    metadata = {"format": "pt", "vpeft_bench": json.dumps(settings)}
    if kind == "safetensors":
        with replacing(out) as path:
            save_tensors(state, path, metadata)
            _require_same(_logits(_from_file(path, settings), probes), expected, out)
        return out
    with replacing_folder(out) as fresh:
        save_tensors(state, fresh / WEIGHTS, metadata)
        write_atomically(fresh / CONFIG, f"{json.dumps(settings, indent=2)}\n".encode())
        written = timm.create_model(f"local-dir:{fresh}", pretrained=True)
        _require_same(_logits(written, probes), expected, out)
    return out


def _timm_config(predictor: Predictor) -> dict[str, Any]:
    """What timm wants to know of a model, and what run it is of."""
    asked, preprocessing = predictor.record.asked, predictor.preprocessing
    height, width = preprocessing.height_and_width
    model_args = dict(asked["backbone"]["model_args"])
    if asked["backbone"]["image_size"] is not None:
        model_args["img_size"] = asked["backbone"]["image_size"]
    return {
        "architecture": asked["backbone"]["model"].partition(".")[0],
        "num_classes": len(predictor.class_names),
        "label_names": list(predictor.class_names),
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [3, height, width],
            "interpolation": preprocessing.interpolation,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": len(predictor.class_names),
        },
        "vpeft_bench_run": predictor.record.run_id,
    }


def _from_file(path: Path, settings: dict[str, Any]) -> nn.Module:
    model = timm.create_model(
        settings["architecture"], num_classes=settings["num_classes"], **settings["model_args"]
    )
    model.load_state_dict(load_file(path))
    return model


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model.eval()(images)
    return logits


def _require_same(found: Tensor, expected: Tensor, out: Path) -> None:
    """Raise where what was written does not answer as the run does."""
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:  # NaN included
        what = f"its logits differ from those of the run by {difference:.1e} of the largest"
        raise VpeftBenchError(f"{out} was not kept: {what}")
