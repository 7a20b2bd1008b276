"""Frozen features: the same training from them as from pictures; what they depend on; bounds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console

from tests.conftest import Cli
from vpeft_bench.config.choices import config_dir
from vpeft_bench.config.schema import RunConfig, register_schema, typed
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.records.run_record import RunRecord
from vpeft_bench.runs import feature_store
from vpeft_bench.runs.build import build_model
from vpeft_bench.runs.feature_cache import FeatureReader, TooLarge, refusal
from vpeft_bench.runs.feature_store import DiskStore, MemoryStore
from vpeft_bench.runs.run import run


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    feature_store.forget()
    yield
    feature_store.forget()


def config(data: Path, *overrides: str) -> RunConfig:
    register_schema()
    quick = ("train.epochs=2", "train.batch_size=32", "hardware=cpu", "hardware.threads=1")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = compose(
            "config", overrides=["data=imagelist", f"data.root={data}", *quick, *overrides]
        )
    return typed(composed)


def record_of(data: Path, results: Path, *overrides: str) -> RunRecord:
    outcome = run(config(data, f"results_dir={results}", *overrides), Console(quiet=True))
    assert outcome.record is not None
    return outcome.record


def reader(data: Path, *overrides: str) -> FeatureReader:
    asked = config(data, *overrides)
    dataset = open_dataset(asked.data)
    return FeatureReader(asked, dataset, build_model(asked, dataset))


# ---- the same training --------------------------------------------------------------------------

# One of each kind of feature; that every method resumes exactly from what it reads is tested in
# methods/test_contract.py.
CACHED = {
    "linear": ("features",),
    "adapter": ("tokens.4",),
    "lst": tuple(f"tokens.{i}" for i in range(7)),
    "e3va": ("tokens.0", *(f"{kind}.{i}" for i in range(6) for kind in ("attn", "mlp"))),
    "sidetune": ("images", "features"),
}
OPTIONS = {"adapter": ["method.last_blocks=2"]}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=() if method in ("adapter", "sidetune") else pytest.mark.slow)
        for method in CACHED
    ],
)
def test_cached_training_is_the_uncached_one(method: str, tiny_data: Path, tmp_path: Path) -> None:
    """fp32: the same metrics, loss curves to 1e-5, the same delta and head to 1e-4."""
    options = [f"method={method}", *OPTIONS.get(method, []), "protocol=select"]
    plain = record_of(tiny_data, tmp_path / "off", *options, "hardware.feature_cache=off")
    cached = record_of(tiny_data, tmp_path / "memory", *options)
    assert plain.config_hash == cached.config_hash
    assert plain.happened.frozen_features is None
    assert plain.happened.seconds.features is None
    kept = cached.happened.frozen_features
    assert kept is not None
    assert tuple(kept.reads) == CACHED[method]
    assert kept.bytes > 0
    assert not kept.found
    assert (cached.happened.seconds.features or 0) > 0
    assert cached.happened.last_epoch == plain.happened.last_epoch
    assert cached.happened.selected_epoch == plain.happened.selected_epoch
    losses = [record.happened.curves["train_loss"] for record in (plain, cached)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][-1] < losses[0][0], "nothing was learned, so nothing was compared"


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(m, marks=pytest.mark.slow) for m in ("vpt_deep", "hst"))]
)
def test_methods_that_change_the_first_block_keep_nothing(
    method: str, tiny_data: Path, tmp_path: Path
) -> None:
    record = record_of(tiny_data, tmp_path, f"method={method}", "train.epochs=1")
    assert record.happened.frozen_features is None


def test_bfloat16_autocast_and_rounded_features(tiny_data: Path, tmp_path: Path) -> None:
    """Under autocast kept features are the uncached ones; rounded ones are another experiment."""
    options = ["method=adapter", "method.last_blocks=2", "hardware.precision=bf16"]
    plain = record_of(tiny_data, tmp_path, *options, "hardware.feature_cache=off")
    cached = record_of(tiny_data, tmp_path / "cached", *options)
    rounded = record_of(tiny_data, tmp_path, *options, "hardware.feature_cache_dtype=bf16")
    losses = [r.happened.curves["train_loss"] for r in (plain, cached, rounded)]
    # The batches that features are computed in are others, and bfloat16 shows it.
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert losses[0] == pytest.approx(losses[2], rel=3e-2)
    assert cached.config_hash == plain.config_hash != rounded.config_hash
    kept = [r.happened.frozen_features for r in (cached, rounded)]
    assert kept[0] is not None
    assert kept[1] is not None
    assert kept[0].bytes == 2 * kept[1].bytes


# ---- what they depend on ------------------------------------------------------------------------


def test_a_sweep_shares_them_on_disk(cli: Cli, tiny_data: Path, tmp_path: Path) -> None:
    """Other seeds and methods that read the same find them; another process does as well."""
    disk = ["hardware.feature_cache=disk", f"hardware.feature_cache_dir={tmp_path / 'kept'}"]
    first = record_of(tiny_data, tmp_path / "a", "method=lst", *disk)
    again = record_of(tiny_data, tmp_path / "b", "method=last", "seed=1", *disk)
    other = cli(
        *("data=imagelist", f"data.root={tiny_data}", "method=lst", "seed=2", "train.epochs=1"),
        *("hardware=cpu", f"results_dir={tmp_path / 'c'}", *disk),
    )
    assert other.returncode == 0, other.stderr
    assert "7 maps of 260 pictures found" in other.stdout
    kept = [record.happened.frozen_features for record in (first, again)]
    assert [k.found for k in kept if k] == [False, True]
    for path in (tmp_path / "kept").rglob("tokens.*"):
        assert path.stat().st_mode == (path.parent / DiskStore.META).stat().st_mode, "who may read"
    assert first.happened.curves["train_loss"] == pytest.approx(
        record_of(tiny_data, tmp_path / "d", "method=lst").happened.curves["train_loss"], abs=1e-6
    )


@pytest.mark.parametrize(
    "change",
    [
        "hardware.precision=bf16",
        "hardware.feature_cache_dtype=bf16",
        "data.normalization=imagenet",
        "data.resize=shorter_side",
        "backbone.weights=none",
        "method=partial",
    ],
)
def test_what_they_depend_on_is_in_their_name(tiny_data: Path, change: str) -> None:
    base, changed = reader(tiny_data, "method=linear"), reader(tiny_data, "method=linear", change)
    assert base._key("test") != changed._key("test")
    assert base._key("test") != base._key("val")


def test_what_they_do_not_depend_on_is_not(tiny_data: Path) -> None:
    base = reader(tiny_data, "method=linear")
    other = reader(tiny_data, "method=linear", "seed=3", "train.lr=0.5", "train.batch_size=8")
    assert base._key("test") == other._key("test")


def test_a_changed_picture_makes_them_stale(tiny_data: Path) -> None:
    before = reader(tiny_data, "method=linear")._key("test")
    picture = tiny_data / "images" / "000259.jpg"
    stat = picture.stat()
    try:
        os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert reader(tiny_data, "method=linear")._key("test") != before
    finally:
        os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert reader(tiny_data, "method=linear")._key("test") == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("data.augmentation=crop_flip", "data.augmentation=crop_flip changes the pictures"),
        ("backbone.drop_path=0.1", "draws random numbers"),
        ("backbone.model_args.pos_drop_rate=0.1", "draws random numbers"),
    ],
)
def test_random_pictures_and_layers_are_not_kept(tiny_data: Path, change: str, reason: str) -> None:
    asked = config(tiny_data, "method=linear")
    dataset = open_dataset(asked.data)
    assert refusal(asked, build_model(asked, dataset)) is None
    key, _, value = change.partition("=")
    if key.startswith("backbone.model_args"):
        asked.backbone.model_args = {"pos_drop_rate": float(value)}
    else:
        asked = config(tiny_data, "method=linear", change)
    assert reason in (refusal(asked, build_model(asked, dataset)) or "")


# ---- bounds -------------------------------------------------------------------------------------


def test_more_than_the_limit_is_not_kept_and_the_user_told(cli: Cli, tiny_data: Path) -> None:
    shown = cli(
        *("method=lst", "data=imagelist", f"data.root={tiny_data}", "train.epochs=1"),
        *("hardware.feature_cache_gib=0.01", "hardware.threads=1"),
    )
    assert shown.returncode == 0, shown.stderr
    assert "frozen features: not kept, they take 0.1 GiB" in shown.stdout
    assert "hardware.feature_cache_gib=0.1" in shown.stdout
    with pytest.raises(TooLarge):
        reader(tiny_data, "method=lst", "hardware.feature_cache_gib=0.01").require_room(("test",))
    reader(tiny_data, "method=linear", "hardware.feature_cache_gib=0.01").require_room(("test",))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_the_least_recently_used_give_way(kind: str, tmp_path: Path) -> None:
    """Three entries of 400 bytes under a limit of 1,000: the one not used for longest goes."""
    store = MemoryStore(1000) if kind == "memory" else DiskStore(tmp_path, 1000)
    for number, key in enumerate(["a", "b"]):
        room = store.empty(key, {"features": (10, 10)}, torch.float32)
        room["features"].fill_(number)
        store.keep(key, room)
        if kind == "disk":
            os.utime(tmp_path / key / DiskStore.META, (number, number))
    found = store.find("a")
    assert found is not None
    store.keep("c", store.empty("c", {"features": (10, 10)}, torch.float32))
    assert store.find("b") is None
    assert store.find("c") is not None
    assert torch.equal(found["features"], torch.zeros(10, 10)), "who holds it keeps it"
    if kind == "disk":
        sizes = [f.stat().st_size for f in tmp_path.rglob("features")]
        assert sizes == [400, 400]


def test_a_damaged_or_unfinished_entry_is_computed_anew(tiny_data: Path, tmp_path: Path) -> None:
    options = [
        *("method=linear", "hardware.feature_cache=disk"),
        f"hardware.feature_cache_dir={tmp_path / 'kept'}",
    ]
    first = record_of(tiny_data, tmp_path / "a", *options)
    for path in (tmp_path / "kept").glob("*/features"):
        path.write_bytes(path.read_bytes()[:-4])
    unfinished = reader(tiny_data, *options)
    shapes = {"features": (60, 128)}
    unfinished.store.empty(unfinished._key("test"), shapes, torch.float32)  # and no end
    second = record_of(tiny_data, tmp_path / "b", *options)
    assert second.happened.frozen_features is not None
    assert not second.happened.frozen_features.found
    assert second.happened.curves["train_loss"] == first.happened.curves["train_loss"]
    third = record_of(tiny_data, tmp_path / "c", *options)
    assert third.happened.frozen_features is not None
    assert third.happened.frozen_features.found
