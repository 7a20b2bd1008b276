"""Flags in any order, beside any sub-command, and none that means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli
from vpeft_bench import __main__ as command_line
from vpeft_bench.cli.flags import own_configs, read_line, split_command
from vpeft_bench.errors import ConfigError


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "--config-dir", "{}", "method=lora", "seed=0,1"],
        ["method=lora", "-m", "seed=0,1", "--config-dir={}"],
        ["method=lora", "seed=0,1", "-cd", "{}", "--multirun"],
    ],
)
def test_any_order(arguments: list[str], tmp_path: Path) -> None:
    own = tmp_path / "mine (1),=[ü]"
    own.mkdir()
    line = read_line([argument.format(own) for argument in arguments])
    assert line.overrides == ["method=lora", "seed=0,1"]
    assert line.flags == ["--multirun", "--config-dir", str(own)]
    assert (line.config_dir, line.multirun, line.prints) == (own, True, False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--multrun"], "did you mean --multirun"),
        (["-x"], "-x: no such flag"),
        (["--config-dir", "/no/such"], "no such folder: /no/such"),
        (["--config-dir", __file__], "is a file, not a folder"),
        (["--cfg", "jobs"], "invalid choice"),
        (["--cfg", "job", "-m"], "do not go together"),
        (["--resolve"], "goes with --cfg only"),
        (["--config-name", "mine"], "is not offered"),
        (["--experimental-rerun", "x.pickle"], "is not offered"),
    ],
)
def test_wrong_flags(arguments: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_line([*arguments, "method=lora"])
    assert expected in str(caught.value)


def test_sub_commands_are_found_wherever_flags_stand() -> None:
    for arguments in (
        ["--config-dir", "DIR", "methods", "lora"],
        ["methods", "--config-dir=DIR", "lora"],
        ["methods", "lora", "-cd", "DIR"],
    ):
        split = split_command(arguments)
        assert (split.command, split.rest, split.config_dir) == ("methods", ["lora"], "DIR")
    assert split_command(["--config-dir", "data", "seed=1"]).command is None
    assert split_command(["--cfg", "job", "--package", "data"]).command is None
    split = split_command(["leaderboard", "--records", "data"])
    assert (split.command, split.rest) == ("leaderboard", ["--records", "data"])
    with pytest.raises(ConfigError, match="needs a folder"):
        split_command(["methods", "--config-dir"])
    assert own_configs(None) is None


def test_where_own_configs_mean_nothing(tmp_path: Path) -> None:
    for command in ("show", "export"):
        with pytest.raises(ConfigError, match=f"has no meaning for {command}"):
            command_line._dispatch(["--config-dir", str(tmp_path), command])


def test_own_data_sets_are_listed(cli: Cli, tmp_path: Path) -> None:
    own = tmp_path / "mine (1)"
    (own / "data").mkdir(parents=True)
    (own / "data" / "leaves.yaml").write_text("name: leaves\nreader: image_list\n")
    for arguments in (["--config-dir", str(own), "data"], ["data", "--config-dir", str(own)]):
        listed = cli(*arguments)
        assert listed.returncode == 0, listed.stderr
        assert "leaves" in listed.stdout
    assert "name: leaves" in cli("--cfg", "job", "data=leaves", "-cd", str(own)).stdout


@pytest.mark.parametrize("arguments", [["--version"], ["methods", "--version"]])
def test_the_version_is_ours(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line._dispatch(arguments) == 0
    said = capsys.readouterr().out
    for part in ("vpeft_bench ", "torch ", "timm "):
        assert part in said
    assert "Hydra" not in said


def test_help_anywhere_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line._dispatch(["method=lora", "--help"]) == 0
    assert "usage: python -m vpeft_bench" in capsys.readouterr().out
