"""``python -m vpeft_bench tune``: settings of methods, searched at the same budget for each."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from vpeft_bench.cli.flags import Line, config_dir_flag, read_line
from vpeft_bench.cli.jobs import Axis, Job, gathered
from vpeft_bench.cli.launch import EXIT_FAILED, RUN, Command
from vpeft_bench.cli.launch import main as launch
from vpeft_bench.cli.overrides import Checked, check_overrides
from vpeft_bench.cli.purpose import Purpose
from vpeft_bench.cli.tune_tables import print_outcome, print_plan
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.errors import ConfigError, Problem
from vpeft_bench.records.run_record import RECORD_NAME, leaderboard_command
from vpeft_bench.runs import validation
from vpeft_bench.runs.sweep import Answer, Note
from vpeft_bench.runs.validation import Seen
from vpeft_bench.terminal import Terminal
from vpeft_bench.tuning.choice import DIVERGED, REFUSED
from vpeft_bench.tuning.search import Outcome, Search
from vpeft_bench.tuning.space import at_point, fixed_problems, searchable, space_of
from vpeft_bench.tuning.variant_file import Told, file_of, place_of, write
from vpeft_bench.tuning.variant_file import problems as file_problems

USAGE = """\
usage: python -m vpeft_bench tune [-m] [method=NAME] [data=NAME] [tune.budget=8] [KEY=VALUE ...]
                                  [--plan] [--final [seed=0,1,2]]

Tries the same number of points for every method, the default configuration first: learning rate,
weight decay, and up to two options that the method declares. Each point is a run that is trained on
train and scored on val, never on test; one that was run before is not run again. The best becomes
a variant, METHOD/tuned@8, below results_dir. With -m for every combination.

flags
  --plan                 print the points and run nothing
  --final [seed=0,1,2]   then run the variant with these seeds, scored on test

keys (python -m vpeft_bench tune --cfg job prints all with their values)
  tune.budget            points for each method and data set
  tune.fixed=[train.lr]  keys that are not searched; what is typed, as method.rank=4, is not either
  tune.name              of the variant, where tuned@BUDGET is taken by another search

examples
  python -m vpeft_bench tune method=ssf data=demo/digits tune.budget=8
  python -m vpeft_bench tune -m method=lora,ssf,linear experiment=vtab1k data.root=DIR --final
"""
SEEDS = "seed=0,1,2"
OF_POINTS = ("tune", "predictions", "protocol")
"""Sections of which all points of a search have the same, but for the number of the point."""


@dataclass(frozen=True)
class Asked:
    """A command line, its own flags apart.

    Attributes:
        rest: all other arguments.
        final: the override of the seeds that run the variant; empty for the usual ones; None where
            no variant is run.
        plan: whether the points are only shown.
    """

    rest: list[str]
    final: str | None
    plan: bool


def read_flags(arguments: Sequence[str]) -> Asked:
    """Find ``--plan`` and ``--final``, wherever they stand."""
    rest: list[str] = []
    final, plan = None, False
    words = [*arguments]
    while words:
        word = words.pop(0)
        if word == "--plan":
            plan = True
        elif word == "--final":
            final = words.pop(0) if words and words[0].startswith("seed=") else ""
        else:
            rest.append(word)
    return Asked(rest, final, plan)


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Search what the command line asks for; the process's exit status.

    Args:
        arguments: what follows the command's name.
        own: a further folder of configs (``--config-dir``).

    Raises:
        ConfigError: with everything wrong with the command line.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return 0
    asked = read_flags(arguments)
    line = read_line([*config_dir_flag(own), *asked.rest])
    if line.prints or not line.checked:
        return launch([*config_dir_flag(own), *asked.rest], _command(lambda notes, console: None))
    plan = _planned(line, shlex.join(["python", "-m", "vpeft_bench", "tune", *arguments]))
    if asked.final:
        check_seeds(asked.final)
    if asked.plan:
        print_plan([search for _, search in plan.searches], Terminal())
        return 0
    status = launch([*_flags(line), *plan.points()], _command(plan.summarise))
    if not plan.outcomes or any(outcome.choice is None for outcome in plan.outcomes):
        status = status or EXIT_FAILED
    if asked.final is None:
        return status
    return max(status, plan.run_final(asked.final or plan.seeds, _flags(line)))


def _flags(line: Line) -> list[str]:
    """The flags of a sweep."""
    kept = [flag for flag in line.flags if flag not in ("--run", "--multirun")]
    return ["--multirun", *kept]


# ---- what is asked for ---------------------------------------------------------------------------


@dataclass
class Plan:
    """Every search of a command line, before and after its points were run.

    Attributes:
        checked: the command line.
        command: as it was typed.
        searches: with the overrides of each.
        typed: keys that were typed.
        seeds: the override of the seeds of final runs, where none are typed.
        outcomes: what became of the searches.
    """

    checked: Checked
    command: str
    searches: list[tuple[Job, Search]]
    typed: list[str]
    seeds: str
    outcomes: list[Outcome] = field(default_factory=list)

    def told(self, search: Search) -> Told:
        """What the variant of a search says of all data sets."""
        return Told.of(search, self.typed)

    # ---- running -------------------------------------------------------------------------------

    def points(self) -> list[str]:
        """The overrides of the sweep over all points of all searches."""
        tune = self.searches[0][1].config.tune
        axes = [axis for axis in self.checked.jobs.axes if axis.key != "tune.fixed"]
        return [
            *self.checked.hydras,
            *(axis.override(",".join(axis.values)) for axis in axes),
            "predictions=true",
            f"tune.fixed=[{','.join(tune.fixed)}]",
            f"tune.point=range({tune.budget})",
        ]

    def run_final(self, seeds: str, flags: Sequence[str]) -> int:
        """Run the variants that were found with some seeds; the exit status.

        Variants of one folder that are for the same data sets are one sweep.
        """
        chosen: dict[Path, list[Job]] = defaultdict(list)
        for (job, search), outcome in zip(self.searches, self.outcomes, strict=True):
            if outcome.choice is not None:
                chosen[file_of(search)].append(job)
        names = {file_of(search): search.name for _, search in self.searches}
        places = {file_of(search): place_of(search) for _, search in self.searches}
        sweeps: dict[tuple[Path, tuple[str, ...]], list[str]] = defaultdict(list)
        for file, jobs in chosen.items():
            sweeps[places[file], tuple(self._overrides_of(jobs))].append(names[file])
        status = 0
        for (place, overrides), variants in sweeps.items():
            line = [*self.checked.hydras, *overrides, f"variant={','.join(variants)}"]
            line += ["protocol=final", seeds]
            status = max(status, launch([*flags, *line], RUN, [place.absolute()]))
        return status

    def _overrides_of(self, jobs: Sequence[Job]) -> Iterator[str]:
        """What runs of a variant have in common with the points of these searches."""
        for axis in self.checked.jobs.axes:
            section = axis.key.partition(".")[0]
            if section not in (*OF_POINTS, "seed") and axis.key not in ("method", "variant"):
                values = dict.fromkeys(job.combination[axis.key] for job in jobs)
                yield axis.override(",".join(values))

    # ---- after it ------------------------------------------------------------------------------

    def summarise(self, notes: Sequence[Note], console: Console) -> None:
        """Show every search, and write the variants of those that came to a choice."""
        known: dict[frozenset[str], dict[int, Note]] = defaultdict(dict)
        for note in notes:
            own = [text for text in note.overrides if not _is_of_points(text)]
            number = next(t for t in note.overrides if t.startswith("tune.point="))
            known[frozenset(own)][int(number.partition("=")[2])] = note
        self.outcomes = [
            Outcome.of(search, known[_overrides(job)]) for job, search in self.searches
        ]
        for outcome in self.outcomes:
            print_outcome(outcome, console)
        groups: dict[Path, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            if outcome.choice is not None:
                groups[file_of(outcome.search)].append(outcome)
        for path, outcomes in groups.items():
            first = outcomes[0].search
            write(outcomes, self.told(first), self.command)
            use = ["--config-dir", str(place_of(first)), f"variant={first.name}"]
            console.print(f"variant:     {path}", soft_wrap=True)
            console.print(f"use:         python -m vpeft_bench {shlex.join(use)}", soft_wrap=True)
        if self.outcomes:
            place = self.outcomes[0].search.config.results_dir
            console.print(f"leaderboard: {leaderboard_command(place)}", soft_wrap=True)


def check_seeds(typed: str) -> None:
    """Whether the seeds of final runs can be run, before anything is.

    Raises:
        ConfigError: they cannot be read, or are out of range.
    """
    checked = check_overrides([typed], multirun=True)
    jobs = checked.jobs.valid
    quick = [(job.combination, validation.quick_problems(job.config)) for job in jobs]
    problems = [*checked.problems, *gathered(quick, checked.jobs.axes)]
    if problems:
        raise ConfigError([replace(p, where=f"--final {p.where}") for p in problems])


def _overrides(job: Job) -> frozenset[str]:
    """Of a job, without what all points of a search share."""
    texts = (Axis(key, (value,)).override(value) for key, value in job.combination.items())
    return frozenset(text for text in texts if not _is_of_points(text))


def _is_of_points(text: str) -> bool:
    return text.partition("=")[0].partition(".")[0] in OF_POINTS


def _planned(line: Line, command: str) -> Plan:
    """The searches of a command line that has no problem.

    Raises:
        ConfigError: with everything wrong with it.
    """
    typed = [*line.overrides]
    if not any(text.startswith("protocol=") for text in typed):
        typed.append("protocol=select")
    check = partial(check_overrides, purpose=Purpose.TUNE)
    checked, seeds = check(typed, line.search_path, line.multirun), SEEDS
    swept = next((axis for axis in checked.jobs.axes if axis.key == "seed"), None)
    if swept is not None and not any(text.startswith("seed=") for text in typed):
        # An experiment's own seeds are those of final runs; the search has the first.
        seeds = swept.override(",".join(swept.values))
        first = swept.override(swept.values[0])
        checked = check([*typed, first], line.search_path, line.multirun)
    problems = [*checked.problems, *_of_tune(checked)]
    quick = [(job.combination, [*_quick_problems(job.config)]) for job in checked.jobs.valid]
    problems += gathered(quick, checked.jobs.axes)
    if problems:
        raise ConfigError(problems)
    jobs = checked.jobs.valid
    methods = [str(job.config.method["name"]) for job in jobs]
    fixed = jobs[0].config.tune.fixed  # the same for all
    problems += fixed_problems(fixed, methods)
    keys = [axis.key.lstrip("+") for axis in checked.jobs.axes]
    own = [key for name in methods for key in searchable(name) if key in keys]
    fixed = [*dict.fromkeys([*fixed, *own])]
    searches = [
        (job, Search(replace(job.config, tune=replace(job.config.tune, fixed=fixed))))
        for job in jobs
    ]
    plan = Plan(checked, command, searches, [key for key in keys if "." in key], seeds)
    problems += _together(plan)
    if problems:
        raise ConfigError(problems)
    return plan


def _of_tune(checked: Checked) -> Iterator[Problem]:
    """What is wrong with keys of the search itself."""
    for axis in checked.jobs.axes:
        if axis.key == "tune.point":
            fix = "tune.budget=N tries the first N"
            yield Problem(axis.override(axis.values[0]), "is set for every run of a search", fix)
        elif axis.key.startswith("tune.") and len(axis.values) > 1:
            what = "is the same for all searches of a command"
            yield Problem(axis.override(",".join(axis.values)), what, "one command for each")
    if not checked.grid:
        what = "chooses values itself, and a search has points of its own"
        yield Problem("hydra/sweeper", what, "leave it out")


def _together(plan: Plan) -> Iterator[Problem]:
    """Searches that would be written in one place, or where another one lies."""
    seen: dict[tuple[Path, str], Search] = {}
    for _, search in plan.searches:
        path, data = file_of(search), search.config.data.name
        first = seen.setdefault((path, data), search)
        if first.id != search.id:
            what = f"would be several searches on {data}, which differ in what was typed"
            fix = "one command for each, with tune.name=NAME; seeds of final runs: --final seed=0,1"
            yield Problem(search.name, what, fix)
            return
    for _, search in plan.searches:
        yield from file_problems(search, plan.told(search))


def _quick_problems(config: RunConfig) -> Iterator[Problem]:
    yield from validation.quick_problems(config)
    if config.variant.name:  # of an experiment
        what = "a search makes a variant, and starts from none"
        yield Problem(f"variant={config.variant.name}", what, "variant=null")
    name = config.tune.name
    if name and not all(c.isalnum() or c in "._@+-" for c in name):
        yield Problem(f"tune.name={name}", "must be letters, digits and ._@+-", "tune.name=NAME")
    try:
        space_of(config)
    except ConfigError as error:
        yield from error.problems


# ---- one point -----------------------------------------------------------------------------------


def ask(config: RunConfig, console: Console) -> Answer:
    """Run one point of a search, unless its record exists or says that it diverged.

    Raises:
        ConfigError: with everything wrong with the search itself.
        VpeftBenchError: it failed in a way that says nothing of the point.
    """
    seen = Seen()
    if found := list(validation.problems(config, seen)):
        raise ConfigError(found)
    number = config.tune.point or 0
    point = at_point(config, number)
    if wrong := list(validation.problems(point, seen)):
        return Answer(REFUSED, True, "; ".join(f"{p.where}: {p.what}" for p in wrong))
    told = ", ".join(f"{key}={value_text(point, key)}" for key in space_of(config).keys)
    name, data = config.method["name"], config.data.name
    count = f"{number + 1} of {config.tune.budget}"
    console.print(f"{name} on {data}: point {number} ({count}): {told}", soft_wrap=True)
    from vpeft_bench.runs.run import Result, run

    outcome = run(point, console, settled=(DIVERGED,))
    record, result = outcome.record, outcome.result.value
    if outcome.result is Result.FAILED and record is not None:
        result = record.outcome
    last = record.happened.last_epoch if record is not None else None
    metric, value = (last.headline, last.value) if last is not None else (None, None)
    well = outcome.result is not Result.BUSY
    file = outcome.directory / RECORD_NAME
    return Answer(result, well, outcome.reason, file, metric, value, value)


def value_text(config: RunConfig, key: str) -> str:
    """A searched value, for a reader."""
    from vpeft_bench.tuning.space import value_at

    value = value_at(config, key)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _identity(config: RunConfig) -> Hashable:
    return RUN.identity(config), config.tune.point


def _command(summarise: Callable[[Sequence[Note], Console], None]) -> Command:
    return Command(
        Purpose.TUNE,
        "vpeft_bench.cli.tune:ask",
        validation.quick_problems,
        validation.problems,  # of the default configuration; a point may be refused by itself
        _identity,
        summarise,
        "the same command goes on from there",
    )
