"""The cost card: what one method costs on one backbone and one device, by one protocol.

One JSON file per measurement. As in a run record, whatever was not measured is null, never 0.
Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from vpeft_bench.errors import Problem
from vpeft_bench.records import strict_json
from vpeft_bench.records.environment import Git, require_utc
from vpeft_bench.records.run_record import Parameters
from vpeft_bench.records.strict_json import require_no_negative
from vpeft_bench.records.upgrades import with_method_facts

SCHEMA_VERSION = 2
CARD_NAME = "card.json"


class CardStatus(StrEnum):
    """How a measurement ended."""

    OK = "ok"
    OOM = "oom"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of a step, from blocks of steps.

    Attributes:
        median: milliseconds per step, over the blocks.
        low: first quartile, milliseconds.
        high: third quartile, milliseconds.
        blocks: milliseconds per step of every block, in the order they were timed.
        images_per_second: batch size over the median.
    """

    median: float
    low: float
    high: float
    blocks: list[float]
    images_per_second: float

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_no_negative(self)

    @property
    def interquartile_range(self) -> float:
        """Milliseconds."""
        return self.high - self.low


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one image; a multiplication and an addition are two.

    Attributes:
        forward: of the network with the method placed.
        training_step: forward and backward.
        closed_form: forward of the plain backbone by its formula; null where there is none.
        plain: forward of the plain backbone, counted as ``forward`` is.
    """

    forward: int
    training_step: int
    plain: int
    closed_form: int | None

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_no_negative(self)


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step at its peak.

    Attributes:
        allocated: peak of the accelerator's allocated memory; null on a CPU.
        reserved: peak of what its allocator holds; null on a CPU.
        resident_growth: on a CPU: growth of the process's resident memory from before the model was
            built to the peak of the measured steps; null on an accelerator, or where the system
            does not tell.
        weights: parameters and buffers.
        gradients: gradients of the trained parameters.
        optimizer_state: what the optimizer keeps.
        activations: the peak less the three above: activations and temporaries, on a CPU also the
            libraries' own working memory.
        saved_for_backward: bytes of the tensors that autograd keeps between forward and backward,
            parameters not counted, each storage once: exact, for this device, precision and
            attention kernel (dropout keeps another mask on a CPU).
    """

    allocated: int | None
    reserved: int | None
    resident_growth: int | None
    weights: int
    gradients: int
    optimizer_state: int
    activations: int | None
    saved_for_backward: int

    def __post_init__(self) -> None:
        """Refuse a split that does not add up."""
        require_no_negative(self, "weights", "gradients", "optimizer_state", "saved_for_backward")
        if (self.peak is None) != (self.activations is None):
            raise ValueError("activations are known exactly where there is a peak")
        parts = self.weights + self.gradients + self.optimizer_state + (self.activations or 0)
        if self.peak is not None and parts != self.peak:
            raise ValueError(f"the parts sum up to {parts} bytes, the peak is {self.peak}")

    @property
    def peak(self) -> int | None:
        """Allocated memory where the device counts it, else the growth of resident memory."""
        return self.allocated if self.allocated is not None else self.resident_growth


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        image_size: height and width of the pictures, pixels.
        parameters: numbers of parameters.
        stored_bytes: tensors of the delta checkpoint, bytes.
        flops: operations of one image.
        training_step: forward, backward and optimizer.
        inference: with the method as it is attached.
        inference_merged: with the method folded into the backbone; null where it cannot be.
        merge_refusal: why it cannot be merged.
        memory: of a training step.
        training_joules_per_image: energy that the device reports; null where it reports none.
        energy_note: why the energy is null.
    """

    image_size: list[int]
    parameters: Parameters
    stored_bytes: int
    flops: Flops
    training_step: Timing
    inference: Timing
    inference_merged: Timing | None
    merge_refusal: str | None
    memory: Memory
    training_joules_per_image: float | None
    energy_note: str | None

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_no_negative(self)


@dataclass(frozen=True)
class Device:
    """Where it was measured.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        name: the accelerator's or processor's name.
        threads: threads the tensor library computed with.
        driver: of the accelerator; null on a CPU or where it is not told.
        power_limit_watts: of the accelerator; null where it is not told.
        busy: what else used the device when the measurement began; null where nothing did.
    """

    kind: str
    name: str
    threads: int
    driver: str | None
    power_limit_watts: float | None
    busy: str | None

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_no_negative(self)


@dataclass(frozen=True)
class CardWhere:
    """Circumstances of the measurement.

    Attributes:
        versions: installed version by distribution name.
        git: the package's checkout; null outside one.
        hostname: the machine.
        platform: operating system and architecture.
        python: version of the interpreter.
        started: ISO 8601, UTC.
        finished: ISO 8601, UTC.
        device: where it was measured; null where it did not come to that.

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
    device: Device | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        require_utc(started=self.started, finished=self.finished)


@dataclass(frozen=True)
class CostCard:
    """One measurement.

    Attributes:
        card_id: names the measurement; the same request on the same device has the same one.
        status: how it ended.
        error: what ended it, in one line; null where it is ok.
        asked: the part of the configuration that was measured: ``method``, ``backbone``,
            ``hardware`` and ``cost``, JSON values only.
        measured: null unless the status is ok.
        where: its circumstances.
        labels: notices shown wherever the card is shown, such as "device in use by others".
        uncounted: options of the method that changed nothing.
        method_version: of the method, see :class:`~vpeft_bench.methods.base.Method`.
        schema_version: version of this structure.

    Raises:
        ValueError: a card that is ok has an error or no measurement, or another has no error.
    """

    card_id: str
    status: CardStatus
    error: str | None
    asked: dict[str, Any]
    measured: Measured | None
    where: CardWhere
    labels: list[str] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    method_version: int = 1
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse what cannot be true."""
        if self.status is CardStatus.OK:
            if self.error is not None or self.measured is None:
                raise ValueError("the status is ok, yet there is an error or no measurement")
        elif not self.error or self.measured is not None:
            raise ValueError(
                f"the status is {self.status}: an error and no measurement belong to it"
            )


class FoundCards(NamedTuple):
    """What lay below some directories.

    Attributes:
        cards: every readable card with its path, sorted by path.
        problems: every file or directory that could not be read.
    """

    cards: list[tuple[Path, CostCard]]
    problems: list[Problem]


def write(card: CostCard, path: Path) -> None:
    """Write a card, whole or not at all.

    Raises:
        RecordError: `read` would refuse the file.
        OSError: the file cannot be written.
    """
    strict_json.write(card, path, _parse)


def read(path: Path) -> CostCard:
    """Read a card strictly.

    Raises:
        RecordError: the file is truncated, of another version, or holds anything else.
        OSError: the file cannot be opened.
    """
    return _parse(strict_json.read_bytes(path), path)


def find(directories: Iterable[Path]) -> FoundCards:
    """Read every card below ``directories``; damage is returned, not raised."""
    return FoundCards(*strict_json.find(directories, CARD_NAME, read))


def _parse(content: bytes, path: Path) -> CostCard:
    return strict_json.parse(CostCard, content, path, (_from_version_1,))


def _from_version_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 1 did not say which options of the method counted."""
    return with_method_facts(raw) | {"schema_version": 2}
