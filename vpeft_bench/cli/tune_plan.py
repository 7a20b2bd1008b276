"""The searches of one command line: what is wrong with them, their runs, and what comes of them."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from vpeft_bench.cli.flags import Line
from vpeft_bench.cli.jobs import Axis, Job, gathered
from vpeft_bench.cli.launch import EXIT_FAILED, RUN, Command
from vpeft_bench.cli.launch import main as launch
from vpeft_bench.cli.overrides import Checked, check_overrides
from vpeft_bench.cli.purpose import Purpose
from vpeft_bench.cli.tune_point import find
from vpeft_bench.cli.tune_tables import print_outcome
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.errors import ConfigError, Problem
from vpeft_bench.records.run_record import leaderboard_command
from vpeft_bench.runs import validation
from vpeft_bench.runs.rounds import Sweep, SweepJob
from vpeft_bench.runs.sweep import Note
from vpeft_bench.terminal import Terminal
from vpeft_bench.tuning.hopeless import hopeless, rounds
from vpeft_bench.tuning.search import Outcome, Search
from vpeft_bench.tuning.space import TPE, Coordinates, fixed_problems, searchable, space_of
from vpeft_bench.tuning.variant_file import Told, file_of, place_of, write
from vpeft_bench.tuning.variant_file import problems as file_problems

Overrides = frozenset[str]
"""What names a search on the command line."""


SEEDS = "seed=0,1,2"
OF_POINTS = ("tune", "predictions", "protocol")
"""Sections of which all points of a search have the same, but for the number of the point."""


@dataclass
class Plan:
    """Every search of a command line, before and after its points were run.

    Attributes:
        checked: the command line.
        command: as it was typed.
        searches: with the overrides of each.
        typed: keys that were typed.
        seeds: the override of the seeds of final runs, where none are typed.
        notes: of the points' jobs, by the overrides of their search and by number.
        given_up: points that are not run, and why, likewise.
        outcomes: what became of the searches.
    """

    checked: Checked
    command: str
    searches: list[tuple[Job, Search]]
    typed: list[str]
    seeds: str
    notes: dict[Overrides, dict[int, Note]] = field(default_factory=lambda: defaultdict(dict))
    given_up: dict[Overrides, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    outcomes: list[Outcome] = field(default_factory=list)

    def told(self, search: Search) -> Told:
        """What the variant of a search says of all data sets."""
        return Told.of(search, self.typed)

    def sweep(self) -> Sweep:
        """All points whose place is known before any is run, as jobs of one sweep."""
        jobs = []
        for job, search in self.searches:
            for number in range(search.config.tune.budget):
                if search.settings(number, search.coordinates(number)):
                    tune = replace(search.config.tune, point=number)
                    config = replace(search.config, tune=tune, predictions=True)
                    jobs.append(SweepJob([*_overrides(job), f"tune.point={number}"], config))
        command = points_command(lambda notes, console: None)
        return Sweep(jobs, command.ask, partial(command.find, elsewhere=self.checked.elsewhere))

    # ---- running -------------------------------------------------------------------------------

    def run_points(self, flags: Sequence[str]) -> int:
        """Run all points of all searches, and tell what became of them; the exit status."""
        jobs, tune = [job for job, _ in self.searches], self.searches[0][1].config.tune
        try:
            if tune.sampler == TPE:
                return max(self._run_in_turn(*one, flags) for one in self.searches)
            if not tune.stop_hopeless:
                return self._run(jobs, range(tune.budget), flags)
            return max(self._run_in_rounds(some, flags) for some in self._by_variant().values())
        finally:  # also of a search that was interrupted
            if self.notes:
                self._conclude(Terminal())

    def _run(
        self,
        jobs: Sequence[Job],
        points: Iterable[int],
        flags: Sequence[str],
        at: Coordinates | None = None,
    ) -> int:
        """Run some points of the searches of ``jobs``, or one that lies ``at`` a place.

        Returns:
            the exit status.
        """
        fixed = ",".join(self.searches[0][1].config.tune.fixed)
        overrides = [
            *self.checked.hydras,
            *self._common(jobs, lambda key: key == "tune.fixed"),
            *("predictions=true", f"tune.fixed=[{fixed}]"),
            f"tune.point={','.join(map(str, points))}",
            *([] if at is None else [f"tune.at=[{','.join(map(str, at))}]"]),
        ]
        return launch([*flags, *overrides], points_command(self._note))

    def _run_in_turn(self, job: Job, search: Search, flags: Sequence[str]) -> int:
        """Run the points of one search one after another, each after what those before it gave."""
        for number in range(search.config.tune.budget):
            (outcome,) = self._outcomes([job])
            at = search.coordinates(number, outcome.points[:number])
            if at is None:  # of one before it nothing is known
                return EXIT_FAILED
            if status := self._run([job], [number], flags, at if number else None):
                return status
        return 0

    def _run_in_rounds(self, jobs: Sequence[Job], flags: Sequence[str]) -> int:
        """Run the searches of one variant, without the points that prove hopeless."""
        left = [*range(self.searches[0][1].config.tune.budget)]
        tried: list[Job] = []
        for some in rounds(jobs):
            if status := self._run(some, left, flags):
                return status
            tried += some
            if len(tried) == len(jobs):
                break
            points = [outcome.points for outcome in self._outcomes(tried)]
            worse = hopeless([[one for one in row if one.number in left] for row in points])
            left = [number for number in left if number not in worse]
            told = {n: f"worse on {len(tried)} data sets, p = {p:.3f}" for n, p in worse.items()}
            for job in jobs:
                if job not in tried:
                    self.given_up[_overrides(job)].update(told)
        return 0

    def _by_variant(self) -> dict[Path, list[Job]]:
        """The jobs that belong to one variant, by its file."""
        groups: dict[Path, list[Job]] = defaultdict(list)
        for job, search in self.searches:
            groups[file_of(search)].append(job)
        return groups

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
            sweeps[places[file], tuple(self._common(jobs, _is_not_of_final))].append(names[file])
        status = 0
        for (place, overrides), variants in sweeps.items():
            line = [*self.checked.hydras, *overrides, f"variant={','.join(variants)}"]
            line += ["protocol=final", seeds]
            status = max(status, launch([*flags, *line], RUN, [place.absolute()]))
        return status

    def _common(self, jobs: Sequence[Job], skipped: Callable[[str], bool]) -> Iterator[str]:
        """The overrides of a sweep over ``jobs``, without the keys that are skipped."""
        for axis in self.checked.jobs.axes:
            if not skipped(axis.key):
                values = dict.fromkeys(job.combination[axis.key] for job in jobs)
                yield axis.override(",".join(values))

    # ---- after it ------------------------------------------------------------------------------

    def _note(self, notes: Sequence[Note], console: Console) -> None:
        """Remember what became of points."""
        for note in notes:
            own = frozenset(text for text in note.overrides if not _is_of_points(text))
            number = next(t for t in note.overrides if t.startswith("tune.point="))
            self.notes[own][int(number.partition("=")[2])] = note

    def _outcomes(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What is known of the searches of ``jobs``."""
        return [
            Outcome.of(search, self.notes[_overrides(job)], self.given_up[_overrides(job)])
            for job, search in self.searches
            if job in jobs
        ]

    def _conclude(self, console: Console) -> None:
        """Show every search, and write the variants of those that came to a choice."""
        self.outcomes = self._outcomes([job for job, _ in self.searches])
        groups: dict[Path, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            print_outcome(outcome, console)
            if outcome.choice is not None:
                groups[file_of(outcome.search)].append(outcome)
        for path, outcomes in groups.items():
            first = outcomes[0].search
            write(outcomes, self.told(first), self.command)
            use = ["--config-dir", str(place_of(first)), f"variant={first.name}"]
            console.print(f"variant:     {path}", soft_wrap=True)
            console.print(f"use:         python -m vpeft_bench {shlex.join(use)}", soft_wrap=True)
        place = self.searches[0][1].config.results_dir
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


def _overrides(job: Job) -> Overrides:
    """Of a job, without what all points of a search share."""
    texts = (Axis(key, (value,)).override(value) for key, value in job.combination.items())
    return frozenset(text for text in texts if not _is_of_points(text))


def _is_not_of_final(key: str) -> bool:
    return _is_of_points(key) or key in ("method", "variant", "seed")


def _is_of_points(text: str) -> bool:
    return text.partition("=")[0].partition(".")[0] in OF_POINTS


def planned(line: Line, command: str) -> Plan:
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
        if axis.key in ("tune.point", "tune.at"):
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
    if config.tune.sampler == TPE:
        where = f"tune.sampler={TPE}"
        if find_spec("optuna") is None:
            yield Problem(where, "needs Optuna", "pip install 'vpeft-bench[tpe]'")
        if config.tune.stop_hopeless:
            what = "has no effect: with tpe no two data sets have the same points"
            yield Problem("tune.stop_hopeless=true", what, "leave it out; tune.sampler=sobol")
    name = config.tune.name
    if name and not re.fullmatch(r"[^\W_][\w.@+-]*", name):
        what = "must be a letter or digit, then letters, digits and ._@+-"
        yield Problem(f"tune.name={name}", what, "tune.name=NAME")
    try:
        space_of(config)
    except ConfigError as error:
        yield from error.problems


# ---- the command of one point --------------------------------------------------------------------


def _identity(config: RunConfig) -> Hashable:
    return RUN.identity(config), config.tune.point


def points_command(summarise: Callable[[Sequence[Note], Console], None]) -> Command:
    """What runs the points of searches, one job each."""
    return Command(
        Purpose.TUNE,
        "vpeft_bench.cli.tune_point:ask",
        validation.quick_problems,
        validation.problems,  # of the default configuration; a point may be refused by itself
        find,
        _identity,
        summarise,
        "the same command goes on from there",
    )
