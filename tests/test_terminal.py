"""Names that others chose, printed."""

from __future__ import annotations

import ast
import io
import shlex
from pathlib import Path

import vpeft_bench
from vpeft_bench.runs.sweep import Note, print_summary
from vpeft_bench.terminal import Terminal

ODD = "runs/[x] :smile: [/bold] [red]"


def test_paths_are_printed_as_they_are_and_can_be_pasted() -> None:
    said = io.StringIO()
    note = Note([f"data.root={ODD}"], "failed", reason=f"no {ODD}")
    other = Note(["data.root=b"], "done", went_well=True)
    print_summary([note, other], ODD, Terminal(file=said, width=200))
    text = said.getvalue()
    assert f" data.root={ODD} " in text
    assert f" no {ODD} " in text
    command = next(line for line in text.splitlines() if line.startswith("leaderboard: "))
    assert shlex.split(command)[-1] == ODD


def test_nothing_is_printed_by_another_console() -> None:
    package = Path(vpeft_bench.__file__).parent
    made = [
        str(path)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console"
    ]
    assert made == []
