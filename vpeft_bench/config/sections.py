"""The sections of a configuration: one dataclass each, with the choices that they offer.

What a field means for a run's identity stands beside it: :mod:`vpeft_bench.fields`. The section of
data is :mod:`vpeft_bench.data.schema`. Importing this module imports neither torch nor Hydra.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from vpeft_bench.fields import Measured, setting

MISSING: Any = "???"
"""OmegaConf's word for a value that must be given."""


@dataclass
class BackboneConfig:
    """One backbone, as chosen by ``backbone=NAME``.

    Attributes:
        name: as it appears in records and tables.
        model: timm name with tag; the weights' own preprocessing comes with it.
        weights: ``hub``, ``none`` (random) or the path of a file (.safetensors, .npz, .pth, ...).
        image_size: input height and width, pixels; null for the weights' own.
        drop_path: stochastic depth of the trunk, frozen parts included, while training.
        model_args: further arguments of the timm model.
    """

    name: str = MISSING
    model: str = MISSING
    weights: str = setting("hub", identity=False, measured=Measured.NO)
    image_size: int | None = setting(None, minimum=1)
    drop_path: float = setting(0.0, minimum=0, maximum=0.99)
    model_args: dict[str, Any] = field(default_factory=dict)


IGNORED_LABEL = 255
"""The value in a label map of pixels that are neither trained on nor scored."""


class HeadNorm(Enum):
    """Normalisation inside a segmentation head."""

    group = "group"
    """GroupNorm, 32 groups: independent of the batch."""
    batch = "batch"
    """BatchNorm, as in the published recipes; needs at least two pictures in every batch."""


BOX_HEADS = ("2fc", "4conv1fc")
"""What reads a pooled region: two linears; or four convolutions with batch norms and a linear."""


class BoxLoss(Enum):
    """How the box of a region is learned."""

    smooth_l1 = "smooth_l1"
    """Smooth L1 of the changes that the region needs."""
    giou = "giou"
    """Ten times the generalised IoU loss (arXiv 1902.09630) of the box after the changes."""


@dataclass
class HeadConfig:
    """The head on top of the backbone's features, as chosen by ``head=NAME``.

    Attributes:
        name: of :data:`vpeft_bench.heads.names.HEADS`.
        norm_eps: of the BatchNorm before a classifier.
        channels: C of every level of the feature pyramid.
        hidden: width of the two linears of a box head; channels of a segmentation decoder.
        anchor_scale: side of an anchor, in strides of its level.
        regions: proposals of a picture that a box head is trained on; RetinaNet has none.
        norm: of a segmentation head.
        auxiliary_weight: weight of UPerNet's second loss, on the third feature map.
        dropout: before a segmentation head's classifier.
        score_threshold: detections below it are dropped.
        nms_iou: of two detections of a class that overlap more than this, the weaker is dropped.
        max_detections: most detections of a picture.
        box: of a two-stage detector, see ``BOX_HEADS``.
        box_loss: of ``cascade_mask_rcnn``, see :class:`BoxLoss`.
        class_boxes: of ``cascade_mask_rcnn``: each class has a box of its own.
    """

    name: str = MISSING
    norm_eps: float = setting(1e-6, minimum=1e-12, maximum=1)
    channels: int = setting(256, minimum=8)
    hidden: int = setting(1024, minimum=8)
    anchor_scale: float = setting(8.0, minimum=0.5)
    regions: int = setting(512, minimum=1)
    norm: HeadNorm = HeadNorm.group
    auxiliary_weight: float = setting(0.4, minimum=0)
    dropout: float = setting(0.1, minimum=0, maximum=0.99)
    score_threshold: float = setting(0.05, minimum=0, maximum=1)
    nms_iou: float = setting(0.5, minimum=0, maximum=1)
    max_detections: int = setting(100, minimum=1)
    box: str = setting("2fc", choices=BOX_HEADS)
    box_loss: BoxLoss = BoxLoss.smooth_l1
    class_boxes: bool = False


class Inference(Enum):
    """How a picture of any size is segmented."""

    whole = "whole"
    """At once."""
    slide = "slide"
    """In overlapping windows of the training crop; scores are averaged where they overlap."""


@dataclass
class InputConfig:
    """How pictures of any size reach a dense head; aspect ratios are kept.

    A Vision Transformer reads squares of its own ``backbone.image_size``: there the longer side is
    that size, and the rest is padding.

    Attributes:
        shorter_sides: in training, pixels; several: one is drawn for each picture (multi-scale).
        test_shorter_side: in evaluation, pixels.
        longer_side: most pixels of the longer side; the shorter one gives way.
        size_divisor: batches are padded to a multiple of this.
        flip: probability of a horizontal flip in training.
        crop_shorter_sides: detection: where there are any, every other training picture is first
            resized to one of these, of which a part is cut out and resized to ``shorter_sides``
            (DETR's augmentation, arXiv 2005.12872).
        crop_sides: detection: least and most pixels of either side of that part.
        crop: segmentation: side of the random training crop.
        scale_range: segmentation: smallest and largest factor on the training size.
        max_class_share: segmentation: a crop with a larger share of one class is drawn anew, at
            most ten times.
        photometric: segmentation: random brightness, contrast, saturation and hue in training.
        inference: segmentation: see :class:`Inference`.
        window_stride: segmentation: step of the sliding window; null: two thirds of the crop.
        eval_batch_size: pictures per evaluation step; of several, the smaller ones are padded,
            which a network may notice.
    """

    shorter_sides: list[int] = field(default_factory=lambda: [800])
    test_shorter_side: int = setting(800, minimum=1)
    longer_side: int = setting(1333, minimum=1)
    size_divisor: int = setting(32, minimum=1)
    flip: float = setting(0.5, minimum=0, maximum=1)
    crop_shorter_sides: list[int] = field(default_factory=list)
    crop_sides: list[int] = field(default_factory=lambda: [384, 600])
    crop: int = setting(512, minimum=1)
    scale_range: list[float] = field(default_factory=lambda: [0.5, 2.0])
    max_class_share: float = setting(0.75, minimum=0.001, maximum=1)
    photometric: bool = True
    inference: Inference = Inference.whole
    window_stride: int | None = setting(None, minimum=1)
    eval_batch_size: int = setting(1, minimum=1)


class Protocol(Enum):
    """What is trained on and what is scored; nothing can be selected on the test split."""

    final = "final"
    """Train on everything but the test split, score the last epoch on the test split, once."""
    select = "select"
    """Train on train, score val after every epoch; the test split is not touched."""


def evaluated_split(protocol: Protocol) -> str:
    """The split whose scores are reported."""
    return "val" if protocol is Protocol.select else "test"


@dataclass
class ProtocolConfig:
    """Which splits are used."""

    name: Protocol = Protocol.final


class Optimizer(Enum):
    """What turns gradients into steps."""

    adamw = "adamw"
    """AdamW (arXiv 1711.05101)."""
    sgd = "sgd"
    """Stochastic gradient descent with ``momentum``; weight decay is not decoupled."""


class Schedule(Enum):
    """The learning rate after the warm-up."""

    cosine = "cosine"
    """Half a cosine down to ``min_lr``."""
    step = "step"
    """A tenth of it from each of the ``milestones`` on."""
    poly = "poly"
    """Down to ``min_lr`` in a straight line (the power 1 of the published recipes)."""


@dataclass
class TrainConfig:
    """The optimisation: linear warm-up, then a schedule, stepped every batch.

    Attributes:
        epochs: passes over the training split.
        batch_size: images per step.
        optimizer: see :class:`Optimizer`.
        momentum: of ``optimizer=sgd``.
        lr: peak learning rate; by default looked up in ``learning_rates``.
        lr_batch_size: the batch size that ``lr`` is for: the rate in use is
            ``lr * batch_size / lr_batch_size`` (often 256); null: ``lr`` as it is.
        learning_rates: peak learning rate by method, for this backbone.
        weight_decay: on every trained tensor with two or more dimensions unless ``decay_all``; by
            default looked up in ``weight_decays``.
        weight_decays: weight decay by method, for this backbone.
        recipe: how ``learning_rates`` and ``weight_decays`` were chosen for the methods that they
            name; empty: they are general ones.
        decay_all: also decay biases, norms and scales, as V-PETL Bench does.
        warmup_epochs: length of the warm-up from ``warmup_lr``; need not be whole.
        warmup_lr: learning rate of the first step.
        min_lr: learning rate of the last step.
        label_smoothing: of the cross entropy.
        clip_norm: largest gradient norm; null for no clipping.
        schedule: see :class:`Schedule`.
        milestones: epochs after which ``schedule=step`` lowers the rate.
        layer_decay: the rate of a backbone block is this factor smaller than that of the next one;
            1: all alike. What comes before the blocks counts as one more.
        head_lr_factor: the rate of the head over that of the backbone.
    """

    epochs: int = setting(100, minimum=1)
    batch_size: int = setting(64, minimum=1)
    optimizer: Optimizer = Optimizer.adamw
    momentum: float = setting(0.9, minimum=0, maximum=0.9999)
    lr: float = setting(1e-3, minimum=1e-12)
    lr_batch_size: int | None = setting(None, minimum=1)
    learning_rates: dict[str, float] = setting(dict, identity=False)
    weight_decay: float = setting(1e-4, minimum=0)
    weight_decays: dict[str, float] = setting(dict, identity=False)
    recipe: str = setting("", identity=False)
    decay_all: bool = False
    warmup_epochs: float = setting(10.0, minimum=0)
    warmup_lr: float = setting(1e-6, minimum=0)
    min_lr: float = setting(1e-5, minimum=0)
    label_smoothing: float = setting(0.0, minimum=0, maximum=0.99)
    clip_norm: float | None = setting(None, minimum=1e-12)
    schedule: Schedule = Schedule.cosine
    milestones: list[int] = field(default_factory=list)
    layer_decay: float = setting(1.0, minimum=0.001, maximum=1)
    head_lr_factor: float = setting(1.0, minimum=1e-12)

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up: ``lr``, in proportion to the batch where asked."""
        return self.lr * (self.batch_size / self.lr_batch_size if self.lr_batch_size else 1.0)


class Precision(Enum):
    """Arithmetic of forward and backward; weights stay float32."""

    fp32 = "fp32"
    """As IEEE has it, on every device."""
    tf32 = "tf32"
    """On a GPU: products of matrices and convolutions of numbers with 10 bits after the point."""
    bf16 = "bf16"
    fp16 = "fp16"


class FeatureCache(Enum):
    """Where frozen features are kept, so that they are computed once and not in every epoch."""

    off = "off"
    """Nowhere."""
    memory = "memory"
    """In main memory, for the runs of one process."""
    disk = "disk"
    """In memory-mapped files, for all runs that share ``hardware.feature_cache_dir``."""


class FeatureType(Enum):
    """The number type of kept features."""

    fp32 = "fp32"
    """As they are computed."""
    bf16 = "bf16"
    """Rounded: half the bytes."""


@dataclass
class HardwareConfig:
    """Where and how fast; of it ``precision`` and rounded features belong to a run's identity.

    Attributes:
        accelerator: ``auto``, ``cpu`` or ``cuda``.
        precision: see :class:`Precision`.
        threads: CPU threads of torch; null for torch's own choice.
        workers: processes that decode images which do not fit in memory.
        accumulate: parts that each batch of ``train.batch_size`` pictures is computed in, one after
            another, so that less memory is needed; their gradients are added up to the batch's own.
        device: index of the GPU of a run on one; null: the first, and in a sweep of jobs that run
            at the same time each in turn.
        devices: GPUs, or processes on a CPU, that share each batch and each evaluation.
        auto_batch: where memory is not enough, double ``accumulate``, or halve ``eval_batch_size``,
            and go on.
        checkpoint_minutes: of a long epoch, from one checkpoint to the next.
        eval_batch_size: images per evaluation step.
        feature_cache: see :class:`FeatureCache`; used where the method reads features that are the
            same in every epoch.
        feature_cache_dtype: see :class:`FeatureType`.
        feature_cache_gib: most GiB that kept features may take, in memory or on disk.
        feature_cache_dir: where ``feature_cache=disk`` keeps them.
        fused_attention: PyTorch's fused attention kernels.
        fused_optimizer: AdamW in one kernel.
        channels_last: memory format of pictures and convolutions.
        compile: compile every block of the backbone with ``torch.compile``.
        gradient_checkpointing: compute activations of the backbone again in the backward pass
            instead of keeping them.
    """

    name: str = setting("auto", identity=False, measured=Measured.BY_DEVICE)
    accelerator: str = setting(
        "auto", identity=False, measured=Measured.BY_DEVICE, choices=("auto", "cpu", "cuda")
    )
    precision: Precision = Precision.fp32
    threads: int | None = setting(None, identity=False, minimum=1)
    workers: int = setting(2, identity=False, measured=Measured.NO, minimum=0)
    accumulate: int = setting(1, identity=False, measured=Measured.NO, minimum=1)
    device: int | None = setting(None, identity=False, measured=Measured.NO, minimum=0)
    devices: int = setting(1, identity=False, measured=Measured.NO, minimum=1)
    auto_batch: bool = setting(False, identity=False, measured=Measured.NO)
    checkpoint_minutes: float = setting(30.0, identity=False, measured=Measured.NO, minimum=0)
    eval_batch_size: int = setting(64, identity=False, measured=Measured.NO, minimum=1)
    feature_cache: FeatureCache = setting(FeatureCache.memory, identity=False, measured=Measured.NO)
    feature_cache_dtype: FeatureType = setting(FeatureType.fp32, measured=Measured.NO)
    feature_cache_gib: float = setting(4.0, identity=False, measured=Measured.NO, minimum=0)
    feature_cache_dir: str = setting("results/features", identity=False, measured=Measured.NO)
    fused_attention: bool = setting(True, identity=False)
    fused_optimizer: bool = setting(True, identity=False)
    channels_last: bool = setting(False, identity=False)
    compile: bool = setting(False, identity=False)
    gradient_checkpointing: bool = setting(False, identity=False)


class WandbMode(Enum):
    """Weights & Biases never touches the network unless asked to."""

    offline = "offline"
    online = "online"


@dataclass
class LoggerConfig:
    """Where learning curves go besides the run directory's own CSV.

    Attributes:
        tensorboard: write TensorBoard event files into the run directory.
        wandb: log to Weights & Biases.
        wandb_mode: ``offline`` unless asked.
        wandb_project: project name there.
        also: names of further loggers, see :data:`vpeft_bench.runs.loggers.LOGGERS`.
    """

    name: str = "csv"
    tensorboard: bool = False
    wandb: bool = False
    wandb_mode: WandbMode = WandbMode.offline
    wandb_project: str = "vpeft_bench"
    also: list[str] = field(default_factory=list)


@dataclass
class CostConfig:
    """How the cost of a method is measured, by ``python -m vpeft_bench cost``; no run reads it.

    Attributes:
        batch_size: images of a training step.
        inference_batch_size: images of an inference step.
        warmup_steps: steps before the timed ones.
        steps: timed steps.
        blocks: the timed steps are timed in this number of equal blocks; their median counts.
        num_classes: outputs of the head.
        image_size: height and width, pixels; null for the weights' own, or
            ``backbone.image_size``.
        allow_busy: measure although something else uses the device; the card is marked.
        results_dir: cards lie below it.
    """

    batch_size: int = setting(64, minimum=1)
    inference_batch_size: int = setting(128, minimum=1)
    warmup_steps: int = setting(10, minimum=1)
    steps: int = setting(50, minimum=1)
    blocks: int = setting(5, minimum=1)
    num_classes: int = setting(100, minimum=1)
    image_size: list[int] | None = None
    allow_busy: bool = setting(False, measured=Measured.NO)
    results_dir: str = setting("results/cost", measured=Measured.NO)


@dataclass
class SweepConfig:
    """How the runs of a sweep are handed to the jobs of a launcher; the same for all of them.

    Attributes:
        runs_per_job: that one job does at most, one after the other, in one process that keeps what
            they share, see :mod:`vpeft_bench.runs.packing`.
        detach: on SLURM, end as soon as the jobs are in the queue.
    """

    runs_per_job: int = setting(1, measured=Measured.NO, minimum=1)
    detach: bool = setting(False, measured=Measured.NO)


@dataclass
class TuneConfig:
    """What ``python -m vpeft_bench tune`` searches; a run of its own reads none of it.

    Attributes:
        budget: points that are tried for each method and data set, the default among them.
        sampler: ``sobol``: a sequence that is the same for every method; ``tpe``: each point
            follows from the scores of those before it, see :mod:`vpeft_bench.tuning.tpe`.
        point: which of them a run is, counted from 0; null: it is no point of a search.
        at: where that point lies, coordinates in [0, 1); null: its number says it.
        fixed: keys that are not searched; those that were typed on the command line are added.
        name: of the variant that comes out of it, after the method's; empty: ``tuned@BUDGET``,
            or ``tpe@BUDGET``.
        stop_hopeless: search data sets in rounds, and give a point up that is worse than the best
            one on those so far, see :mod:`vpeft_bench.tuning.hopeless`.
    """

    budget: int = setting(8, minimum=1, maximum=1024)
    sampler: str = setting("sobol", choices=("sobol", "tpe"))
    point: int | None = setting(None, minimum=0)
    at: list[float] | None = None
    fixed: list[str] = field(default_factory=list)
    name: str = ""
    stop_hopeless: bool = False


@dataclass
class VariantConfig:
    """What one row of a table is, chosen by ``variant=NAME``: :mod:`vpeft_bench.config.variants`.

    Attributes:
        name: as it appears in records and tables; empty: the row is the method with its options.
        method: the method that it is a variant of.
        chosen: how its settings were chosen: ``by hand``, ``published: SOURCE`` or ``tuned: BUDGET,
            SPACE, RULE``.
        settings: the same on every data set: by key, as typed on the command line.
        per_data: by name of the data set, the settings that hold there alone. Where there are any,
            the variant is for these data sets.
        tuning: of one that ``tune`` found, what the search was and cost, see
            :mod:`vpeft_bench.tuning.variant_file`; else empty.
    """

    name: str = ""
    method: str = setting("", identity=False)
    chosen: str = setting("", identity=False)
    settings: dict[str, Any] = setting(dict, identity=False)
    per_data: dict[str, Any] = setting(dict, identity=False)
    tuning: dict[str, Any] = setting(dict, identity=False)
