"""``python -m vpeft_bench tune``: settings of methods, searched at the same budget for each."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpeft_bench import plugins
from vpeft_bench.cli.flags import Line, config_dir_flag, read_line
from vpeft_bench.cli.launch import EXIT_FAILED
from vpeft_bench.cli.launch import main as launch
from vpeft_bench.cli.plan import print_plan
from vpeft_bench.cli.tune_plan import check_seeds, planned, points_command
from vpeft_bench.cli.tune_tables import print_points
from vpeft_bench.terminal import Terminal

USAGE = """\
usage: python -m vpeft_bench tune [-m] [method=NAME] [data=NAME] [tune.budget=8] [KEY=VALUE ...]
                                  [--plan] [--final [seed=0,1,2]]

Tries the same number of points for every method, the default configuration first: learning rate,
weight decay, and up to two options that the method declares. Each point is a run that is trained on
train and scored on val, never on test; one that was run before is not run again. The best becomes
a variant, METHOD/tuned@8, below results_dir. With -m for every combination.

flags
  --plan                 print the points, which are done, and how long the others take; run nothing
  --final [seed=0,1,2]   then run the variant with these seeds, scored on test

keys (python -m vpeft_bench tune --cfg job prints all with their values)
  tune.budget            points for each method and data set
  tune.fixed=[train.lr]  keys that are not searched; what is typed, as method.rank=4, is not either
  tune.sampler=tpe       points that follow from scores (Optuna); default: the same for everyone
  tune.stop_hopeless     over more than 5 data sets: do not run points that are worse on the first
  tune.name              of the variant, where tuned@BUDGET is taken by another search

examples
  python -m vpeft_bench tune method=ssf data=demo/digits tune.budget=8
  python -m vpeft_bench tune -m method=lora,ssf,linear experiment=vtab1k data.root=DIR --final
"""


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
        shown = points_command(lambda notes, console: None)
        return launch([*config_dir_flag(own), *asked.rest], shown)
    plan = planned(line, _typed(arguments, own))
    if asked.final:
        check_seeds(asked.final)
    if asked.plan:
        print_points([search for _, search in plan.searches], Terminal())
        print_plan(plan.sweep(), Terminal())
        return 0
    status = plan.run_points(_flags(line))
    if any(outcome.choice is None for outcome in plan.outcomes):
        status = status or EXIT_FAILED
    if asked.final is None or not plan.outcomes:
        return status
    return max(status, plan.run_final(asked.final or plan.seeds, _flags(line)))


def _typed(arguments: Sequence[str], own: Path | None) -> str:
    """The command in a shell, with what was read before its name was found."""
    named = plugins.named()
    imported = [f"{plugins.KEY}=[{','.join(named)}]"] if named else []
    words = ["python", "-m", "vpeft_bench", "tune", *config_dir_flag(own), *arguments, *imported]
    return shlex.join(words)


def _flags(line: Line) -> list[str]:
    """The flags of a sweep."""
    kept = [flag for flag in line.flags if flag not in ("--run", "--multirun")]
    return ["--multirun", *kept]
