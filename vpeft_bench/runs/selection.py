"""The data pass of methods that look at training data before they are placed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.config.schema import RunConfig, trained_split
from vpeft_bench.data.dataset import Dataset
from vpeft_bench.data.loading import EpochSampler, Preprocessing, build_loader
from vpeft_bench.data.splits import LabelledSplit
from vpeft_bench.errors import ConfigError, Problem
from vpeft_bench.runs.run_files import RunFiles
from vpeft_bench.tensor_files import save_tensors


class RunData:
    """The training and validation pictures of a run; the test split cannot be reached.

    Args:
        device: where the model is.
        resume_path: where an expensive pass may keep its state.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        preprocessing: Preprocessing,
        device: torch.device,
        resume_path: Path,
    ) -> None:
        self.resume_path: Path | None = resume_path
        self._config = config
        self._dataset = dataset
        self._preprocessing = preprocessing
        self.device = device

    def training(
        self,
        *,
        views: int = 1,
        augment: bool = False,
        shuffle: bool | None = None,
        batch_size: int | None = None,
        hold_out_validation: bool = False,
        epoch: int = 0,
    ) -> Iterator[tuple[Tensor, ...]]:
        """One pass over what the run trains on; without its validation part where asked.

        Raises:
            ConfigError: that part is asked for, and few pictures of each class are trained on.
        """
        if hold_out_validation:
            self._require_validation()
        split = "train" if hold_out_validation else trained_split(self._config)
        size = self._config.train.batch_size if batch_size is None else batch_size
        loader = self._loader(split, augment, size)
        loader.sampler.set_epoch(epoch)
        loader.sampler.shuffle = augment if shuffle is None else shuffle
        for _, indices in loader.sampler:
            # The views of a picture are what as many different epochs would see of it.
            drawn = [loader.dataset[epoch * views + view, indices] for view in range(views)]
            yield (*[self._ready(images) for images, _ in drawn], drawn[0][1].to(self.device))

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the validation split.

        Raises:
            ConfigError: few pictures of each class are trained on.
        """
        self._require_validation()
        for images, labels in self._loader("val", False, self._config.hardware.eval_batch_size):
            yield self._ready(images), labels.to(self.device)

    def _require_validation(self) -> None:
        """Those who train on few labels have not got hundreds more to choose by."""
        if (count := self._config.data.per_class) is not None:
            name = self._config.method["name"]
            what = f"method={name} chooses by validation pictures, which are not among these few"
            raise ConfigError([Problem(f"data.per_class={count}", what, "leave one of them out")])

    @functools.cache  # noqa: B019  # the pictures in memory live as long as this object
    def _loader(self, split: str, augment: bool, batch_size: int) -> Any:
        pictures = self._dataset.split(split)
        assert isinstance(pictures, LabelledSplit)
        return build_loader(
            pictures,
            self._preprocessing,
            train=augment,
            sampler=EpochSampler(len(pictures), batch_size, self._config.seed, shuffle=augment),
            seed=self._config.seed,
            workers=0,
            cache_gib=self._config.data.cache_gib,
        )

    def _ready(self, images: Tensor) -> Tensor:
        return self._preprocessing.normalize(images.to(self.device))


def select(attached: Attached, data: RunData, files: RunFiles) -> None:
    """Run the method's data pass, or take up what an interrupted run had selected.

    What was selected lies in the run directory from then on, written in one step; the state that an
    expensive pass kept to go on from is not needed any longer.
    """
    path = files.selection
    if path.exists():
        try:
            attached.place_selection(load_file(path, device=str(data.device)))
            return
        except (SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
            files.set_aside(path, f"{type(error).__name__}: {error}")
    attached.select(data)
    save_tensors(attached.selection or {}, path)
    files.selection_state.unlink(missing_ok=True)
