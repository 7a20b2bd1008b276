"""The command line: ``python -m vpeft_bench [overrides]`` and its sub-commands."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from vpeft_bench import plugins
from vpeft_bench.errors import ProblemsError, VpeftBenchError, told
from vpeft_bench.runs.interruption import Interrupted, ignore, interruptible

HELP = """\
usage: python -m vpeft_bench [GROUP=CHOICE ...] [KEY=VALUE ...]     one run
       python -m vpeft_bench -m [KEY=VALUE,VALUE ...] ...           a sweep, one run per combination
       python -m vpeft_bench leaderboard [--records DIR] [--out DIR]
       python -m vpeft_bench methods [NAME] [--capabilities]        every method and its options
       python -m vpeft_bench backbones [PATTERN]                    what timm offers; does it fit?
       python -m vpeft_bench data                                   every data set; is it there?
       python -m vpeft_bench data check data=NAME [data.root=DIR]   is all of it sound?
       python -m vpeft_bench data show data=NAME [--split train]    pictures and their truth, drawn
       python -m vpeft_bench runs [--watch]                         what is done, running, failed
       python -m vpeft_bench show RUN                               what a run predicts, drawn
       python -m vpeft_bench export RUN [--format timm]             its weights, merged, for timm
       python -m vpeft_bench cost [-m] [KEY=VALUE ...]              time, memory, operations, energy
       python -m vpeft_bench statistics TABLE.csv [--out DIR]       what a table of results supports
       python -m vpeft_bench tune [-m] [KEY=VALUE ...] [--final]    settings, at an equal budget
       python -m vpeft_bench --version

flags, in any order and with any command that reads configs
  --config-dir DIR   a folder of your own configs: DIR/data/NAME.yaml is data=NAME
  --cfg job          print the config, run nothing
  --plan             of a sweep: what is done, held by others, to do, and how long; run nothing
  plugins=[PACKAGE]  import methods, readers ... of a package or file of your own first

Without arguments: LoRA on the embedded backbone and embedded data, on the CPU, in under a minute.

groups and their choices
{groups}
other keys (python -m vpeft_bench --cfg job prints all of them with their values)
  method.OPTION, train.lr, train.epochs, data.root, data.normalization, backbone.weights,
  backbone.image_size, hardware.precision, hydra/launcher=joblib, seed, results_dir, rerun

examples
  python -m vpeft_bench method=ssf seed=1
  python -m vpeft_bench method=lora method.rank=16 data=vtab1k/cifar backbone=vit_b16 data.root=DIR
  python -m vpeft_bench -m method=lora,ssf,linear data=demo/digits,demo/sprites_count seed=0,1,2
"""


def _dispatch(arguments: Sequence[str]) -> int:
    """Call a sub-command or a run; its exit status."""
    from vpeft_bench.cli.commands import COMMANDS
    from vpeft_bench.cli.flags import config_dir_flag, own_configs, split_command
    from vpeft_bench.config.choices import use_folders

    named, arguments = plugins.typed(arguments)
    plugins.use(named)
    split = split_command(arguments)
    command, rest = split.command, split.rest
    if "--version" in rest:
        print_version()
        return 0
    own = own_configs(split.config_dir)
    use_folders([own] if own else [])
    if command is None and (rest[:1] == ["help"] or {"-h", "--help"} & set(rest)):
        print_help()
        return 0
    if command is not None:
        return COMMANDS.get(command)(rest, own)
    from vpeft_bench.cli.launch import main as launch

    kept = [f"{plugins.KEY}=[{','.join(map(repr, named))}]"] if named else []
    return launch([*config_dir_flag(own), *rest, *kept])


def print_version() -> None:
    """This package's version and commit, and the versions of what decides the numbers."""
    from vpeft_bench.records.environment import environment

    found = environment()
    versions, git = found["versions"], found["git"]
    commit = "" if git is None else f", commit {git.commit}{' with changes' if git.dirty else ''}"
    print(f"vpeft_bench {versions.get('vpeft-bench', 'not installed')}{commit}")
    print(", ".join(f"{name} {versions.get(name, 'missing')}" for name in ("torch", "timm")))


def print_help() -> None:
    """Usage and the choices of every group."""
    import textwrap

    from vpeft_bench.cli.commands import COMMANDS, OWN
    from vpeft_bench.config.choices import every_choice

    lines = [
        textwrap.fill(
            ", ".join(names),
            width=96,
            initial_indent=f"  {group + '=':<11}",
            subsequent_indent=" " * 13,
            break_on_hyphens=False,
        )
        for group, names in every_choice().items()
    ]
    print(HELP.format(groups="\n".join(lines) + "\n"), end="")
    if others := [name for name in COMMANDS.names() if name not in OWN]:
        print(f"\nsub-commands of plug-ins: {', '.join(others)}")


def main() -> int:
    """The process's exit status; no traceback where the output's reader leaves (``| head``)."""
    _open_outputs()
    try:
        with interruptible():
            status = _dispatch(sys.argv[1:])
            sys.stdout.flush()
    except Interrupted as error:
        ignore()
        with contextlib.suppress(OSError):  # after SIGHUP there may be no terminal left
            print("; ".join([str(error), *getattr(error, "__notes__", ())]), file=sys.stderr)
        return error.exit_status
    except VpeftBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ProblemsError) else 1
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        print(f"error: {told(error)}", file=sys.stderr)
        _drop_output()
        return 1
    return status


def _open_outputs() -> None:
    """Let a process whose output was closed (``>&-``) print to nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process)


def _drop_output() -> None:
    """Let nothing be written any more: the interpreter flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
