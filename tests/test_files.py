from __future__ import annotations

import os
from pathlib import Path

import pytest

from vpeft_bench.files import (
    replacing,
    replacing_folder,
    set_aside,
    sha256,
    sweep_temporary,
    write_atomically,
)


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_atomically(path, b"old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "kept.txt"
    for content in (b"first", b"second"):
        write_atomically(path, content, durable=durable)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_durable_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content before the name is taken over, and the folder's new entry after."""
    calls: list[tuple[str, int]] = []
    replace = os.replace

    def renamed(source: Path, target: Path) -> None:
        calls.append(("replace", source.stat().st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda file: calls.append(("sync", os.fstat(file).st_ino)))
    monkeypatch.setattr(os, "replace", renamed)
    path = tmp_path / "kept.txt"
    write_atomically(path, b"content")
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert calls == [("sync", file), ("replace", file), ("sync", folder)]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    for names in (["a", "b"], ["c"]):
        with replacing_folder(path) as temporary:
            for name in names:
                (temporary / name).write_text("x")
        assert sorted(file.name for file in path.iterdir()) == names

    def fail() -> None:
        with replacing_folder(path) as temporary:
            (temporary / "d").write_text("x")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert [file.name for file in path.iterdir()] == ["c"]
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / ".kept.0123.tmp").mkdir()  # of a writer that was killed
    (tmp_path / ".kept.0123.tmp" / "d").write_text("x")
    sweep_temporary(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / "record.json", tmp_path / "notes.txt", tmp_path / ".hidden"]
    for path in (*kept, tmp_path / ".record.json.0123.tmp", tmp_path / "last.ckpt.tmp"):
        path.write_text("x")
    sweep_temporary(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_damaged_files_are_set_aside_one_beside_the_other(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for number, name in enumerate(("last.ckpt.damaged", "last.ckpt.damaged2")):
        path.write_text(str(number))
        assert set_aside(path) == tmp_path / name
        assert (tmp_path / name).read_text() == str(number)
    assert not path.exists()


def test_the_checksum_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(path) == f"sha256:{digest}"
