"""The SLURM jobs of a sweep: waited for by what ``squeue`` says, or left to themselves.

submitit asks ``sacct`` whether a job has ended without a result; where a cluster keeps no accounts
it waits for ever for one that was cancelled. The queue knows of every job that can still go on.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import submitit
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from vpeft_bench.terminal import Terminal

POLL, ASK, GRACE = 1.0, 10.0, 30.0
"""Seconds between two looks for a result, and at the queue; and for which a job must be absent."""
NAME = f"{SlurmLauncher.__module__}.{SlurmLauncher.__qualname__}"


class Queue:
    """Which jobs of this user wait or run; one call for all of them, every so often."""

    def __init__(self) -> None:
        self._asked = -ASK
        self._absent: dict[str, float] = {}
        self._present: set[str] | None = None

    def has_lost(self, job: str) -> bool:
        """Whether a job has been absent for long enough; not where the queue does not answer."""
        now = time.monotonic()
        if now - self._asked >= ASK:
            self._asked, self._present = now, _jobs()
        if self._present is None or job in self._present:
            self._absent.pop(job, None)
            return False
        return now - self._absent.setdefault(job, now) >= GRACE


def _jobs() -> set[str] | None:
    """The ids in the queue, of arrays those of each job; None where it does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(done.stdout.split())


class Launcher(SlurmLauncher):  # type: ignore[misc]  # Hydra's has no types
    """Hydra's launcher, which waits by the queue.

    Attributes:
        detach: whether it returns as soon as the jobs are in the queue.
    """

    detach = False

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """Put jobs into the queue; what each returned, None for one that left without a result."""
        jobs: list[Any] = []
        submit = submitit.AutoExecutor.map_array

        def submit_only(executor: Any, function: Any, *arguments: Any) -> list[Any]:
            jobs.extend(submit(executor, function, *arguments))
            return []  # for whose results Hydra's launcher would wait

        submitit.AutoExecutor.map_array = submit_only  # type: ignore[method-assign, assignment]
        try:
            super().launch(job_overrides, initial_job_idx)
        finally:
            submitit.AutoExecutor.map_array = submit  # type: ignore[method-assign]
        if self.detach:
            return []
        queue = Queue()
        return [_waited(job, queue) for job in jobs]


def _waited(job: Any, queue: Queue) -> Any:
    """What a job returned, or None where it left the queue without a result."""
    while not _has_result(job):
        if queue.has_lost(job.job_id):
            what = "has left the queue without a result: it was cancelled, or killed"
            Terminal().print(f"SLURM job {job.job_id} {what}", soft_wrap=True)
            return None
        time.sleep(POLL)
    return job.result()


def _has_result(job: Any) -> bool:
    result = job.paths.result_pickle
    with suppress(OSError):
        return result.name in os.listdir(result.parent)  # asks the server, as a look at one may not
    return False
