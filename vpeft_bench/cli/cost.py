"""``python -m vpeft_bench cost``: what a method costs on a backbone and a device."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from rich.console import Console

from vpeft_bench.cli.flags import config_dir_flag
from vpeft_bench.cli.launch import Command
from vpeft_bench.cli.launch import main as launch
from vpeft_bench.cli.purpose import Purpose
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.cost.process import measure
from vpeft_bench.cost.request import Request, request_of
from vpeft_bench.cost.tables import Row, card_table, sweep_table
from vpeft_bench.errors import (
    ClaimedError,
    ConfigError,
    DeviceBusyError,
    Problem,
    RecordError,
)
from vpeft_bench.records import cost_card as cards
from vpeft_bench.records.cost_card import CardStatus, CostCard
from vpeft_bench.records.run_record import CLAIM
from vpeft_bench.runs import validation
from vpeft_bench.runs.claim import claimed
from vpeft_bench.runs.rounds import Standing
from vpeft_bench.runs.sweep import Answer, Note
from vpeft_bench.runs.validation import Seen

USAGE = """\
usage: python -m vpeft_bench cost [-m] [method=NAME] [backbone=NAME] [hardware=NAME] [KEY=VALUE ...]

Measures a method on a backbone with synthetic pictures, in a process of its own: parameters, bytes,
operations, time of training and inference, memory, energy. Writes a card below cost.results_dir.
With -m one card per combination. A card that is there is kept, unless rerun=true.

keys (python -m vpeft_bench cost --cfg job prints all with their values)
  cost.batch_size, cost.inference_batch_size, cost.warmup_steps, cost.steps, cost.blocks,
  cost.num_classes, cost.image_size, cost.allow_busy, cost.results_dir,
  method.OPTION, backbone.image_size, hardware.precision, hardware.threads, hardware.compile, ...

examples
  python -m vpeft_bench cost method=lora backbone=vit_b16 hardware=gpu
  python -m vpeft_bench cost -m method=lora,ssf,linear backbone=vit_b16,swin_b
  python -m vpeft_bench cost method=mona backbone=swin_b cost.image_size=[800,1344]
"""


class Result(StrEnum):
    """What became of a request."""

    MEASURED = "measured"
    KEPT = "kept"
    UNSUPPORTED = "unsupported"
    OOM = "oom"
    FAILED = "failed"
    BUSY = "busy"


ANSWERED = (Result.MEASURED, Result.KEPT, Result.UNSUPPORTED)
"""With these nothing went wrong: that a method is not defined on a backbone is an answer, too."""


@dataclass(frozen=True)
class MeasuredCard:
    """The answer to one request.

    Attributes:
        result: what became of it.
        card: None where the device was in use, or the request had problems.
        path: where the card lies.
        reason: why there is no measurement.
    """

    result: Result
    card: CostCard | None = None
    path: Path | None = None
    reason: str = ""


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Measure what the command line asks for; the process's exit status.

    Args:
        arguments: what follows the command's name.
        own: a further folder of configs (``--config-dir``).
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return 0
    arguments = [*config_dir_flag(own), *arguments]
    notes = "hydra.sweep.dir"
    if not any(argument.startswith(f"{notes}=") for argument in arguments):
        now = "${now:%Y-%m-%d_%H-%M-%S-%f}"
        arguments = [*arguments, f"{notes}=${{expanded:${{cost.results_dir}}}}/sweeps/{now}"]
    return launch(arguments, COST)


def ask(config: RunConfig, console: Console) -> MeasuredCard:
    """Measure what ``config`` asks for, unless its card exists.

    Raises:
        ConfigError: with everything wrong with it.
    """
    if found := list(validation.measurement_problems(config)):
        raise ConfigError(found)
    request = request_of(config)
    path = request.card_path(_device_name(config.hardware.accelerator))
    where = f"cost.results_dir={config.cost.results_dir}"
    if (answered := _answered(config, path)) is not None:
        return answered
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(path.with_name(CLAIM)):
            return _answered(config, path) or _measured(request, path, console)
    except ClaimedError as error:
        what = f"another process is measuring this: {error.holder}"
        return MeasuredCard(Result.BUSY, path=path, reason=what)
    except OSError as error:
        what = f"cannot be written to: {error}"
        raise ConfigError([Problem(where, what)]) from error


def _measured(request: Request, path: Path, console: Console) -> MeasuredCard:
    what = f"{request.method['name']} on {request.backbone.name}"
    console.print(f"measuring {what} in a process of its own")
    try:
        card = measure(request, path)
    except DeviceBusyError as error:
        return MeasuredCard(Result.BUSY, reason=str(error))
    result = Result.MEASURED if card.status is CardStatus.OK else Result(card.status.value)
    return MeasuredCard(result, card, path, card.error or "")


def find(config: RunConfig, seen: Seen, elsewhere: bool = False) -> Standing:
    """Where the card lies or will lie, and whether it answers the request already."""
    if elsewhere:  # on a device that is not here
        return Standing()
    path = request_of(config).card_path(seen(_device_name, config.hardware.accelerator))
    kept = _answered(config, path)
    return Standing(path, None if kept is None else _answer(kept))


def _identity(config: RunConfig) -> Hashable:
    """A card that is measured anew is another one each time."""
    request = request_of(config)
    return repr(request) if config.rerun else (request.card_id(""), request.cost.results_dir)


def _device_name(accelerator: str) -> str:
    from vpeft_bench.cost.device import device_name

    return device_name(accelerator)


def _answered(config: RunConfig, path: Path) -> MeasuredCard | None:
    card = None if config.rerun else _kept(path, config.cost.allow_busy)
    return None if card is None else MeasuredCard(Result.KEPT, card, path)


def _kept(path: Path, busy_will_do: bool) -> CostCard | None:
    """An earlier card that answers the request; one of a busy device only where that will do."""
    if not path.exists():
        return None
    try:
        card = cards.read(path)
    except RecordError:  # of another version, or damaged
        return None
    device = card.where.device
    usable = busy_will_do or (device is not None and device.busy is None)
    return card if card.status is CardStatus.OK and usable else None


# ---- one measurement, or one of a sweep ---------------------------------------------------------


def answer(config: RunConfig, console: Console) -> Answer:
    """One measurement, for whoever asked and for the notes of a sweep."""
    return _answer(ask(config, console))


def _answer(outcome: MeasuredCard) -> Answer:
    return Answer(
        outcome.result.value,
        outcome.result in ANSWERED,
        outcome.reason,
        outcome.path,
        show=partial(_show, outcome),
    )


def _show(outcome: MeasuredCard, console: Console) -> None:
    if outcome.result is Result.KEPT:
        console.print("kept: a card of this request exists; rerun=true measures again")
    if outcome.card is not None and outcome.card.measured is not None:
        console.print(card_table(outcome.card))
    else:
        console.print(f"{outcome.result.value}: {outcome.reason}", soft_wrap=True)
    if outcome.path is not None:
        console.print(f"card: {outcome.path}", soft_wrap=True)


def _summarise(notes: Sequence[Note], console: Console) -> None:
    """One row per measurement, and where the cards lie."""
    files = [None if note.file is None else Path(note.file) for note in notes]
    paths = [file if file is not None and file.is_file() else None for file in files]
    rows = [
        Row(note.overrides, note.result, note.reason, None if path is None else cards.read(path))
        for note, path in zip(notes, paths, strict=True)
    ]
    console.print(sweep_table(rows))
    if places := [path.parents[3] for path in paths if path is not None]:
        console.print(f"cards: {os.path.commonpath(places)}", soft_wrap=True)


COST = Command(
    Purpose.COST,
    "vpeft_bench.cli.cost:answer",
    validation.quick_measurement_problems,
    validation.measurement_problems,
    find,
    _identity,
    _summarise,
    "the measurement was dropped, cards are whole",
)
