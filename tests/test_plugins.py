"""A package of somebody else adds a method, a reader and more, without a change here."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch

import vpeft_bench
from tests.conftest import REPOSITORY, Cli
from vpeft_bench import plugins
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.choices import every_choice
from vpeft_bench.data.readers import READERS
from vpeft_bench.errors import AlreadyAttachedError, ConfigError, MethodOptionError
from vpeft_bench.methods.lora import LoRA
from vpeft_bench.methods.names import METHODS
from vpeft_bench.registry import Registry

READER = '''
"""Halves of squares, one bright: a reader of a package of its own."""
import numpy as np

from vpeft_bench.data.readers import register_reader
from vpeft_bench.data.splits import ArraySplit, Dataset

COUNTS = {"train": 40, "val": 10, "trainval": 50, "test": 20}


class Halves:
    def __init__(self, split, count):
        self.labels = np.arange(count) % 2
        pixels = np.random.default_rng(len(split)).integers(0, 60, (count, 32, 32, 3))
        for index, label in enumerate(self.labels):
            pixels[index, :, 16 * label : 16 * label + 16] += 150
        self.pixels = pixels.astype(np.uint8)

    def __call__(self):
        return self.pixels


@register_reader("halves")
def read_halves(config):
    made = {split: Halves(split, count) for split, count in COUNTS.items()}
    splits = {split: ArraySplit(one.labels, one) for split, one in made.items()}
    return Dataset(config.name, 2, "halves 1", splits)
'''
DATA = "name: halves\nbenchmark: mine\nreader: halves\ntitle: bright halves\n"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The method of the documentation and a reader, as package ``mypeft``, and a config of data."""
    page = (REPOSITORY / "docs" / "extend.md").read_text(encoding="utf-8")
    method = page.split("<!-- file: mypeft/branch_gain.py -->\n```python\n")[1].split("```")[0]
    folder = tmp_path / "mypeft"
    folder.mkdir()
    (folder / "__init__.py").write_text("from mypeft import branch_gain, halves\n")
    (folder / "branch_gain.py").write_text(method, encoding="utf-8")
    (folder / "halves.py").write_text(READER, encoding="utf-8")
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "halves.yaml").write_text(DATA)
    return folder


@pytest.mark.slow
def test_a_foreign_package_from_the_sweep_to_the_leaderboard(
    cli: Cli, package: Path, tmp_path: Path
) -> None:
    """Swept in processes of joblib, which import it as well; no YAML for the method."""
    swept = cli(
        *("plugins=[mypeft]", "--config-dir", "conf", "-m", "hydra/launcher=joblib"),
        *("method=branch_gain", "method.branches=[attn],[attn,mlp]", "data=halves"),
        *("train.epochs=1", "train.batch_size=10", "hardware.threads=1"),
    )
    assert swept.returncode == 0, swept.stdout + swept.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("record.json")]
    assert {record["variant"] for record in records} == {
        "branch_gain",
        'branch_gain branches=["attn"]',
    }
    assert {tuple(record["asked"]["plugins"]) for record in records} == {("mypeft",)}
    tables = cli("leaderboard")
    assert tables.returncode == 0, tables.stderr
    assert 'branch_gain branches=["attn"]' in tables.stdout
    (directory, _) = sorted(path.parent for path in tmp_path.rglob("record.json"))
    shown = cli("show", str(directory), "--pictures", "2")  # the record names the plug-in
    assert shown.returncode == 0, shown.stderr
    told = cli("plugins=mypeft", "methods", "branch_gain")
    assert "BranchGain, a worked example" in told.stdout


@pytest.mark.slow
def test_a_cost_card_is_measured_in_a_process_that_knows_it(
    cli: Cli, package: Path, tmp_path: Path
) -> None:
    """Named by its file alone, and by an option that is wrong."""
    file = "plugins=mypeft/branch_gain.py"
    wrong = cli(file, "cost", "method=branch_gain", "method.branches=[head]")
    assert wrong.returncode == 2
    assert "['head'] not in ['attn', 'mlp']" in wrong.stderr
    quick = ("cost.batch_size=2", "cost.inference_batch_size=2", "cost.steps=5")
    busy = "cost.allow_busy=true"
    done = cli(file, "cost", "method=branch_gain", "cost.warmup_steps=1", busy, *quick)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.rglob("card.json")
    card = json.loads(path.read_text())
    assert card["status"] == "ok"
    assert card["measured"]["parameters"]["method"] == 12


def test_an_installed_package_names_itself(
    cli: Cli, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "mypeft-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypeft\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.ENTRY_POINTS}]\nmine = mypeft\n")
    package.rename(tmp_path / "site" / "mypeft")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    told = cli("methods", "branch_gain")
    assert told.returncode == 0, told.stderr
    (tmp_path / "site" / "mypeft" / "__init__.py").write_text("import nothing_of_that_name\n")
    broken = cli("methods", "branch_gain")
    assert broken.returncode == 2
    assert (
        "the plug-in mine of mypeft, which is installed: cannot be imported: No module named"
        in broken.stderr
    )


@pytest.mark.slow
def test_the_package_of_the_documentation_installed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By pip, as anybody's: it names itself, is swept by joblib and stands in the leaderboard."""
    source, site, work = (tmp_path / name for name in ("source", "site", "work"))
    work.mkdir()
    page = (REPOSITORY / "docs" / "extend.md").read_text(encoding="utf-8")
    for path, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", page, re.M | re.S):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    install = [*pip, "--no-build-isolation", "--target", str(site), str(source)]
    subprocess.run(install, check=True, timeout=200)
    monkeypatch.chdir(work)
    exec("from pathlib" + page.split("\n```python\nfrom pathlib")[1].split("```")[0], {})
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def run(*arguments: str) -> str:
        done = cli(*arguments, cwd=work)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    listed = run("data")
    assert "suffixes" in listed
    run(
        *("experiment=mypeft", "method=branch_gain,gated_low_rank", "hydra/launcher=joblib"),
        *("head=cosine", "logger.also=[lines]", "hardware.threads=1"),
    )
    records = [json.loads(path.read_text()) for path in work.rglob("record.json")]
    assert {(r["variant"], r["asked"]["data"]["name"]) for r in records} == {
        (method, data)
        for method in ("branch_gain", "gated_low_rank")
        for data in ("suffixes", "demo/digits")
    }
    assert all("worst_class" in r["happened"]["last_epoch"]["values"] for r in records)
    assert len(list(work.rglob("lines.jsonl"))) == 4
    assert len(run("headlines").splitlines()) == 4
    tables = run("leaderboard", "--benchmark", "mypeft")
    assert "worst" in tables  # the terminal breaks the heading
    with (work / "results" / "leaderboard" / "mypeft_final_summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"branch_gain", "gated_low_rank"}
    for row in rows:
        means = [float(row[name].split()[0]) for name in ("suffixes", "digits")]
        assert float(row["mean over 2 datasets"]) == pytest.approx(sum(means) / 2, abs=0.01)
    contract = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/methods/test_contract.py"]
    tried = subprocess.run(
        [sys.executable, *contract, "-k", "gated_low_rank or branch_gain"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert tried.returncode == 0, tried.stdout
    assert " passed" in tried.stdout


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder on the path, and nothing left of what is imported from it."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(plugins, "_modules", {})
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_names_on_a_command_line() -> None:
    line = ["plugins=[a, 'b.py']", "method=x", "+plugins=c", "data.name=plugins=d"]
    assert plugins.typed(line) == (["a", "b.py", "c"], ["method=x", "data.name=plugins=d"])


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("nobody_has_this", None, "there is no such module"),
        ("nobody_has_this.py", None, "there is no file"),
        ("my_broken_one", "1 / 0", "ZeroDivisionError: division by zero"),
        ("my_needy_one", "import nobody_has_this", "No module named 'nobody_has_this'"),
        ("json.py", "", "a module is called json already"),
        (
            "my_twin",
            "from vpeft_bench.data.readers import register_reader\n"
            "@register_reader('coco')\ndef read(config): ...",
            "two have the name data.reader=coco",
        ),
    ],
)
def test_one_that_cannot_be_imported_says_why(
    fresh: Path, name: str, code: str | None, said: str
) -> None:
    if code is not None:
        (fresh / name).with_suffix(".py").write_text(code)
    named = str(fresh / name) if name.endswith(".py") else name
    with pytest.raises(ConfigError, match=said):
        plugins.use([named])
    assert plugins.named() == []


def test_children_are_told(fresh: Path) -> None:
    (fresh / "my_first.py").write_text("LOADED = True\n")
    plugins.use(["my_first", str(fresh / "my_first.py")])
    assert os.environ[plugins.VARIABLE] == f"my_first,{fresh / 'my_first.py'}"
    assert plugins.loaded() == ["my_first", str(fresh / "my_first.py")]
    plugins.use(["my_first"])
    assert plugins.named() == ["my_first", str(fresh / "my_first.py")]


METHOD = """
from dataclasses import dataclass
from vpeft_bench.methods.linear import Linear
from vpeft_bench.methods.base import option
from vpeft_bench.methods.registry import register

@register
@dataclass
class {name}(Linear):
    name = "{name}"
    title = "linear of one's own"
    width: int = option(3, "nothing", minimum=1)
"""


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test adds goes again."""
    monkeypatch.setattr(METHODS, "_things", dict(METHODS._things))


@pytest.mark.usefixtures("methods")
def test_an_experiment_names_its_plug_ins(fresh: Path) -> None:
    (fresh / "my_method.py").write_text(METHOD.format(name="mine"))
    (fresh / "experiment").mkdir()
    text = "# @package _global_\nplugins: [my_method]\ndefaults: [override /method: mine]\n"
    (fresh / "experiment" / "mine.yaml").write_text(text)
    checked = check_overrides(["method.width=4", "experiment=mine"], [str(fresh)], multirun=False)
    assert checked.problems == []
    (job,) = checked.jobs.valid
    assert job.config.method == {"name": "mine", "width": 4}
    assert job.config.plugins == ["my_method"]
    assert plugins.named() == ["my_method"]


@pytest.mark.usefixtures("methods")
def test_a_package_is_named_by_its_folder_and_brings_configs(fresh: Path) -> None:
    folder = fresh / "elsewhere" / "my_package"
    (folder / "configs" / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("from my_package import inner\n")
    (folder / "inner.py").write_text(METHOD.format(name="inner"))
    (folder / "configs" / "data" / "ours.yaml").write_text("name: ours\nreader: digits\n")
    plugins.use([str(folder)])
    assert plugins.config_folders() == [folder / "configs"]
    choices = every_choice()
    assert "ours" in choices["data"]
    assert "inner" in choices["method"]
    checked = check_overrides(["data=ours", "method=inner"], multirun=False)
    assert checked.problems == []
    assert [job.config.data.reader for job in checked.jobs.valid] == ["digits"]


def test_one_that_is_not_there_names_the_nearest(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh / "my_methods.py").write_text("")
    with pytest.raises(ConfigError, match=r"did you mean plugins=\[my_methods\]"):
        plugins.use(["my-methods"])
    (fresh / "below" / "my_tool").mkdir(parents=True)
    monkeypatch.chdir(fresh / "below")
    with pytest.raises(ConfigError, match=r"it lies in this folder: plugins=\[\./my_tool\]"):
        plugins.use(["my_tool"])


def test_jobs_carry_them_to_where_no_variable_tells(fresh: Path) -> None:
    (fresh / "my_carried.py").write_text("")
    plugins.use(["my_carried"])
    sent = pickle.dumps(plugins.Carrying(len, plugins.named()))
    plugins._modules.clear()
    os.environ[plugins.VARIABLE] = ""
    assert pickle.loads(sent)("abc") == 3
    assert plugins.named() == plugins.loaded() == ["my_carried"]


def test_a_registry_names_the_nearest() -> None:
    assert READERS.get("coco") is READERS.get("coco")
    assert {"image_folder", "csv", "ade20k"} < set(READERS.names())
    with pytest.raises(ConfigError, match=r"did you mean data\.reader=coco"):
        READERS.get("cocoo")
    things: Registry[object] = Registry("thing", {})
    first = things.register("a")(object())
    assert things.get("a") is first
    with pytest.raises(ValueError, match="two have the name thing=a"):
        things.register("a")(object())


def test_a_method_itself_is_attached() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=2)
    attached = vpeft_bench.attach(model, LoRA(rank=4))
    by_name = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=2)
    same = vpeft_bench.attach(by_name, "lora", rank=4)
    assert attached.parameter_counts() == same.parameter_counts()
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 2)
    with pytest.raises(AlreadyAttachedError):
        vpeft_bench.attach(model, LoRA())
    attached.detach()
    with pytest.raises(MethodOptionError, match=r"method\.rank=0"):
        vpeft_bench.attach(model, LoRA(rank=0))
    with pytest.raises(TypeError, match="lora has its options already: rank"):
        vpeft_bench.attach(model, LoRA(), rank=2)
