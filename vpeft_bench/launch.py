"""From the command line to runs: check everything first, then let Hydra compose and launch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
from vpeft_bench.errors import ConfigError, ProblemsError, VpeftBenchError
from vpeft_bench.overrides import check_overrides

EXIT_FAILED, EXIT_WRONG_INPUT = 1, 2


class _SingleRun:
    """What the one run of this process left; Hydra itself hands the task's answer to nobody."""

    exit_status = 0
    error: VpeftBenchError | None = None


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; the process's exit status."""
    console = Console(stderr=True, highlight=False)
    try:
        if not _only_prints(arguments):
            _check(arguments)
        register_schema()
        sys.argv = [sys.argv[0], *arguments]
        job = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
        try:
            job(_task)()
        finally:  # also where a launcher gave up because one of its jobs was killed
            swept = sweep.summarise()
        if _SingleRun.error is not None:
            raise _SingleRun.error
    except VpeftBenchError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return EXIT_WRONG_INPUT if isinstance(error, ProblemsError) else EXIT_FAILED
    except KeyboardInterrupt:
        console.print("interrupted; the same command resumes from the last whole epoch")
        return 130
    return max(_SingleRun.exit_status, swept)


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


def _check(arguments: Sequence[str]) -> None:
    """Report everything wrong with the overrides at once.

    Raises:
        ConfigError: with every problem; for a single run also those that only the composed config
            shows, so that one look is enough.
    """
    flags = get_args_parser().parse_args(list(arguments))
    search_path = [str(Path(flags.config_dir).absolute())] if flags.config_dir else []
    checked = check_overrides(flags.overrides, search_path, flags.multirun)
    if not checked.problems:
        return
    problems = list(checked.problems)
    if checked.config is not None:
        from vpeft_bench import validation

        problems += validation.problems(typed(checked.config))
    raise ConfigError(problems)


def _task(config: DictConfig) -> Any:
    """One job of Hydra: a single run, or one of a sweep."""
    console = Console(highlight=False)
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        job = sweep.Job(Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task))
        return sweep.run_job(job, config, console)
    try:
        _SingleRun.exit_status = _run_once(typed(config), console)
    except VpeftBenchError as error:  # a message for the user; Hydra would show a traceback
        _SingleRun.error = error
    return None


def _run_once(config: RunConfig, console: Console) -> int:
    from vpeft_bench import validation

    validation.check(config)  # before Lightning is imported: bad input is told at once
    from vpeft_bench.report import print_outcome
    from vpeft_bench.run import Result, run

    outcome = run(config, console)
    print_outcome(outcome, console)
    return 0 if outcome.result in (Result.DONE, Result.SKIPPED) else EXIT_FAILED
