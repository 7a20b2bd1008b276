"""Which run a config asks for, and where its files lie; and whether nothing is left to be done."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from vpeft_bench import plugins
from vpeft_bench.backbones.load import traits_of
from vpeft_bench.backbones.weights import weights_source
from vpeft_bench.config.identity import config_hash
from vpeft_bench.config.schema import RunConfig, trained_split
from vpeft_bench.config.sections import evaluated_split
from vpeft_bench.data.dataset import Dataset, open_dataset
from vpeft_bench.data.inspect_pictures import data_identity
from vpeft_bench.data.inspection import Inspection, inspect
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.shares import few_of_each
from vpeft_bench.errors import RecordError
from vpeft_bench.methods.base import Method
from vpeft_bench.methods.registry import build_method
from vpeft_bench.records import run_record as records
from vpeft_bench.records.run_record import RunRecord, Status
from vpeft_bench.runs.run_files import PREDICTIONS, altered
from vpeft_bench.runs.validation import Seen
from vpeft_bench.tasks.names import TASKS


@dataclass(frozen=True)
class Identified:
    """A run that a config asks for.

    Attributes:
        config: with every option of the method as the method itself has it.
        method: what is trained.
        dataset: as it was opened, its fingerprint that of its content; with the pictures alone that
            the run trains on in the split of that name.
        inspection: what was found in it.
        notices: what belongs beside every result on it.
        uncounted: options of the method that change nothing.
        weights: what of the weights counts.
        config_hash: names the experiment.
        directory: where the run's files lie.
    """

    config: RunConfig
    method: Method
    dataset: Dataset
    inspection: Inspection
    notices: list[str]
    uncounted: list[str]
    weights: str
    config_hash: str
    directory: Path


def identify(config: RunConfig, seen: Seen | None = None) -> Identified:
    """The run that ``config`` asks for; nothing of it is run.

    Args:
        config: has no problem.
        seen: what configs before it asked for.

    Raises:
        VpeftBenchError: data or weights cannot be read, or the data are unsound.
        OSError: likewise.
    """
    seen = seen or Seen()
    options = dict(config.method)
    method = build_method(options.pop("name"), options)
    # Every option as the method itself has it: 8 and 8.0 are the same alpha, a default is no other
    # method than its value.
    method_options = {"name": method.name, **method.options()}
    config = replace(config, method=method_options, plugins=plugins.named())
    most = config.head.max_detections if config.head else None
    evaluated = evaluated_split(config.protocol.name)
    task = str(config.task["name"])
    dataset, inspection = seen(_inspected, config.data, task, most, evaluated)
    weights = seen(_weights, config.backbone.weights, config.backbone.model)
    uncounted = method.uncounted(traits_of(config.backbone.model))
    hash_ = config_hash(config, dataset.fingerprint, weights, uncounted, method.version)
    directory = records.run_directory(
        Path(config.results_dir),
        config.protocol.name.value,
        config.data.name,
        config.backbone.name,
        method.name,
        hash_,
        config.seed,
    )
    dataset, told = few_of_each(dataset, trained_split(config), config.data.per_class, config.seed)
    return Identified(
        config,
        method,
        dataset,
        inspection,
        [*inspection.notices, *told],
        uncounted,
        weights,
        hash_,
        directory,
    )


def finished(config: RunConfig, directory: Path, settled: Collection[str] = ()) -> RunRecord | None:
    """The record of a run of which nothing is left to be done, without working on it.

    Args:
        config: asks for it.
        directory: of the run.
        settled: outcomes beside ``ok`` after which it is not tried again.
    """
    try:
        record = records.read(directory / records.RECORD_NAME)
    except (OSError, RecordError):  # none, or one that the run itself will set aside
        return None
    if config.rerun or record.outcome not in (Status.OK, *settled):
        return None
    return None if wants_predictions(config, record, directory) else record


def why_skipped(directory: Path, record: RunRecord) -> str:
    """Why a finished run is not run again, and what of it is no longer what it was."""
    reason = "a finished record exists"
    if changed := altered(directory, record):
        reason += f" ({', '.join(changed)} beside it: gone or changed since)"
    return reason


def wants_predictions(config: RunConfig, record: RunRecord, directory: Path) -> bool:
    """Whether a finished run is to store its predictions, and has none."""
    ok = record.outcome == Status.OK
    return ok and config.predictions and not (directory / PREDICTIONS).is_dir()


def _inspected(
    data: DataConfig, task: str, most: int | None, evaluated: str
) -> tuple[Dataset, Inspection]:
    dataset = open_dataset(data)
    inspectors = TASKS.get(task).inspectors()
    found = inspect(dataset, data, inspectors, max_detections=most, evaluated=evaluated)
    found.require_sound()
    return replace(dataset, fingerprint=data_identity(dataset, found)), found


def _weights(weights: str, model: str) -> str:
    return weights_source(weights, model).identity()
