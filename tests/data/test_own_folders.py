"""Data sets of one's own: a folder for each class, or a table of paths and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import check, inspected
from vpeft_bench.config.choices import config_dir
from vpeft_bench.config.schema import RunConfig, plain
from vpeft_bench.data.composed import compose_data_configs
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.readers import READERS
from vpeft_bench.data.schema import DataConfig, Reader
from vpeft_bench.data.shares import held_out
from vpeft_bench.data.splits import Dataset, FileSplit

Config = Callable[..., DataConfig]


def save(path: Path) -> None:
    """A picture that is unlike those of other names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "own"


def config_of(name: str, root: Path, **changes: object) -> DataConfig:
    (config,) = compose_data_configs(config_dir(), [name])
    config.root = str(root)
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def tree(root: Path, classes: Iterable[str] = ("ant", "bee"), count: int = 10) -> None:
    for name in classes:
        for number in range(count):
            save(root / name / f"{number}.png")


def counts(dataset: Dataset) -> dict[str, int]:
    return {name: len(split) for name, split in dataset.splits.items()}


def files(dataset: Dataset, split: str) -> list[str]:
    found = dataset.split(split)
    assert isinstance(found, FileSplit)
    return [Path(path).parent.name + "/" + Path(path).name for path in found.paths]


def problem(config: DataConfig) -> str:
    (found,) = check(config)
    return str(found)


# ---- a folder for each class --------------------------------------------------------------------


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "TEST")])
def test_folders_of_splits(root: Path, names: tuple[str, str, str]) -> None:
    for split, count in zip(names, (6, 2, 3), strict=True):
        tree(root / split, ("bee", "ant"), count)
    dataset = open_dataset(config_of("imagefolder", root))
    assert counts(dataset) == {"train": 12, "val": 4, "test": 6, "trainval": 16}
    assert dataset.class_names == ("ant", "bee")
    assert dataset.split("train").labels.tolist() == [0] * 6 + [1] * 6  # type: ignore[attr-defined]
    assert files(dataset, "test")[0] == "ant/0.png"
    assert inspected(dataset, config_of("imagefolder", root)).problems == []


def test_a_tree_is_split_by_stated_shares(root: Path) -> None:
    tree(root, ("ant", "bee", "cat"), 10)
    config = config_of("imagefolder", root, test_share=0.2, hold_out=0.25)
    dataset = open_dataset(config)
    assert counts(dataset) == {"train": 18, "val": 6, "test": 6, "trainval": 24}
    for split in ("val", "test"):
        labels = dataset.split(split).labels.tolist()  # type: ignore[attr-defined]
        assert labels == [0, 0, 1, 1, 2, 2]
    assert open_dataset(config).fingerprint == dataset.fingerprint
    other = open_dataset(
        config_of("imagefolder", root, test_share=0.2, hold_out=0.25, split_seed=1)
    )
    assert files(other, "test") != files(dataset, "test")
    assert other.fingerprint != dataset.fingerprint
    everything = [file for split in ("train", "val", "test") for file in files(dataset, split)]
    assert len(set(everything)) == 30


def test_validation_is_held_out_where_there_is_none(root: Path) -> None:
    tree(root / "train")
    tree(root / "test", count=3)
    assert "data.hold_out=0.2" in problem(config_of("imagefolder", root))
    dataset = open_dataset(config_of("imagefolder", root, hold_out=0.2))
    assert counts(dataset) == {"train": 16, "val": 4, "test": 6, "trainval": 20}


def test_what_file_managers_leave_is_no_class_and_no_picture(root: Path) -> None:
    for split in ("train", "val", "test"):
        tree(root / split, count=2)
        (root / split / ".DS_Store").write_text("x")
        (root / split / "ant" / "Thumbs.db").write_text("x")
        (root / split / "ant" / "._0.png").write_text("x")
        (root / split / ".ipynb_checkpoints").mkdir()
    (root / "__MACOSX").mkdir()
    save(root / "train" / "bee" / "deeper" / "SHOUTED.JPG")
    (root / "train" / "bee" / "notes.txt").write_text("x")
    dataset = open_dataset(config_of("imagefolder", root))
    assert counts(dataset)["train"] == 5
    assert dataset.num_classes == 2
    assert dataset.notices == ("left out, no pictures: 1 files (.txt)",)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: save(root / "train" / "loose.png"), "loose.png"),
        (lambda root: (root / "train" / "wasp").mkdir(), "1 folder of a class has no picture"),
        (lambda root: save(root / "extra" / "0.png"), "others beside them: extra"),
        (lambda root: tree(root / "validation"), "val and validation are both val"),
    ],
)
def test_what_is_wrong_with_folders_is_told(
    root: Path, spoil: Callable[[Path], None], said: str
) -> None:
    for split in ("train", "val", "test"):
        tree(root / split, count=3)
    assert check(config_of("imagefolder", root)) == []
    spoil(root)
    assert said in problem(config_of("imagefolder", root))


def test_no_part_is_taken_for_test_in_silence(root: Path) -> None:
    """ImageNet has train and val; which of them is reported is for the user to say."""
    tree(root / "train")
    tree(root / "val", count=3)
    said = problem(config_of("imagefolder", root))
    assert "no test part" in said
    assert "to report val: data.lists.train=train data.lists.test=val" in said
    lists = {"train": "train", "val": "", "test": "val"}
    dataset = open_dataset(config_of("imagefolder", root, lists=lists, hold_out=0.2))
    assert counts(dataset) == {"train": 16, "val": 4, "test": 6, "trainval": 20}
    lists["test"] = "vals"
    assert "data.lists.test=vals" in problem(config_of("imagefolder", root, lists=lists))


@pytest.mark.parametrize("shape", ["empty", "flat", "nothing"])
def test_folders_without_classes(root: Path, shape: str) -> None:
    root.mkdir()
    if shape == "flat":
        save(root / "0.png")
    if shape == "empty":
        (root / "ant").mkdir()
    (said, *_) = check(config_of("imagefolder", root, test_share=0.2, hold_out=0.2))
    assert str(root) in str(said)


def test_a_share_takes_some_of_every_class_and_leaves_some() -> None:
    labels = np.array([0] * 100 + [1] * 3 + [2] * 2 + [3])
    out = held_out(labels, 0.1, 0)
    taken = [int(out[labels == label].sum()) for label in range(4)]
    assert taken == [10, 1, 1, 0]


# ---- a table ------------------------------------------------------------------------------------


def table(root: Path, text: str, encoding: str = "utf-8") -> None:
    for name in ("a", "b", "c", "d", "e", "f"):
        save(root / f"{name}.png")
    (root / "labels.csv").write_bytes(text.encode(encoding))


ROWS = [
    "a.png,ant,train",
    "b.png,bee,train",
    "c.png,ant,val",
    "d.png,bee,valid",
    "e.png,ant,test",
    "f.png,bee,Test",
]


@pytest.mark.parametrize(
    ("delimiter", "header", "newline", "encoding"),
    [
        (",", "path,label,split", "\n", "utf-8"),
        (";", "Filename;Class;Set", "\r\n", "utf-8-sig"),
        ("\t", "image\tcategory\tsubset", "\n", "utf-8"),
    ],
)
def test_tables_of_other_programs(
    root: Path, delimiter: str, header: str, newline: str, encoding: str
) -> None:
    rows = [row.replace(",", delimiter) for row in ROWS]
    table(root, newline.join([header, *rows, ""]), encoding)
    dataset = open_dataset(config_of("csv", root))
    assert counts(dataset) == {"train": 2, "val": 2, "test": 2, "trainval": 4}
    assert dataset.class_names == ("ant", "bee")
    assert inspected(dataset, config_of("csv", root)).problems == []


def test_numbers_are_in_their_own_order(root: Path) -> None:
    rows = [row.replace("ant", "10").replace("bee", "9") for row in ROWS]
    table(root, "\n".join(["path,label,split", *rows]))
    assert open_dataset(config_of("csv", root)).class_names == ("9", "10")


def test_a_table_without_splits_needs_shares(root: Path) -> None:
    rows = [row.rsplit(",", 1)[0] for row in ROWS]
    table(root, "\n".join(["path,label", *rows]))
    assert "data.test_share=0.2 data.hold_out=0.2" in problem(config_of("csv", root))
    dataset = open_dataset(config_of("csv", root, test_share=0.3, hold_out=0.5))
    assert counts(dataset) == {"train": 2, "val": 2, "test": 2, "trainval": 4}


def test_a_table_for_each_split(root: Path) -> None:
    table(root, "unused")
    for split in ("train", "val", "test"):
        rows = [r.rsplit(",", 1)[0] for r in ROWS if r.lower().split(",")[2].startswith(split)]
        (root / f"{split}.csv").write_text("\n".join(["path,label", *rows]))
    lists = {"table": "", "train": "train.csv", "val": "val.csv", "test": "test.csv"}
    dataset = open_dataset(config_of("csv", root, lists=lists))
    assert counts(dataset) == {"train": 2, "val": 2, "test": 2, "trainval": 4}
    assert dataset.listed_in("test") == "test.csv"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace("path,", "where,"), "names no path"),
        (lambda t: t.replace("label,", "labels,"), "is it labels?"),
        (lambda t: t.replace("path,label", "path,label,class"), "both say the label"),
        (lambda t: t.replace("a.png,ant,train", "a.png,ant"), "line 2: 2 fields"),
        (lambda t: t.replace("a.png,ant", "a.png,"), "line 2: no label"),
        (lambda t: t.replace("ant,train", "ant,trian"), "line 2: split 'trian'"),
        (lambda t: t.replace("a.png", "a"), "suffix included"),
        (lambda t: t.partition("\n")[0], "lists no pictures"),
        (lambda t: "", "is empty"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(
    root: Path, change: Callable[[str], str], said: str
) -> None:
    table(root, change("\n".join(["path,label,split", *ROWS])))
    assert any(said in str(found) for found in check(config_of("csv", root)))


def test_a_class_without_training_pictures_is_refused_with_what_may_be_meant(root: Path) -> None:
    for name, said in (("wasp", "in labels.csv: wasp"), ("Bee ", "Bee (is it bee?)")):
        table(root, "\n".join(["path,label,split", *ROWS]).replace("f.png,bee", f"f.png,{name}"))
        config = config_of("csv", root)
        [found] = inspected(open_dataset(config), config).problems
        assert "test pictures are of classes without any training picture" in str(found)
        assert said in str(found)


def test_a_missing_table_names_those_that_are_there(root: Path) -> None:
    table(root, "x")
    (root / "labels.csv").rename(root / "mine.csv")
    assert "data.lists.table=mine.csv" in problem(config_of("csv", root))


@pytest.mark.parametrize(
    ("row", "said"),
    [("a.png,ant,test", "are in train or val"), ("a.png,bee,train", "listed twice or more")],
)
def test_one_picture_twice_is_refused_as_everywhere(root: Path, row: str, said: str) -> None:
    table(root, "\n".join(["path,label,split", *ROWS, row]))
    config = config_of("csv", root)
    found = inspected(open_dataset(config), config).problems
    assert any(said in str(one) for one in found), found


def test_a_table_without_splits_names_each_picture_once(root: Path) -> None:
    """Of a pair one could be drawn for training and one for test."""
    rows = [",".join(row.split(",")[:2]) for row in ROWS]
    table(root, "\n".join(["path,label", *rows, "./a.png,bee"]))
    said = problem(config_of("csv", root, test_share=0.2, hold_out=0.2))
    assert "1 of its 6 pictures are listed twice or more" in said
    assert "a.png: ant and bee" in said


def test_a_table_given_as_the_folder_says_what_to_type(root: Path) -> None:
    table(root, "path,label\n")
    said = problem(config_of("csv", root / "labels.csv"))
    assert f"data.root={root} data.lists.table=labels.csv" in said


@pytest.mark.parametrize(("name", "said"), [("wasp", ": wasp"), ("Bee", ": Bee (is it bee?)")])
def test_a_folder_without_training_pictures_is_refused(root: Path, name: str, said: str) -> None:
    for split in ("train", "val", "test"):
        tree(root / split, count=3)
    save(root / "test" / name / "0.png")
    config = config_of("imagefolder", root)
    [found] = inspected(open_dataset(config), config).problems
    assert f"without any training picture in train/ and val/{said}" in str(found)


def test_classes_without_training_pictures_may_be_allowed(root: Path) -> None:
    for split in ("train", "val", "test"):
        tree(root / split, count=3)
    save(root / "test" / "wasp" / "0.png")
    config = config_of("imagefolder", root, allow_unseen_classes=True)
    dataset = open_dataset(config)
    assert dataset.class_names == ("ant", "bee", "wasp")
    found = inspected(dataset, config)
    assert found.problems == []
    assert any("no training picture" in notice for notice in found.notices)


def test_a_class_may_be_called_train(root: Path) -> None:
    tree(root, ("bus", "train"))
    dataset = open_dataset(config_of("imagefolder", root, test_share=0.2, hold_out=0.2))
    assert dataset.class_names == ("bus", "train")
    flat = root.parent / "flat"
    tree(flat, ("train", "test"))  # no classes: these are the splits
    assert "lie beside the folders of the classes" in str(check(config_of("imagefolder", flat))[0])


def test_readers_have_names_in_python_as_well() -> None:
    assert set(Reader) <= set(READERS.names())
    config = DataConfig(name="x", reader=Reader.digits)
    assert plain(RunConfig(data=config))["data"]["reader"] == "digits"
    assert open_dataset(config).num_classes == 10


def test_shares_that_have_no_effect_are_refused(root: Path) -> None:
    """Whoever types a share believes that it is drawn."""
    table(root, "\n".join(["path,label,split", *ROWS]))
    said = problem(config_of("csv", root, test_share=0.2, hold_out=0.1))
    assert "comes with test and val: the shares have no effect" in said
    assert "leave data.test_share=0.2 and data.hold_out=0.1 out" in said


def test_a_folder_around_everything_is_no_class(root: Path) -> None:
    """As archives unpack."""
    tree(root / "pets" / "train")
    tree(root / "pets" / "test")
    said = problem(config_of("imagefolder", root, test_share=0.2, hold_out=0.2))
    assert f"did you mean data.root={root / 'pets'}" in said


def test_splits_inside_classes_are_told(root: Path) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            for number in range(4):
                save(root / name / split / f"{number}{name}{split}.png")
    dataset = open_dataset(config_of("imagefolder", root, test_share=0.25, hold_out=0.25))
    told = "folders test, train lie inside those of classes: read as their pictures, not as splits"
    assert dataset.notices == (told,)


def test_rows_of_other_splits_are_refused_in_the_list_of_one(root: Path) -> None:
    """They would be trained on, whatever the table says of them."""
    table(root, "\n".join(["path,label,split", *ROWS]))
    (root / "test.csv").write_text("path,label\nf.png,bee\n")
    lists = {"table": "", "train": "labels.csv", "test": "test.csv"}
    said = problem(config_of("csv", root, lists=lists, hold_out=0.5))
    assert "of its 6 rows are of another split than train, by its column split" in said


def test_the_line_that_excel_reads_is_no_header(root: Path) -> None:
    rows = [row.replace(",", ";") for row in ["path,label,split", *ROWS]]
    table(root, "\n".join(["sep=;", *rows]))
    assert open_dataset(config_of("csv", root)).class_names == ("ant", "bee")


def test_what_is_taken_or_a_path_is_not_proposed_as_a_column(root: Path) -> None:
    table(root, "image,ant,bee\na.png,1,0")
    assert "is it image?" not in problem(config_of("csv", root))
    table(root, "images/a.png,ant")
    assert not any("is it images" in str(found) for found in check(config_of("csv", root)))


def test_labels_are_called_as_the_table_calls_them(root: Path) -> None:
    table(root, "\n".join(["path,label,split", *ROWS, "a.png,bee,train"]))
    config = config_of("csv", root)
    found = "\n".join(map(str, inspected(open_dataset(config), config).problems))
    assert "a.png: ant in labels.csv, bee in labels.csv" in found
