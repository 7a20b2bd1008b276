"""Where things are printed: names, paths and errors stand there as they are."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS_OF_A_FILE = 120
_UNLIMITED = 10_000
"""Columns, more than any table needs."""


class Terminal(Console):
    """Rich's console, for text that others wrote.

    ``[x]`` is no style and ``:x:`` no picture: folders may be called that, and a path that is
    printed can be pasted. What is to look different has a ``style``.

    Args:
        options: of rich's console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print_whole(self, table: Table) -> None:
        """Print a table of numbers: where it is too wide, lines break, but no digit is lost."""
        needed = self.measure(table, options=self.options.update_width(_UNLIMITED)).minimum
        if needed > self.width:
            table.width = needed
        self.print(table, crop=False)

    def on_broken_pipe(self) -> None:
        """What read the output has left (``| head``): an error like others, no exit of rich's own.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError(errno.EPIPE, "what read the output has left")


def to_output() -> Terminal:
    """The terminal of the standard output; a file or a pipe gets lines of 120 columns."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Terminal(width=None if known else _COLUMNS_OF_A_FILE)
