"""``python -m vpeft_bench methods``: what exists, by which paper, with which options."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import fields

from rich.console import Console

from vpeft_bench.errors import MethodOptionError
from vpeft_bench.methods.base import Method, default_options
from vpeft_bench.methods.registry import list_methods, method_class


def main(arguments: Sequence[str]) -> int:
    """Print the table of all methods, or one method in full; the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench methods", description="List every method, or describe one."
    )
    parser.add_argument("name", nargs="?", help="describe this method and its options")
    parsed = parser.parse_args(arguments)
    console = Console(highlight=False)
    if parsed.name is None:
        print_methods(console)
        return 0
    try:
        describe(method_class(parsed.name), console)
    except MethodOptionError as error:
        parser.exit(2, f"error: {error}\n")
    return 0


def print_methods(console: Console) -> None:
    """Two lines per method: what it is, and its options with their defaults."""
    console.print(
        "methods (method=NAME; python -m vpeft_bench methods NAME explains the options)\n"
    )
    for name in list_methods():
        found = method_class(name)
        paper = f"arXiv {found.arxiv}" if found.arxiv else "baseline"
        merge = "not mergeable" if found().merge_refusal else "mergeable"
        facts = f"{found.category.value:<20} {paper:<17} {', '.join(found.families):<10} {merge}"
        console.print(f"[bold]{name:<12}[/bold] {facts}")
        options = ", ".join(f"{k}={_text(v)}" for k, v in default_options(found).items())
        for line in textwrap.wrap(options, console.width - 4, break_on_hyphens=False):
            console.print(f"    {line}", markup=False)


def describe(found: type[Method], console: Console) -> None:
    """Everything a method says of itself."""
    console.print(f"[bold]{found.name}[/bold]: {found.title}")
    console.print(f"arXiv {found.arxiv}; {found.source}" if found.arxiv else found.source)
    console.print(f"category {found.category.value}; backbones: {', '.join(found.families)}")
    refusal = found().merge_refusal
    console.print(f"mergeable: no: {refusal}" if refusal else "mergeable: yes")
    console.print(f"\n{inspect.cleandoc(found.__doc__ or '')}\n", markup=False, soft_wrap=True)
    defaults = default_options(found)
    for option in fields(found):
        choices = option.metadata["choices"]
        valid = f" [{' | '.join(choices)}]" if choices else ""
        default = _text(defaults[option.name])
        help_text = option.metadata["help"]
        console.print(
            f"  method.{option.name}={default}{valid}  {help_text}", markup=False, soft_wrap=True
        )


def _text(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
