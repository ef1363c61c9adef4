"""`eplb simulate`: what a trace would be like under saved plans, or plans made as it goes."""

from typing import Any

import click
from click.core import ParameterSource

from ..options import file_options, output_options, trace_arguments
from ..plan_options import move_options, rule_options, size_options
from ..timing import time_options

# Options of the replay alone, and those that replays share with plans made as the trace goes.
_REPLAYS = ("plans", "losses", "dispatch", "active_slots", "calibrate", "save_hardware")
_BOTH = (
    "traces", "windows", "window_tokens", "window_steps", "recorded_under", "in_sample", "model",
    "top_k", "hardware", "direct", "micro_batches", "output", "force", "as_json", "quiet",
    "verbose",
)  # fmt: skip
# Options that name a file to read, beside traces and plans.
_READ = ("current", "recorded_under", "model", "gpu_speed", "hardware", "calibrate")

_EPILOG = """\b
With --plan the trace is replayed under saved plans, beside the engines' start (linear) and the
published greedy (deepseek, for the loads that the first plan was made for). With --replan-every the
trace is walked through: plans are made from the windows before and serve those that follow.

\b
No window is scored by a plan that saw it: plans know the windows they were made from, and these are
left out; --in-sample scores them all the same and says so.

\b
Examples:
  eplb plan loads.npz --windows :19 --gpus 8 -o plan.json
  eplb simulate loads.npz --plan plan.json
  eplb simulate loads.npz --gpus 8 --replan-every 4 --history 8 --policy below:0.9
  eplb simulate loads.npz --plan plan.json --what-if lose:5 --in-sample
"""


@click.command("simulate", epilog=_EPILOG)
@trace_arguments
@click.option(
    "--plan", "plans", multiple=True, metavar="PLAN", help="Replay under this plan; repeatable."
)
@click.option("--in-sample", is_flag=True, help="Score windows that a plan was made from, too.")
@click.option(
    "--what-if",
    "losses",
    multiple=True,
    metavar="lose:GPU",
    help="What the loss of this GPU does before anyone re-plans; repeatable; lose-node:N.",
)
@click.option(
    "--dispatch",
    type=click.Choice(["even", "nearest", "lp"]),
    default="even",
    show_default=True,
    help="How tokens are split over copies: evenly; on the own GPU, else the own node, else all;"
    " lp: the optimum of each window, a bound on what engines reach that solve it by batch.",
)
@click.option(
    "--active-slots",
    type=click.IntRange(min=1),
    default=None,
    metavar="K",
    help="Dynamic redundancy: of the slots a GPU hosts only K serve, chosen anew for each window.",
)
@click.option(
    "--replan-every",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Walk forward, deciding every N windows whether to re-plan.",
)
@click.option(
    "--history",
    type=click.IntRange(min=1),
    default=None,
    metavar="H",
    help="Plan on the last H windows.  [default: 4 × --replan-every, at most half the trace]",
)
@click.option(
    "--policy",
    default="every",
    show_default=True,
    metavar="POLICY",
    help="When to re-plan: never, every (time), below:B (balancedness of the live plan), worth-it"
    " (modelled seconds saved exceed those of moving; needs --hardware).",
)
@click.option(
    "--horizon",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Windows over which worth-it counts what is saved.  [default: --replan-every]",
)
@size_options
@click.option(
    "--current",
    default=None,
    metavar="PLAN",
    help="With --replan-every: the plan that is live at the start.",
)
@move_options
@rule_options
@time_options
@file_options("the report (JSON)")
@output_options
def command(**options: Any) -> int:
    """Replay a trace under saved plans, or re-plan as it goes, and report what it is worth."""
    from eplb.errors import InputError

    from .. import replaying, walking
    from ..outputs import check_output

    replays = bool(options["plans"])
    if replays == (options["replan_every"] is not None):
        raise InputError(
            "either --plan PLAN, to replay under saved plans, or --replan-every N, to plan as the"
            " trace goes, is expected"
        )
    context = click.get_current_context()
    for param in context.command.params:
        name = param.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in _BOTH and (name in _REPLAYS) != replays:
            what = (
                "plans made as the trace goes: --replan-every N"
                if replays
                else "the replay of a saved plan: --plan PLAN"
            )
            raise InputError(f"{param.opts[0]} is for {what}")
    if options["in_sample"] and not replays and options["current"] is None:
        raise InputError("--in-sample is for a live plan (--current) or saved ones (--plan)")
    if options["output"] is not None:
        read = [*options["traces"], *options["plans"], *map(options.get, _READ)]
        check_output(options["output"], options["force"], read)
    if replays:
        replaying.show(options)
    else:
        walking.show(options)
    return 0
