"""What detection and segmentation share: a head around the backbone's feature maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vpeft_bench.config.schema import RunConfig
from vpeft_bench.config.sections import HeadConfig, Inference, InputConfig
from vpeft_bench.errors import Problem
from vpeft_bench.heads.names import HEADS, masks, of_task
from vpeft_bench.registry import found
from vpeft_bench.tasks.kind import TaskKind

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from vpeft_bench.backbones.load import LoadedBackbone
    from vpeft_bench.data.loading import EpochSampler, Preprocessing
    from vpeft_bench.data.splits import Dataset
    from vpeft_bench.tasks.base import Model


class DenseKind(TaskKind):
    """Pictures of any size, and a head that reads feature maps."""

    any_size = True

    # ---- what is asked of it ---------------------------------------------------------------------

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Head and input sizes that do not fit each other."""
        head, sizes, heads = config.head, config.input, of_task(self.name)
        if sizes is None or head is None:
            what = f"its task, {self.name}, needs a head"
            yield Problem(f"data={config.data.name}", what, f"head={heads[0]}")
            return
        if head.name not in heads:
            problem = HEADS.unknown(head.name, heads)
            yield Problem(problem.where, f"is no head for {self.name}", problem.fix)
        if head.name != "cascade_mask_rcnn":
            yield from _only_of_the_cascade(head)
        if head.box != HeadConfig.box and head.name in HEADS and not HEADS.get(head.name).regions:
            what = f"head={head.name} has no heads on regions"
            others = [name for name in of_task("detection") if HEADS.get(name).regions]
            yield Problem(f"head.box={head.box}", what, f"head={others[0]}")
        yield from _wrong_sizes(sizes)

    def method_refusal(self, config: RunConfig, method: Any) -> str | None:
        """As the method says of heads that read feature maps."""
        refusal: str | None = method.dense_refusal
        return refusal

    def not_kept(self, config: RunConfig) -> str | None:
        """Never kept."""
        return "dense heads train on pictures of changing sizes"

    # ---- its data --------------------------------------------------------------------------------

    def preprocessing(self, config: RunConfig, loaded: LoadedBackbone) -> Preprocessing:
        """To the weights' own square, or to sides within the limits of ``config.input``."""
        from vpeft_bench.data.loading import preprocessing_for

        assert config.input is not None
        size: Any = loaded.image_size
        if loaded.any_size:
            size = None
        limits = config.input.test_shorter_side, config.input.longer_side
        return preprocessing_for(config.data, loaded.pretrained_cfg, size, limits)

    def batches(
        self,
        config: RunConfig,
        dataset: Dataset,
        preprocessing: Preprocessing,
        split: str,
        *,
        train: bool,
    ) -> DataLoader[Any]:
        """Lists of ``(3, h, w)`` uint8 pictures and of what is in them."""
        from vpeft_bench.data.dense_loading import build_dense_loader

        assert config.input is not None
        pictures: Any = dataset.split(split)
        return build_dense_loader(
            pictures,
            config.input,
            train=train,
            sampler=self.sampler(config, dataset, split, train=train),
            seed=config.seed,
            workers=config.hardware.workers,
            cache_gib=config.data.cache_gib,
            interpolation=preprocessing.interpolation,
            masks=config.head is not None and masks(config.head.name),
        )

    def sampler(
        self, config: RunConfig, dataset: Dataset, split: str, *, train: bool
    ) -> EpochSampler:
        """Shuffled in training, else in order."""
        from vpeft_bench.data.loading import EpochSampler

        assert config.input is not None
        size = config.train.batch_size if train else config.input.eval_batch_size
        return EpochSampler(len(dataset.split(split)), size, config.seed, shuffle=train)

    # ---- its network -----------------------------------------------------------------------------

    def outputs(self, config: RunConfig, dataset: Dataset) -> int:
        """None: the head reads feature maps."""
        return 0

    def network(self, config: RunConfig, dataset: Dataset, model: Model) -> Any:
        """The head that is asked for, around the backbone."""
        from vpeft_bench.backbones.features import StageFeatures

        assert config.head is not None
        build = found(HEADS.get(config.head.name).build)
        return build(
            config.head,
            config.input,
            StageFeatures(model.attached.backbone),
            dataset.num_classes,
            square=None if model.loaded.any_size else model.loaded.image_size[0],
            **self.of_preprocessing(model.preprocessing),
        )

    def of_preprocessing(self, preprocessing: Preprocessing) -> dict[str, Any]:
        """What a head of this kind is told of it besides."""
        return {}


def _only_of_the_cascade(head: HeadConfig) -> Iterator[Problem]:
    for key in ("box_loss", "class_boxes"):
        value = getattr(head, key)
        if value != getattr(HeadConfig, key):
            text = str(getattr(value, "value", value)).lower()
            what = "is offered by head=cascade_mask_rcnn alone"
            yield Problem(f"head.{key}={text}", what, "head=cascade_mask_rcnn")


def _wrong_sizes(sizes: InputConfig) -> Iterator[Problem]:
    """Sides, factors and windows that do not fit each other."""
    if sizes.crop_shorter_sides:
        yield from _cut_out(sizes)
    sides = [*sizes.shorter_sides, sizes.test_shorter_side]
    if not sizes.shorter_sides or min(sides) < 1 or max(sides) > sizes.longer_side:
        yield Problem(
            f"input.shorter_sides={sizes.shorter_sides}",
            f"must be between 1 and input.longer_side={sizes.longer_side}",
            f"input.longer_side={max([1, *sides])}",
        )
    low_to_high = len(sizes.scale_range) == 2 and 0 < sizes.scale_range[0] <= sizes.scale_range[1]
    if not low_to_high:
        what = "must be a smallest and a largest factor, above 0"
        yield Problem(f"input.scale_range={sizes.scale_range}", what, "input.scale_range=[0.5,2.0]")
    window, stride = sizes.crop, sizes.window_stride
    if sizes.inference is Inference.slide and stride is not None and stride > window:
        what = f"leaves gaps between windows of input.crop={window}"
        yield Problem(f"input.window_stride={stride}", what, f"input.window_stride={window}")


def _cut_out(sizes: InputConfig) -> Iterator[Problem]:
    """What is wrong with the parts that are cut out of training pictures."""
    if min(sizes.crop_shorter_sides) < 1 or max(sizes.crop_shorter_sides) > sizes.longer_side:
        what = f"must be between 1 and input.longer_side={sizes.longer_side}"
        yield Problem(f"input.crop_shorter_sides={sizes.crop_shorter_sides}", what)
    if len(sizes.crop_sides) != 2 or not 1 <= sizes.crop_sides[0] <= sizes.crop_sides[1]:
        what = "must be least and most pixels of a side"
        yield Problem(f"input.crop_sides={sizes.crop_sides}", what, "input.crop_sides=[384,600]")
