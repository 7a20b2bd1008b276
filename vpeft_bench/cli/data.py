"""``python -m vpeft_bench data``: every data set, and whether it is there."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from vpeft_bench import plugins
from vpeft_bench.config.benchmarks import CUSTOM, FOLDER, Benchmark, find, known
from vpeft_bench.config.choices import choices_on_disk, config_dir, use_folders
from vpeft_bench.data.composed import CLASSIFICATION, compose_with_tasks
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.folders import candidate_folders
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.errors import ConfigError, Problem, ProblemsError, nearest
from vpeft_bench.formats import counted
from vpeft_bench.terminal import Terminal

COMMANDS = ("check", "show")
MINIMUM_COLUMNS = 112  # the widest table: narrower ones would cut names short


@dataclass(frozen=True)
class Listed:
    """A data set of the listing.

    Attributes:
        config: its configuration.
        folder: where it lies, or would be looked for first; None where none is needed or given.
        problems: what keeps it from being opened; empty when it is there.
        sizes: number of pictures found, by split; empty when it cannot be opened.
        task: ``classification``, ``detection`` or ``segmentation``.
    """

    config: DataConfig
    folder: Path | None
    problems: tuple[Problem, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    task: str = CLASSIFICATION

    @property
    def status(self) -> str:
        """``yes``, ``no``, or how many problems a folder that does exist has."""
        if not self.problems:
            return "yes"
        if self.folder is None or not self.folder.is_dir():
            return "no"
        return counted(len(self.problems), "problem")


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Print the table of all data sets, or do what a command of ``data`` does; the exit status.

    Args:
        arguments: what follows the command's name.
        own: a further folder of configs (``--config-dir``).
    """
    if arguments and arguments[0] == "check":
        from vpeft_bench.cli.data_check import main as check

        return check(arguments[1:], own)
    if arguments and arguments[0] == "show":
        from vpeft_bench.cli.data_show import main as show

        return show(arguments[1:], own)
    if arguments and not arguments[0].startswith("-"):
        raise ConfigError([_no_such_command(arguments[0])])
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench data",
        description="List every data set, and whether it is there. "
        "check data=NAME looks at all of one, show data=NAME draws some of it.",
    )
    use_folders([own] if own else [])
    every = known()
    for name, benchmark in every.items():
        if not benchmark.demo:
            help_text = f"look for {name} here: data.root=DIR"
            parser.add_argument(f"--{name}", dest=name, metavar="DIR", help=help_text)
    roots = {name: root for name, root in vars(parser.parse_args(arguments)).items() if root}
    listed = list_datasets(config_dir(), roots, own)
    print_datasets(listed)
    for problem in _not_there(listed, every):
        print(problem)
    return 0


def _not_there(listed: Sequence[Listed], every: Mapping[str, Benchmark]) -> Iterator[Problem]:
    """Data sets of benchmarks that have no config, and benchmarks that have no file."""
    names = {row.config.name for row in listed}
    for name, benchmark in every.items():
        for data in benchmark.members:
            if data not in names:
                close = nearest(data, names)
                yield Problem(
                    f"benchmark {name}",
                    f"there is no data set {data}",
                    f"did you mean {close}" if close else "",
                )
    for row in listed:
        if (claimed := row.config.benchmark) not in {*every, CUSTOM}:
            what = f"there is no benchmark {claimed}: its results are in no summary"
            yield Problem(f"data={row.config.name}", what, f"write {FOLDER}/{claimed}.yaml")


def _no_such_command(typed: str) -> Problem:
    """For what follows ``data`` and is no command; an override may only lack its command."""
    command = "check" if "=" in typed else nearest(typed, COMMANDS)
    fix = [f"python -m vpeft_bench data {name} data=NAME" for name in COMMANDS]
    if command is not None:
        overridden = f" {typed}" if "=" in typed else " data=NAME"
        fix.insert(0, f"did you mean python -m vpeft_bench data {command}{overridden}")
    return Problem(f"data {typed}", "no such command", "\n".join(dict.fromkeys(fix)))


def list_datasets(
    directory: Path, roots: Mapping[str, str] | None = None, own: Path | None = None
) -> list[Listed]:
    """All data sets by benchmark, group and name; the lists of those present are read and checked.

    Args:
        directory: the folder that holds ``data/``.
        roots: folders to look in instead of the configured ones, by benchmark.
        own: a further folder that holds ``data/``.
    """
    folders = [directory, *plugins.config_folders(), *([] if own is None else [own])]
    names = {name for folder in folders for name in choices_on_disk(folder).get("data", ())}
    composed = compose_with_tasks(directory, sorted(names), own)
    every = known()
    composed.sort(key=lambda pair: _place(pair[0], every))
    listed = []
    for config, task in composed:
        config.root = (roots or {}).get(config.benchmark, config.root)
        folders = candidate_folders(config)
        there = [folder for folder in folders if folder.is_dir()]
        folder = next(iter(there + folders), None)
        try:
            splits = open_dataset(config).splits
        except ProblemsError as error:
            listed.append(Listed(config, folder, error.problems, task=task))
        else:
            sizes = {name: len(split) for name, split in splits.items()}
            listed.append(Listed(config, folder, sizes=sizes, task=task))
    return listed


def print_datasets(listed: Sequence[Listed], console: Console | None = None) -> None:
    """Print a table per benchmark, then what is wrong with the data sets that are there in part."""
    console = console or Terminal()
    console.width = max(console.width, MINIMUM_COLUMNS)
    for benchmark, rows in groupby(listed, key=lambda row: row.config.benchmark):
        console.print(_table(benchmark, list(rows)))
    for row in listed:
        if row.status not in ("yes", "no"):
            for problem in row.problems:
                console.print(f"data={row.config.name}: {problem}", soft_wrap=True)


def _place(config: DataConfig, every: Mapping[str, Benchmark]) -> tuple[int, str, int, str]:
    """Where a data set stands in the tables: by benchmark, group and name; the demos first."""
    benchmark = every.get(config.benchmark)
    groups = [] if benchmark is None else list(benchmark.groups)
    rank = 2 if benchmark is None else int(not benchmark.demo)
    group = groups.index(config.group) if config.group in groups else len(groups)
    return rank, config.benchmark, group, config.name


def _table(benchmark: str, rows: Sequence[Listed]) -> Table:
    """The table of one benchmark; its title says where its data sets were looked for."""
    roots = sorted({row.config.root for row in rows if row.config.root})
    found = find(benchmark)
    place = f"looked in {', '.join(roots)}" if roots else "say where it lies: data.root=DIR"
    if found is not None and found.demo:
        place = "comes with the package"
    table = Table(title=f"{benchmark}: {place}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("data=", no_wrap=True)
    # VTAB-1k has groups, and is classification throughout: there is no room for both.
    grouped = any(row.config.group for row in rows)
    table.add_column("group" if grouped else "task", no_wrap=True)
    for heading in ("classes", "train", "val", "test"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("licence")
    table.add_column("there", no_wrap=True)
    for row in rows:
        config = row.config
        table.add_row(
            config.name,
            config.group if grouped else row.task,
            "" if config.num_classes is None else str(config.num_classes),
            _size(row.sizes.get("train"), config.train_size),
            _size(row.sizes.get("val"), config.val_size),
            _size(row.sizes.get("test"), config.test_size),
            config.licence,
            row.status,
        )
    return table


def _size(found: int | None, published: int | None) -> str:
    """The published size of a split, with the one found on disk where that is another."""
    if published is None:
        return "" if found is None else f"{found:,}"
    return f"{published:,}" if found in (None, published) else f"{found:,} of {published:,}"
