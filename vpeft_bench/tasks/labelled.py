"""What kinds share that learn from pictures with one class each, of the network's input size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vpeft_bench.config.schema import RunConfig
from vpeft_bench.tasks.kind import TaskKind

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from vpeft_bench.backbones.load import LoadedBackbone
    from vpeft_bench.data.loading import EpochSampler, Preprocessing
    from vpeft_bench.data.splits import Dataset, LabelledSplit
    from vpeft_bench.drawing import Panel


class LabelledKind(TaskKind):
    """Pictures of one size, and a class for each."""

    def accepts(self, dataset: Dataset) -> bool:
        """Whether every picture has a class."""
        from vpeft_bench.data.splits import LabelledSplit

        return isinstance(dataset.split("test"), LabelledSplit)

    def preprocessing(self, config: RunConfig, loaded: LoadedBackbone) -> Preprocessing:
        """As the data set says, to the size that the weights were loaded for."""
        from vpeft_bench.data.loading import preprocessing_for

        return preprocessing_for(config.data, loaded.pretrained_cfg, loaded.image_size)

    def batches(
        self,
        config: RunConfig,
        dataset: Dataset,
        preprocessing: Preprocessing,
        split: str,
        *,
        train: bool,
    ) -> DataLoader[Any]:
        """``(B, 3, H, W)`` uint8 pictures and ``(B,)`` int64 classes."""
        from vpeft_bench.data.loading import build_loader

        return build_loader(
            labelled(dataset, split),
            preprocessing,
            train=train,
            sampler=self.sampler(config, dataset, split, train=train),
            seed=config.seed,
            workers=config.hardware.workers,
            cache_gib=config.data.cache_gib,
        )

    def sampler(
        self, config: RunConfig, dataset: Dataset, split: str, *, train: bool
    ) -> EpochSampler:
        """Shuffled in training, else in order."""
        from vpeft_bench.data.loading import EpochSampler

        size = config.train.batch_size if train else config.hardware.eval_batch_size
        return EpochSampler(len(dataset.split(split)), size, config.seed, shuffle=train)

    def truth(self, dataset: Dataset, split: str, index: int, cell: int) -> Panel:
        """The picture, and the name of its class."""
        from vpeft_bench.drawing import Panel, class_name, enlarged

        pictures = labelled(dataset, split)
        name = class_name(dataset, int(pictures.labels[index]))
        return Panel([enlarged(pictures.image(index), cell)], f"{split} {index}: {name}")


def labelled(dataset: Dataset, split: str) -> LabelledSplit:
    """A split of a data set that such a kind accepts."""
    return cast("LabelledSplit", dataset.split(split))
