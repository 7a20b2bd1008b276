"""``python -m vpeft_bench cost``: what a method costs on a backbone and a device."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from vpeft_bench import sweep, validation
from vpeft_bench.config import RunConfig, typed
from vpeft_bench.cost import card as cards
from vpeft_bench.cost.card import CardStatus, CostCard
from vpeft_bench.cost.process import measure
from vpeft_bench.cost.request import request_of
from vpeft_bench.cost.tables import Row, card_table, sweep_table
from vpeft_bench.errors import (
    ConfigError,
    DeviceBusyError,
    Problem,
    ProblemsError,
    RecordError,
    VpeftBenchError,
)
from vpeft_bench.files import write_atomically
from vpeft_bench.flags import config_dir_flag
from vpeft_bench.launch import EXIT_FAILED, Command, SingleJob
from vpeft_bench.launch import main as launch
from vpeft_bench.purpose import Purpose
from vpeft_bench.terminal import Terminal

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
class Outcome:
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


def ask(config: RunConfig, console: Console) -> Outcome:
    """Measure what ``config`` asks for, unless its card exists.

    Raises:
        ConfigError: with everything wrong with it.
    """
    if found := list(validation.measurement_problems(config)):
        raise ConfigError(found)
    request = request_of(config)
    path = request.card_path(_device_name(config.hardware.accelerator))
    if not config.rerun and (kept := _kept(path, config.cost.allow_busy)):
        return Outcome(Result.KEPT, kept, path)
    what = f"{request.method['name']} on {request.backbone.name}"
    console.print(f"measuring {what} in a process of its own")
    try:
        card = measure(request, path)
    except DeviceBusyError as error:
        return Outcome(Result.BUSY, reason=str(error))
    except OSError as error:
        where = f"cost.results_dir={config.cost.results_dir}"
        raise ConfigError([Problem(where, f"cannot be written to: {error}")]) from error
    result = Result.MEASURED if card.status is CardStatus.OK else Result(card.status.value)
    return Outcome(result, card, path, card.error or "")


def _identity(config: RunConfig) -> Hashable:
    """A card that is measured anew is another one each time."""
    request = request_of(config)
    return repr(request) if config.rerun else (request.card_id(""), request.cost.results_dir)


def _device_name(accelerator: str) -> str:
    from vpeft_bench.cost.device import device_name

    return device_name(accelerator)


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


def _task(config: DictConfig) -> None:
    """One job of Hydra."""
    console = Terminal()
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        job = sweep.Job(Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task))
        _measure_job(job, config, console)
        return
    try:
        SingleJob.exit_status = _show(ask(typed(config), console), console)
    except VpeftBenchError as error:  # a message for the user; Hydra would show a traceback
        SingleJob.error = error


def _show(outcome: Outcome, console: Console) -> int:
    if outcome.result is Result.KEPT:
        console.print("kept: a card of this request exists; rerun=true measures again")
    if outcome.card is not None and outcome.card.measured is not None:
        console.print(card_table(outcome.card))
    else:
        console.print(f"{outcome.result.value}: {outcome.reason}", soft_wrap=True)
    if outcome.path is not None:
        console.print(f"card: {outcome.path}", soft_wrap=True)
    return 0 if outcome.result in ANSWERED else EXIT_FAILED


def _measure_job(job: sweep.Job, config: DictConfig, console: Console) -> None:
    """One combination of a sweep; whatever goes wrong, the next one gets its turn."""

    def note(name: str, outcome: dict[str, Any]) -> None:
        content = json.dumps({"overrides": job.overrides, **outcome}, indent=1)
        write_atomically(job.directory / name, content.encode())

    job.directory.mkdir(parents=True, exist_ok=True)
    note(sweep.JOB, {"result": "died", "reason": "the process ended abruptly", "card": None})
    try:
        outcome = ask(typed(config), console)
    except KeyboardInterrupt:
        note(sweep.NOTE, {"result": "failed", "reason": "interrupted", "card": None})
        raise
    except Exception as error:  # one failed measurement must not cost the others
        problems = error.problems if isinstance(error, ProblemsError) else ()
        reason = "; ".join(f"{p.where}: {p.what}" for p in problems) or str(error)
        outcome = Outcome(Result.FAILED, reason=reason)
    if outcome.result not in (Result.MEASURED, Result.KEPT):
        console.print(f"{outcome.result.value}: {outcome.reason}", soft_wrap=True)
    path = str(outcome.path) if outcome.path else None
    note(sweep.NOTE, {"result": outcome.result, "reason": outcome.reason, "card": path})


def _summarise() -> int:
    """Show what became of every measurement of the sweep, if there was one."""
    if sweep.NoteSweep.directory is None:
        return 0
    console = Terminal()
    notes = sweep.read_notes(sweep.NoteSweep.directory)
    rows = [
        Row(
            note["overrides"],
            note["result"],
            note["reason"],
            cards.read(Path(note["card"])) if note["card"] else None,
        )
        for note in notes
    ]
    if rows:
        console.print(sweep_table(rows))
    paths = [Path(note["card"]) for note in notes if note["card"]]
    if paths:
        below = os.path.commonpath([path.parents[3] for path in paths])
        console.print(f"cards: {below}", soft_wrap=True)
    return 0 if all(note["result"] in ANSWERED for note in notes) else 1


COST = Command(
    Purpose.COST,
    _task,
    validation.quick_measurement_problems,
    validation.measurement_problems,
    _identity,
    _summarise,
    "the measurement was dropped, cards are whole",
)
