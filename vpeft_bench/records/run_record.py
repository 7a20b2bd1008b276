"""The record of one run: what was asked, what happened, and where.

One JSON file per run, at ``run_directory(...) / "record.json"``. A record is written whole or not
at all, read strictly, and is all that a leaderboard knows of a run. Whatever was not measured is
null, never 0.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from vpeft_bench.errors import Problem
from vpeft_bench.metric_names import METRICS
from vpeft_bench.records import strict_json
from vpeft_bench.records.data_facts import DataFacts
from vpeft_bench.records.environment import Git, require_utc
from vpeft_bench.records.strict_json import require_no_negative
from vpeft_bench.records.upgrades import with_method_facts

SCHEMA_VERSION = 7
RECORD_NAME = "record.json"
CLAIM = "run.claim"
"""Beside a record or a card, while a process works on it: :mod:`vpeft_bench.runs.claim`."""


class Status(StrEnum):
    """How a run ended."""

    OK = "ok"
    FAILED = "failed"
    OOM = "oom"
    INTERRUPTED = "interrupted"


class Split(StrEnum):
    """The images a metric was computed on."""

    TEST = "test"
    VAL = "val"


class WeightsLabel(StrEnum):
    """What kind of weights the backbone started from."""

    PRETRAINED = "pretrained"
    RANDOM = "random"
    DEMO = "demo"


@dataclass(frozen=True)
class Metrics:
    """What one model state reached.

    Attributes:
        split: the images it was computed on.
        epoch: epochs completed by then; 0 is the state before training.
        images: number of images scored.
        headline: the metric that runs on this data set are ranked by, a key of ``values``.
        values: by name, each in its unit, see ``metric_names``; null where it is not defined, such
            as an average precision where there is nothing to find.

    Raises:
        ValueError: a value lies outside the range of its metric, a count is negative, no image was
            scored, a name is unknown, or the headline has no value of its name.
    """

    split: Split
    epoch: int
    images: int
    headline: str
    values: dict[str, float | None]

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        for name, value in self.values.items():
            if name not in METRICS:
                fix = "; ".join(METRICS.unknown(name).fix.splitlines())
                raise ValueError(f"{name} is no known metric; {fix}")
            if value is not None and (wrong := METRICS.get(name).problem(value)):
                raise ValueError(f"{name} is {value}, and {wrong}")
        if self.headline not in self.values:
            raise ValueError(f"the headline {self.headline} is not among the values")
        require_no_negative(self)
        if self.images == 0:
            raise ValueError("images is 0, and nothing can be scored on none")

    @property
    def value(self) -> float | None:
        """The headline, in its unit."""
        return self.values[self.headline]


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        method: trained by the method, without the head.
        head: trained in the head.
        total: trained in all, ``method + head``.
        model: the whole model, trained or frozen.

    Raises:
        ValueError: the total is not the sum, or a number is negative.
    """

    method: int
    head: int
    total: int
    model: int

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_no_negative(self)
        if self.total != self.method + self.head:
            raise ValueError(f"total {self.total} is not method {self.method} + head {self.head}")


@dataclass(frozen=True)
class StoredBytes:
    """Sizes on disk of what a task adds to the backbone, bytes.

    Attributes:
        delta: the method's checkpoint, frozen projections and statistics included.
        head: the head's checkpoint.
    """

    delta: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_no_negative(self)


@dataclass(frozen=True)
class Seconds:
    """Wall-clock time by purpose, seconds.

    Attributes:
        data: reading and decoding the images.
        setup: building the model, loading weights, attaching the method.
        selection: the method's pass over training data before training (search included).
        features: computing the frozen features that are kept, decoding included; null where none
            are.
        train: training, without evaluation.
        eval: all evaluations.
    """

    data: float | None = None
    setup: float | None = None
    selection: float | None = None
    features: float | None = None
    train: float | None = None
    eval: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_no_negative(self)


@dataclass(frozen=True)
class FrozenFeatures:
    """Features that were computed once and kept, instead of in every epoch.

    Attributes:
        reads: their names.
        storage: ``memory`` or ``disk``.
        dtype: their number type.
        bytes: their size, training and evaluation split together.
        found: whether an earlier run had computed all of them.
    """

    reads: list[str]
    storage: str
    dtype: str
    bytes: int
    found: bool

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_no_negative(self)


@dataclass(frozen=True)
class Diverged:
    """What was no longer finite, and when.

    Attributes:
        quantity: ``loss``, ``gradient norm``, ``weight NAME``, ``output in evaluation``, or
            something computed before training.
        epoch: in which it happened, from 1; 0 before training.
        step: batch of that epoch, from 1; 0 where it was found between steps.
    """

    quantity: str
    epoch: int
    step: int

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_no_negative(self)


@dataclass(frozen=True)
class Happened:
    """What the run did; every field of a run that died early may stay null.

    Attributes:
        last_epoch: what the last epoch reached.
        selected_epoch: what the epoch reached that the validation images chose.
        curves: values after each epoch by name; null where one was not finite.
        parameters: numbers of parameters.
        stored_bytes: checkpoint sizes.
        seconds: time spent.
        train_images_per_second: training images over training seconds; where features were kept,
            what is above them.
        frozen_features: the features that were kept; null where none were.
        peak_memory_bytes: peak of allocated accelerator memory, bytes.
        peak_memory_note: why ``peak_memory_bytes`` is null.
        resumed: how often the run was taken up again after an interruption.
        train_loss: mean loss of the last epoch.
        diverged: what was no longer finite, for a run that failed by that.
        checksums: ``sha256:`` and digest, by name, of each file beside the record that it vouches
            for.
    """

    last_epoch: Metrics | None = None
    selected_epoch: Metrics | None = None
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    parameters: Parameters | None = None
    stored_bytes: StoredBytes = field(default_factory=StoredBytes)
    seconds: Seconds = field(default_factory=Seconds)
    train_images_per_second: float | None = None
    frozen_features: FrozenFeatures | None = None
    peak_memory_bytes: int | None = None
    peak_memory_note: str | None = None
    resumed: int = 0
    train_loss: float | None = None
    diverged: Diverged | None = None
    checksums: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be true: counts below 0, or curves of different lengths."""
        require_no_negative(self, "train_images_per_second", "peak_memory_bytes", "resumed")
        if len({len(values) for values in self.curves.values()}) > 1:
            raise ValueError("the curves have different lengths")


@dataclass(frozen=True)
class Weights:
    """The backbone's weights before training.

    Attributes:
        source: file or hub name they came from, and in brackets what was decided in reading it;
            null for random weights.
        fingerprint: hash of their values.
        label: what kind they are.
        identity: what of them belongs to the run's identity; null in records that did not say.
    """

    source: str | None
    fingerprint: str | None
    label: WeightsLabel
    identity: str | None = None


@dataclass(frozen=True)
class Preprocessing:
    """How an image became the backbone's input.

    Attributes:
        mean: subtracted from each channel, of images in 0 to 1.
        std: each channel is divided by it afterwards.
        interpolation: resize filter.
        image_size: height and width, pixels; null where the input has any size.
        shorter_side: pixels of the shorter side in evaluation, where the input has any size.
        longer_side: the most pixels of the longer side, where the input has any size.

    Raises:
        ValueError: it says both one size and any, or neither.
    """

    mean: list[float]
    std: list[float]
    interpolation: str
    image_size: list[int] | None
    shorter_side: int | None = None
    longer_side: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_no_negative(self)
        sides = (self.shorter_side, self.longer_side)
        if (self.image_size is None) == (None in sides):
            raise ValueError("the input has either one image_size or a shorter and a longer side")


@dataclass(frozen=True)
class Where:
    """Circumstances of the run. The first five fields come from `environment`.

    Attributes:
        versions: installed version by distribution name.
        git: the package's checkout; null outside one.
        hostname: the machine.
        platform: operating system and architecture.
        python: version of the interpreter.
        device: the accelerator's or processor's name.
        threads: threads the tensor library computed with.
        started: ISO 8601, UTC.
        finished: ISO 8601, UTC.
        data_fingerprint: hash of the data set as it was read.
        data: what was counted in it.
        weights: what the backbone started from.
        preprocessing: what the images went through.

    Raises:
        ValueError: a time is not ISO 8601 in UTC.
    """

    versions: dict[str, str]
    git: Git | None
    hostname: str
    platform: str
    python: str
    started: str
    finished: str
    device: str | None = None
    threads: int | None = None
    data_fingerprint: str | None = None
    data: DataFacts | None = None
    weights: Weights | None = None
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_utc(started=self.started, finished=self.finished)
        require_no_negative(self)


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        run_id: names the run; the same configuration with the same seed has the same one.
        config_hash: hash of the scientific configuration without its seed.
        status: how the run ended.
        error: what ended it, in one line; null for a run that is ok.
        asked: the resolved configuration, JSON values only. Leaderboards read ``data.name``,
            ``data.benchmark``, ``data.normalization``, ``backbone.name``, ``backbone`` as a whole,
            ``method.name``, the other keys of ``method`` as its options, ``protocol.name``,
            ``hardware.precision`` and ``seed``.
        happened: what the run did.
        where: its circumstances.
        labels: notices shown wherever the record is shown, such as "demo backbone".
        variant: name of the row that the run belongs to: its variant's, or the method and what of
            its options is not default; empty in records that did not say.
        uncounted: options of the method that are no part of ``config_hash``: they changed nothing.
        method_version: of the method, see :class:`~vpeft_bench.methods.base.Method`.
        schema_version: version of this structure.

    Raises:
        ValueError: a run that is ok has an error, no metrics or numbers that were not finite, or a
            failed one has no error.
    """

    run_id: str
    config_hash: str
    status: Status
    error: str | None
    asked: dict[str, Any]
    happened: Happened
    where: Where
    labels: list[str] = field(default_factory=list)
    variant: str = ""
    uncounted: list[str] = field(default_factory=list)
    method_version: int = 1
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        if self.status is Status.OK:
            if self.error is not None:
                raise ValueError("the status is ok, yet there is an error")
            if self.happened.last_epoch is None:
                raise ValueError("the status is ok, yet happened.last_epoch is null")
            if self.happened.diverged is not None:
                raise ValueError("the status is ok, yet happened.diverged says what was not finite")
        elif not self.error:
            raise ValueError(f"the status is {self.status}, yet no error says why")

    @property
    def diverged(self) -> bool:
        """Whether numbers of the run were not finite; earlier versions recorded that as ok."""
        losses = self.happened.curves.get("train_loss", [])
        return self.happened.diverged is not None or (bool(losses) and losses[-1] is None)

    @property
    def outcome(self) -> str:
        """How the run ended, in one word: its status, or ``diverged``."""
        return "diverged" if self.diverged else str(self.status)


class Found(NamedTuple):
    """What lay below some directories.

    Attributes:
        records: every readable record with its path, sorted by path.
        problems: every file or directory that could not be read.
    """

    records: list[tuple[Path, RunRecord]]
    problems: list[Problem]


def write(record: RunRecord, path: Path) -> None:
    """Write a record so that ``path`` is at any moment absent, the old file or the new one.

    Raises:
        RecordError: `read` would refuse the file, or ``asked`` holds values that are not JSON.
        OSError: the file cannot be written.
    """
    strict_json.write(record, path, _parse)


def read(path: Path | str) -> RunRecord:
    """Read a record strictly: every field present, none unknown, all of the declared types.

    Raises:
        RecordError: the file is truncated, of another schema version, or holds anything else.
        OSError: the file cannot be opened.
    """
    return _parse(strict_json.read_bytes(path), path)


def find(directories: Iterable[Path]) -> Found:
    """Read every record below ``directories``; damage is returned, not raised.

    A file that two of the directories reach is read once.
    """
    return Found(*strict_json.find(directories, RECORD_NAME, read))


def run_directory(
    results_dir: Path,
    protocol: str,
    data: str,
    backbone: str,
    method: str,
    config_hash: str,
    seed: int,
) -> Path:
    """The directory of a run; different arguments never share one.

    Every name becomes exactly one directory: a slash in it is written ``+`` (``demo/digits`` lies
    in ``demo+digits``) and characters unfit for a file name are percent-encoded.

    Raises:
        ValueError: a name is empty.
    """
    names = (protocol, data, backbone, method, config_hash)
    return results_dir.joinpath(*map(directory_name, names), f"seed{seed}")


def leaderboard_command(results_dir: str) -> str:
    """What to type, in a shell, for the leaderboard of the records below ``results_dir``."""
    place = f"./{results_dir}" if results_dir.startswith("-") else results_dir
    where = "" if results_dir == "results/runs" else f" --records {shlex.quote(place)}"
    return f"python -m vpeft_bench leaderboard{where}"


def directory_name(name: str) -> str:
    """One directory for any name; different names never share one."""
    if not name:
        raise ValueError("a run directory cannot be made of an empty name")
    # quote() leaves the dot alone, and "." and ".." are directories already.
    leading_dot = "%2E" if name.startswith(".") else ""
    return leading_dot + quote(name.removeprefix("."), safe="/").replace("/", "+")


def _from_version_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew no selection time: it was not measured, and is null."""
    happened = raw.get("happened")
    if isinstance(happened, dict) and isinstance(happened.get("seconds"), dict):
        happened["seconds"].setdefault("selection", None)
    return raw | {"schema_version": 2}


def _from_version_2(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 2 knew classification only, and had its two accuracies as fields."""
    happened = raw.get("happened")
    if isinstance(happened, dict):
        for name in ("last_epoch", "selected_epoch"):
            old = happened.get(name)
            if isinstance(old, dict):
                values = {key: old.pop(key) for key in _ACCURACIES if key in old}
                happened[name] = old | {"headline": "top1", "values": values}
    return raw | {"schema_version": 3}


def _from_version_3(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 3 computed frozen features in every epoch."""
    happened = raw.get("happened")
    if isinstance(happened, dict):
        happened.setdefault("frozen_features", None)
        if isinstance(happened.get("seconds"), dict):
            happened["seconds"].setdefault("features", None)
    return raw | {"schema_version": 4}


def _from_version_4(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 4 counted nothing in its data, and vouched for no file beside it."""
    happened, where = raw.get("happened"), raw.get("where")
    if isinstance(happened, dict):
        happened.setdefault("train_loss", None)
        happened.setdefault("diverged", None)
        happened.setdefault("checksums", {})
    if isinstance(where, dict):
        where.setdefault("data", None)
        if isinstance(where.get("weights"), dict):
            where["weights"].setdefault("identity", None)
    return raw | {"schema_version": 5}


def _from_version_5(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 5 did not say which options of the method counted."""
    return with_method_facts(raw) | {"variant": "", "schema_version": 6}


def _from_version_6(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 6 wrote the limits of an input of any size in the place of its one size."""
    asked, where = raw.get("asked"), raw.get("where")
    if isinstance(where, dict) and isinstance(old := where.get("preprocessing"), dict):
        limits = asked.get("input") if isinstance(asked, dict) else None
        sides = [limits.get(k) for k in _LIMITS] if isinstance(limits, dict) else []
        # Where both are equal it may be a square, which is the same.
        any_size = old.get("image_size") == sides and len(set(sides)) == 2
        shorter, longer = sides if any_size else (None, None)
        size = None if any_size else old.get("image_size")
        new = {"image_size": size, "shorter_side": shorter, "longer_side": longer}
        where["preprocessing"] = old | new
    return raw | {"schema_version": 7}


_LIMITS = ("test_shorter_side", "longer_side")
_ACCURACIES = ("top1", "mean_per_class_accuracy")
_UPGRADES = (
    _from_version_1,
    _from_version_2,
    _from_version_3,
    _from_version_4,
    _from_version_5,
    _from_version_6,
)


def _parse(content: bytes, path: Path | str) -> RunRecord:
    return strict_json.parse(RunRecord, content, path, _UPGRADES)
