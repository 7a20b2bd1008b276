"""How far a sweep is, in one line now and then: how many of its jobs have ended, and how long the
others will take.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vpeft_bench.errors import RecordError
from vpeft_bench.formats import counted, duration
from vpeft_bench.runs.sweep import BUSY, NOTE, Note, read_note

EVERY = 30.0
"""Seconds from one line to the next, at least."""


class SweepProgress:
    """Reads the notes that jobs leave in the folder of their sweep, each once.

    Args:
        directory: of the sweep.
        jobs: of it.
    """

    def __init__(self, directory: Path, jobs: int) -> None:
        self._directory, self._jobs = directory, jobs
        self._ended: dict[frozenset[str], bool] = {}  # by overrides: whether it went well
        self._read: set[str] = set()
        self._look()
        self._before, self._began = len(self._ended), time.monotonic()

    def line(self) -> str | None:
        """How far it is; None where nothing has ended since the last line, or all has."""
        told = len(self._ended)
        self._look()
        ended = len(self._ended)
        left = self._jobs - ended
        if ended == told or not left:
            return None
        failed = ended - sum(self._ended.values())
        unwell = f", {failed} failed" if failed else ""
        seconds = (time.monotonic() - self._began) / (ended - self._before) * left
        of = f"{ended} of {counted(self._jobs, 'job')} ended{unwell}"
        return f"sweep: {of}; at this rate the others take {duration(seconds)}"

    def _look(self) -> None:
        for folder in self._directory.iterdir():
            if folder.name.isdigit() and folder.name not in self._read:
                note = self._note(folder / NOTE)
                if note is not None:
                    self._read.add(folder.name)
                    self._ended[frozenset(note.overrides)] = note.went_well

    def _note(self, path: Path) -> Note | None:
        """How a job ended; None where it has not, or another process is at it."""
        try:
            note = read_note(path)
        except (OSError, RecordError):
            return None
        return None if note.result == BUSY else note


@contextmanager
def told(directory: Path, jobs: int) -> Iterator[None]:
    """Print how far a sweep is while jobs of it run, whatever runs them and wherever.

    Args:
        directory: of the sweep.
        jobs: of it.
    """
    progress, ended = SweepProgress(directory, jobs), threading.Event()

    def tell() -> None:
        while not ended.wait(EVERY):
            with suppress(OSError):  # the server is away for a moment, or nobody reads the output
                if (line := progress.line()) is not None:
                    print(line, flush=True)  # rich writes it above the bar of a run

    thread = threading.Thread(target=tell, name="sweep progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
