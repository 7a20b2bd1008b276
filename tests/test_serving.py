"""A finished run predicts without its data set, and goes elsewhere as a plain timm model."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

import vpeft_bench
from vpeft_bench import serving
from vpeft_bench.cli.export import main
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.schema import typed
from vpeft_bench.errors import NotMergeableError, RecordError, VpeftBenchError
from vpeft_bench.onnx_files import answers, write_onnx
from vpeft_bench.runs.run import run
from vpeft_bench.serving import export


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


@pytest.mark.parametrize("kind", ["timm", "safetensors"])
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


def test_a_graph_answers_batches_of_any_size(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "there.onnx"
    assert main([str(lora), "--format", "onnx", "--out", str(out)]) == 0
    assert f'onnxruntime.InferenceSession("{out}")' in capsys.readouterr().out
    assert [one.name for one in tmp_path.iterdir()] == ["there.onnx"]
    session = onnxruntime.InferenceSession(str(out))
    settings = json.loads(session.get_modelmeta().custom_metadata_map["vpeft_bench"])
    assert settings["label_names"][0] == "digit 0"
    assert settings["pretrained_cfg"]["mean"]
    names = {one.name for one in session.get_overridable_initializers()}
    assert not any("delta" in name or name.endswith((".A.q", ".B.q")) for name in names)
    for count in (1, 3, 7):
        images = torch.randn(count, 3, 32, 32)
        with torch.inference_mode():
            expected = vpeft_bench.load_run(lora).model(images)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adapter", "vpt_deep", "prefix", "lst"])
def test_a_graph_has_room_for_what_cannot_be_merged(tmp_path: Path, method: str) -> None:
    pytest.importorskip("onnxruntime")
    directory = finished(tmp_path, f"method={method}")
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = vpeft_bench.load_run(directory).model(images)
    written = export(directory, tmp_path / "there.onnx", "onnx")
    assert torch.allclose(answers(written, images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_answers_otherwise_is_not_kept(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(serving, "answers", lambda path, images: answers(path, images + 1))
    with pytest.raises(VpeftBenchError, match="was not kept: its logits differ"):
        export(lora, tmp_path / "there.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_libraries_it_says_what_to_install(
    lora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name)
    )
    assert main([str(lora), "--format", "onnx"]) == 2
    said = capsys.readouterr().err
    assert "onnx, onnxscript, onnxruntime are not installed" in said
    assert "pip install 'vpeft-bench[onnx]'" in said


def test_a_graph_that_is_too_large_is_refused_before_it_is_made(tmp_path: Path) -> None:
    large = torch.nn.Linear(1, 2**29 + 1, bias=False, device="meta")
    with pytest.raises(VpeftBenchError, match=r"2\.0 GiB, and an ONNX file can hold 2.*timm"):
        write_onnx(large, torch.zeros(1, 1), tmp_path / "there.onnx", {})


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
