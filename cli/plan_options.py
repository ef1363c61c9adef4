"""The options of planning, shared by the commands that plan."""

from typing import Any

import click

from .options import Command, all_of, expert_bytes_option, model_option

# Deployments that DeepSeek published; options that are given win over them.
PROFILES: dict[str, dict[str, Any]] = {
    "deepseek-v3-prefill": {"nodes": 4, "gpus": 32, "redundant": "32", "groups": 8},
    "deepseek-v3-decode": {
        "nodes": 40, "gpus": 320, "redundant": "63", "shared_experts": 1, "node_rule": "free",
    },
    "deepseek-v3-decode-ep144": {
        "nodes": 18, "gpus": 144, "redundant": "32", "node_rule": "free",
    },
}  # fmt: skip

# What an effort multiplies restarts and trials by.
EFFORTS = {"fast": 0.1, "default": 1.0, "best": 10.0}


def size_options(command: Command) -> Command:
    """The machines, the model and the slots."""
    options = [
        click.option(
            "--profile",
            type=click.Choice(list(PROFILES)),
            default=None,
            help="Sizes of a published deployment; other options win over it.",
        ),
        click.option(
            "--gpus",
            type=click.IntRange(min=1),
            default=None,
            metavar="R",
            help="EP ranks in all.  [default: 8]",
        ),
        click.option(
            "--nodes",
            type=click.IntRange(min=1),
            default=None,
            metavar="N",
            help="Nodes they stand on.  [default: 1]",
        ),
        click.option(
            "--redundant",
            default=None,
            metavar="K|auto",
            help="Redundant experts a layer; auto: the knee of balance against slots."
            "  [default: one per GPU or the least number above that fills equal slots]",
        ),
        click.option(
            "--budget-gib",
            type=click.FloatRange(min=0, min_open=True),
            default=None,
            metavar="GIB",
            help="With --redundant auto: most memory for experts on a GPU.",
        ),
        click.option(
            "--groups",
            type=click.IntRange(min=1),
            default=None,
            metavar="G",
            help="Routing groups.  [default: from the trace, else 1]",
        ),
        click.option(
            "--top-k",
            type=click.IntRange(min=1),
            default=None,
            metavar="K",
            help="Experts per token.  [default: from the trace]",
        ),
        click.option(
            "--shared-experts",
            type=click.IntRange(min=0),
            default=None,
            metavar="N",
            help="Shared experts as routed ones with the last ids, loaded by every token.",
        ),
        model_option,
        expert_bytes_option("--model"),
    ]
    return all_of(options, command)


def rule_options(command: Command) -> Command:
    """How to plan, and what a placement must obey."""
    options = [
        click.option(
            "--node-rule",
            type=click.Choice(["strict", "home", "free"]),
            default=None,
            help="strict: every copy of an expert on its home node; home: one copy at least;"
            " free: no rule.  [default: strict]",
        ),
        click.option(
            "--max-off-home",
            type=click.FloatRange(0, 1),
            default=None,
            metavar="SHARE",
            help="With home: most of the load that may be served off its home node.",
        ),
        click.option(
            "--strategy",
            type=click.Choice(["auto", "exact", "deepseek", "linear"]),
            default="auto",
            show_default=True,
            help="auto: robust search; exact: every layer improved or proven in the recorded"
            " windows, seconds a layer, no node rule; deepseek: as published, ignores --node-rule;"
            " linear: slot p holds expert p mod E.",
        ),
        click.option(
            "--repair", is_flag=True, help="Remove same-GPU copies from what deepseek placed."
        ),
        click.option(
            "--exclude-gpu",
            "exclude_gpus",
            type=int,
            multiple=True,
            metavar="ID",
            help="A GPU out of service; it keeps its number and holds nothing.",
        ),
        click.option(
            "--gpu-speed",
            default=None,
            metavar="FILE",
            help="Relative speeds of the GPUs: a JSON or YAML list of numbers above 0.",
        ),
        click.option(
            "--survive",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="Copies on N more GPUs for each expert, hottest first as far as slots allow.",
        ),
        click.option(
            "--effort",
            type=click.Choice(list(EFFORTS)),
            default="default",
            show_default=True,
            help="How hard to search; fast makes no back-test.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Of the search; the same input, options and seed give the same bytes.",
        ),
    ]
    return all_of(options, command)


def move_options(command: Command) -> Command:
    """What a re-plan may send."""
    options = [
        click.option(
            "--max-moves",
            type=click.IntRange(min=0),
            default=None,
            metavar="M",
            help="Expert copies that may be sent, over all layers.",
        ),
        click.option(
            "--max-bytes",
            type=click.IntRange(min=0),
            default=None,
            metavar="B",
            help="The same in bytes; needs --expert-bytes.",
        ),
        click.option(
            "--move-price",
            type=click.FloatRange(min=0),
            default=0.0,
            metavar="P",
            help="What one move must save, as a share of its layer's mean GPU load.",
        ),
    ]
    return all_of(options, command)
