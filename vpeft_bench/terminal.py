"""Where things are printed: names, paths and errors stand there as they are."""

from __future__ import annotations

from typing import Any

from rich.console import Console


class Terminal(Console):
    """Rich's console, for text that others wrote.

    ``[x]`` is no style and ``:x:`` no picture: folders may be called that, and a path that is
    printed can be pasted. What is to look different has a ``style``.

    Args:
        options: of rich's console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)
