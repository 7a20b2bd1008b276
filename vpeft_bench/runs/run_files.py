"""The directory of one run: which of its files are there, and which of them can be trusted."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from vpeft_bench.errors import RecordError
from vpeft_bench.files import set_aside, sha256, sweep_temporary
from vpeft_bench.records import run_record as records
from vpeft_bench.records.run_record import RunRecord, Status

DELTA = "delta.safetensors"
HEAD = "head.safetensors"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions"
VOUCHED_FOR = (DELTA, HEAD, EVALUATION)
"""What a record of a run that is ok stands for, by checksum."""


class RunFiles:
    """The files of one run; only the process that holds its claim may change them.

    Attributes:
        record, metrics, delta, head, evaluation: what stays.
        predictions: the folder of what was predicted, where that is kept.
        checkpoint: the last whole epochs of an unfinished run.
        selection: what the method's data pass decided.
        selection_state: an unfinished data pass.

    Args:
        directory: of the run.
        console: is told what is set aside.
    """

    def __init__(self, directory: Path, console: Console) -> None:
        self.directory = directory
        self.console = console
        self.record = directory / records.RECORD_NAME
        self.metrics = directory / "metrics.csv"
        self.delta = directory / DELTA
        self.head = directory / HEAD
        self.evaluation = directory / EVALUATION
        self.predictions = directory / PREDICTIONS
        self.checkpoint = directory / "last.ckpt"
        self.selection = directory / "selection.safetensors"
        self.selection_state = directory / "selection.state"

    def forget_progress(self) -> None:
        """Let the next start begin anew; a record stays until a new one replaces it."""
        for path in (self.checkpoint, self.selection, self.selection_state):
            path.unlink(missing_ok=True)

    def forget_results(self) -> None:
        """Leave no file that looks as if a record vouched for it."""
        for name in VOUCHED_FOR:
            (self.directory / name).unlink(missing_ok=True)
        self.forget_predictions()

    def forget_predictions(self) -> None:
        """Leave none of an earlier training."""
        shutil.rmtree(self.predictions, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what writers that were killed have left."""
        sweep_temporary(self.directory)

    def finished(self, settled: Collection[str] = ()) -> RunRecord | None:
        """The record, where it says that the run ended well; a damaged one is set aside.

        Earlier versions recorded runs that diverged as ok: such a record does not count.

        Args:
            settled: further outcomes after which a run is not tried again.
        """
        if not self.record.exists():
            return None
        try:
            record = records.read(self.record)
        except RecordError as error:
            self.set_aside(self.record, error.what)
            return None
        return record if record.outcome in (Status.OK, *settled) else None

    def set_aside(self, path: Path, what: str) -> None:
        """Give a file that cannot be used another name, and say so in one line."""
        reason = " ".join(what.split())
        aside = set_aside(path)
        self.console.print(
            f"{path} cannot be used ({reason}); it is kept as {aside.name}, and the run starts "
            "without it",
            soft_wrap=True,
        )


def altered(directory: Path, record: RunRecord) -> list[str]:
    """The files of a run that ``record`` vouches for and that are gone or of another size."""
    sizes = {DELTA: record.happened.stored_bytes.delta, HEAD: record.happened.stored_bytes.head}
    return [
        name
        for name in record.happened.checksums
        if not (path := directory / name).is_file()
        or (sizes.get(name) is not None and path.stat().st_size != sizes[name])
    ]


def require_unaltered(directory: Path, record: RunRecord, name: str) -> Path:
    """A file that a record vouches for, once its content is known to be what the record saw.

    Raises:
        RecordError: it is gone, or is another file now.
    """
    path = directory / name
    if not path.is_file():
        raise RecordError(path, "it is not there; rerun=true makes it again")
    expected = record.happened.checksums.get(name)
    if expected is not None and sha256(path) != expected:
        raise RecordError(path, "it is not the file that its record vouches for (checksum)")
    return path
