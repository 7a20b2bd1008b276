"""A sweep, round after round, until nothing of it is left to be done: by this process or others.

Any number of processes may work on the runs of one sweep, each with a launcher of its own. A round
launches what is neither done nor held by another; what another held is looked at again after it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from vpeft_bench import kept, plugins
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.config.sections import SweepConfig
from vpeft_bench.files import write_atomically
from vpeft_bench.formats import counted
from vpeft_bench.records.run_record import CLAIM
from vpeft_bench.runs.claim import holder_of
from vpeft_bench.runs.packing import Pack, Packed, together, write_packs
from vpeft_bench.runs.sweep import (
    BUSY,
    DIED,
    DONE,
    JOB,
    PLAN,
    Answer,
    Note,
    PlannedJob,
    SweepPlan,
    last_notes,
    write_note,
)
from vpeft_bench.runs.sweep_progress import told
from vpeft_bench.runs.validation import Seen
from vpeft_bench.terminal import Terminal

POLL = 2.0
"""Seconds between two looks at what others hold."""


@dataclass(frozen=True)
class Standing:
    """Where the result of a job lies or will lie, and what is known of it before it is asked for.

    Attributes:
        file: the record or the card; None where this machine cannot know.
        answer: what asking for it would say at once, since it was done before; else None.
        images: that a run trains on, of an epoch; None where not known.
    """

    file: Path | None = None
    answer: Answer | None = None
    images: int | None = None

    @property
    def claim(self) -> Path | None:
        """What a process holds that works on it."""
        return None if self.file is None else self.file.with_name(CLAIM)


Find = Callable[[RunConfig, Seen], Standing]
"""Looks for the result of what a config asks for."""


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep: its overrides, in Hydra's grammar, and the config that they give."""

    overrides: list[str]
    config: RunConfig


@dataclass
class Sweep:
    """The jobs of a command line.

    Attributes:
        jobs: of it.
        ask: what does one, as ``module:function``.
        find: looks for the result of one.
        seen: what was looked at already.
    """

    jobs: Sequence[SweepJob]
    ask: str
    find: Find
    seen: Seen = field(default_factory=Seen)

    @cached_property
    def standings(self) -> list[Standing]:
        """What is known of each job before any is launched."""
        return [self.find(job.config, self.seen) for job in self.jobs]

    @property
    def settings(self) -> SweepConfig:
        """How its runs are handed to jobs."""
        return self.jobs[0].config.sweep

    def run(self, directory: Path, launch: Callable[[list[list[str]], int], None]) -> None:
        """Launch what is to be done, and wait for what others do.

        Args:
            directory: of the sweep.
            launch: runs jobs by their overrides; the number of the first is given.
        """
        self._write_plan(directory)
        left = [job for job, one in self._with_standings() if one.answer is None]
        number = len(left)
        for job, standing in self._with_standings():
            if standing.answer is not None:
                write_note(directory / str(number), job.overrides, standing.answer)
                number += 1
        left, first = together(left), 0
        if self.settings.detach:
            launch([job.overrides for job in left], first) if left else None
            return
        with told(directory, len(self.jobs)):
            while left:
                launch([job.overrides for job in left], first)
                first, number = number, number + len(left)
                left = self._never_begun(directory, left) or self._left_by_others(directory)

    def _never_begun(self, directory: Path, launched: Sequence[SweepJob]) -> list[SweepJob]:
        """Runs of jobs that ended before their turn came; none where no job began any."""
        notes = last_notes(directory)
        left = [job for job in launched if frozenset(job.overrides) not in notes]
        return left if len(left) < len(launched) else []

    def _left_by_others(self, directory: Path) -> list[SweepJob]:
        """What others held and have left undone; waits while they hold all that is not done."""
        notes, shown = last_notes(directory), 0
        busy = [job for job in self.jobs if _is_held(notes.get(frozenset(job.overrides)))]
        while busy:
            free, held = [], []
            for job in busy:
                note = notes[frozenset(job.overrides)]
                standing = self.find(replace(job.config, rerun=False), self.seen)
                if standing.answer is not None:
                    answer = replace(standing.answer, result=DONE, reason="by another process")
                    write_note(directory / note.place, job.overrides, answer)
                elif holder_of(Path(note.file or "").with_name(CLAIM)) is None:
                    free.append(job)
                else:
                    held.append(job)
            if free:
                return free
            if held and len(held) != shown:
                what = f"{counted(len(held), 'run')} that other processes work on"
                Terminal().print(f"waiting for {what}")
                shown = len(held)
            busy = held
            if busy:
                time.sleep(POLL)
        return []

    def _with_standings(self) -> Iterable[tuple[SweepJob, Standing]]:
        return zip(self.jobs, self.standings, strict=True)

    def _write_plan(self, directory: Path) -> None:
        planned = [
            PlannedJob(
                job.overrides,
                None if one.file is None else os.path.relpath(one.file, directory),
                str(job.config.method["name"]),
                job.config.data.name,
            )
            for job, one in self._with_standings()
        ]
        place = os.path.relpath(self.jobs[0].config.results_dir, directory)
        plan = SweepPlan(self.ask, place, planned)
        write_atomically(directory / PLAN, json.dumps(asdict(plan), indent=1).encode())


def _is_held(note: Note | None) -> bool:
    """Whether another process was at it; a device that others use holds no file."""
    return note is not None and note.result == BUSY and note.file is not None


class RoundsSweeper(Sweeper):
    """Hydra's sweeper over every combination, which launches in rounds.

    Args:
        max_batch_size: most jobs that are launched at a time; null for all.
        params: what an experiment sweeps by itself; the jobs know of it.
    """

    def __init__(self, max_batch_size: int | None, params: Any = None) -> None:
        self._most = max_batch_size

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Keep the jobs, which the function that does one of them carries."""
        self.hydra_context, self.config = hydra_context, config
        self._sweep: Sweep = task_function.function.sweep
        self._runs_per_job = self._sweep.settings.runs_per_job
        if OmegaConf.select(config, "hydra.launcher._target_") == IN_THIS_PROCESS:
            self._runs_per_job = 1  # all of them are done in one process in any case
            kept.keep()
        if self._runs_per_job > 1:
            packed = Packed(task_function.function, hydra_context, config)
            task_function = plugins.Carrying(packed, task_function.names)
        if OmegaConf.select(config, "hydra.launcher._target_") == SLURM:
            from vpeft_bench.runs.slurm import Launcher  # the extra is there

            Launcher.detach = self._sweep.settings.detach
            Plugins.instance().class_name_to_class[SLURM] = Launcher
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run what the command line asked for; ``arguments`` say the same in Hydra's grammar."""
        assert self.config is not None
        directory = Path(self.config.hydra.sweep.dir)
        directory.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, directory / "multirun.yaml")
        self._sweep.run(directory, self._launch)

    def _launch(self, jobs: list[list[str]], first: int) -> None:
        assert self.config is not None
        directory = Path(self.config.hydra.sweep.dir)
        packs = [Pack(number, [job]) for number, job in enumerate(jobs, start=first)]
        if self._runs_per_job > 1:
            packs = write_packs(directory, jobs, first, self._runs_per_job)
        most = self._most or len(packs)
        for start in range(0, len(packs), most):
            some = packs[start : start + most]
            results = self._launcher.launch([pack.runs[0] for pack in some], first + start)
            # Of jobs that go on by themselves there are no results.
            for pack, result in zip(some, results, strict=False):
                if result is None:
                    _note_lost(directory, pack)
                else:
                    _ = result.return_value  # raises what ended the job


def _note_lost(directory: Path, pack: Pack) -> None:
    """Note of runs that a job was to do that ended before it began them: nobody takes them up."""
    for number, overrides in enumerate(pack.runs, start=pack.first):
        folder = directory / str(number)
        if not (folder / JOB).exists():
            folder.mkdir(exist_ok=True)
            write_note(folder, overrides, Answer(DIED, False, "its job was cancelled, or killed"))


SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
"""Hydra's launcher for SLURM, by the name that its config has."""
IN_THIS_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
"""Hydra's own launcher, by the name that its config has."""
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
"""Hydra's own sweeper over every combination, by the name that its config has."""


def sweep_in_rounds() -> None:
    """Let Hydra sweep in rounds; by name it takes no sweeper but those of its own packages."""
    Plugins.instance().class_name_to_class[BASIC] = RoundsSweeper
