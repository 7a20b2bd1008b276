"""The page in a real browser: every control does what it says, and nothing goes wrong or out."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.conftest import make_run
from tests.leaderboard.page.conftest import FORMULA, LONG, QUOTES, SCRIPT, VTAB, page_of

WIDE, PHONE = 1400, 380


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """The page, just opened; at the end no error was logged and nothing was asked of a network."""
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    show(browser, folder, WIDE)
    yield browser
    assert [one for one in browser.get_log("browser") if one["level"] != "INFO"] == []
    messages = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def show(browser: Any, folder: Path, width: int, colours: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": colours}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get((folder / "out" / "index.html").as_uri())


def all_of(page: Any, selector: str) -> list[Any]:
    found: list[Any] = page.find_elements("css selector", selector)
    return found


def panel(page: Any) -> str:
    """The selector of the panel of VTAB-1k."""
    titles = {one.text: one.get_attribute("id") for one in all_of(page, ".panel h2")}
    return "#" + titles["VTAB-1k, test images"].removesuffix("-title")


def names(page: Any) -> list[str]:
    """The rows that are shown, from top to bottom."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].filter(r => !r.hidden)"
        ".map(r => r.querySelector('.who a').textContent)"
    )
    found: list[str] = page.execute_script(script, f"{panel(page)} .board tbody tr[id]")
    return found


def head(page: Any, title: str) -> Any:
    found = all_of(page, f"{panel(page)} .board thead th")
    return next(one for one in found if one.text.replace("\n", " ").strip(" ↕↑↓") == title)


def control(page: Any, text: str) -> Any:
    found = all_of(page, f"{panel(page)} .controls label, {panel(page)} .controls button")
    return next(one for one in found if one.text.strip() == text)


def fill(page: Any, text: str) -> str:
    """Type a filter; what the page says of it."""
    field = all_of(page, f"{panel(page)} input[type=search]")[0]
    field.clear()
    field.send_keys(text)
    return str(all_of(page, f"{panel(page)} .said")[0].text)


def choose(page: Any, label: str, option: str) -> None:
    from selenium.webdriver.support.select import Select

    script = "return arguments[0].firstChild.textContent.trim()"
    labels = all_of(page, f"{panel(page)} label")
    found = next(one for one in labels if page.execute_script(script, one) == label)
    Select(found.find_element("css selector", "select")).select_by_visible_text(option)


def test_columns_sort_both_ways_and_say_so(page: Any) -> None:
    control(page, "fold variants").click()
    mean = head(page, "mean over 19 datasets")
    button = mean.find_element("css selector", "button")
    button.click()
    assert mean.get_attribute("aria-sort") == "descending"
    down = names(page)
    assert (down[-1], down[-2]) == ("adapter", "linear")  # a missing mean comes last
    button.click()
    assert mean.get_attribute("aria-sort") == "ascending"
    up = names(page)
    assert (up[0], up[-1]) == ("linear", "adapter")
    variant = head(page, "variant").find_element("css selector", "button")
    variant.send_keys("\n")  # by keyboard
    assert names(page) == sorted(names(page))
    assert mean.get_attribute("aria-sort") is None


def test_variants_are_folded_under_their_method(page: Any) -> None:
    folded = names(page)
    assert sum(name.startswith("lora") for name in folded) == 1
    fold = all_of(page, f"{panel(page)} .fold")[0]
    assert fold.get_attribute("aria-expanded") == "false"
    fold.click()
    at = names(page).index(folded[0] if folded[0].startswith("lora") else "lora rank=16")
    assert {names(page)[at], names(page)[at + 1]} == {"lora", "lora rank=16"}
    assert all_of(page, f"{panel(page)} .fold")[0].get_attribute("aria-expanded") == "true"
    all_of(page, f"{panel(page)} .fold")[0].click()
    assert names(page) == folded


def test_words_and_conditions_filter(page: Any) -> None:
    control(page, "fold variants").click()
    assert fill(page, "rank=16") == "1 of 5 rows; 19 columns hidden"  # an option, no column
    assert fill(page, "lora").startswith("2 of 5 rows")
    assert sorted(names(page)) == ["lora", "lora rank=16"]
    assert fill(page, "mean > 60 ssf").startswith("1 of 5 rows")
    assert fill(page, "complete=18/19").startswith("1 of 5 rows")
    assert names(page) == ["adapter"]
    assert "no one column is called colour" in fill(page, "colour>3")
    assert "needs a number" in fill(page, "params<many")
    assert fill(page, "nothing of this kind").startswith("0 of 5 rows")
    assert names(page) == []


def test_columns_are_picked_one_by_one_and_in_groups(page: Any) -> None:
    data = VTAB.datasets[0]
    place = panel(page)

    def shown(title: str) -> bool:
        script = (
            "return [...document.querySelectorAll(arguments[0])]"
            ".find(h => h.dataset.key === arguments[1]).offsetWidth > 0"
        )
        return bool(page.execute_script(script, f"{place} .board thead th", title))

    assert not shown(data)
    all_of(page, f"{place} .picker summary")[0].click()
    boxes = {one.text: one for one in all_of(page, f"{place} .picker label")}
    boxes[data].click()
    assert shown(data)
    assert not shown(VTAB.datasets[1])
    group = boxes["Data sets"].find_element("css selector", "input")
    assert page.execute_script("return arguments[0].indeterminate", group)
    boxes["Data sets"].click()
    assert all(shown(name) for name in VTAB.datasets)
    boxes["Cost"].click()
    assert not shown("parameters_method")
    group.send_keys("\ue00c")  # Escape
    assert not all_of(page, f"{place} .picker[open]")


def test_a_row_opens_to_its_runs_and_where_they_come_from(page: Any) -> None:
    row = next(
        one for one in all_of(page, f"{panel(page)} .board tbody tr[id]") if "ssf" in one.text
    )
    button = row.find_element("css selector", ".open")
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    more = all_of(page, f"{panel(page)} .inline article")[0].text
    for part in ("seed: value", "some CPU", "commit", "versions", "weights fingerprint"):
        assert part in more
    assert "python -m vpeft_bench -m method=ssf" in more
    assert more.count("± ") == len(VTAB.datasets) + 1  # and in the caption
    button.click()
    assert not all_of(page, f"{panel(page)} .inline")


def test_the_csv_is_exactly_what_is_shown(page: Any) -> None:
    control(page, "fold variants").click()
    fill(page, "lora")
    head(page, "mean over 19 datasets").find_element("css selector", "button").click()
    control(page, "CSV of what is shown").click()
    file = page.downloads / "vtab_1k_test_images.csv"
    for _ in range(100):
        if file.exists():
            break
        time.sleep(0.05)
    lines = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"))))
    assert [line[0] for line in lines[1:]] == names(page)
    titles = [
        one.text.replace("\n", " ").strip(" ↕↑↓")
        for one in all_of(page, f"{panel(page)} .board thead th")
        if one.is_displayed()
    ]
    assert lines[0] == titles
    assert not set(VTAB.datasets) & set(lines[0])
    shown = all_of(page, f"{panel(page)} .board tbody tr:not([hidden]) td:nth-child(2)")
    assert [line[1] for line in lines[1:]] == [one.text for one in shown]


def test_no_name_is_a_formula_in_the_csv(page: Any) -> None:
    script = "return [...arguments[0]].map(text => field(text))"
    assert page.execute_script(script, [FORMULA, "-3.5", "-x", 'a "b", c', "+1,234"]) == [
        "'=cmd()",
        "-3.5",
        "'-x",
        '"a ""b"", c"',
        '"+1,234"',
    ]


def test_the_plot_has_axes_to_choose_and_a_row_to_highlight(page: Any) -> None:
    place = panel(page)
    circles = f"{place} .plot circle"
    assert len(all_of(page, circles)) == 4  # adapter has no mean
    label = all_of(page, f"{place} .plot svg")[0].get_attribute("aria-label")
    assert label == "mean over 19 datasets against params: 4 rows"
    choose(page, "against", "card step ms")
    said = [one.get_attribute("aria-label") for one in all_of(page, circles)]
    assert len(said) == 3
    front = [one.partition(":")[0] for one in said if "on the Pareto front" in one]
    assert sorted(front) == ["linear", "lora rank=16", "ssf"]
    choose(page, "score", VTAB.datasets[3])
    choose(page, "against", "params")
    assert len(all_of(page, circles)) == 4  # its run there failed
    choose(page, "highlight", "ssf")
    assert all_of(page, f"{circles}.chosen")[0].get_attribute("aria-label").startswith("ssf: ")
    assert "ssf" in all_of(page, f"{place} .board tr.chosen")[0].text


def test_two_rows_are_compared_in_words(page: Any) -> None:
    place = panel(page)
    out = all_of(page, f"{place} .duel output")[0]
    choose(page, "compare", "linear")
    choose(page, "with", "adapter")
    assert "of 18 data sets" in out.text
    choose(page, "with", "ssf")
    assert out.text.startswith("ssf against linear: difference +")  # the better mean comes first
    assert "better on 19, equal on 0, worse on 0 of 19 data sets" in out.text
    cell = all_of(page, f"{place} .matrix tbody tr:first-child td[style]")[0]
    cell.click()
    assert cell.get_attribute("title") in out.text


def test_rows_are_of_one_height_whatever_a_column_out_of_sight_says(page: Any) -> None:
    heights = """
    const rows = [...document.querySelectorAll(arguments[0])].filter((row) => row.offsetHeight);
    return [...new Set(rows.map((row) => row.offsetHeight))];
    """
    rows = f"{panel(page)} .board tbody tr[id]"
    control(page, "fold variants").click()
    before = page.execute_script(heights, rows)
    longer = """
    const cell = document.querySelector(arguments[0]).querySelector('td.t:not([hidden])');
    cell.textContent = 'departs from all others in many ways '.repeat(9);
    document.querySelector(arguments[0]).closest('table').classList.add('oneline');
    """
    page.execute_script(longer, rows)
    assert page.execute_script(heights, rows) == before
    all_of(page, f"{rows} .open")[0].click()  # opened, it has all of its text
    assert len(page.execute_script(heights, rows)) == len(before) + 1


def test_long_texts_are_whole_where_that_is_asked_for(browser: Any, tmp_path: Path) -> None:
    """Tables whose rows do not open have them, too: those beside published numbers."""
    runs = [
        make_run(60.0 + number, data=data, train={"lr": 1e-3, **{f"key{n}": n for n in range(9)}})
        for number, data in enumerate(("demo/digits", "demo/sprites_count"))
    ]
    table = tmp_path / "theirs.csv"
    source = "A paper with a title that goes on for longer than any one line of a table has room"
    table.write_text(
        "method,data,value,source\n"
        + "".join(f"lora,demo/{data},61,{source}\n" for data in ("digits", "sprites_count"))
    )
    page_of(tmp_path, runs, [], "--compare", str(table))
    show(browser, tmp_path, WIDE)
    rows = "[...document.querySelectorAll('#published ~ .panel tbody tr')]"
    heights = f"return {rows}.map((row) => row.offsetHeight)"
    before = browser.execute_script(heights)
    assert len(before) == 3
    assert max(before) - min(before) <= 1  # the last one has no border
    labels = all_of(browser, "#published ~ .panel .controls label")
    boxes = [one for one in labels if one.text.strip() == "long texts in full"]
    for box in boxes:
        box.click()
    assert max(browser.execute_script(heights)) > max(before) + 10
    show(browser, tmp_path, PHONE, "dark")
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE
    assert browser.execute_script(CONTRAST) == []


def test_the_paper_view_is_the_table_of_scores_with_the_best_bold_and_its_chart(
    page: Any, folder: Path
) -> None:
    show(page, folder, WIDE, "dark")
    place = panel(page)
    all_of(page, f"{place} .picker summary")[0].click()
    before = [one.get_attribute("data-key") for one in all_of(page, "thead th") if shown(page, one)]
    control(page, "paper view").click()
    white = "rgb(255, 255, 255)"
    script = "return getComputedStyle(document.body).backgroundColor"
    assert page.execute_script(script) == white
    assert [one.get_attribute("id") for one in all_of(page, ".panel") if one.is_displayed()] == [
        place.removeprefix("#")
    ]
    heads = [one for one in all_of(page, f"{place} .board thead th") if shown(page, one)]
    titles = [one.get_attribute("data-key") for one in heads]
    assert [title for title in titles if title in VTAB.datasets] == list(VTAB.datasets)
    assert not {"complete", "tier", "departs"} & set(titles)
    assert {"parameters_method"} < set(titles)
    bold = all_of(page, f"{place} .board .top")
    rows = {one.find_element("xpath", "..").get_attribute("id") for one in bold}
    assert len(bold) >= len(VTAB.datasets)
    assert len(rows) == 1, "lora of rank 16 is the best by a point everywhere"
    assert all_of(page, f"{place} .plot svg")[0].is_displayed()
    for hidden in (".controls", ".plot .axes", ".verdict", "button.open"):
        assert not any(one.is_displayed() for one in all_of(page, f"{place} {hidden}"))
    page.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert page.execute_script(script) != white
    after = [one.get_attribute("data-key") for one in all_of(page, "thead th") if shown(page, one)]
    assert after == before
    assert all_of(page, ".top, .leave, .of-group") == []


def shown(page: Any, element: Any) -> bool:
    return bool(page.execute_script("return arguments[0].offsetWidth > 0", element))


def test_print_is_light_has_no_controls_and_cuts_nothing_off(page: Any, folder: Path) -> None:
    show(page, folder, WIDE, "dark")
    all_of(page, ".theme")[0].click()
    all_of(page, ".theme")[0].click()  # dark by hand, too
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        script = "return getComputedStyle(document.body).backgroundColor"
        assert page.execute_script(script) == "rgb(255, 255, 255)"
        for hidden in (".controls", ".theme", "nav", ".open", ".duel"):
            assert not any(one.is_displayed() for one in all_of(page, hidden))
        clipped = "return getComputedStyle(document.querySelector('.scroll')).overflow"
        assert page.execute_script(clipped) == "visible"
        assert page.execute_script(CONTRAST) == []
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_light_and_dark_by_the_system_and_by_hand(page: Any, folder: Path) -> None:
    def paper() -> str:
        return str(page.execute_script("return getComputedStyle(document.body).backgroundColor"))

    light = paper()
    button = all_of(page, ".theme")[0]
    assert button.get_attribute("aria-label") == "switch to dark colours"
    button.click()
    dark = paper()
    assert dark != light
    assert button.get_attribute("aria-label") == "switch to light colours"
    show(page, folder, WIDE, "dark")
    assert paper() == dark
    all_of(page, ".theme")[0].click()
    assert paper() == light


CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const lum = (c) => {
  const [r, g, b] = c.map((v) => v / 255).map((v) => v <= .04045
    ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const paper = getComputedStyle(document.body).backgroundColor;
return [...document.querySelectorAll('p, th, td, small, a, button, h1, h2, li, dt, dd')]
  .filter((e) => e.offsetWidth && e.textContent.trim())
  .map((e) => [lum(parse(getComputedStyle(e).color)), lum(parse(paper)), e.outerHTML.slice(0, 80)])
  .filter(([a, b]) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5)
  .map(([, , text]) => text);
"""


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_and_texts_have_contrast(
    page: Any, folder: Path, colours: str
) -> None:
    show(page, folder, PHONE, colours)
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.execute_script("return document.documentElement.scrollWidth") == PHONE
    assert page.execute_script(CONTRAST) == []


def test_every_control_has_a_name_and_every_table_a_caption(page: Any) -> None:
    unnamed = """
    return [...document.querySelectorAll('button, select, input')].filter((e) =>
      !e.textContent.trim() && !e.getAttribute('aria-label')
      && !e.closest('label')?.textContent.trim()
    ).map((e) => e.outerHTML)
    """
    assert page.execute_script(unnamed) == []
    assert len(all_of(page, "table")) == len(all_of(page, "table > caption"))
    assert not all_of(page, "thead th:not([scope=col])")
    assert not all_of(page, "tbody th:not([scope=row])")


def test_names_of_others_are_shown_and_run_nothing(page: Any) -> None:
    shown = page.execute_script("return document.body.textContent")
    for name in (SCRIPT, FORMULA, LONG, QUOTES.replace("\u202e", "\\u202e")):
        assert name in shown
    assert page.execute_script("return document.querySelectorAll('script').length") == 1


def test_without_javascript_the_tables_are_there(page: Any, folder: Path) -> None:
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.get((folder / "out" / "index.html").as_uri())
        assert len(all_of(page, "button")) == 0
        rows = all_of(page, ".board tbody tr")
        assert all(row.is_displayed() for row in rows)
        heads = [one.text for one in all_of(page, ".board thead th")]
        assert {*VTAB.datasets, "mean over 19 datasets"} <= set(heads)
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        page.get("about:blank")
