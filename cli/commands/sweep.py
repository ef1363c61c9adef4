"""`eplb sweep`: what more redundant experts, GPUs or moves would buy."""

from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..counts import Counts
from ..options import file_options, output_options, trace_arguments
from ..plan_options import move_options, rule_options, size_options

if TYPE_CHECKING:
    from ..sweeping import Swept

_EPILOG = """\b
Every point is the plan that `eplb plan` would make of the first 60 % of the windows, scored on the
rest; traces of few windows are scored on themselves, and it is said. < marks the knee: the point
furthest above the line from the first to the last of its curve.

\b
GPU loss, node loss: experts (of all layers) with copies on another GPU or node than any one that is
lost, and the share of load whose experts are gone after the worst such loss.

\b
Examples:
  eplb sweep loads.npz --gpus 8
  eplb sweep loads.npz --gpus 32 --nodes 4 --redundant 0:128 --model DIR -o sweep.json
  eplb sweep loads.npz --gpus 32 --nodes 4 --redundant 0:128 --model DIR -o sweep.json --resume
  eplb sweep loads.npz --gpus 16,32 --nodes 2,4 --redundant 0,32,64 --json > sweep.json
  eplb sweep new.npz --gpus 32 --redundant 32 --current plan.json --max-moves 0:400:100
  eplb sweep --each mon.npz tue.npz wed.npz --gpus 32 --ray
"""

# The options that name files to read.
_READ = ("current", "model", "gpu_speed", "recorded_under")

# What the options of planning that take one value there mean here.
_SEVERAL = {
    "gpus": (Counts(1), "R,..", "EP ranks in all.  [default: 8]"),
    "nodes": (Counts(1), "N,..", "Nodes they stand on: one number, or one for each of --gpus."
              "  [default: 1]"),
    "redundant": (Counts(0), "K,..|A:B[:STEP]", "Redundant experts a layer, both ends included;"
                  " A:B tries all that fill equal slots.  [default: the least that does, and up to"
                  " four slots a GPU more]"),
    "max_moves": (Counts(0), "M,..", "Budgets of expert copies that may be sent from --current."),
    "budget_gib": (None, "GIB", "Leave out points whose experts take more of a GPU."),
}  # fmt: skip


@click.command("sweep", epilog=_EPILOG)
@trace_arguments
@click.option(
    "--each", is_flag=True, help="Sweep every TRACE by itself; else they are one timeline."
)
@size_options
@click.option(
    "--kv-bytes-per-token",
    type=click.IntRange(min=1),
    default=None,
    metavar="B",
    help="Bytes of one token's keys and values on a GPU, all layers: says what cache is lost.",
)
@click.option(
    "--current",
    default=None,
    metavar="PLAN",
    help="The plan that is live: moves are counted from it.",
)
@move_options
@rule_options
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Processes that plan points at once.  [default: one for each core]",
)
@click.option("--ray", is_flag=True, help="Plan the points on a Ray cluster; needs eplb[ray].")
@file_options("the points as they are done (JSON)")
@click.option("--resume", is_flag=True, help="Keep the points that FILE holds already.")
@output_options
def command(**options: Any) -> int:
    """Draw balance, memory, moves and what a loss takes over the number of redundant experts.

    TRACE is recorded load: a file or folder that `eplb formats` lists, - for standard input.
    Several are one timeline in the order given, unless --each is.
    """
    from eplb.formats.sweeps import sweep_bytes

    from ..sweep_screen import PointProgress, name_of, summarise
    from ..sweeping import sweep

    _check_options(options)
    progress = PointProgress(options["quiet"])
    with terminal.interruptible("ending the points that are under way") as interrupt:

        def stop() -> bool:
            progress.look()
            return interrupt()

        try:
            swept = sweep(options, stop, progress)
        finally:
            progress.close()
    for skipped in swept.skipped:
        terminal.remark(f"left out: {name_of(skipped)}: {skipped['reason']}", options["quiet"])
    if options["as_json"]:
        click.echo(sweep_bytes(swept.points, swept.skipped, swept.knee), nl=False)
    elif swept.points:
        summarise(swept, options)
    if swept.knee is None:
        _say_interrupted(swept, options["output"])
        return 130
    return 0


for _param in command.params:
    if _param.name in _SEVERAL and isinstance(_param, click.Option):
        _type, _param.metavar, _param.help = _SEVERAL[_param.name]
        _param.type = _type or _param.type


def _check_options(options: dict[str, Any]) -> None:
    """Combinations that have no meaning here; the rest is judged where it is used."""
    from eplb.errors import InputError

    from ..outputs import check_output

    output = options["output"]
    if options["resume"] and output is None:
        raise InputError("--resume needs the file to go on with: -o FILE")
    if options["ray"] and options["jobs"] is not None:
        raise InputError("--jobs counts processes here; with --ray the cluster decides how many")
    if output is not None:
        read = [*options["traces"], *map(options.get, _READ)]
        check_output(output, options["force"] or options["resume"], read)


def _say_interrupted(swept: "Swept", output: str | None) -> None:
    done = f"interrupted: {len(swept.points)} of {swept.num_tasks} points are done"
    if output is None or not swept.points:
        terminal.remark(f"{done}; with -o FILE they are kept")
    else:
        terminal.remark(f"{done} and in {output}; the same command with --resume makes the rest")
