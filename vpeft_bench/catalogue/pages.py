"""The pages of ``docs/methods``, written from the methods themselves."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from vpeft_bench.catalogue.counts import BACKBONES, Published, mean_classes, read_published
from vpeft_bench.catalogue.facts import named
from vpeft_bench.catalogue.probe import Facts, probe, reference_vectors
from vpeft_bench.catalogue.wording import (
    CAPABILITIES,
    NUMBERS,
    VECTORS,
    capabilities,
    features,
    first_size,
    number,
    option_value,
)
from vpeft_bench.methods.base import Category, Method, default_options
from vpeft_bench.methods.registry import list_methods, method_class

FOLDER = "docs/methods"
README_MARKS = ("<!-- methods: generated -->\n", "<!-- /methods -->\n")
Vectors = Mapping[str, Sequence[str]]


def all_pages(repository: Path) -> dict[str, str]:
    """Every generated page: its path in the repository, and its text."""
    facts = {name: probe(name) for name in list_methods()}
    vectors = reference_vectors() or {}
    published = read_published(repository / "results" / "published" / "parameters.csv")
    pages = {f"{FOLDER}/{n}.md": method_page(method_class(n), facts[n], vectors) for n in facts}
    pages[f"{FOLDER}/README.md"] = index_page(facts)
    pages[f"{FOLDER}/capabilities.md"] = capabilities_page(facts, vectors)
    pages[f"{FOLDER}/counts.md"] = counts_page(published)
    pages["README.md"] = with_methods((repository / "README.md").read_text())
    return pages


# ---- one method ---------------------------------------------------------------------------------


def method_page(found: type[Method], facts: Facts, vectors: Vectors) -> str:
    """Everything there is to say of a method."""
    where = f"{found.__module__.replace('.', '/')}.py"
    parts = [
        f"# {found.name}",
        f"**{_text(found.title)}.** {_paper(found)} Category: "
        f"[{found.category.value}](README.md#{found.category.value}). Code: "
        f"[`{where}`](../../{where}).",
        _text(found.idea),
        _block("bash", _command(found)),
        "## What it computes",
        _block("text", inspect.cleandoc(found.__doc__ or "")),
        "## Options",
        _options(found),
        "## Facts",
        _sizes(facts),
        _list(_facts(found, facts, vectors.get(found.name, ()))),
        "## Where code, papers and tables disagree",
        _list(map(_text, found.deviations)) or "Nothing is known.",
    ]
    return _page(parts, where)


def _paper(found: type[Method]) -> str:
    link = f"arXiv [{found.arxiv}](https://arxiv.org/abs/{found.arxiv}); " if found.arxiv else ""
    return f"{link}{_text(found.source)}."


def _command(found: type[Method]) -> str:
    return f"python -m vpeft_bench method={found.name}"


def _options(found: type[Method]) -> str:
    defaults = default_options(found)
    rows = [
        [
            f"`{option.name}`",
            f"`{option_value(defaults[option.name])}`",
            _valid(option.metadata),
            _text(option.metadata["help"]) + _searched(option.metadata["search"]),
        ]
        for option in fields(found)
    ]
    if not rows:
        return "It has none."
    return _table(["option", "default", "valid", "what it is, and where the default is from"], rows)


def _searched(values: Sequence[object]) -> str:
    """The values that tuning tries."""
    listed = ", ".join(option_value(value) for value in values)
    return f"; [tuned](../tuning.md) over {listed}" if values else ""


def _valid(metadata: Mapping[str, object]) -> str:
    choices, low, high = metadata["choices"], metadata["minimum"], metadata["maximum"]
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)  # type: ignore[attr-defined]
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else ""


def _sizes(facts: Facts) -> str:
    sizes = facts.sizes.values()
    rows = [
        ["trainable parameters, without the head", *(number(s.parameters) for s in sizes)],
        ["bytes of the delta checkpoint's tensors", *(number(s.stored_bytes) for s in sizes)],
        ["frozen features that training reads", *(features(s.reads) for s in sizes)],
    ]
    return _table(["", *facts.sizes], rows, right=list(facts.sizes))


def _facts(found: type[Method], facts: Facts, vectors: Sequence[str]) -> list[str]:
    start = "the pretrained model, bit for bit" if facts.identity_at_start else "another function"
    merge = "yes" if facts.mergeable else f"no, {found.not_mergeable or 'with these options'}"
    lines = [
        f"Count: {_said(found, 'parameter_count')}",
        f"Start: {start}. {_said(found, 'identity_at_start')}",
        f"Merging: {_text(merge)}. {_said(found, 'merge_refusal')}",
        f"Backbones: {named(facts.families)}.",
    ]
    lines += [f"Not on {family}: {_text(why)}." for family, why in found.unsupported().items()]
    if not facts.dense:
        refusal = found().dense_refusal or "some of what it trains gets no gradient there"
        lines.append(f"Not under dense heads: {_text(refusal)}.")
    if facts.selects:
        lines.append(f"Looks at training data first: {_said(found, 'select')}")
    if steps := [_said(found, hook) for hook in ("before_step", "after_step")]:
        lines += [f"Around steps: {step}" for step in steps if step]
    compared = ", ".join(f"`{vector}`" for vector in vectors) or "none; property tests only"
    lines.append(f"Reference vectors that the tests compare it with: {compared}.")
    return [line.strip() for line in lines]


def _said(found: type[Method], member: str) -> str:
    """What the method says of one of its members, if it has one of its own."""
    own = inspect.getattr_static(found, member)
    if own is inspect.getattr_static(Method, member):
        return ""
    return _text((inspect.getdoc(own) or "").split("\n\n")[0])


# ---- all methods --------------------------------------------------------------------------------


def index_page(facts: Mapping[str, Facts]) -> str:
    """Every method, by category."""
    parts = [
        "# Methods",
        f"{len(facts)} methods, in the categories of the survey (arXiv 2402.02242). Parameters are "
        "those that train on ViT-B/16 (else on Swin-B) with the default options, without the head.",
        "What each can do: [capabilities](capabilities.md). Our counts beside published ones: "
        "[counts](counts.md). One more: [a package of your own](../extend.md).",
    ]
    for category in Category:
        rows = [
            [f"[`{name}`]({name}.md)", _text(found.title), _arxiv(found), _first_size(facts[name])]
            for name, found in _of(category)
        ]
        if rows:
            head = ["`method=`", "paper", "arXiv", "parameters"]
            parts += [
                f"## {category.value.capitalize()}",
                _table(head, rows, right=["parameters"]),
            ]
    return _page(parts)


def _of(category: Category) -> list[tuple[str, type[Method]]]:
    found = ((name, method_class(name)) for name in list_methods())
    return [(name, method) for name, method in found if method.category is category]


def _arxiv(found: type[Method]) -> str:
    return f"[{found.arxiv}](https://arxiv.org/abs/{found.arxiv})" if found.arxiv else ""


def _first_size(facts: Facts) -> str:
    size, on = first_size(facts)
    return f"{number(size.parameters)}{on}"


def with_methods(readme: str) -> str:
    """The README with its table of methods brought up to date, between its two marks."""
    before, _, rest = readme.partition(README_MARKS[0])
    _, _, after = rest.partition(README_MARKS[1])
    if not after:
        raise ValueError(f"README.md has no {' ... '.join(README_MARKS)}")
    rows = [
        [
            f"[{category.value}]({FOLDER}/README.md#{category.value})",
            ", ".join(f"[`{name}`]({FOLDER}/{name}.md)" for name, _ in _of(category)),
        ]
        for category in Category
    ]
    table = _table(["category", f"{len(list_methods())} methods"], [r for r in rows if r[1]])
    return f"{before}{README_MARKS[0]}{table}\n{README_MARKS[1]}{after}"


def capabilities_page(facts: Mapping[str, Facts], vectors: Vectors) -> str:
    """The table of capabilities, and how each column was found out."""
    rows = [capabilities(fact, vectors) for fact in facts.values()]
    for row in rows:
        row[0] = f"[`{row[0]}`]({row[0]}.md)"
    contradictions = [
        f"`{name}`: {_text(text)}" for name, fact in facts.items() for text in fact.contradictions
    ]
    meaning = [
        "**backbones**: families that the method attaches to.",
        "**identity**: with the method attached, the logits are the same bit for bit.",
        "**merges**: the merged model is a plain timm model with the same logits.",
        "**dense heads**: detection and segmentation are offered, and under their heads every "
        "trained tensor gets a gradient.",
        "**cacheable up to**: the frozen features that training reads; they stay the same, bit for "
        "bit, while the method's tensors change. `images`: nothing can be cached. `tokens.i`: the "
        "stream that enters block i. `features`: what the head reads.",
        "**parameters**: trainable on ViT-B/16 (where stated, Swin-B), without the head. A dash "
        "where the data decide.",
        "**stored bytes**: tensors of the delta checkpoint there; the file adds a short header. A "
        "dash where a data pass comes first.",
        "**data pass**: the method looks at training pictures before it is placed.",
        "**vectors**: files of reference values and gradients that the tests compare it with.",
    ]
    parts = [
        "# What the methods can do",
        "Found out by attaching every method, with its default options (and a search cut short), "
        "to small models, not by asking it; a claim that does not hold is named below the table. "
        "The same for one method or for all:",
        _block("bash", "python -m vpeft_bench methods --capabilities"),
        _table([*CAPABILITIES, VECTORS], rows, right=[*NUMBERS, VECTORS]),
        _list(contradictions) or "No claim is contradicted.",
        _list(meaning),
    ]
    return _page(parts)


# ---- published counts ---------------------------------------------------------------------------


def counts_page(published: Sequence[Published]) -> str:
    """Published parameter counts beside ours, table by table."""
    heads = " and ".join(
        f"{mean_classes(benchmark):.1f} classes of {title}"
        for benchmark, title in (("vtab1k", "VTAB-1k"), ("fgvc", "FGVC"))
    )
    known = [row for row in published if row.method in list_methods()]
    computed = [row for row in known if row.ours() is not None]
    agreeing = sum(row.agrees() for row in computed)
    parts = [
        "# Parameter counts, published and ours",
        f"Of {len(computed)} published counts that correspond to something here, {agreeing} are "
        "reproduced to the printed digit, and the others have an explanation or are said to have "
        "none. "
        "Published numbers are millions as printed, quoted in "
        "[parameters.csv](../../results/published/parameters.csv); ours are computed when this "
        "page is generated. Without options, ours are the method's defaults.",
        "Tables disagree on whether the head counts. Where a row includes it, ours adds the mean "
        f"head of the benchmark ({heads} on average). Options per task are averaged.",
    ]
    for table in dict.fromkeys(row.table for row in known):
        rows = [_count_row(row) for row in known if row.table == table]
        head = ["row", "backbone", "published", "ours", "", "with", "explanation"]
        parts += [f"## {table}", _table(head, rows, right=["published", "ours"])]
    return _page(parts)


def _count_row(row: Published) -> list[str]:
    benchmark = {"vtab1k": "VTAB-1k", "fgvc": "FGVC", "": ""}[row.head]
    given = [f"`{row.options}`"] if row.options not in ("", "-") else []
    given += [f"the mean {benchmark} head"] if row.head else []
    return [
        f"[{_text(row.row)}]({row.method}.md)",
        BACKBONES[row.backbone][0],
        row.params_m,
        number(row.ours()),
        "" if row.ours() is None else "=" if row.agrees() else "≠",
        ", ".join(given),
        _text(row.explanation),
    ]


# ---- Markdown -----------------------------------------------------------------------------------


def _page(parts: Iterable[str], source: str = "vpeft_bench/catalogue/pages.py") -> str:
    mark = f"<!-- Generated by scripts/generate_docs.py; change {source} instead. -->"
    return "\n\n".join([mark, *(_wrap(part) for part in parts if part)]) + "\n"


def _wrap(part: str) -> str:
    """A paragraph in lines; blocks, tables and lists as they are."""
    return part if "\n" in part or part.startswith("#") else _fill(part)


def _fill(text: str, first: str = "", then: str = "") -> str:
    return textwrap.fill(
        text,
        100,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _list(items: Iterable[str]) -> str:
    return "\n".join(_fill(item, "- ", "  ") for item in items)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> str:
    numbers = set(right)
    rule = ["---:" if column in numbers else "---" for column in head]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _text(text: str) -> str:
    """Plain text as Markdown: code stays code, and nothing else is taken for markup."""
    parts = re.split(r"(``.+?``|`.+?`)", text)
    return "".join(
        f"`{part.strip('`')}`"
        if index % 2
        else re.sub(r"([\\*<|\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", part)
        for index, part in enumerate(parts)
    )
