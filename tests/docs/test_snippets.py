"""README and docs/: every Python block runs, every command exists, every link and path leads there.

Marks in the pages, each on the line before a block: ``<!-- run -->`` runs the commands of a bash
block for real, ``<!-- file: PATH -->`` writes the block to PATH first. Blocks of one page run in
order, in one directory and one namespace.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, Cli
from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.cli.purpose import Purpose
from vpeft_bench.cli.tune import read_flags

README = "README.md"
PAGES = [
    README,
    *sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").rglob("*.md")),
]

# At least so many snippets per page: a page whose blocks are no longer found fails. Pages that are
# not named here need none.
EXPECTED = {
    README: {"python": 1, "checked": 19, "run": 0, "file": 0},
    "docs/add-a-dataset.md": {"python": 1, "checked": 1, "run": 2, "file": 1},
    "docs/add-a-family.md": {"python": 1, "checked": 0, "run": 1, "file": 0},
    "docs/cost.md": {"python": 1, "checked": 7, "run": 1, "file": 0},
    "docs/dense-data.md": {"python": 1, "checked": 12, "run": 1, "file": 1},
    "docs/dense-prediction.md": {"python": 0, "checked": 18, "run": 0, "file": 0},
    "docs/extend.md": {"python": 1, "checked": 0, "run": 7, "file": 15},
    "docs/few-pictures.md": {"python": 0, "checked": 2, "run": 0, "file": 0},
    "docs/hf.md": {"python": 4, "checked": 4, "run": 0, "file": 0},
    "docs/leaderboard.md": {"python": 0, "checked": 5, "run": 0, "file": 0},
    "docs/python.md": {"python": 8, "checked": 0, "run": 1, "file": 0},
    "docs/real-data.md": {"python": 0, "checked": 11, "run": 0, "file": 0},
    "docs/records.md": {"python": 1, "checked": 2, "run": 1, "file": 0},
    "docs/serve.md": {"python": 6, "checked": 0, "run": 0, "file": 0},
    "docs/speed.md": {"python": 0, "checked": 5, "run": 0, "file": 0},
    "docs/retrieval.md": {"python": 1, "checked": 4, "run": 1, "file": 0},
    "docs/statistics.md": {"python": 1, "checked": 3, "run": 1, "file": 1},
    "docs/sweeps.md": {"python": 0, "checked": 8, "run": 0, "file": 0},
    "docs/tuning.md": {"python": 1, "checked": 4, "run": 3, "file": 0},
    "docs/variants.md": {"python": 0, "checked": 4, "run": 1, "file": 1},
}

# What a user of this package types, word for word.
PROMISED = (
    "scripts/bench",
    "scripts/bench method=ssf seed=1",
    "scripts/test",
    "python -m vpeft_bench",
    "python -m vpeft_bench method=lora data=vtab1k/cifar backbone=vit_b16",
    *(
        "python -m vpeft_bench -m method=lora,ssf,linear data=demo/digits,demo/sprites_count "
        f"seed=0,1,2{launcher}"
        for launcher in ("", " hydra/launcher=joblib", " hardware=slurm")
    ),
    "python -m vpeft_bench leaderboard",
    "python -m vpeft_bench methods",
    "python -m vpeft_bench data",
)

SUB_COMMANDS = (
    "leaderboard",
    "methods",
    "backbones",
    "data",
    "show",
    "export",
    "statistics",
    "runs",
)
OVERRIDING = {"cost": Purpose.COST, "tune": Purpose.TUNE}
"""The sub-commands that take overrides, as a run does."""
HYDRA_FLAGS = {"-m": 0, "--multirun": 0, "--plan": 0, "--help": 0, "--cfg": 1, "--config-dir": 1}
"""Flags of a run that the pages may use, and how many values follow each."""

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>run|file: \S+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_ENTRY = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:python -m vpeft_bench|scripts/bench)(?= |$)")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_REPOSITORY_PATH = re.compile(
    r"(?:configs|docs|scripts|tests|vpeft_bench|results/published)/[\w./-]*"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    mark: str
    text: str


def blocks_of(page: str) -> list[Block]:
    text = (REPOSITORY / page).read_text()
    return [
        Block(
            line=text.count("\n", 0, match.start("text")) + 1,
            language=match["language"],
            mark=match["mark"] or "",
            text=match["text"],
        )
        for match in _FENCE.finditer(text)
    ]


def commands_of(block: Block) -> list[str]:
    """The lines of a bash block, continued ones joined, comments cut off."""
    joined = block.text.replace("\\\n", "").splitlines()
    return [line.split(" #")[0].strip() for line in joined if line.split(" #")[0].strip()]


def arguments_of(command: str) -> list[str] | None:
    """What follows ``python -m vpeft_bench`` or ``scripts/bench``; None for another command."""
    match = _ENTRY.match(command)
    return shlex.split(command[match.end() :]) if match else None


def problems_of(arguments: list[str]) -> list[str]:
    """What is wrong with a command line, without running it."""
    if arguments and arguments[0] in SUB_COMMANDS:
        return _sub_command_problems(arguments)
    purpose = OVERRIDING.get(arguments[0], Purpose.RUN) if arguments else Purpose.RUN
    problems, overrides, rest = [], [], list(arguments[purpose is not Purpose.RUN :])
    if purpose is Purpose.TUNE:
        asked = read_flags(rest)
        rest = [*asked.rest]
    while rest:
        argument = rest.pop(0)
        flag = argument.split("=")[0]
        if not argument.startswith("-"):
            overrides.append(argument)
        elif flag not in HYDRA_FLAGS:
            problems.append(f"unknown flag {argument}")
        else:
            del rest[: HYDRA_FLAGS[flag]]
    if "--config-dir" in arguments:
        return [*problems, "--config-dir needs the files of its page: mark the block <!-- run -->"]
    several = "-m" in arguments or "--multirun" in arguments
    checked = check_overrides(overrides, multirun=several, purpose=purpose)
    return [*problems, *map(str, checked.problems)]


def _sub_command_problems(arguments: list[str]) -> list[str]:
    from vpeft_bench import list_methods
    from vpeft_bench.cli.backbones import main as backbones
    from vpeft_bench.cli.data import main as data
    from vpeft_bench.cli.export import main as export
    from vpeft_bench.cli.leaderboard import main as leaderboard
    from vpeft_bench.cli.methods import main as methods
    from vpeft_bench.cli.runs import main as runs
    from vpeft_bench.cli.show import main as show
    from vpeft_bench.cli.statistics import main as statistics

    name, *rest = arguments
    part = rest[:1] if name == "data" and rest[:1] in (["check"], ["show"]) else []
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        commands = {
            "leaderboard": leaderboard,
            "methods": methods,
            "backbones": backbones,
            "data": data,
            "show": show,
            "export": export,
            "statistics": statistics,
            "runs": runs,
        }
        commands[name]([*part, "--help"])
    flags = set(re.findall(r"--[a-z][\w-]*", shown.getvalue()))
    problems = [
        f"{name} has no {argument}"
        for argument in rest
        if argument.startswith("-") and argument.split("=")[0] not in flags
    ]
    if part:
        typed = [argument for argument in rest[1:] if "=" in argument]
        problems += map(str, check_overrides(typed, purpose=Purpose.DATA).problems)
    if name == "methods":
        named = [argument for argument in rest if not argument.startswith("-")]
        known = {*list_methods(), *list_methods("hf/")}
        problems += [f"no method {argument}" for argument in named if argument not in known]
    return problems


# Their commands train for long; what they show has quick tests beside the code.
LONG = ("docs/extend.md", "docs/tuning.md", "docs/variants.md")


def _like_others(page: str) -> bool:
    """Whether it is one of the pages that are generated alike; of a few the commands are tried."""
    return page.startswith("docs/methods/") and Path(page).stem not in ("README", "lora", "noah")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in LONG or _like_others(page) else ())
        for page in PAGES
    ],
)
def test_snippets(page: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the page, in order."""
    monkeypatch.chdir(tmp_path)
    # Pages speak to people on a cluster's login node, too.
    monkeypatch.setattr("vpeft_bench.cli.overrides.shutil.which", lambda name: name)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    seen = {"python": 0, "checked": 0, "run": 0, "file": 0}
    for block in blocks_of(page):
        where = f"{page}:{block.line}"
        if block.mark.startswith("file: "):
            path = tmp_path / block.mark.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            seen["file"] += 1
        elif block.language == "python":
            # Padded, so that a traceback names the line of the page.
            source = "\n" * (block.line - 1) + block.text
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, str(REPOSITORY / page), "exec"), namespace)
            seen["python"] += 1
        elif block.language == "bash":
            for command in commands_of(block):
                arguments = arguments_of(command)
                script = command.split()[0]
                if script.startswith("scripts/"):
                    assert os.access(REPOSITORY / script, os.X_OK), f"{where}: {script}"
                if arguments is None:
                    assert block.mark != "run", f"{where}: cannot run {command}"
                elif block.mark == "run":
                    done = cli(*arguments)
                    assert done.returncode == 0, f"{where}: {command}\n{done.stdout}{done.stderr}"
                    seen["run"] += 1
                else:
                    assert problems_of(arguments) == [], f"{where}: {command}"
                    seen["checked"] += 1
    for kind, least in EXPECTED.get(page, {}).items():
        assert seen[kind] >= least, f"{page}: {seen[kind]} {kind} snippets, expected {least}"


def test_expected_pages_exist() -> None:
    assert {*EXPECTED, *LONG} <= set(PAGES)


def test_marks_and_fences_are_understood() -> None:
    """No mark or fence that the pattern above passes over in silence."""
    for page in PAGES:
        text = (REPOSITORY / page).read_text()
        blocks = blocks_of(page)
        assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(blocks), page
        marks = re.findall(r"<!-- (?:run|file:).*?-->", text)
        assert len(marks) == sum(bool(block.mark) for block in blocks), page


def test_promised_commands_stand_in_the_readme() -> None:
    blocks = [block for block in blocks_of(README) if block.language == "bash"]
    commands = {command for block in blocks for command in commands_of(block)}
    assert [promised for promised in PROMISED if promised not in commands] == []
    assert 'attached = vpeft_bench.attach(timm_model, "lora", rank=8)' in "".join(
        block.text for block in blocks_of(README) if block.language == "python"
    )


def test_the_check_finds_mistakes() -> None:
    """The checks above would not pass anything."""
    assert problems_of(["method=lroa"])
    assert problems_of(["train.epoch=1"])
    assert problems_of(["method=lora,ssf"])
    assert problems_of(["--nonsense"])
    assert problems_of(["leaderboard", "--record", "DIR"])
    assert problems_of(["methods", "lroa"])
    assert problems_of(["methods", "lora", "--capability"])
    assert problems_of(["data", "--coco", "DIR"])
    assert problems_of(["cost", "method=lroa"])
    assert problems_of(["cost", "method=lora", "seed=1"])
    assert problems_of(["cost.steps=10"])
    assert problems_of(["cost", "-m", "method=lora,ssf", "cost.steps=10"]) == []
    assert problems_of(["data=vtab1k/cifar", "data.root=DIR", "backbone.weights=PATH"]) == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Links inside the repository, and the headings they name."""
    folder = (REPOSITORY / page).parent
    for target in _LINK.findall(_without_blocks(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (folder / path).resolve() if path else REPOSITORY / page
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(_anchor, headings), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page: str) -> None:
    """Paths of the repository in `code`, and the tree of the README."""
    for code in re.findall(r"`([^`\n]+)`", _without_blocks(page)):
        for word in code.split():
            if _REPOSITORY_PATH.fullmatch(word):
                assert (REPOSITORY / word).exists(), f"{page}: {word}"


def test_tree_of_the_readme_exists() -> None:
    (tree,) = (b.text for b in blocks_of(README) if b.text.startswith("configs/"))
    folder, seen = Path(), 0
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].replace(",", "").split()
        if not line.startswith(" "):
            folder = REPOSITORY / names[0]
            names = [""] if len(names) == 1 else names
        for name in names:
            assert (folder / name).exists(), line
            seen += 1
    assert seen > 25


def _without_blocks(page: str) -> str:
    return _FENCE.sub("", (REPOSITORY / page).read_text())


def _anchor(heading: str) -> str:
    """A heading as GitHub links to it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
