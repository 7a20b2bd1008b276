"""Every problem of a command line's overrides, found before Hydra stops at the first."""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vpeft_bench import plugins
from vpeft_bench.cli.commands import COMMANDS
from vpeft_bench.cli.jobs import MOST_JOBS, Axis, Jobs, compose_jobs, one_line, unknown_key
from vpeft_bench.cli.purpose import Purpose, has_no_effect, idle_problems
from vpeft_bench.config.choices import GROUPS, config_dir, use_folders
from vpeft_bench.config.schema import PATHS, register_schema
from vpeft_bench.config.typed_text import (
    SHARED_PLACES,
    in_a_shell,
    in_hydras_grammar,
    literal,
    quoted,
)
from vpeft_bench.errors import Problem, nearest, unknown_name
from vpeft_bench.methods.hf.types import why_not_offered
from vpeft_bench.registry import with_plugins

LAUNCHER, SWEEPER = "hydra/launcher", "hydra/sweeper"
INSTALL_LAUNCHERS = "install the launchers: pip install 'vpeft-bench[joblib,slurm]'"
GRID = "basic"
"""The sweeper that runs every combination."""

_COMPOSING = (HydraException, OmegaConfBaseException, YAMLError)


@dataclass
class Checked:
    """What could be made of a command line.

    Attributes:
        problems: everything wrong with the overrides.
        jobs: those that could be composed; without problems, all of them.
        hydras: overrides of Hydra's own config, in its grammar.
        arguments: all other overrides, in Hydra's grammar.
        sweep: whether it is one.
        grid: whether every combination is run; sweepers that search choose values themselves.
        elsewhere: whether its jobs run on other machines.
    """

    problems: list[Problem] = field(default_factory=list)
    jobs: Jobs = field(default_factory=lambda: Jobs([]))
    hydras: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    sweep: bool = False
    grid: bool = True
    elsewhere: bool = False

    @property
    def config(self) -> DictConfig | None:
        """The first config, if one could be composed."""
        return self.jobs.first


def check_overrides(
    overrides: Sequence[str],
    search_path: Sequence[str] = (),
    multirun: bool = True,
    purpose: Purpose = Purpose.RUN,
) -> Checked:
    """Parse and check ``KEY=VALUE`` overrides against the config tree and its types.

    Args:
        overrides: as typed; a value may be a sweep (``a,b``).
        search_path: further config directories (``--config-dir``).
        multirun: whether a sweep was asked for (``-m``); an experiment may ask for it as well.
        purpose: what the config is for; keys that have no effect on it are refused.
    """
    use_folders(search_path)
    register_schema()
    _import_plugins_of_experiments(overrides, search_path)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        check = _Check(search_path, multirun, purpose)
        check.read(overrides)
    return check.checked


def _import_plugins_of_experiments(overrides: Sequence[str], search_path: Sequence[str]) -> None:
    """Import what the files of the chosen experiments name, before anything is looked up.

    Raises:
        ConfigError: a plug-in cannot be imported.
    """
    values = [text.partition("=")[2] for text in overrides if _key_of(text) == "experiment"]
    if not values:
        return
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        files = _files(_places(search_path))
        for name in ",".join(values).split(","):
            with suppress(*_COMPOSING):  # a file that cannot be read is told of where it is chosen
                found = files.load_config(f"experiment/{name.strip()}")
                config = None if found is None else found.config
                plugins.use(OmegaConf.select(config or OmegaConf.create(), plugins.KEY) or [])


def _places(search_path: Sequence[str]) -> list[str]:
    """Further folders of configs as an override of Hydra's."""
    folders = ",".join(quoted(f"file://{path}") for path in search_path)
    return [f"hydra.searchpath=[{folders}]"] if folders else []


class _Check:
    """One look at a command line: first what chooses files, which decide what keys there are."""

    def __init__(self, search_path: Sequence[str], multirun: bool, purpose: Purpose) -> None:
        self.checked = Checked(sweep=multirun)
        self._purpose = purpose
        self._axes: dict[str, Axis] = {}
        self._choices: dict[str, list[str]] = {}
        self._idle: list[Override] = []
        self._places = _places(search_path)

    @property
    def _fixed(self) -> list[str]:
        return [*self._places, *self.checked.hydras]

    def read(self, overrides: Sequence[str]) -> None:
        """Fill ``checked``."""
        self._read(overrides)
        self.checked.problems[:0] = idle_problems(self._idle, self._purpose)

    def _read(self, overrides: Sequence[str]) -> None:
        choosing = [text for text in overrides if _chooses_files(_key_of(text))]
        choosing.sort(key=lambda text: _key_of(text).startswith("hydra."))  # of what was chosen
        sweeps = []
        for override in self._parsed(choosing):
            sweeps += [override] * override.is_sweep_override()
            self._choose(override)
        if (config := self._main_config()) is None:
            return
        self.checked.sweep = self.checked.sweep or config.hydra.mode is RunMode.MULTIRUN
        if self.checked.sweep:  # what an experiment sweeps by itself
            own = config.hydra.sweeper.get("params") or {}
            parser = OverridesParser.create()
            swept = {k: parser.parse_override(f"{k}={v}") for k, v in own.items()}
            first = {k: Axis(k, tuple(_strings(override))) for k, override in swept.items()}
            self._axes = {**first, **self._axes}
        grid = self.checked.grid = config.hydra.runtime.choices.get(SWEEPER) == GRID
        for override in self._parsed([text for text in overrides if text not in choosing]):
            sweeps += [override] * override.is_sweep_override()
            wrong = list(_sweep_problems(override, grid))
            self.checked.problems += wrong
            if not wrong:
                key = override.get_key_element()
                self._axes[key] = Axis(key, tuple(_strings(override)))
        self._launch_problems(config, sweeps)
        axes = list(self._axes.values())
        if not (self.checked.sweep and grid):
            axes = [Axis(axis.key, axis.values[:1]) for axis in axes]
        self.checked.jobs = compose_jobs(axes, self._fixed)
        self.checked.problems += self.checked.jobs.problems

    def _parsed(self, texts: Sequence[str]) -> list[Override]:
        """The overrides among ``texts`` that can be read and have an effect."""
        parsed = []
        for text in texts:
            override = self._parse(text)
            if isinstance(override, Problem):
                self.checked.problems.append(override)
            else:
                parsed.append(override)
        idle = [override for override in parsed if has_no_effect(override, self._purpose)]
        self._idle += idle
        return [override for override in parsed if override not in idle]

    def _parse(self, text: str) -> Override | Problem:
        if not _key_of(text) or ("=" not in text and not text.startswith("~")):
            commands = COMMANDS.names()
            close = nearest(text, commands)
            fix = f"did you mean python -m vpeft_bench {close}\n" if close else ""
            fix += f"KEY=VALUE, or a sub-command: {', '.join(commands)}; --help lists the keys"
            return Problem(text, "is not an override", fix)
        try:
            read = in_hydras_grammar(text, self.checked.sweep)
            override = OverridesParser.create().parse_override(read)
        except HydraException as error:
            return _unreadable(text, error)
        override.input_line = text  # messages quote what was typed
        if not _is_hydras(override.key_or_group):
            self.checked.arguments.append(read)
        if override.package is not None:
            what = "@ moves a group to another place, and every group has its own"
            return Problem(text, what, f"{override.key_or_group}=...")
        if _key_of(text) in GROUPS and override.get_key_element() != override.key_or_group:
            fix = f"{override.key_or_group}=NAME chooses another"
            what = "is a group: it can be neither added nor taken out"
            return Problem(text, what, fix)
        return override

    # ---- what chooses files --------------------------------------------------------------------

    def _choose(self, override: Override) -> None:
        key = override.key_or_group
        if override.is_sweep_override() and _is_hydras(key):
            what = "is Hydra's own, which is the same for all jobs and cannot be swept"
            self.checked.problems.append(Problem(override.input_line or key, what))
        elif key.startswith("hydra."):
            self._set_hydras(override)
        elif not (choices := self._choices_of(key)):
            names = _files(self._fixed).get_group_options("hydra", ObjectType.GROUP)
            groups = [f"hydra/{name}" for name in names]
            fix = f"there are: {', '.join(groups)}"
            self.checked.problems.append(Problem(key, "no such group", fix))
        else:
            self._choose_from(choices, override)

    def _set_hydras(self, override: Override) -> None:
        """Take over a key of Hydra's own, if Hydra takes it."""
        text = in_hydras_grammar(override.input_line or "", sweep=False)
        try:
            chosen = [f"{a.key}={a.values[0]}" for a in self._axes.values() if a.is_group]
            compose("config", [*self._fixed, *chosen, text], return_hydra_config=True)
        except _COMPOSING as error:
            self.checked.problems.append(Problem(override.input_line or "", one_line(error)))
        else:
            self.checked.hydras.append(text)

    def _choose_from(self, choices: Sequence[str], override: Override) -> None:
        key, value = override.key_or_group, override.value()
        if isinstance(value, Glob):
            names = _matching(value, choices)
            if not names:
                problem = Problem(
                    override.input_line or key, "matches nothing", f"valid: {', '.join(choices)}"
                )
                self.checked.problems.append(problem)
        elif wrong := list(_sweep_problems(override, grid=True)):
            self.checked.problems += wrong
            return
        else:
            names = [_name(value) for value in _values(override)]
        known = [name for name in names if name in choices or (key, name) in _NULLS]
        wrong = [_unknown_choice(key, name, choices) for name in names if name not in known]
        self.checked.problems += wrong
        texts = tuple(name if (key, name) in _NULLS else literal(name) for name in known)
        if not texts:
            return
        if key.startswith("hydra/"):
            self.checked.hydras.append(f"{key}={texts[0]}")
        else:
            self._axes[key] = Axis(key, tuple(dict.fromkeys(texts)))

    def _choices_of(self, group: str) -> list[str]:
        """Choices of ``group`` anywhere on Hydra's search path, sub-folders included."""
        if group not in self._choices:
            self._choices[group] = _names_in(group, self._all_files)
        return self._choices[group]

    @functools.cached_property
    def _all_files(self) -> CachingConfigRepository:
        return _files(self._places)

    def _main_config(self) -> DictConfig | None:
        """Hydra's own part of it says how jobs are launched, and what is swept by itself."""
        chosen = [f"{a.key}={a.values[0]}" for a in self._axes.values() if len(a.values) == 1]
        try:
            return compose("config", [*self._fixed, *chosen], return_hydra_config=True)
        except _COMPOSING as error:
            fix = INSTALL_LAUNCHERS if LAUNCHER in str(error) else ""
            where = " ".join([*self.checked.hydras, *chosen]) or "config"
            self.checked.problems.append(Problem(where, " ".join(str(error).split()), fix))
            return None

    # ---- how jobs are launched -----------------------------------------------------------------

    def _launch_problems(self, config: DictConfig, sweeps: Sequence[Override]) -> None:
        """A sweep without ``-m``, and a cluster that is not there."""
        problems = self.checked.problems
        if not self.checked.sweep:
            for override in sweeps:
                fix = "add -m to run every value"
                problems.append(Problem(override.input_line or "", "is a sweep", fix))
            launcher = config.hydra.runtime.choices.get(LAUNCHER)
            if launcher not in (None, "basic"):
                what = "launches the runs of a sweep, and this is a single run"
                problems.append(Problem(f"{LAUNCHER}={launcher}", what, "add -m"))
            for key in [key for key in self._axes if key.startswith("sweep.")]:
                what = "says how a sweep is launched, and this is a single run"
                problems.append(Problem(key, what, "add -m, or leave it out"))
        target = str(config.hydra.launcher.get("_target_", ""))
        self.checked.elsewhere = target.endswith(".SlurmLauncher")
        if self.checked.elsewhere and shutil.which("sbatch") is None:
            fix = "run it on a cluster's login node, or in parallel here: hydra/launcher=joblib"
            problems.append(Problem("hardware=slurm", "this machine has no sbatch", fix))
        detach = self._axes.get("sweep.detach")
        detached = detach is not None and detach.values[0].lower() == "true"
        if detached and self.checked.sweep and not self.checked.elsewhere:
            what = "only the jobs of a cluster go on without this process"
            problems.append(Problem("sweep.detach=true", what, "leave it out, or hardware=slurm"))


# ---- reading -------------------------------------------------------------------------------------

_KEY = re.compile(r"[~+]{0,2}[\w$][\w.$@:/-]*", re.ASCII)
_NULLS = (("experiment", "null"), ("head", "null"), ("variant", "null"))
"""Groups of which nothing need be chosen."""


def _key_of(text: str) -> str:
    return text.partition("=")[0].lstrip("+~").partition("@")[0]


def _chooses_files(key: str) -> bool:
    """Whether a key is a group, or Hydra's own."""
    return key in GROUPS or _is_hydras(key)


def _is_hydras(key: str) -> bool:
    return key.startswith(("hydra.", "hydra/"))


def _unreadable(text: str, error: HydraException) -> Problem:
    key, _, value = text.partition("=")
    if not _KEY.fullmatch(key):
        return unknown_key(key, ())
    said = str(error).splitlines()[:2][-1]
    typed = in_a_shell(f"{key}={quoted(value)}")
    return Problem(text, f"cannot be read: {said}", f"to mean the text itself: {typed}")


def _values(override: Override) -> list[object]:
    """What a plain override or a sweep names; at most one more than a sweep may have."""
    if not override.is_sweep_override():
        return [override.value()]
    return list(islice(override.sweep_iterator(), MOST_JOBS + 1))


def _strings(override: Override) -> list[str]:
    """The values in Hydra's grammar, each once."""
    if override.is_delete():
        return [""]
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    value = override.value()
    if isinstance(value, IntervalSweep):  # of a sweeper that searches
        return [str(value.start)]
    return list(dict.fromkeys(islice(override.sweep_string_iterator(), MOST_JOBS + 1)))


def _name(value: object) -> str:
    text = value.text if isinstance(value, QuotedString) else value
    return "null" if text is None else str(text)


def _matching(glob: Glob, names: Sequence[str]) -> list[str]:
    """The names that a glob selects; ``*`` stays within a folder, as in a shell."""

    def fits(name: str, patterns: Sequence[str]) -> bool:
        return any(
            pattern.count("/") == name.count("/")
            and all(map(fnmatchcase, name.split("/"), pattern.split("/")))
            for pattern in patterns
        )

    return [n for n in names if fits(n, glob.include) and not fits(n, glob.exclude)]


def _files(overrides: list[str]) -> CachingConfigRepository:
    """Every config file that Hydra finds, where overrides may name further folders."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    _, files = loader._parse_overrides_and_create_caching_repo("config", overrides)
    return files


def _names_in(group: str, files: CachingConfigRepository) -> list[str]:
    names = files.get_group_options(group, ObjectType.CONFIG)
    found = [name for name in names if not name.startswith("_")]
    for folder in files.get_group_options(group, ObjectType.GROUP):
        found += [f"{folder}/{name}" for name in _names_in(f"{group}/{folder}", files)]
    return found


# ---- what is wrong -------------------------------------------------------------------------------


def _unknown_choice(group: str, name: str, choices: Sequence[str]) -> Problem:
    if group == "method" and (reason := why_not_offered(name)):
        return Problem(f"method={name}", f"is not offered: {reason}")
    problem = unknown_name(group, name, choices)
    if group == LAUNCHER:
        return replace(problem, fix=f"{problem.fix}\n{INSTALL_LAUNCHERS}")
    return with_plugins(problem) if group in GROUPS else problem


def _existing(typed: str) -> str:
    """The path that the value of an override is as it stands, if there is one."""
    path = typed.partition("=")[2]
    return path if os.path.exists(os.path.expanduser(path)) else ""


def _sweep_problems(override: Override, grid: bool) -> Iterator[Problem]:
    """Sweeps whose values cannot be listed.

    Args:
        grid: whether every combination is run; other sweepers choose values themselves.
    """
    key, typed = override.key_or_group, override.input_line or ""
    if key.startswith("sweep.") and override.is_sweep_override():
        yield Problem(typed, "is the same for all runs of a sweep", f"{key}=VALUE")
    elif key in SHARED_PLACES and override.is_sweep_override():
        yield Problem(typed, "is the place of the whole sweep", f"{key}=DIR")
    elif key in PATHS and override.is_sweep_override() and (whole := _existing(typed)):
        one = in_a_shell(f"{key}={quoted(whole)}")
        what = f"a comma separates values in a sweep, and {whole} is there"
        yield Problem(typed, what, f"to mean that one: {one}")
    elif isinstance(override.value(), Glob):
        yield Problem(typed, "only the choices of a group can be matched", f"{key}=VALUE,VALUE")
    elif override.is_interval_sweep():
        if grid:
            what = "interval(..) has no values to list: it is for sweepers that search"
            yield Problem(typed, what, f"name the values: {key}=VALUE,VALUE or {key}=range(0,3)")
    elif override.is_sweep_override() and not _values(override):
        yield Problem(typed, "names no value", f"{key}=VALUE,VALUE")
