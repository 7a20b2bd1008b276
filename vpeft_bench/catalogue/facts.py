"""What methods say of themselves, kept in a file so that listing them does not import torch.

``methods.json`` is written by ``scripts/generate_docs.py``. It names the state of the methods' code
and the version of the peft library that it was made from: where one has changed, the classes are
asked instead.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpeft_bench.errors import MethodOptionError, MissingExtraError, Problem
from vpeft_bench.files import sha256, write_atomically
from vpeft_bench.methods.hf import types as hf_types
from vpeft_bench.methods.names import METHODS

if TYPE_CHECKING:
    from vpeft_bench.methods.base import Method

FILE = Path(__file__).with_name("methods.json")
CODE = Path(__file__).resolve().parents[1] / "methods"
BACKBONES = CODE.with_name("backbones")
OF_WEIGHTS = ("checkpoint_files", "fitting", "foreign_names", "load", "mismatch", "weights")
"""Modules of the backbones that no family depends on."""


@dataclass(frozen=True)
class OptionFacts:
    """One option.

    Attributes:
        default: as it is typed on the command line; ``value`` is the value itself.
        search: values that tuning tries, in order.
    """

    name: str
    default: str
    value: Any
    choices: list[str]
    help: str
    search: list[Any]


@dataclass(frozen=True)
class MethodFacts:
    """The class attributes of a method, see :class:`~vpeft_bench.methods.base.Method`."""

    name: str
    title: str
    idea: str
    category: str
    arxiv: str
    source: str
    families: list[str]
    unsupported: dict[str, str]
    not_mergeable: str
    doc: str
    options: list[OptionFacts]
    deviations: list[str]


def facts_of(method: type[Method]) -> MethodFacts:
    """What a method says of itself."""
    from vpeft_bench.catalogue.wording import option_value
    from vpeft_bench.methods.base import default_options

    defaults = default_options(method)
    return MethodFacts(
        name=method.name,
        title=method.title,
        idea=method.idea,
        category=method.category.value,
        arxiv=method.arxiv or "",
        source=method.source,
        families=list(method.supported()),
        unsupported=method.unsupported(),
        not_mergeable=method.not_mergeable or "",
        doc=inspect.cleandoc(method.__doc__ or ""),
        options=[
            OptionFacts(
                option.name,
                option_value(defaults[option.name]),
                defaults[option.name],
                [str(choice) for choice in option.metadata["choices"] or ()],
                option.metadata["help"],
                option.metadata.get("search", []),
            )
            for option in fields(method)
        ],
        deviations=list(method.deviations),
    )


def native_methods() -> list[MethodFacts]:
    """Every method of this package, by category, then by name."""
    stored = _stored()
    return collected() if stored is None else [_facts(raw) for raw in stored["methods"]]


def methods_of_plugins() -> list[MethodFacts]:
    """Every method of a plug-in, by name."""
    if not (names := METHODS.names()):
        return []
    from vpeft_bench.methods.registry import method_class, own_methods

    return [facts_of(method_class(name)) for name in sorted({*names} - {*own_methods()})]


def names() -> list[str]:
    """Names of every method: of this package, of plug-ins and of the peft library; sorted."""
    stored = _stored()
    found = [asdict(facts) for facts in collected()] if stored is None else stored["methods"]
    return sorted({*(raw["name"] for raw in found), *METHODS.names(), *hf_types.names()})


def defaults(name: str) -> dict[str, Any]:
    """Every option of a method and its default.

    Those of the peft library are known where it is not installed, too.

    Raises:
        MethodOptionError: there is no such method, or it is not offered, with the reason.
    """
    try:
        found = method(name)
    except MissingExtraError:
        every = (_stored() or {}).get("of_peft", ())
        kept = next((_facts(raw) for raw in every if raw["name"] == name), None)
        if kept is None:
            return {}
        found = kept
    return {option.name: option.value for option in found.options}


def method(name: str) -> MethodFacts:
    """One method, of this package or of the peft library.

    Raises:
        MethodOptionError: there is no such method, or it is not offered, with the reason.
        MissingExtraError: it is one of the peft library, which is not installed.
    """
    native = {facts.name: facts for facts in native_methods()}
    if name in native:
        return native[name]
    if name in METHODS.names():
        return facts_of(METHODS.get(name))
    stored = _stored()
    if stored is not None and stored["peft"] == hf_types.version():
        for raw in stored["of_peft"]:
            if raw["name"] == name:
                return _facts(raw)
    if reason := hf_types.why_not_offered(name):
        raise MethodOptionError([Problem(f"method={name}", f"is not offered: {reason}")])
    if name not in hf_types.names():
        raise MethodOptionError([METHODS.unknown(name, names())])
    from vpeft_bench.methods.registry import method_class

    return facts_of(method_class(name))


def families_of_peft() -> dict[str, list[str]]:
    """The families that each method of the peft library attaches to; the library need not be there.

    What a type needs of a backbone is said here, whatever the library's version.
    """
    if (stored := _stored()) is not None:
        return {raw["name"]: raw["families"] for raw in stored["of_peft"]}
    from vpeft_bench.backbones.families import families_with

    prefix = hf_types.PREFIX
    return {
        name: list(families_with(hf_types.OFFERED[name.removeprefix(prefix)].needs))
        for name in hf_types.names()
    }


def family_names() -> list[str]:
    """Every family of backbones."""
    if (stored := _stored()) is not None:
        return list(stored["families"])
    from vpeft_bench.backbones.families import families

    return [family.name for family in families()]


def named(families: Sequence[str]) -> str:
    """Families by name; "all" for all of them."""
    return "all" if list(families) == family_names() else ", ".join(families)


def _stored() -> dict[str, Any] | None:
    """What the file holds, if it is of this code."""
    try:
        stored = _parsed(FILE, FILE.stat().st_mtime_ns)
    except (OSError, ValueError):
        return None
    return dict(stored) if stored.get("code") == _fingerprint() else None


@functools.cache
def _parsed(file: Path, changed: int) -> dict[str, Any]:
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert isinstance(stored, dict)
    return stored


@functools.cache
def _fingerprint() -> str:
    return code_fingerprint()


def collected_of_peft() -> list[MethodFacts]:
    """The methods that the installed peft library gives, from their classes."""
    from vpeft_bench.methods.registry import method_class

    return [facts_of(method_class(name)) for name in hf_types.names()]


def collected() -> list[MethodFacts]:
    """Every method of this package, from the classes."""
    from vpeft_bench.methods.base import Category
    from vpeft_bench.methods.registry import method_class, own_methods

    order = [category.value for category in Category]
    found = [facts_of(method_class(name)) for name in own_methods()]
    return sorted(found, key=lambda facts: (order.index(facts.category), facts.name))


def code_fingerprint(*folders: Path) -> str:
    """What tells one state of the code of methods and families from another.

    Args:
        folders: of that code; by default those of this package.
    """
    lines = [
        f"{path.relative_to(folder).as_posix()} {sha256(path)}\n"
        for folder in folders or (CODE, BACKBONES)
        for path in sorted(folder.rglob("*.py"))
        if path.stem not in OF_WEIGHTS
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write() -> None:
    """Write ``methods.json`` from the classes."""
    from vpeft_bench.backbones.families import families

    content = {
        "code": code_fingerprint(),
        "families": [family.name for family in families()],
        "methods": [asdict(facts) for facts in collected()],
        "peft": hf_types.version(),
        "of_peft": [asdict(facts) for facts in collected_of_peft()],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_atomically(FILE, f"{text}\n".encode())


def _facts(raw: dict[str, Any]) -> MethodFacts:
    return MethodFacts(**{**raw, "options": [OptionFacts(**option) for option in raw["options"]]})
