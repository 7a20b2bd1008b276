"""The flags of a command line, in any order and beside any sub-command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NoReturn

from vpeft_bench.cli.commands import COMMANDS
from vpeft_bench.errors import ConfigError, Problem, nearest

NOT_HERE = {
    "--config-path": "the configs are the package's own",
    "--config-name": "every run starts from config.yaml",
    "--experimental-rerun": "the same command again is the same run",
}
"""Hydra's flags that are not offered, and why."""
WITH_VALUE = ("--package", "-p", "--cfg", "-c", "--info", "-i")
USUAL = "-m, --plan, --config-dir DIR, --cfg job, --version; python -m vpeft_bench --help"


@dataclass(frozen=True)
class Line:
    """A command line, its overrides apart from its flags.

    Attributes:
        overrides: as typed.
        flags: as Hydra takes them.
        config_dir: a further folder of configs.
        further_folders: others, which nobody typed.
        multirun: whether a sweep is asked for.
        prints: whether something is shown and nothing is run.
        checked: whether the overrides matter at all.
        plan: whether it is told what would be run, and nothing is.
    """

    overrides: Sequence[str] = ()
    flags: Sequence[str] = ()
    config_dir: Path | None = None
    further_folders: Sequence[Path] = ()
    multirun: bool = False
    prints: bool = False
    checked: bool = True
    plan: bool = False

    @property
    def search_path(self) -> list[str]:
        """Further folders of configs."""
        typed = [] if self.config_dir is None else [self.config_dir]
        return [str(folder) for folder in (*typed, *self.further_folders)]


def read_line(arguments: Sequence[str]) -> Line:
    """Flags and overrides in any order.

    Raises:
        ConfigError: a flag that does not exist, lacks its value, or does not go with another.
    """
    from hydra._internal.utils import get_args_parser  # --help and sub-commands do without Hydra

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    parser.add_argument("--plan", action="store_true")
    known, unknown = parser.parse_known_intermixed_args(list(arguments))
    problems = [_no_such_flag(flag, parser) for flag in unknown]
    for flag, why in NOT_HERE.items():
        if getattr(known, flag.lstrip("-").replace("-", "_")) is not None:
            problems.append(Problem(flag, f"is not offered: {why}", USUAL))
    folder = own_configs(known.config_dir)
    modes = {
        "--run": known.run,
        "--cfg": known.cfg,
        "--multirun": known.multirun,
        "--shell-completion": known.shell_completion,
        "--info": known.info,
        "--plan": known.plan and not known.multirun,
    }
    chosen = [flag for flag, value in modes.items() if value]
    if len(chosen) > 1:
        problems.append(Problem(" ".join(chosen), "do not go together", "leave all but one out"))
    if known.resolve and not known.cfg:
        problems.append(Problem("--resolve", "goes with --cfg only", "--cfg job --resolve"))
    if problems:
        raise ConfigError(problems)
    flags = [flag for flag in ("--run", "--multirun", "--shell-completion") if modes[flag]]
    flags += ["--hydra-help"] * known.hydra_help + ["--resolve"] * known.resolve
    for flag, value in (
        ("--config-dir", folder),
        ("--cfg", known.cfg),
        ("--info", known.info),
        ("--package", known.package),
    ):
        flags += [flag, str(value)] if value else []
    return Line(
        overrides=known.overrides,
        flags=flags,
        config_dir=folder,
        multirun=known.multirun,
        prints=bool(known.cfg or known.info or known.shell_completion or known.hydra_help),
        checked=not (known.shell_completion or known.hydra_help),
        plan=known.plan,
    )


def own_configs(typed: str | None) -> Path | None:
    """The absolute folder that ``--config-dir`` names, if it was typed.

    Raises:
        ConfigError: there is no such folder.
    """
    if typed is None:
        return None
    if not typed.strip():  # of a shell's variable that is not set
        raise ConfigError([Problem("--config-dir", "needs a folder", "--config-dir DIR")])
    path = Path(typed).expanduser().absolute()
    if not path.is_dir():
        what = f"{path} is a file, not a folder" if path.exists() else f"no such folder: {path}"
        raise ConfigError([Problem(f"--config-dir {typed}", what)])
    return path


@dataclass
class Split:
    """A command line, its sub-command found.

    Attributes:
        command: its name, or None for a run.
        rest: all arguments but the command and what follows here.
        config_dir: what ``--config-dir`` names, if it is there.
    """

    command: str | None
    rest: list[str] = field(default_factory=list)
    config_dir: str | None = None


def split_command(arguments: Sequence[str]) -> Split:
    """Find the sub-command and the folder of configs, wherever they stand.

    Raises:
        ConfigError: the folder is not named.
    """
    split = Split(None)
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            split.config_dir = value if equals else next(words, "")
            if not split.config_dir:
                raise ConfigError([Problem(name, "needs a folder", "--config-dir DIR")])
        elif word in WITH_VALUE:
            split.rest += [word, *islice(words, 1)]
        elif split.command is None and word in COMMANDS:
            split.command = word
        else:
            split.rest.append(word)
    return split


def config_dir_flag(folder: Path | None) -> list[str]:
    """``--config-dir`` as it is typed for ``folder``."""
    return [] if folder is None else ["--config-dir", str(folder)]


def refuse_config_dir(folder: Path | None, command: str) -> None:
    """For a sub-command that shows a finished run, whose record holds its config.

    Raises:
        ConfigError: where a folder of configs was named.
    """
    if folder is not None:
        what = f"has no meaning for {command}: the record of a run holds its config"
        raise ConfigError([Problem("--config-dir", what, "leave it out")])


def _no_such_flag(flag: str, parser: argparse.ArgumentParser) -> Problem:
    flags = [option for action in parser._actions for option in action.option_strings]
    close = nearest(flag.partition("=")[0], [f for f in flags if f not in NOT_HERE])
    fix = f"did you mean {close}\n" if close and len(flag) > 2 else ""
    return Problem(flag, "no such flag", f"{fix}usual: {USUAL}")


def _refuse(message: str) -> NoReturn:
    where, _, what = message.removeprefix("argument ").partition(": ")
    raise ConfigError([Problem(where, what or "is not understood", f"usual: {USUAL}")])
