"""Everything wrong with a configuration, found before any weight is loaded."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vpeft_bench.config import variants
from vpeft_bench.config.schema import RunConfig, trained_split
from vpeft_bench.config.sections import (
    Optimizer,
    Precision,
    Schedule,
    TrainConfig,
    evaluated_split,
)
from vpeft_bench.data.readers import READERS
from vpeft_bench.data.schema import RENDERED
from vpeft_bench.data.shares import few_of_each
from vpeft_bench.errors import (
    ConfigError,
    IncompatibleProblem,
    MethodOptionError,
    MissingDataError,
    Problem,
    UnsupportedBackboneError,
    nearest,
    unknown_name,
)
from vpeft_bench.fields import settings
from vpeft_bench.files import in_the_way
from vpeft_bench.runs.loggers import LOGGERS
from vpeft_bench.tasks.kind import TaskKind
from vpeft_bench.tasks.names import TASKS

if TYPE_CHECKING:
    from vpeft_bench.data.dataset import Dataset

NOT_EMPTY = ("backbone.name", "backbone.model", "backbone.weights")
FOLDERS = ("results_dir", "hardware.feature_cache_dir", "cost.results_dir")
"""Folders that are written to, and made where they are not there."""

T = TypeVar("T")


class Seen:
    """What was looked at already: the configs of a sweep ask for much of the same."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, ...], Any] = {}

    def __call__(self, look: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        """What ``look`` gives or raises; it is called once for equal arguments."""
        key = (look.__qualname__, repr(arguments), repr(keywords))
        if key not in self._answers:
            try:
                self._answers[key] = (look(*arguments, **keywords), None)
            except Exception as error:
                self._answers[key] = (None, error)
        answer, raised = self._answers[key]
        if raised is not None:
            raise raised
        result: T = answer
        return result


def check(config: RunConfig) -> None:
    """Raise every problem at once.

    Raises:
        ConfigError: with all of them.
    """
    if found := list(problems(config)):
        raise ConfigError(found)


def problems(
    config: RunConfig, seen: Seen | None = None, elsewhere: bool = False
) -> Iterator[Problem]:
    """Each problem of ``config``, cheap checks first.

    Args:
        config: what is asked for.
        seen: what configs before it asked for.
        elsewhere: it will run on another machine, so that GPU, data and weights of this one say
            nothing.
    """
    seen = seen or Seen()
    yield from quick_problems(config)
    if not elsewhere:
        yield from _device(config)
        yield from _data(config, seen)
    yield from _method_and_backbone(config, seen)
    if not elsewhere:
        yield from _weights(config, seen)


def quick_problems(config: RunConfig) -> Iterator[Problem]:
    """Those that are found without importing torch."""
    if not config.data.name:  # a cost card knows no data
        yield Problem("data.name=", "is empty", "type data.name=...")
    yield from _values(config)
    yield from _borrowed_name(config)
    yield from _task(config)


def data_problems(config: RunConfig) -> Iterator[Problem]:
    """As :func:`problems`, of what is read where data are only looked at; nothing is opened."""
    yield from _values(config)
    yield from _background(config)


def quick_measurement_problems(config: RunConfig) -> Iterator[Problem]:
    """As :func:`quick_problems`, where the cost of a method is measured."""
    yield from _values(config)
    yield from _cost(config)


def measurement_problems(
    config: RunConfig, seen: Seen | None = None, elsewhere: bool = False
) -> Iterator[Problem]:
    """As :func:`problems`, of what is read where the cost of a method is measured.

    A method that is not defined on the backbone is no problem there, but the answer.
    """
    seen = seen or Seen()
    from vpeft_bench.backbones.load import check_model, outline
    from vpeft_bench.methods.registry import build_method

    yield from quick_measurement_problems(config)
    if not elsewhere:
        yield from _device(config)
    options = dict(config.method)
    try:
        build_method(options.pop("name"), options)
    except MethodOptionError as error:
        yield from error.problems
    backbone = config.backbone
    if unbuildable := seen(check_model, backbone.model):
        yield from unbuildable
        return
    try:
        seen(outline, backbone.model, backbone.image_size, **backbone.model_args)
    except UnsupportedBackboneError:
        return
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        yield Problem(f"backbone={backbone.name}", f"timm cannot build {backbone.model}: {error}")


def _cost(config: RunConfig) -> Iterator[Problem]:
    """Numbers of a measurement that do not fit each other."""
    cost, size = config.cost, config.cost.image_size
    if cost.blocks >= 1 and cost.steps % cost.blocks:
        yield Problem(
            f"cost.steps={cost.steps}",
            f"cannot be timed in cost.blocks={cost.blocks} equal blocks",
            f"cost.steps={max(1, cost.steps // cost.blocks) * cost.blocks}",
        )
    if size is not None and (len(size) != 2 or min(size) < 1):
        yield Problem(
            f"cost.image_size={size}",
            "must be height and width, pixels",
            "cost.image_size=[800,1344]",
        )
    if size is not None and config.backbone.image_size is not None:
        what = f"cost.image_size={size} decides the size already"
        yield Problem(f"backbone.image_size={config.backbone.image_size}", what, "leave one out")


def _value(config: RunConfig, key: str) -> object:
    """The value at a dotted key; None below a group that was not chosen."""
    node: object = config
    for part in key.split("."):
        node = getattr(node, part, None)
    return node


def _values(config: RunConfig) -> Iterator[Problem]:
    for key, setting in settings(RunConfig).items():
        value, low, high = _value(config, key), setting.minimum, setting.maximum
        if setting.choices and value is not None and value not in setting.choices:
            yield unknown_name(key, str(value), setting.choices)
        if not isinstance(value, int | float) or (low is None and high is None):
            continue
        if not math.isfinite(value):
            yield Problem(f"{key}={value}", "is not a finite number", f"type a number for {key}")
        elif (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low:g}" if high is None else f"between {low} and {high}"
            yield Problem(f"{key}={value}", "out of range", f"{key} must be {bounds}")
    yield from _texts(config)
    yield from variants.problems(config)
    milestones, epochs = config.train.milestones, config.train.epochs
    if config.train.schedule is Schedule.step and not (
        milestones and all(0 < milestone < epochs for milestone in milestones)
    ):
        yield Problem(
            f"train.milestones={milestones}",
            f"train.schedule=step needs epochs between 0 and train.epochs={epochs}",
            f"train.milestones=[{max(1, epochs * 3 // 4)}]",
        )
    if config.train.min_lr > (peak := config.train.peak_lr):
        yield Problem(
            f"train.min_lr={config.train.min_lr:g}",
            f"is larger than the peak rate, {peak:g}",
            "lower train.min_lr",
        )
    momentum = config.train.momentum
    if config.train.optimizer is not Optimizer.sgd and momentum != TrainConfig.momentum:
        what = f"has no effect: train.optimizer={config.train.optimizer.value} has none"
        yield Problem(f"train.momentum={momentum:g}", what, "leave it out; train.optimizer=sgd")
    if (
        config.hardware.precision is Precision.fp16
        and config.hardware.fused_optimizer
        and config.train.clip_norm is not None
    ):
        yield Problem(
            "hardware.precision=fp16",
            "the fused optimizer undoes the scaling of gradients after train.clip_norm is applied",
            "hardware.fused_optimizer=false",
        )


def _texts(config: RunConfig) -> Iterator[Problem]:
    """Names and places that are none."""
    if not config.method.get("name"):
        what = "has no value; the file that method= chooses must state it"
        yield Problem("method.name", what, "name: NAME")
    if config.data.reader not in READERS:
        yield READERS.unknown(config.data.reader)
    yield from (LOGGERS.unknown(name) for name in config.logger.also if name not in LOGGERS)
    for key in (*NOT_EMPTY, *FOLDERS):
        if _value(config, key) == "":
            yield Problem(f"{key}=", "is empty", f"type {key}=...")
    for key in FOLDERS:
        if (file := in_the_way(Path(str(_value(config, key))))) is not None:
            yield Problem(f"{key}={_value(config, key)}", f"{file} is a file, not a folder")


def _borrowed_name(config: RunConfig) -> Iterator[Problem]:
    """The name of another data set: results on this one would stand in its place."""
    from vpeft_bench import plugins
    from vpeft_bench.config.choices import choices_on_disk, config_dir

    name, data = config.data.name, config.data
    folders = [config_dir(), *plugins.config_folders()]
    if not any(name in choices_on_disk(folder).get("data", ()) for folder in folders):
        return
    if (data.reader, data.benchmark) != _what_is_named(name):
        what = f"is the name of data={name}, whose results would be mixed with those of this "
        what += f"data set (data.reader={data.reader} data.benchmark={data.benchmark})"
        fix = f"give it a name of its own: data.name=NAME; or choose data={name}"
        yield Problem(f"data.name={name}", what, fix)


@functools.cache
def _what_is_named(data: str) -> tuple[str, str]:
    """Reader and benchmark of the data set that ``data=NAME`` chooses; once for all jobs."""
    from vpeft_bench.config.choices import config_dir
    from vpeft_bench.data.composed import compose_data_configs

    [named] = compose_data_configs(config_dir(), [data])
    return named.reader, named.benchmark


def _device(config: RunConfig) -> Iterator[Problem]:
    """A GPU that is not there."""
    if config.hardware.accelerator == "cuda":
        import torch

        if not torch.cuda.is_available():
            yield Problem(
                f"hardware={config.hardware.name}",
                "this machine has no CUDA device",
                "hardware=cpu",
            )
    yield from _devices(config)
    yield from _float32(config)


def _devices(config: RunConfig) -> Iterator[Problem]:
    """More GPUs than there are, or a scheduler that starts several processes itself."""
    devices = config.hardware.devices
    if devices == 1:
        return
    import torch

    where = f"hardware.devices={devices}"
    if config.hardware.accelerator != "cpu" and 0 < (there := torch.cuda.device_count()) < devices:
        yield Problem(where, f"this machine has {there}", f"hardware.devices={there}, or less")
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        what = "a run starts the processes of its devices itself, and srun started several"
        yield Problem(where, what, f"srun --ntasks=1 --gpus-per-task={devices}")


def _float32(config: RunConfig) -> Iterator[Problem]:
    """TF32 where there is none, or where the environment decides about it."""
    precision, forced = config.hardware.precision, os.environ.get("NVIDIA_TF32_OVERRIDE")
    if precision is not Precision.tf32 and forced is None:
        return
    import torch

    on_gpu = config.hardware.accelerator != "cpu" and torch.cuda.is_available()
    if precision is Precision.tf32 and not on_gpu:
        what = "is arithmetic of NVIDIA GPUs, and this would run on a CPU"
        yield Problem("hardware.precision=tf32", what, "hardware.precision=fp32")
    if on_gpu and forced is not None:
        what = f"decides on TF32, whatever hardware.precision={precision.value} says"
        yield Problem(f"NVIDIA_TF32_OVERRIDE={forced}", what, "unset NVIDIA_TF32_OVERRIDE")


def _kind(config: RunConfig) -> TaskKind | None:
    """The kind of task; None for a name that is none, which is told once."""
    return TASKS.get(config.task["name"]) if config.task.get("name") in TASKS else None


def _task(config: RunConfig) -> Iterator[Problem]:
    """What does not fit the kind of task, its options among it."""
    if (kind := _kind(config)) is None:
        yield TASKS.unknown(str(config.task.get("name")))
    elif wrong := kind.option_problems(config.task):
        yield from wrong
    else:
        yield from kind.problems(config)


def _data(config: RunConfig, seen: Seen) -> Iterator[Problem]:
    from vpeft_bench.data.dataset import open_dataset

    yield from _background(config)
    if config.data.reader not in READERS:  # which is told with the values
        return
    try:
        dataset = seen(open_dataset, config.data)
    except MissingDataError as error:
        yield from error.problems
        return
    kind = _kind(config)
    if kind is not None and not kind.accepts(dataset):
        yield Problem(
            f"task={kind.name}",
            f"{config.data.name} is a data set for {dataset.task}",
            f"task={dataset.task} (by itself where it is not typed)",
        )
        return
    try:
        dataset, _ = few_of_each(dataset, trained_split(config), config.data.per_class, config.seed)
    except ConfigError as error:
        yield from error.problems
        return
    for option, instead in _batch_norms(config):
        pictures = len(dataset.split(trained_split(config)))
        size = config.train.batch_size
        if 1 in (size, pictures % max(1, size)):
            # Two at least, and none left over.
            fits = next((n for n in range(max(2, size), pictures + 2) if pictures % n != 1), 2)
            yield Problem(
                option,
                f"of {pictures} pictures in batches of {size} one is alone, and has no deviation",
                f"train.batch_size={fits}, or {instead}",
            )
    yield from part_problems(config, dataset)
    if kind is not None:
        yield from kind.data_problems(config, dataset)


def _background(config: RunConfig) -> Iterator[Problem]:
    """A colour that is none, or that nothing is drawn on."""
    from vpeft_bench.data.pictures import COLOURS, parse_colour

    background = config.data.background
    if background is None:
        return
    where = f"data.background={background}"
    if config.data.reader in RENDERED:
        yield Problem(where, f"has no effect: {config.data.name} is rendered", "leave it out")
    try:
        parse_colour(background)
    except ValueError:
        close = nearest(background.lower(), COLOURS)
        fix = [f"did you mean data.background={close}"] if close else []
        fix.append("a name, e.g. data.background=white, or 'data.background=\"#rrggbb\"'")
        yield Problem(where, "is no opaque colour", "\n".join(fix))


def part_problems(config: RunConfig, dataset: Dataset) -> Iterator[Problem]:
    """Batches that cannot be computed in parts: one after another, or on several devices."""
    hardware, kind = config.hardware, _kind(config)
    keys = [key for key in ("accumulate", "devices") if getattr(hardware, key) > 1]
    for key in keys:
        where = f"hardware.{key}={getattr(hardware, key)}"
        if kind is not None and not kind.in_parts:
            what = f"the loss of {kind.name} compares all pictures of a batch"
            yield Problem(where, what, f"hardware.{key}=1, and a smaller train.batch_size")
        for option, instead in _batch_norms(config):
            if key == "accumulate":
                what = f"has no effect on the statistics of a batch, which {option} trains with"
                yield Problem(where, what, f"hardware.accumulate=1, or {instead}")
    pictures = len(dataset.split(trained_split(config)))
    largest, parts = min(config.train.batch_size, pictures), hardware.accumulate * hardware.devices
    smallest = pictures % config.train.batch_size or largest
    if smallest < hardware.devices <= largest:
        for option, instead in _batch_norms(config):
            where = f"hardware.devices={hardware.devices}"
            what = f"the last batch has {smallest} pictures, and {option} needs some of each device"
            yield Problem(where, what, f"hardware.devices={smallest}, or {instead}")
    if parts > largest:
        where = " ".join(f"hardware.{key}={getattr(hardware, key)}" for key in keys)
        fix = " times ".join(f"hardware.{key}" for key in keys) + f": {largest} or less"
        yield Problem(where, f"a batch has {largest} pictures, and {parts} parts", fix)
    scored = evaluated_split(config.protocol.name)
    if hardware.devices > (images := len(dataset.split(scored))):
        what = f"the {scored} split has {images} pictures, and each device scores some"
        yield Problem(f"hardware.devices={hardware.devices}", what, f"hardware.devices={images}")


def _batch_norms(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What trains with statistics of a batch, and what to type for something that does not."""
    from vpeft_bench.methods.registry import method_class

    if (kind := _kind(config)) is not None:
        yield from kind.batch_norms(config)
    name = config.method["name"]
    with contextlib.suppress(MethodOptionError):  # an unknown one is reported where it is built
        if method_class(name).batch_statistics:
            yield f"method={name}", "another method"


def _method_and_backbone(config: RunConfig, seen: Seen) -> Iterator[Problem]:
    from vpeft_bench.backbones.load import check_model, outline
    from vpeft_bench.methods.registry import build_method

    method = None
    options = dict(config.method)
    name = options.pop("name")
    try:
        method = build_method(name, options)
    except MethodOptionError as error:
        yield from error.problems

    kind = _kind(config)
    backbone = config.backbone
    if unbuildable := seen(check_model, backbone.model):
        yield from unbuildable
        return
    try:
        outlined = seen(outline, backbone.model, backbone.image_size, **backbone.model_args)
        if method is not None:
            method.check(outlined)
            if kind is not None and (reason := kind.method_refusal(config, method)):
                yield IncompatibleProblem(
                    f"method={name} task={kind.name}",
                    f"is not offered: {reason}",
                    f"a method for {kind.name}: python -m vpeft_bench methods",
                )
        if kind is not None:
            yield from kind.backbone_problems(config, outlined)
    except UnsupportedBackboneError as error:
        yield IncompatibleProblem(f"method={name} backbone={backbone.name}", str(error))
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        yield Problem(f"backbone={backbone.name}", f"timm cannot build {backbone.model}: {error}")


def _weights(config: RunConfig, seen: Seen) -> Iterator[Problem]:
    from vpeft_bench.backbones.load import check_model
    from vpeft_bench.backbones.weights import check_weights

    if not seen(check_model, config.backbone.model):
        yield from seen(check_weights, config.backbone.weights, config.backbone.model)
