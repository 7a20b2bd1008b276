"""A finished run predicts without its data set, and goes elsewhere as a plain timm model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

import vpeft_bench
from vpeft_bench.config import typed
from vpeft_bench.errors import NotMergeableError, RecordError, VpeftBenchError
from vpeft_bench.overrides import check_overrides
from vpeft_bench.run import run
from vpeft_bench.serving import FORMATS, export, main


def finished(tmp_path: Path, *overrides: str) -> Path:
    """The directory of a short run."""
    quick = ("train.epochs=1", "hardware=cpu", f"results_dir={tmp_path / 'runs'}")
    checked = check_overrides([*overrides, *quick])
    assert checked.config is not None, checked.problems
    return run(typed(checked.config), Console(quiet=True)).directory


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A run on picture files that are gone afterwards, predictions stored."""
    folder = tmp_path_factory.mktemp("served")
    data = folder / "data"
    shutil.copytree(tiny_data, data)
    names = "\n".join(f"digit {number}" for number in range(10))
    (data / "classes.txt").write_text(names)
    asked = ("data=imagelist", f"data.root={data}", "method=lora", "predictions=true")
    directory = finished(folder, *asked)
    data.rename(folder / "elsewhere")
    return directory


def test_it_predicts_what_the_run_has_predicted(lora: Path) -> None:
    predictor = vpeft_bench.load_run(lora)
    folder = next(one for one in lora.parents if one.name == "runs").parent / "elsewhere"
    lines = (folder / "test.txt").read_text().split("\n")[:-1]
    paths = [folder / line.rsplit(" ", 1)[0] for line in lines]
    labels = torch.tensor([int(line.rsplit(" ", 1)[1]) for line in lines])
    logits = predictor(paths)
    assert logits.shape == (len(paths), 10)
    assert predictor.class_names[3] == "digit 3"
    percent = 100 * float((logits.argmax(1) == labels).float().mean())
    assert predictor.record.happened.last_epoch is not None
    assert percent == pytest.approx(predictor.record.happened.last_epoch.value)
    assert torch.equal(predictor([Image.open(paths[0])]), predictor([str(paths[0])]))
    with pytest.raises(VpeftBenchError, match=r"nowhere\.png"):
        predictor(["nowhere.png"])


@pytest.mark.parametrize("kind", FORMATS)
def test_an_exported_model_is_a_plain_one_of_timm(lora: Path, tmp_path: Path, kind: str) -> None:
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = vpeft_bench.load_run(lora / "record.json").model(images)
    written = export(lora, tmp_path / "there", kind)
    if kind == "timm":
        model = timm.create_model(f"local-dir:{written}", pretrained=True)
        settings = json.loads((written / "config.json").read_text())
        assert settings["label_names"][0] == "digit 0"
        assert settings["pretrained_cfg"]["input_size"] == [3, 32, 32]
    else:
        model = timm.create_model("vpeft_demo_vit", num_classes=10)
        from safetensors.torch import load_file

        model.load_state_dict(load_file(written))
    with torch.inference_mode():
        assert torch.allclose(model.eval()(images), expected, rtol=1e-3, atol=1e-4)


def test_the_command_writes_once_and_says_how_to_load(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    assert main([str(lora), "--out", str(out)]) == 0
    assert f'timm.create_model("local-dir:{out}", pretrained=True)' in capsys.readouterr().out
    assert main([str(lora), "--out", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2
    assert "holds no record.json" in capsys.readouterr().err


def test_what_cannot_be_merged_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    directory = finished(tmp_path, "method=adapter")
    assert vpeft_bench.load_run(directory).class_names[0] == "0"
    with pytest.raises(NotMergeableError, match="method adapter cannot be merged"):
        export(directory, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_files_that_the_record_does_not_vouch_for_are_refused(lora: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(lora, copy)
    head = copy / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(RecordError, match="checksum"):
        vpeft_bench.load_run(copy)
    (copy / "evaluation.json").unlink()
    with pytest.raises(VpeftBenchError, match="does not say which classes there are"):
        vpeft_bench.load_run(copy)


def test_others_may_read_what_a_run_leaves(lora: Path) -> None:
    """The tensor library's files are for their owner alone, unlike all others."""
    modes = {path.name: path.stat().st_mode & 0o777 for path in lora.iterdir() if path.is_file()}
    assert modes["delta.safetensors"] == modes["head.safetensors"] == modes["record.json"]
