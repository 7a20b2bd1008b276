"""What sub-commands take as a place or a number, and what they refuse."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import pytest

from vpeft_bench.cli.arguments import typed_count, typed_folder, typed_picture
from vpeft_bench.files import replacing, typed_path


def refused(kind: Callable[[str], object], text: str) -> str:
    with pytest.raises(ArgumentTypeError) as caught:
        kind(text)
    return str(caught.value)


@pytest.mark.parametrize("kind", [typed_path, typed_folder, typed_picture])
@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_variable_of_a_shell_is_not_the_folder_one_is_in(
    kind: Callable[[str], object], text: str
) -> None:
    assert refused(kind, text) == "is empty: name a place"


def test_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert typed_folder(f"{tmp_path}/a/b") == tmp_path / "a" / "b"
    for below in ("file", "file/b/c"):
        assert refused(typed_folder, f"{tmp_path}/{below}").endswith("file is a file, not a folder")
    assert typed_picture("~/x.PNG") == Path("~/x.PNG").expanduser()
    assert "name it x.jpg.png" in refused(typed_picture, "x.jpg")
    (tmp_path / "d.png").mkdir()
    assert "is a folder" in refused(typed_picture, f"{tmp_path}/d.png")


def test_counts() -> None:
    assert typed_count("12") == 12
    for text in ("0", "-5", "1.5", "abc", ""):
        assert "no whole number from 1" in refused(typed_count, text)


def test_what_cannot_be_written_is_told_by_the_name_that_was_typed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(IsADirectoryError) as caught, replacing(tmp_path / "there") as temporary:
        temporary.write_text("x")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "there"), None)
