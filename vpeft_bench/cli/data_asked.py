"""What ``data check`` and ``data show`` are asked to look at: composed and checked as for a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.cli.purpose import Purpose
from vpeft_bench.config.schema import RunConfig, typed
from vpeft_bench.errors import ConfigError, Problem, ProblemsError, VpeftBenchError, told
from vpeft_bench.runs import validation

EXIT_FAILED, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """For a sub-command of ``data`` that takes overrides as a run does."""
    made = argparse.ArgumentParser(
        prog=f"python -m vpeft_bench data {command}",
        description=description,
        epilog="Any other key of the data set may follow: data.num_classes=3, data.lists.test=...",
    )
    made.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="data=NAME (python -m vpeft_bench data lists them) and data.root=DIR",
    )
    return made


def asked(overrides: Sequence[str], own: Path | None) -> RunConfig:
    """The config of a run on the data set that ``overrides`` name.

    Args:
        overrides: as typed.
        own: a further folder of configs (``--config-dir``).

    Raises:
        ConfigError: with everything wrong with them.
    """
    if not any(override.split("=")[0] in ("data", "experiment") for override in overrides):
        fix = "data=NAME; python -m vpeft_bench data lists them"
        raise ConfigError([Problem("data", "which data set is not said", fix)])
    places = [str(own)] if own else []
    checked = check_overrides(overrides, places, multirun=False, purpose=Purpose.DATA)
    config = None if checked.config is None else typed(checked.config)
    problems = list(checked.problems)
    problems += [] if config is None else validation.data_problems(config)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def answered(command: Callable[[], int]) -> int:
    """What ``command`` returns; where it raises, one message and the status that goes with it."""
    try:
        return command()
    except VpeftBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_WRONG_INPUT if isinstance(error, ProblemsError) else EXIT_FAILED
    except OSError as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
