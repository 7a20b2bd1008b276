"""One leaderboard with everything at once, and the browser that looks at its page."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.conftest import make_card, make_run
from vpeft_bench.cli.leaderboard import main
from vpeft_bench.config.benchmarks import known
from vpeft_bench.records.cost_card import write as write_card
from vpeft_bench.records.run_record import RunRecord, Status, write

SCRIPT = "<script>alert(1)</script>"
FORMULA = "=cmd()"
QUOTES = "\"quoted\" & 'single' </script> <b>é漢字\u202e</b>"
LONG = "long_" + "x" * 95
VTAB = known()["vtab1k"]


def page_of(folder: Path, records: list[RunRecord], cards: list[Any] = (), *more: str) -> str:
    """The page that the leaderboard of these writes."""
    for number, record in enumerate(records):
        write(record, folder / "runs" / f"{number:04}" / "record.json")
    for number, card in enumerate(cards):
        write_card(card, folder / "cost" / f"{number:04}" / "card.json")
    (folder / "cost").mkdir(exist_ok=True, parents=True)
    (folder / "runs").mkdir(exist_ok=True, parents=True)
    options = ["--cards", str(folder / "cost"), "--out", str(folder / "out")]
    assert main(["--records", str(folder / "runs"), *options, *more]) == 0
    return (folder / "out" / "index.html").read_text(encoding="utf-8")


def everything() -> tuple[list[RunRecord], list[Any]]:
    """Nine data sets of ten for one row, tiers, variants, names that are markup; and cards."""
    chance = random.Random(0)
    records = []
    skills = {"lora": 80.0, "ssf": 79.9, "linear": 60.0, "adapter": 79.0}
    for method, skill in skills.items():
        for number, data in enumerate(VTAB.members):
            if method == "adapter" and number == 3:
                records.append(
                    make_run(
                        data=data,
                        benchmark="vtab1k",
                        method=method,
                        options={},
                        status=Status.FAILED,
                        error=f"RuntimeError: {SCRIPT}",
                    )
                )
                continue
            records += [
                make_run(
                    skill - number + chance.gauss(0, 0.5),
                    data=data,
                    benchmark="vtab1k",
                    method=method,
                    options={},
                    seed=seed,
                )
                for seed in range(2)
            ]
    records += [
        make_run(
            81.0 - number + chance.gauss(0, 0.5),
            data=data,
            benchmark="vtab1k",
            method="lora",
            options={"rank": 16},
            seed=seed,
        )
        for number, data in enumerate(VTAB.members)
        for seed in range(2)
    ]
    records += [
        make_run(50.5 + number, data=f"demo/{data}", method=name, options={})
        for name in (SCRIPT, FORMULA, QUOTES, LONG)
        for number, data in enumerate(known()["demo"].datasets)
    ]
    records.append(make_run(66.25, data=SCRIPT, benchmark="custom", method=FORMULA, options={}))
    cards = [
        make_card(method="lora", options={"rank": 16}, step_ms=140.0),
        make_card(method="ssf", options={}, step_ms=120.0),
        make_card(method="linear", options={}, step_ms=50.0),
    ]
    return records, cards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page of :func:`everything` lies."""
    place = tmp_path_factory.mktemp("page")
    page_of(place, *everything())
    return place


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "out" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window; what it downloads comes to ``browser.downloads``."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no chromium with a chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile, downloads = (tmp_path_factory.mktemp(name) for name in ("profile", "downloads"))
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--window-size=1400,1000", "--disable-dev-shm-usage",
    ):  # fmt: skip
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    found.downloads = downloads
    found.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
    )
    yield found
    found.quit()
