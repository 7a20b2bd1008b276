"""What every data set is looked at for before a run: lists, labels, content."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.data.conftest import check, inspected
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.inspection import Inspection
from vpeft_bench.data.schema import DataConfig

MakeImageList = Callable[..., DataConfig]
TRAIN = "".join(f"images/{number}.png {number % 3}\n" for number in range(6))
VAL = "".join(f"images/{number}.png {number % 3}\n" for number in range(6, 9))
TEST = "".join(f"images/{number}.png {number % 3}\n" for number in range(9, 12))


def looked_at(config: DataConfig, full: bool = False) -> Inspection:
    return inspected(open_dataset(config), config, full=full)


def only_problem(config: DataConfig, full: bool = False) -> str:
    [problem] = looked_at(config, full).problems
    return str(problem)


def test_a_sound_data_set_has_no_problem_and_nothing_to_be_told(image_list: MakeImageList) -> None:
    found = looked_at(image_list(), full=True)
    assert (found.problems, found.notices) == ([], [])
    assert found.facts.pictures == {"train": 6, "val": 3, "trainval": 9, "test": 3}
    assert {name: counts["classes"] for name, counts in found.facts.counts.items()} == {
        "train": 3,
        "val": 3,
        "trainval": 3,
        "test": 3,
    }
    found.require_sound()


@pytest.mark.parametrize(
    ("lists", "where", "parts"),
    [
        ({"test.txt": TRAIN}, "test.txt", ["6 of the 6 test", "6 in train800.txt"]),
        ({"test.txt": VAL + TEST}, "test.txt", ["3 of the 6 test", "3 in val200.txt"]),
        ({"train800val200.txt": TEST}, "test.txt", ["3 of the 3", "3 in train800val200.txt"]),
        ({"val200.txt": TRAIN}, "val200.txt", ["6 of the 6 val", "6 in train800.txt"]),
    ],
)
def test_a_picture_of_two_splits(
    image_list: MakeImageList, lists: dict[str, str], where: str, parts: list[str]
) -> None:
    problem = only_problem(image_list(lists))
    assert problem.startswith(f"{where}: ")
    assert all(part in problem for part in parts), problem
    assert "images" in problem


@pytest.mark.parametrize(
    "other", ["images/../images/0.png", "./images//0.png", "link.png", "twin/0.png"]
)
def test_one_file_by_another_path(image_list: MakeImageList, other: str) -> None:
    config = image_list({"test.txt": f"{other} 0\n{TEST}"})
    folder = Path(config.root) / "toy"
    (folder / "link.png").symlink_to(folder / "images" / "0.png")
    (folder / "twin").symlink_to(folder / "images")
    assert "1 of the 4 test pictures are in train" in only_problem(config)


def test_pictures_listed_twice(image_list: MakeImageList) -> None:
    problem = only_problem(image_list({"test.txt": TEST + "images/9.png 0\nimages/./11.png 2\n"}))
    assert problem.startswith("test.txt: 2 of its 3 pictures are listed twice")
    assert "9.png" in problem


def test_one_picture_with_two_labels(image_list: MakeImageList) -> None:
    config = image_list({"train800val200.txt": TRAIN + VAL.replace("8.png 2", "8.png 1")})
    problem = only_problem(config)
    assert "images/8.png: 2 in val200.txt, 1 in train800val200.txt" in problem


def test_a_class_that_cannot_be_learnt(image_list: MakeImageList) -> None:
    config = image_list({"test.txt": TEST.replace(" 0\n", " 7\n")})
    found = looked_at(config)
    [problem] = found.problems
    assert problem.where == "test.txt"
    assert "1 of the 3 test pictures" in problem.what
    assert problem.what.endswith("train800val200.txt: 7")
    config.allow_unseen_classes = True
    found = looked_at(config)
    told = "5 of 8 classes have no training picture, and 1 test picture is of them: 3, 4, 5, 6, 7"
    absent = "1 of 3 trained classes have no test picture: 0"
    assert (found.problems, found.notices) == ([], [absent, told])


def test_idle_outputs_are_told(image_list: MakeImageList) -> None:
    shifted = {
        file: text.replace(" 2\n", " 20\n")
        for file, text in (
            ("train800.txt", TRAIN),
            ("val200.txt", VAL),
            ("train800val200.txt", TRAIN + VAL),
            ("test.txt", TEST),
        )
    }
    found = looked_at(image_list(shifted))
    assert found.problems == []
    shown = ", ".join(map(str, range(2, 12)))
    assert found.notices == [f"18 of 21 classes have no training picture: {shown} and 8 more"]


def test_one_class(image_list: MakeImageList) -> None:
    lists = {"train800.txt": TRAIN, "val200.txt": VAL, "test.txt": TEST}
    lists["train800val200.txt"] = TRAIN + VAL
    one = {
        file: "".join(f"{line.split()[0]} 0\n" for line in text.splitlines())
        for file, text in lists.items()
    }
    assert "at least 2" in only_problem(image_list(one))


# ---- lists as people write them -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("images/0.png 99999999", "line 7: label 99999999 is no plausible class"),
        (f"images/0.png {10**21 - 1}", "line 7: label 999999999999999999999 is no plausible"),
        ("images/0.png " + "9" * 5000, "line 7: label 999999"),
        ("images/0.png,0", "line 7: 'images/0.png,0' is not a path and a label with a blank"),
        ("images/0.png, 0", "line 7: 'images/0.png, 0' is not a path and a label with a blank"),
        ("images/0.png 1.0", "line 7: label '1.0' is not an integer"),
        ("images\\0.png 0", "separated by /"),
        ("images 0", "1 of the pictures it lists are not there"),
        ("link.png 0", "1 of the pictures it lists are not there"),
    ],
)
def test_lines_that_cannot_be_read(image_list: MakeImageList, line: str, what: str) -> None:
    config = image_list({"train800.txt": f"{TRAIN}{line}\n"})
    (Path(config.root) / "toy" / "link.png").symlink_to("gone.png")
    [problem] = check(config)
    assert problem.where.endswith("train800.txt")
    assert what in str(problem)
    assert len(str(problem)) < 600


def test_lines_of_other_editors(image_list: MakeImageList) -> None:
    """Windows line ends, tabs, blanks around, a byte order mark, blank lines, blanks in names."""
    config = image_list({"test.txt": None})
    folder = Path(config.root) / "toy"
    (folder / "a b\u2028c.png").symlink_to(folder / "images" / "9.png")
    text = "\ufeff  ./a b\u2028c.png   0  \r\n\r\nimages/10.png\t1\r\n images/11.png 02\r\n"
    (folder / "test.txt").write_bytes(text.encode())
    split = open_dataset(config).split("test")
    assert [Path(split.file(index) or "").name for index in range(3)] == [
        "a b\u2028c.png",
        "10.png",
        "11.png",
    ]
    assert split.labels.tolist() == [0, 1, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("müll\nb\nc\n".encode("latin-1"), "classes.txt: is not UTF-8 (line 1)"),
        ("a\nb\nc\n".encode("utf-16"), "classes.txt: is UTF-16"),
        (b"a\nb\n", "classes.txt: names 2 classes where there are 3"),
        (b"a\nb\nc\nd\n", "data.num_classes=4"),
    ],
)
def test_class_names_that_do_not_fit(image_list: MakeImageList, content: bytes, what: str) -> None:
    config = image_list()
    (Path(config.root) / "toy" / "classes.txt").write_bytes(content)
    [problem] = check(config)
    assert what in str(problem)


def test_class_names(image_list: MakeImageList) -> None:
    config = image_list()
    (Path(config.root) / "toy" / "classes.txt").write_bytes(b"\xef\xbb\xbfant\r\nbee \r\n\r\ncat")
    assert open_dataset(config).class_names == ("ant", "bee", "cat")


def test_a_list_that_is_not_utf_8(image_list: MakeImageList) -> None:
    config = image_list()
    (Path(config.root) / "toy" / "test.txt").write_bytes(TEST.encode("utf-16"))
    [problem] = check(config)
    assert "test.txt" in problem.where
    assert "PowerShell" in problem.what


@pytest.fixture
def json_splits(image_list: MakeImageList) -> Callable[..., DataConfig]:
    """The pictures of ``image_list`` in FGVC's layout; classes are called 10, 20 and 30."""

    def make(**lists: str) -> DataConfig:
        folder = Path(image_list().root) / "toy"
        for file, text in (("train", TRAIN), ("val", VAL), ("test", TEST)):
            pairs = (line.split() for line in text.splitlines())
            entries = {path: 10 * (int(label) + 1) for path, label in pairs}
            (folder / f"{file}.json").write_text(lists.get(file) or json.dumps(entries))
        return DataConfig(
            name="birds",
            title="birds",
            reader="json_splits",
            root=str(folder),
            final_train="train",
        )

    return make


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"images/9.png": 10, "images/9.png": 20}', "1 pictures are listed twice or more"),
        ('{"images/9.png": "10"}', "1 class ids are written as numbers and as texts"),
        ("[" * 100_000, "is not one object"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_json_lists_that_cannot_be_read(
    json_splits: Callable[..., DataConfig], text: str, what: str
) -> None:
    config = json_splits()
    (Path(config.root) / "test.json").write_bytes(text.encode(errors="surrogateescape"))
    assert what in "\n".join(map(str, check(config)))


def test_json_lists_name_classes_as_their_files_do(json_splits: Callable[..., DataConfig]) -> None:
    config = json_splits(val='{"images/6.png": 10, "images/./6.png": 30}')
    problems = "\n".join(map(str, looked_at(config).problems))
    assert "6.png: 10 in val.json, 30 in val.json" in problems
    assert "val.json: 1 of its 1 pictures are listed twice" in problems


def test_names_for_some_class_ids_are_told(json_splits: Callable[..., DataConfig]) -> None:
    config = json_splits()
    (Path(config.root) / "classes.txt").write_text("10 ant\n20 bee\n")
    assert looked_at(config).notices == ["classes.txt names 2 of 3 class ids"]


# ---- content ------------------------------------------------------------------------------------


def test_a_copy_of_a_training_picture(image_list: MakeImageList) -> None:
    """Another name, another format, the same pixels: found where all pictures are decoded."""
    config = image_list({"test.txt": f"copy.bmp 0\n{TEST}"})
    folder = Path(config.root) / "toy"
    Image.open(folder / "images" / "0.png").save(folder / "copy.bmp")
    assert looked_at(config).problems == []
    problem = only_problem(config, full=True)
    assert problem.startswith("test.txt: 1 of the 4 test pictures are in the training part by")
    assert "copy.bmp is" in problem
    assert "images/0.png of train800.txt" in problem
    assert "data.allow_duplicates=true" in problem
    config.allow_duplicates = True
    found = looked_at(config, full=True)
    assert found.problems == []
    assert found.notices == ["1 test picture is in the training part by content"]


def test_two_names_of_one_file_are_told_once(image_list: MakeImageList) -> None:
    config = image_list({"test.txt": f"link.png 0\n{TEST}"})
    folder = Path(config.root) / "toy"
    (folder / "link.png").symlink_to(folder / "images" / "0.png")
    assert "1 in train800.txt" in only_problem(config, full=True)
    (folder / "link.png").unlink()
    os.link(folder / "images" / "0.png", folder / "link.png")  # a file of its own, by its name
    assert "by content" in only_problem(config, full=True)


def test_repeated_training_pictures_are_told(image_list: MakeImageList) -> None:
    train = f"{TRAIN}copy.png 2\n"
    config = image_list({"train800.txt": train, "train800val200.txt": train + VAL})
    folder = Path(config.root) / "toy"
    shutil.copy(folder / "images" / "0.png", folder / "copy.png")
    told = "1 of 10 training pictures repeats another one by content, 1 of them with another label"
    assert looked_at(config, full=True).notices == [told]


def test_pictures_of_one_colour_are_no_copies_of_each_other(image_list: MakeImageList) -> None:
    """Empty tiles of a map are all alike, and nothing can be learnt by heart from them."""
    config = image_list()
    folder = Path(config.root) / "toy" / "images"
    for name in ("0.png", "1.png", "9.png", "10.png"):
        Image.new("RGB", Image.open(folder / name).size, "black").save(folder / name)
    found = looked_at(config, full=True)
    assert found.problems == []
    assert found.notices == ["one colour each: 4 of 12 pictures looked at"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("Cat\ncat\ndog\n", "'Cat' and 'cat'"),
        ("red fox\nred_fox\ndog\n", "'red fox' and 'red_fox'"),
        ("1\n01\n2\n", "'1' and '01'"),
        ("a\u0308\n\u00e4\nb\n", "'a\u0308' and '\u00e4'"),  # as macOS and others write it
    ],
)
def test_one_class_that_is_written_in_two_ways_is_told(
    image_list: MakeImageList, names: str, told: str
) -> None:
    config = image_list()
    (Path(config.root) / "toy" / "classes.txt").write_text(names, encoding="utf-8")
    what = "names of classes that differ in spelling alone"
    assert looked_at(config).notices == [f"{what}: {told}"]


def test_a_class_of_missing_labels_is_told(image_list: MakeImageList) -> None:
    config = image_list()
    (Path(config.root) / "toy" / "classes.txt").write_text("nan\na\nNA\n")  # NA may be Namibia
    told = "a class is called 'nan': are its pictures without a label?"
    assert looked_at(config).notices == [told]


def test_one_class_to_test_on_is_refused_and_absent_ones_are_told(
    image_list: MakeImageList,
) -> None:
    """A list that is sorted by class and cut short looks like this."""
    config = image_list({"test.txt": "images/9.png 0\nimages/10.png 0\n"})
    assert "all test pictures are of one class" in only_problem(config)
    (Path(config.root) / "toy" / "test.txt").write_text("images/9.png 0\nimages/10.png 1\n")
    assert looked_at(config).notices == ["1 of 3 trained classes have no test picture: 2"]


@pytest.mark.parametrize(
    ("trainval", "told"),
    [
        (TRAIN, "train800val200.txt has 6 pictures, train and val have 9"),
        (
            TRAIN + VAL.replace(" 0", " 1"),
            "train800val200.txt has other numbers of each class than train and val",
        ),
    ],
)
def test_a_joint_list_that_is_not_that_of_both_is_told(
    image_list: MakeImageList, trainval: str, told: str
) -> None:
    assert told in looked_at(image_list({"train800val200.txt": trainval})).notices


def test_altered_copies_of_training_pictures_are_told(image_list: MakeImageList) -> None:
    """Roboflow's exports hold several of each picture; a share of them is no test part."""
    config = image_list()
    folder = Path(config.root) / "toy"
    renamed = {}
    for number, source in {0: "x", 6: "y", 9: "x", 10: "z"}.items():
        name = f"images/{source}_png.rf.{number:032x}.png"
        (folder / f"images/{number}.png").rename(folder / name)
        renamed[f"images/{number}.png"] = name
    for file in folder.glob("*.txt"):
        words = [renamed.get(word, word) for word in file.read_text().split()]
        pairs = zip(words[::2], words[1::2], strict=True)
        file.write_text("".join(f"{path} {label}\n" for path, label in pairs))
    told = "1 of 3 test pictures are altered copies of training pictures, by their names (.rf.)"
    assert looked_at(config).notices == [told]
