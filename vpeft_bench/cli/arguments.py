"""What arguments of sub-commands may be, as types of ``argparse``."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

from vpeft_bench.files import in_the_way, typed_path


def typed_folder(text: str) -> Path:
    """A folder that is written to, and made where it is not there."""
    path = typed_path(text)
    if (file := in_the_way(path)) is not None:
        raise ArgumentTypeError(f"{file} is a file, not a folder")
    return path


def typed_picture(text: str) -> Path:
    """A file that a picture is written to."""
    path = typed_path(text)
    if path.suffix.lower() != ".png":
        raise ArgumentTypeError(f"{path}: pictures are written as PNG; name it {path.name}.png")
    if path.is_dir():
        raise ArgumentTypeError(f"{path} is a folder, not a file")
    return path


def typed_count(text: str) -> int:
    """How many of something, 1 or more."""
    if not (text.isdecimal() and int(text) >= 1):
        raise ArgumentTypeError(f"{text} is no whole number from 1")
    return int(text)
