"""``data check`` and ``data show``, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import shared_path
from vpeft_bench.cli.data import main
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.drawing import colour
from vpeft_bench.errors import ConfigError

Make = Callable[..., DataConfig]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    return folder


def asked(config: DataConfig) -> list[str]:
    return ["data=imagelist", f"data.root={config.root}/toy", "data.name=my/toy"]


def test_check_of_a_sound_data_set(
    image_list: Make, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *asked(image_list())]) == 0
    printed = capsys.readouterr().out
    assert "my/toy: classification, 3 classes, png" in printed
    assert "train800val200.txt" in printed
    assert "my/toy: sound; data-check-my-toy.json" in printed
    report = json.loads((here / "data-check-my-toy.json").read_text())
    assert report["sound"]
    assert report["facts"]["pictures"] == {"train": 6, "val": 3, "trainval": 9, "test": 3}
    assert report["facts"]["counts"]["test"]["classes"] == 3


def test_check_tells_everything_at_once(
    image_list: Make, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = image_list({"test.txt": "images/0.png 0\nimages/10.png 7\nimages/11.png 2\n"})
    (Path(config.root) / "toy" / "images" / "5.png").write_bytes(b"not a picture")
    assert main(["check", *asked(config), "--out", "found/all.json"]) == 1
    printed = capsys.readouterr().out
    report = json.loads((here / "found" / "all.json").read_text())
    told = "\n".join(f"{p['where']}: {p['what']}" for p in report["problems"])
    for part in ("5.png", "1 of the 3 test pictures are in train", "training picture in"):
        assert part in told
        assert part in printed
    assert not report["sound"]
    assert "my/toy: 3 problems, 2 notes; found/all.json" in printed


def test_check_of_what_cannot_be_read(
    image_list: Make, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *asked(image_list({"val200.txt": None}))]) == 1
    assert "no val200.txt in it" in capsys.readouterr().out
    assert json.loads((here / "data-check-my-toy.json").read_text())["facts"]["pictures"] == {}


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("chek", "did you mean python -m vpeft_bench data check data=NAME"),
        ("data=demo/digits", "did you mean python -m vpeft_bench data check data=demo/digits"),
    ],
)
def test_no_such_command(typed: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=f"no such command(.|\n)*{fix}"):
        main([typed])


@pytest.mark.parametrize("command", ["check", "show"])
@pytest.mark.parametrize(
    ("typed", "what"),
    [
        ([], "which data set is not said"),
        (["data=demo/digit"], "did you mean data=demo/digits"),
        (["data=demo/digits", "method=lora"], "no effect on a look at data"),
        (["data=demo/digits", "data.hold_out=2"], "out of range"),
        (["data=demo/digits", "data.rot=x"], "no such key"),
    ],
)
def test_wrong_command_lines(
    command: str, typed: list[str], what: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *typed]) == 2
    assert what in capsys.readouterr().err
    assert not list(here.iterdir())


def test_show_of_what_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "data=demo/digits", "--split", "tran"]) == 2
    assert "did you mean split=train" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["show", "data=demo/digits", "--count", "0"])
    assert "--count: 0 is no whole number from 1" in capsys.readouterr().err
    assert not list(here.iterdir())


def test_show_of_classes(image_list: Make, here: Path) -> None:
    assert main(["show", *asked(image_list()), "--split", "test", "--count", "99"]) == 0
    drawn = Image.open(here / "data-my-toy-test.png")
    assert drawn.width == 3 * 320 + 4 * 8  # three pictures in a row: there are no more


@pytest.mark.parametrize(
    ("name", "root", "columns"),
    [
        ("demo/scenes_detection", None, 4),
        ("coco", "data", 4),
        ("voc_xml", "data/voc/BCCD", 4),
        ("ade20k_folders", "data/camvid/ade_style", 2),
    ],
)
def test_show_of_dense_truth(name: str, root: str | None, columns: int, here: Path) -> None:
    """Boxes and label maps have the colours of the classes, of which the legend tells."""
    where = [f"data.root={shared_path(root)}"] if root else []
    assert main(["show", f"data={name}", *where, "--count", "8", "--out", "x.png"]) == 0
    pixels = np.array(Image.open(here / "x.png"))
    width = 320 if columns == 4 else 2 * 320 + 2
    assert pixels.shape[1] == columns * (width + 8) + 8
    picture, legend = pixels[:-60], pixels[-60:]
    drawn = [(part == colour(1)).all(axis=-1).sum() for part in (picture, legend)]
    assert name == "coco" or min(drawn) > 50
