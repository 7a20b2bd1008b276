"""What was measured as JSON, one file for each item, and the tables made of all of them."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from speed.measure import Row, Settings
from vpeft_bench.records.environment import environment, processor_name, utc_now

ONE_PER_STEM = "bars"
COLUMNS = (
    *("item", "row", "quantity", "unit", "median", "low_quartile", "high_quartile", "n"),
    *("at_least", "at_most", "met", "sides", "note", "quick", "measured", "commit"),
)


def circumstances(settings: Settings) -> dict[str, Any]:
    """Where and with what it is measured, and what else the machine does."""
    found = environment()
    gpu = settings.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(settings.device) if gpu else processor_name(),
        "threads": torch.get_num_threads(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "started": utc_now(),
        "versions": found["versions"],
        "python": found["python"],
        "platform": found["platform"],
        "commit": found["git"].commit if found["git"] else None,
        "changed_since_commit": found["git"].dirty if found["git"] else None,
    }


def device_slug(settings: Settings) -> str:
    """The device as the name of a folder."""
    name = str(circumstances(settings)["device"]).lower()
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name)).strip("-")
    return f"{settings.device.type}-{slug}"


def write_item(
    folder: Path,
    item: str,
    title: str,
    rows: list[Row],
    settings: Settings,
    where: dict[str, Any],
) -> None:
    """``<item>.json``, whole or not at all."""
    content = {
        "item": item,
        "title": title,
        "quick": settings.quick,
        "rows": [row.as_json() for row in rows],
        "where": where | {"finished": utc_now()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{item}.json.tmp"
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, folder / f"{item}.json")


def write_tables(folder: Path, order: list[str]) -> str:
    """``bars.csv`` and ``bars.md`` from every item's file; the latter's text."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    found.sort(key=lambda content: order.index(content["item"]))
    with (folder / "bars.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_csv_row(content, row) for content in found for row in content["rows"])
    text = _markdown(found)
    (folder / "bars.md").write_text(text)
    return text


def _csv_row(content: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {
        "item": content["item"],
        "row": row["name"],
        "quantity": row["quantity"],
        "unit": row["unit"],
        "median": f"{row['median']:.6g}",
        "low_quartile": f"{row['low']:.6g}",
        "high_quartile": f"{row['high']:.6g}",
        "n": row["n"],
        "at_least": row["at_least"],
        "at_most": row["at_most"],
        "met": {True: "yes", False: "no", None: ""}[row["met"]],
        "sides": _sides(row),
        "note": row["note"],
        "quick": "quick" if content["quick"] else "",
        "measured": content["where"]["finished"],
        "commit": content["where"]["commit"],
    }


def _sides(row: dict[str, Any]) -> str:
    return "; ".join(f"{n}: {s['median']:.4g} (n={s['n']})" for n, s in row["sides"].items())


def _markdown(found: list[dict[str, Any]]) -> str:
    lines = ["# Speed bars", ""]
    if any(content["quick"] for content in found):
        lines += ["**Some of it is quick: tiny networks, few repeats, no numbers to keep.**", ""]
    for where in _distinct(found):
        lines.append(f"- {where}")
    lines += [
        "",
        "Median (quartiles) of n; the sides of a ratio were measured in turn. A bar of 1 is "
        "printed as `≥ 1 x` or `≤ 1 x`.",
        "",
        "| item | row | quantity | median | quartiles | n | bar | met | raw medians | note |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for content in found:
        for row in content["rows"]:
            unit = row["unit"]
            cells = (
                f"`{content['item']}`" + (" (quick)" if content["quick"] else ""),
                row["name"],
                row["quantity"],
                f"**{row['median']:.4g} {unit}**",
                f"{row['low']:.4g} to {row['high']:.4g}",
                str(row["n"]),
                _bar(row),
                {True: "yes", False: "**no**", None: ""}[row["met"]],
                _sides(row),
                row["note"],
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- `{content['item']}`: {content['title']}" for content in found)]
    return "\n".join(lines) + "\n"


def _bar(row: dict[str, Any]) -> str:
    if row["at_least"] is not None:
        return f"≥ {row['at_least']:g} {row['unit']}"
    return f"≤ {row['at_most']:g} {row['unit']}" if row["at_most"] is not None else ""


def _distinct(found: list[dict[str, Any]]) -> list[str]:
    """What was measured where, said once for all items that share it."""
    items: dict[str, list[str]] = {}
    for content in found:
        where = content["where"]
        versions = ", ".join(f"{n} {where['versions'][n]}" for n in ("torch", "timm"))
        changed = " with changes" if where["changed_since_commit"] else ""
        commit = f", commit {where['commit'][:10]}{changed}" if where["commit"] else ""
        text = f"{where['device']}, {where['threads']} threads, {versions}{commit}"
        items.setdefault(text, []).append(content["item"])
    return [f"{text}: {', '.join(names)}" for text, names in items.items()]
