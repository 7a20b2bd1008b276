"""``python -m vpeft_bench methods``: what exists, by which paper, with which options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpeft_bench.catalogue.facts import (
    MethodFacts,
    families_of_peft,
    method,
    methods_of_plugins,
    named,
    native_methods,
)
from vpeft_bench.config.choices import choices_on_disk
from vpeft_bench.errors import MethodOptionError
from vpeft_bench.methods.hf import types as hf_types
from vpeft_bench.terminal import Terminal

HEADING = "bold underline"


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Print the table of all methods, or one method in full; the process's exit status.

    Args:
        arguments: what follows the command's name.
        own: a further folder of configs (``--config-dir``); its methods are options of others.
    """
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench methods", description="List every method, or describe one."
    )
    parser.add_argument("name", nargs="?", help="describe this method and its options")
    parser.add_argument(
        "--capabilities",
        action="store_true",
        help="attach each method (or the one named) to small models and tell what it can do",
    )
    parsed = parser.parse_args(arguments)
    console = Terminal()
    presets = {} if own is None else _presets(own)
    try:
        chosen = None if parsed.name is None else method(presets.get(parsed.name, parsed.name))
    except MethodOptionError as error:
        parser.exit(2, f"error: {error}\n")
    if parsed.capabilities:
        names = [facts.name for facts in [*native_methods(), *methods_of_plugins()]]
        return print_capabilities([chosen.name] if chosen else sorted(names), console)
    if chosen:
        describe(chosen, console)
    else:
        print_methods([*native_methods(), *methods_of_plugins()], console)
    if own is not None:
        _print_presets(own, presets, console)
    return 0


def _presets(own: Path) -> dict[str, str]:
    """The method of each file below ``own/method``, by the name that chooses the file."""
    files = choices_on_disk(own).get("method", ())
    files_by_name = {name: OmegaConf.load(own / "method" / f"{name}.yaml") for name in files}
    return {name: str(OmegaConf.select(config, "name")) for name, config in files_by_name.items()}


def _print_presets(own: Path, presets: Mapping[str, str], console: Console) -> None:
    console.print(f"\nof {own / 'method'}", style=HEADING, soft_wrap=True)
    for name, of in presets.items():
        console.print(f"method={name}: options of {of}", soft_wrap=True)
    if not presets:
        console.print("no methods")


def print_methods(methods: Iterable[MethodFacts], console: Console) -> None:
    """A table per category: paper, backbones, merging, and the options with their defaults."""
    console.print(
        "methods (method=NAME; python -m vpeft_bench methods NAME explains the options)",
        soft_wrap=True,
    )
    methods = list(methods)
    width = max(len(facts.name) for facts in methods)
    for category, group in groupby(methods, key=lambda facts: facts.category):
        table = Table(box=None, pad_edge=False, show_header=False)
        for least in (width, 10, 9, 8):
            table.add_column(min_width=least, no_wrap=True)
        table.add_column(overflow="fold")
        for facts in group:
            table.add_row(
                Text(facts.name, "bold"),
                facts.arxiv or "-",
                named(facts.families),
                "" if facts.not_mergeable else "merges",
                Text(" ".join(f"{option.name}={option.default}" for option in facts.options)),
            )
        console.print(f"\n{category}", style=HEADING)
        console.print(table)
    print_hf_types(console)


def print_hf_types(console: Console) -> None:
    """The types of the peft library, from what is known of them here; peft is not imported."""
    console.print("\nof the peft library (options: methods hf/NAME)", style=HEADING)
    if not hf_types.installed():
        console.print(f"not installed: {hf_types.INSTALL}")
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    families = families_of_peft()
    for name in hf_types.names():
        facts = hf_types.OFFERED[name.removeprefix(hf_types.PREFIX)]
        merges = "" if facts.not_mergeable else "merges"
        where = named(families[name])
        table.add_row(Text(name, "bold"), facts.arxiv or "-", where, merges, facts.title)
    console.print(table)
    others = ", ".join(f"{hf_types.PREFIX}{name}" for name in hf_types.NOT_OFFERED)
    console.print(f"not offered (methods hf/NAME says why): {others}", soft_wrap=True)


def print_capabilities(names: Iterable[str], console: Console) -> int:
    """Attach methods and tell what they can do; status 1 where that contradicts what they say."""
    from vpeft_bench.catalogue.probe import probe, reference_vectors
    from vpeft_bench.catalogue.wording import CAPABILITIES, NUMBERS, VECTORS, capabilities

    vectors = reference_vectors()
    table = Table(box=None, pad_edge=False)
    for heading in (*CAPABILITIES, *([] if vectors is None else [VECTORS])):
        table.add_column(heading, no_wrap=True, justify="right" if heading in NUMBERS else "left")
    contradictions = []
    with console.status("") as status:
        for name in names:
            status.update(f"attaching {name}")
            facts = probe(name)
            table.add_row(*capabilities(facts, vectors))
            contradictions += [f"{name}: {text}" for text in facts.contradictions]
    # Too wide for 80 columns; a terminal that narrow wraps the lines itself.
    Terminal(width=max(console.width, 120)).print(table)
    for line in contradictions:
        console.print(f"contradiction: {line}", soft_wrap=True)
    return 1 if contradictions else 0


def describe(found: MethodFacts, console: Console) -> None:
    """Everything a method says of itself."""
    console.print(f"{found.name}: {found.title}", style="bold", soft_wrap=True)
    paper = f"arXiv {found.arxiv}; {found.source}" if found.arxiv else found.source
    console.print(paper, soft_wrap=True)
    console.print(f"category {found.category}; backbones: {named(found.families)}")
    for family, reason in found.unsupported.items():
        console.print(f"not on {family}: {reason}", soft_wrap=True)
    merge = f"no: {found.not_mergeable}" if found.not_mergeable else "yes"
    console.print(f"mergeable: {merge}", soft_wrap=True)
    console.print(f"\n{found.idea}")
    console.print(f"\n{found.doc}\n", soft_wrap=True)
    for option in found.options:
        valid = f" [{' | '.join(option.choices)}]" if option.choices else ""
        tuned = f"; tuned over {', '.join(map(str, option.search))}" if option.search else ""
        text = f"  method.{option.name}={option.default}{valid}  {option.help}{tuned}"
        console.print(text, soft_wrap=True)
    if found.deviations:
        console.print("\ncode, papers and published tables disagree:")
        for deviation in found.deviations:
            table = Table.grid(padding=(0, 1))
            table.add_row(" -", Text(deviation))
            console.print(table)
