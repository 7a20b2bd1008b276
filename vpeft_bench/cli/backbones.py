"""``python -m vpeft_bench backbones``: what timm offers, and whether methods attach to it.

``backbones.json`` is written by ``scripts/generate_docs.py``, so that listing imports neither torch
nor timm. It names the version of timm and the state of the families' code that it was made from.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpeft_bench.catalogue.facts import BACKBONES, code_fingerprint
from vpeft_bench.errors import ConfigError, Problem, nearest
from vpeft_bench.files import write_atomically
from vpeft_bench.formats import counted
from vpeft_bench.terminal import Terminal

FILE = Path(__file__).resolve().parents[1] / "catalogue" / "backbones.json"


@dataclass(frozen=True)
class Offered:
    """A model of timm.

    Attributes:
        name: timm's, without a tag.
        module: the module of timm that defines it.
        family: the family of backbones that it belongs to; "" for none.
        pixels: side of the pictures that it takes by default; None where timm does not say.
        parameters: without a head; None where the model was not built.
        tags: of its pretrained weights.
        refusal: why no method attaches to it; "" where methods do.
    """

    name: str
    module: str
    family: str
    pixels: int | None
    parameters: int | None
    tags: tuple[str, ...]
    refusal: str


@dataclass(frozen=True)
class Listing:
    """What the file holds.

    Attributes:
        timm: the version that it was made from.
        code: the state of the families' code.
        families: name and title of each.
    """

    timm: str
    code: str
    families: dict[str, str]
    models: tuple[Offered, ...]


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Print the models that match; the process's exit status.

    Args:
        arguments: what follows the command's name.
        own: a further folder of configs; there is nothing to look for in it.
    """
    if own is not None:
        what = "has no meaning for backbones: it lists timm's models, not configs"
        raise ConfigError([Problem("--config-dir", what, "leave it out")])
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench backbones",
        description="List the models of timm, and whether methods attach to them.",
    )
    parser.add_argument(
        "pattern",
        nargs="?",
        help="part of a name, with * and ? a whole one; or the name of a family",
    )
    parsed = parser.parse_args(arguments)
    console = Terminal()
    found = listing()
    if parsed.pattern is None:
        print_families(found, console)
        return 0
    models = list(matching(parsed.pattern, found.models))
    if not models:
        close = nearest(parsed.pattern, [model.name for model in found.models])
        hint = f" (did you mean {close}?)" if close else ""
        parser.exit(2, f"error: timm {found.timm} has no model like {parsed.pattern}{hint}\n")
    print_models(models, found, console)
    return 0


def matching(pattern: str, models: Iterable[Offered]) -> Iterable[Offered]:
    """The models of a family, or those whose name fits ``pattern`` (a tag is left out)."""
    models = list(models)
    if of_family := [model for model in models if model.family == pattern]:
        return of_family
    wanted = pattern.partition(".")[0].lower()
    if not any(sign in wanted for sign in "*?["):
        wanted = f"*{wanted}*"
    return [model for model in models if fnmatch.fnmatchcase(model.name, wanted)]


def print_families(found: Listing, console: Console) -> None:
    """The families, how many models each has, and what to type next."""
    console.print(
        f"families of backbones that methods attach to, and timm {found.timm}'s models of each"
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, title in found.families.items():
        attach = [m for m in found.models if m.family == name and not m.refusal]
        refused = sum(m.family == name and bool(m.refusal) for m in found.models)
        but = f", {refused} more are refused" if refused else ""
        table.add_row(Text(name, "bold"), Text(title), f"{counted(len(attach), 'model')}{but}")
    console.print(table)
    others = sum(not model.family for model in found.models)
    console.print(f"the other {others} have no block map", soft_wrap=True)
    console.print(
        "python -m vpeft_bench backbones PATTERN   lists models: part of a name, or a family\n"
        "backbone=timm backbone.name=NAME.TAG      runs one",
        soft_wrap=True,
    )


def print_models(models: Sequence[Offered], found: Listing, console: Console) -> None:
    """A row per model."""
    table = Table(box=None, pad_edge=False, header_style="underline")
    for heading, justify in (
        ("model", "left"),
        ("family", "left"),
        ("px", "right"),
        ("parameters", "right"),
        ("attaches", "left"),
    ):
        table.add_column(heading, justify=justify, no_wrap=heading != "attaches")  # type: ignore[arg-type]
    table.add_column("pretrained weights (tags)", overflow="fold")
    for model in models:
        table.add_row(
            model.name,
            model.family or "-",
            _or_dash(model.pixels),
            "-" if model.parameters is None else f"{model.parameters / 1e6:.1f}M",
            "no" if model.refusal else "yes",
            Text(", ".join(tag or "(no tag)" for tag in model.tags) or "none"),
        )
    console.print(table)
    for refusal in dict.fromkeys(model.refusal for model in models if model.refusal):
        names = [model.name for model in models if model.refusal == refusal]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        console.print(f"not {', '.join(names[:3])}{more}: {refusal}", soft_wrap=True)
    console.print(
        f"{counted(len(models), 'model')} of timm {found.timm}; parameters without a head"
    )


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


# ---- the file -----------------------------------------------------------------------------------


def listing() -> Listing:
    """What is stored, if it is of this timm and this code; else what timm says without building."""
    stored = _stored()
    current = (importlib.metadata.version("timm"), code_fingerprint(BACKBONES))
    if stored is not None and (stored.timm, stored.code) == current:
        return stored
    return collected(build=False)


def _stored() -> Listing | None:
    try:
        raw: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
        models = tuple(
            Offered(name, module, family, pixels, parameters, tuple(tags), refusal)
            for name, module, family, pixels, parameters, tags, refusal in raw.pop("models")
        )
        return Listing(**raw, models=models)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write() -> None:
    """Bring ``backbones.json`` up to date; it takes a minute where anything has changed."""
    stored = _stored()
    current = (importlib.metadata.version("timm"), code_fingerprint(BACKBONES))
    if stored is not None and (stored.timm, stored.code) == current:
        return
    found = collected(build=True)
    head = {k: v for k, v in asdict(found).items() if k != "models"}
    rows = ",\n".join(
        json.dumps(astuple(model), ensure_ascii=False, separators=(",", ":"))
        for model in found.models
    )
    start = json.dumps(head, ensure_ascii=False)[:-1]
    write_atomically(FILE, f'{start}, "models": [\n{rows}\n]}}\n'.encode())


def collected(*, build: bool) -> Listing:
    """What timm says of its models.

    Args:
        build: build those of a family, without memory for weights: for their parameters, and
            whether their blocks are covered by the family's map.
    """
    import timm

    from vpeft_bench.backbones import demo_vit as _demo_vit  # noqa: F401  registers the demo
    from vpeft_bench.backbones.families import families

    of_module = {module: family.name for family in families() for module in family.modules}
    tags: dict[str, list[str]] = {}
    for name in timm.list_pretrained():
        architecture, _, tag = name.partition(".")
        tags.setdefault(architecture, []).append(tag)
    models = []
    for name in timm.list_models():
        module = _module_of(name)
        family = of_module.get(module, "")
        config = timm.get_pretrained_cfg(name)
        size = None if config is None else config.input_size
        parameters, refusal = None, "" if family else f"timm's {module} has no block map"
        if build and family:
            family, parameters, refusal = _built(name)
        pixels = None if size is None else int(size[-1])
        found = tuple(tags.get(name, ()))
        models.append(Offered(name, module, family, pixels, parameters, found, refusal))
    return Listing(
        importlib.metadata.version("timm"),
        code_fingerprint(BACKBONES),
        {family.name: family.title for family in families()},
        tuple(models),
    )


def _module_of(name: str) -> str:
    """The last name of the module of timm that defines a model."""
    from timm.models import model_entrypoint

    return str(model_entrypoint(name).__module__.rpartition(".")[2])


def _built(name: str) -> tuple[str, int, str]:
    """Family, parameters and refusal of a model, by building it without memory for weights."""
    import timm
    import torch

    from vpeft_bench.backbones.families import block_map, family_of
    from vpeft_bench.errors import UnsupportedBackboneError

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    family = family_of(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        block_map(model)
    except UnsupportedBackboneError as error:
        return "" if family is None else family.name, parameters, str(error)
    return "" if family is None else family.name, parameters, ""
