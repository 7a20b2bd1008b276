"""Write docs/methods/, the README's table of methods and the facts behind
``python -m vpeft_bench methods`` from the methods themselves.

python scripts/generate_docs.py
"""

from __future__ import annotations

from pathlib import Path

from vpeft_bench.catalogue import facts
from vpeft_bench.catalogue.counts import mean_classes
from vpeft_bench.catalogue.pages import FOLDER, all_pages
from vpeft_bench.cli import backbones
from vpeft_bench.leaderboard import inconsistencies
from vpeft_bench.leaderboard.written import column_docs

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    facts.write()
    backbones.write()
    pages = all_pages(REPOSITORY)
    (REPOSITORY / FOLDER).mkdir(parents=True, exist_ok=True)
    for path, text in pages.items():
        (REPOSITORY / path).write_text(text)
    for path in (REPOSITORY / FOLDER).glob("*.md"):
        if f"{FOLDER}/{path.name}" not in pages:
            path.unlink()  # of a method that is gone
    (REPOSITORY / "docs" / "leaderboard-columns.md").write_text(column_docs())
    (REPOSITORY / inconsistencies.PAGE).write_text(inconsistencies.page(mean_classes))
    print(f"{len(pages)} pages")


if __name__ == "__main__":
    main()
