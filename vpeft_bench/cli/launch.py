"""From the command line to runs: check everything first, then let Hydra compose and launch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import hydra
from hydra.errors import HydraException
from rich.console import Console

from vpeft_bench import plugins
from vpeft_bench.cli.flags import Line, read_line
from vpeft_bench.cli.jobs import gathered, once_each, one_line
from vpeft_bench.cli.overrides import Checked, check_overrides
from vpeft_bench.cli.purpose import Purpose
from vpeft_bench.config.choices import config_dir
from vpeft_bench.config.identity import same_run
from vpeft_bench.config.schema import RunConfig, register_schema, trained_split
from vpeft_bench.config.sections import Protocol
from vpeft_bench.errors import (
    ConfigError,
    IncompatibleProblem,
    Problem,
    ProblemsError,
    VpeftBenchError,
    told,
)
from vpeft_bench.formats import counted
from vpeft_bench.records.run_record import RECORD_NAME, RunRecord
from vpeft_bench.runs import sweep, validation
from vpeft_bench.runs.interruption import Interrupted
from vpeft_bench.runs.rounds import Standing, Sweep, SweepJob, sweep_in_rounds
from vpeft_bench.runs.sweep import SKIPPED, Answer, Note, OneJob
from vpeft_bench.runs.validation import Seen
from vpeft_bench.terminal import Terminal, to_output

EXIT_FAILED, EXIT_WRONG_INPUT = 1, 2


@dataclass(frozen=True)
class Command:
    """A command that composes the config tree and does something with it.

    Attributes:
        purpose: decides which keys have an effect.
        ask: ``module:function`` that does one job, see :data:`vpeft_bench.runs.sweep.Ask`.
        quick_problems: what is wrong with a composed config and can be told at once.
        problems: everything wrong with it, given what was seen already and whether it will run on
            another machine.
        find: looks for the result of a config, given what was seen already and (``elsewhere``)
            whether it will run on another machine, see :data:`vpeft_bench.runs.rounds.Find`.
        identity: equal for configs that ask for the same thing.
        summarise: shows what became of the jobs of a sweep.
        interrupted: what the user should know who interrupts it.
    """

    purpose: Purpose
    ask: str
    quick_problems: Callable[[RunConfig], Iterable[Problem]]
    problems: Callable[[RunConfig, Seen, bool], Iterable[Problem]]
    find: Callable[..., Standing]
    identity: Callable[[RunConfig], Hashable]
    summarise: Callable[[Sequence[Note], Console], None]
    interrupted: str = "the same command resumes from the last whole epoch"


def main(
    arguments: Sequence[str], command: Command | None = None, folders: Sequence[Path] = ()
) -> int:
    """Do what the command line asks for, a run by default; the process's exit status.

    Args:
        arguments: of the command line.
        command: what is done with each config.
        folders: of configs, beside the one that ``--config-dir`` names.
    """
    command = command or RUN
    console = Terminal(stderr=True)
    try:
        line = replace(read_line(arguments), further_folders=folders)
        arguments, jobs = _checked(line, command, console)
        if line.plan and jobs is not None:
            from vpeft_bench.cli.plan import print_plan

            print_plan(jobs, to_output(), timed=command.purpose is not Purpose.COST)
            return 0
        went_well = _hydra(arguments, jobs, command)
    except VpeftBenchError as error:
        console.print(f"error: {error}", soft_wrap=True)
        return EXIT_WRONG_INPUT if isinstance(error, ProblemsError) else EXIT_FAILED
    except HydraException as error:  # of its own config, such as a launcher's arguments
        console.print(f"error: {one_line(error)}", soft_wrap=True)
        return EXIT_WRONG_INPUT
    except BrokenPipeError:
        raise  # no failure of the disk: the reader of the output has left
    except OSError as error:
        console.print(f"error: {told(error)}", soft_wrap=True)
        return EXIT_FAILED
    except Interrupted as error:
        error.add_note(command.interrupted)
        raise
    return 0 if went_well else EXIT_FAILED


def _hydra(arguments: Sequence[str], swept: Sweep | None, command: Command) -> bool:
    """Let Hydra compose and launch; whether all of it went well.

    Args:
        arguments: in Hydra's grammar.
        swept: the jobs of a sweep over every combination.
        command: what is done with each config.

    Raises:
        VpeftBenchError: of the only job.
    """
    register_schema()
    sys.argv = [sys.argv[0], *arguments]
    job = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    # Hydra would print its errors itself, with advice on its own settings.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        one = OneJob(command.ask, swept)
        if swept is not None:
            sweep_in_rounds()
        job(plugins.Carrying(one, plugins.named()))()
    except OSError as error:
        place = sweep.NoteSweep.directory
        if place is None or place.is_dir():
            raise
        what = f"cannot be written to: {error.strerror or error}"
        raise VpeftBenchError(f"the sweep's folder {place} {what}") from error
    finally:  # also where a launcher gave up because one of its jobs was killed
        failed = sweep.summarise(command.summarise)
    if one.error is not None:
        raise one.error
    return failed == 0 and (one.answer is None or one.answer.went_well)


# ---- looking before anything runs ----------------------------------------------------------------


def _checked(line: Line, command: Command, console: Console) -> tuple[list[str], Sweep | None]:
    """The arguments for Hydra, in its grammar, of a command line that has no problem.

    Returns:
        They, and the jobs of a sweep over every combination, or of a plan.

    Raises:
        ConfigError: with everything wrong with the overrides. Of a sweep every combination is
            looked at; of a single run, what needs torch or the data is told when it starts.
    """
    if not line.checked:
        return [*line.flags, *line.overrides], None
    with console.status("reading the command line"):  # a second for ten combinations
        checked = check_overrides(line.overrides, line.search_path, line.multirun, command.purpose)
    jobs, axes = checked.jobs.valid, checked.jobs.axes
    problems = list(checked.problems)
    if problems or not line.prints:  # before torch is imported, which takes seconds
        quick = [(job.combination, list(command.quick_problems(job.config))) for job in jobs]
        problems += gathered(quick, axes)
    if problems:
        raise ConfigError(problems)
    arguments = [*line.flags, *checked.hydras]
    if line.plan and not checked.grid:
        what = "hydra/sweeper chooses values by what came before them, which is not known yet"
        raise ConfigError([Problem("--plan", what, "leave it out")])
    if line.prints or not (checked.grid and (checked.sweep or line.plan)):
        return [*arguments, *checked.arguments], None
    seen = Seen()
    _check_combinations(checked, command, seen, console)
    kept, repeated = once_each(checked.jobs, command.identity)
    for problem in repeated:
        console.print(f"note: {problem}", soft_wrap=True)
    arguments += [axis.override(",".join(axis.values)) for axis in kept]
    once = {axis.key: axis.values for axis in kept}
    distinct = [
        SweepJob([axis.override(job.combination[axis.key]) for axis in kept], job.config)
        for job in jobs
        if all(value in once[key] for key, value in job.combination.items())
    ]
    find = partial(command.find, elsewhere=checked.elsewhere)
    return arguments, Sweep(distinct, command.ask, find, seen)


def _check_combinations(checked: Checked, command: Command, seen: Seen, console: Console) -> None:
    """Every combination of a sweep, before its first job.

    Raises:
        ConfigError: one of the values is wrong, or nothing but incompatible choices is left.
    """
    jobs, axes = checked.jobs.valid, checked.jobs.axes
    with console.status(f"checking {counted(len(jobs), 'combination')}"):
        found = [
            (job.combination, list(command.problems(job.config, seen, checked.elsewhere)))
            for job in jobs
        ]
    problems = gathered(found, axes)
    impossible = [c for c, some in found if some and not _wrong(some)]
    if wrong := _wrong(problems):
        raise ConfigError(wrong)
    if len(impossible) == len(found):
        raise ConfigError(problems)
    for problem in problems:
        console.print(f"note: will fail: {problem}", soft_wrap=True)


def _wrong(problems: Sequence[Problem]) -> list[Problem]:
    """Those that are more than two right choices that cannot be had together."""
    return [problem for problem in problems if not isinstance(problem, IncompatibleProblem)]


# ---- runs ----------------------------------------------------------------------------------------


def ask_for_run(config: RunConfig, console: Console) -> Answer:
    """Run what a config asks for, unless its record exists.

    Raises:
        ConfigError: with everything wrong with it.
        VpeftBenchError: it failed.
    """
    validation.check(config)  # before Lightning is imported: bad input is told at once
    from vpeft_bench.cli.report import print_outcome
    from vpeft_bench.runs.run import Result, run

    outcome = run(config, console)
    answer = answer_of(config, outcome.result.value, outcome.reason, outcome.record)
    file, show = outcome.directory / RECORD_NAME, partial(print_outcome, outcome)
    well = outcome.result in (Result.DONE, Result.SKIPPED)
    return replace(answer, went_well=well, file=file, show=show)


def answer_of(config: RunConfig, result: str, reason: str, record: RunRecord | None) -> Answer:
    """What became of a run that went well, with the score of its record."""
    last = record.happened.last_epoch if record is not None else None
    metric, value = (last.headline, last.value) if last is not None else (None, None)
    optimised = value if config.protocol.name is Protocol.select else None
    return Answer(result, True, reason, None, metric, value, optimised)


def find_run(
    config: RunConfig, seen: Seen, elsewhere: bool = False, settled: Collection[str] = ()
) -> Standing:
    """Where the record of a run lies or will lie, and whether nothing is left to be done.

    Args:
        config: asks for it.
        seen: what was looked at already.
        elsewhere: it will run on another machine, whose data may not be here.
        settled: outcomes beside ``ok`` after which it is not tried again.
    """
    from vpeft_bench.runs.identified import finished, identify, why_skipped

    try:
        asked = identify(config, seen)
    except (VpeftBenchError, OSError):  # which the run tells when its turn comes
        return Standing()
    file, record = asked.directory / RECORD_NAME, finished(asked.config, asked.directory, settled)
    images = len(asked.dataset.split(trained_split(asked.config)))
    if record is None:
        return Standing(file, images=images)
    reason = why_skipped(asked.directory, record)
    return Standing(file, replace(answer_of(config, SKIPPED, reason, record), file=file), images)


def _identity(config: RunConfig) -> Hashable:
    from vpeft_bench.methods.registry import build_method

    options = dict(config.method)
    method = build_method(options.pop("name"), options)
    return same_run(replace(config, method={"name": method.name, **method.options()}))


def _summarise(notes: Sequence[Note], console: Console) -> None:
    sweep.print_summary(notes, sweep.NoteSweep.results_dir, console)


RUN = Command(
    Purpose.RUN,
    "vpeft_bench.cli.launch:ask_for_run",
    validation.quick_problems,
    validation.problems,
    find_run,
    _identity,
    _summarise,
)
