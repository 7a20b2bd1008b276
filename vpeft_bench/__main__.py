"""The command line: ``python -m vpeft_bench [overrides]`` and its sub-commands."""

from __future__ import annotations

import os
import sys

HELP = """\
usage: python -m vpeft_bench [GROUP=CHOICE ...] [KEY=VALUE ...]     one run
       python -m vpeft_bench -m [KEY=VALUE,VALUE ...] ...           a sweep, one run per combination
       python -m vpeft_bench leaderboard [--records DIR] [--out DIR]
       python -m vpeft_bench methods [NAME] [--capabilities]        every method and its options
       python -m vpeft_bench data                                   every data set; is it there?
       python -m vpeft_bench show RUN                               what a run predicts, drawn
       python -m vpeft_bench cost [-m] [KEY=VALUE ...]              time, memory, operations, energy

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


def _dispatch() -> int:
    """Call a sub-command or a run; its exit status."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print_help()
        return 0
    if arguments and arguments[0] == "leaderboard":
        from vpeft_bench.leaderboard.cli import main as leaderboard

        return leaderboard(arguments[1:])
    if arguments and arguments[0] == "methods":
        from vpeft_bench.catalogue.listing import main as methods

        return methods(arguments[1:])
    if arguments and arguments[0] == "data":
        from vpeft_bench.data.listing import main as data

        return data(arguments[1:])
    if arguments and arguments[0] == "show":
        from vpeft_bench.show import main as show

        return show(arguments[1:])
    if arguments and arguments[0] == "cost":
        from vpeft_bench.cost.cli import main as cost

        return cost(arguments[1:])
    from vpeft_bench.launch import main as launch

    return launch(arguments)


def print_help() -> None:
    """Usage and the choices of every group, from the files of ``configs/`` alone."""
    import textwrap

    from vpeft_bench.choices import choices_on_disk

    lines = [
        textwrap.fill(
            ", ".join(names),
            width=96,
            initial_indent=f"  {group + '=':<11}",
            subsequent_indent=" " * 13,
            break_on_hyphens=False,
        )
        for group, names in choices_on_disk().items()
    ]
    print(HELP.format(groups="\n".join(lines) + "\n"), end="")


def main() -> int:
    """The process's exit status; no traceback where the output's reader leaves (``| head``)."""
    try:
        status = _dispatch()
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
