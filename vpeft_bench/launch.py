"""From the command line to runs: check everything first, then let Hydra compose and launch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from vpeft_bench import sweep
from vpeft_bench.choices import config_dir
from vpeft_bench.config import RunConfig, register_schema, typed
from vpeft_bench.errors import ConfigError, Problem, ProblemsError, VpeftBenchError
from vpeft_bench.interruption import Interrupted, interruptible
from vpeft_bench.overrides import check_overrides
from vpeft_bench.purpose import Purpose

EXIT_FAILED, EXIT_WRONG_INPUT = 1, 2


@dataclass(frozen=True)
class Command:
    """A command that composes the config tree and does something with it.

    Attributes:
        purpose: decides which keys have an effect.
        task: one job of Hydra; a function of a module, for launchers to find it elsewhere.
        problems: everything wrong with a composed config.
        summarise: shows what became of a sweep, if there was one; 0 if it all went well, else 1.
        interrupted: what the user should know who interrupts it.
    """

    purpose: Purpose
    task: Callable[[DictConfig], Any]
    problems: Callable[[RunConfig], Iterable[Problem]]
    summarise: Callable[[], int]
    interrupted: str = "the same command resumes from the last whole epoch"


class SingleJob:
    """What the one job of this process left; Hydra itself hands the task's answer to nobody."""

    exit_status = 0
    error: VpeftBenchError | None = None


def main(arguments: Sequence[str], command: Command | None = None) -> int:
    """Do what the command line asks for, a run by default; the process's exit status."""
    command = command or RUN
    console = Console(stderr=True, highlight=False)
    try:
        with interruptible():
            if not _only_prints(arguments):
                _check(arguments, command)
            register_schema()
            sys.argv = [sys.argv[0], *arguments]
            job = hydra.main(
                version_base="1.3", config_path=str(config_dir()), config_name="config"
            )
            try:
                job(command.task)()
            finally:  # also where a launcher gave up because one of its jobs was killed
                swept = command.summarise()
            if SingleJob.error is not None:
                raise SingleJob.error
    except VpeftBenchError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return EXIT_WRONG_INPUT if isinstance(error, ProblemsError) else EXIT_FAILED
    except Interrupted as error:
        with contextlib.suppress(OSError):  # after SIGHUP there may be no terminal left
            console.print(f"{error}; {command.interrupted}")
        return error.exit_status
    return max(SingleJob.exit_status, swept)


def _only_prints(arguments: Sequence[str]) -> bool:
    """Hydra's own flags that show something and run nothing."""
    flags = (
        "--cfg",
        "-c",
        "--info",
        "-i",
        "--hydra-help",
        "--version",
        "--shell-completion",
        "-sc",
    )
    return any(argument.split("=")[0] in flags for argument in arguments)


def _check(arguments: Sequence[str], command: Command) -> None:
    """Report everything wrong with the overrides at once.

    Raises:
        ConfigError: with every problem; for a single job also those that only the composed config
            shows, so that one look is enough.
    """
    flags = get_args_parser().parse_args(list(arguments))
    search_path = [str(Path(flags.config_dir).absolute())] if flags.config_dir else []
    checked = check_overrides(flags.overrides, search_path, flags.multirun, command.purpose)
    if not checked.problems:
        return
    problems = list(checked.problems)
    if checked.config is not None:
        problems += command.problems(typed(checked.config))
    raise ConfigError(problems)


def _task(config: DictConfig) -> Any:
    """One job of Hydra: a single run, or one of a sweep."""
    console = Console(highlight=False)
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        job = sweep.Job(Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task))
        return sweep.run_job(job, config, console)
    try:
        SingleJob.exit_status = _run_once(typed(config), console)
    except VpeftBenchError as error:  # a message for the user; Hydra would show a traceback
        SingleJob.error = error
    return None


def _run_once(config: RunConfig, console: Console) -> int:
    from vpeft_bench import validation

    validation.check(config)  # before Lightning is imported: bad input is told at once
    from vpeft_bench.report import print_outcome
    from vpeft_bench.run import Result, run

    outcome = run(config, console)
    print_outcome(outcome, console)
    return 0 if outcome.result in (Result.DONE, Result.SKIPPED) else EXIT_FAILED


def _problems(config: RunConfig) -> Iterable[Problem]:
    from vpeft_bench import validation

    return validation.problems(config)


RUN = Command(Purpose.RUN, _task, _problems, sweep.summarise)
