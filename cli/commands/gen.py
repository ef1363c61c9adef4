"""`eplb gen`: a synthetic trace."""

from typing import Any

import click

from .. import terminal
from ..options import file_options

_EPILOG = """\b
Examples:
  eplb gen --shape deepseek-v3 --windows 32 -o loads.npz
  eplb gen --layers 4 --experts 64 --top-k 6 --routes --tokens 4096 -o routes.npz
"""


@click.command("gen", epilog=_EPILOG)
@click.option(
    "--shape",
    default=None,
    metavar="NAME",
    help="A model's shape: deepseek-v3, kimi-k2, qwen3-235b, gpt-oss-120b, mixtral,"
    " olmoe. The options below override it.",
)
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    default=None,
    metavar="L",
    help="MoE layers.  [default: 4]",
)
@click.option(
    "--experts",
    type=click.IntRange(min=1),
    default=None,
    metavar="E",
    help="Experts a layer.  [default: 64]",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=None,
    metavar="K",
    help="Experts per token.  [default: 8]",
)
@click.option(
    "--groups",
    type=click.IntRange(min=1),
    default=None,
    metavar="G",
    help="Routing groups.  [default: 1]",
)
@click.option(
    "--groups-per-token",
    type=click.IntRange(min=1),
    default=None,
    metavar="M",
    help="Groups a token may use; limits routes only.  [default: all]",
)
@click.option(
    "--windows",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="W",
    help="Windows in time order.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=16384,
    show_default=True,
    metavar="T",
    help="Tokens in each window.",
)
@click.option(
    "--topics",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Kinds of traffic that are mixed.",
)
@click.option(
    "--skew",
    type=float,
    default=1.0,
    show_default=True,
    help="Scale of each topic's log-normal preferences over experts.",
)
@click.option(
    "--drift",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    help="How far the mix moves a window: 0 not at all, 1 windows are independent.",
)
@click.option("--routes", is_flag=True, help="Write the experts of every token, not their counts.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The same seed and options give the same bytes.",
)
@file_options("the trace")
@click.option("-q", "--quiet", is_flag=True, help="No remarks on standard error.")
def command(**options: Any) -> None:  # fmt: skip
    """Write a synthetic trace of stated skew and drift.

    Each window is a multinomial draw from a mixture of topics, each with log-normal preferences
    over the experts, whose shares follow an AR(1) walk. The file says that it is synthetic.
    """
    from eplb.errors import InputError
    from eplb.formats import files
    from eplb.formats.traces import write_trace
    from eplb.synthetic import Traffic, generate, generate_routes

    if options["output"] is None:
        raise InputError("where to? -o FILE names the trace to write (.npz, .json or .json.gz)")
    files.check_output(options["output"], options["force"])
    shape = _shape(options)
    traffic = Traffic(
        num_windows=options["windows"],
        tokens=options["tokens"],
        num_topics=options["topics"],
        skew=options["skew"],
        drift=options["drift"],
        seed=options["seed"],
    )
    trace = generate_routes(shape, traffic) if options["routes"] else generate(shape, traffic)
    write_trace(trace, options["output"], options["force"])
    terminal.remark(
        f"wrote {options['output']}: synthetic, {options['windows']} windows × {shape.num_layers}"
        f" layers × {shape.num_experts} experts",
        options["quiet"],
    )


def _shape(options: dict[str, Any]) -> Any:
    from dataclasses import replace

    from eplb.errors import InputError
    from eplb.synthetic import SHAPES, Shape

    name = options["shape"]
    if name is not None and name not in SHAPES:
        raise InputError(f"no shape is called {name!r}; {', '.join(SHAPES)} are known")
    given = {
        field: options[option]
        for option, field in (("layers", "num_layers"), ("experts", "num_experts"),
                              ("top_k", "top_k"), ("groups", "num_groups"),
                              ("groups_per_token", "groups_per_token"))
        if options[option] is not None
    }  # fmt: skip
    if name is not None:
        of_model = SHAPES[name]
        groups = given.get("num_groups", of_model.num_groups)
        given.setdefault("groups_per_token", min(of_model.groups_per_token, groups))
        return replace(of_model, **given)
    defaults = {"num_layers": 4, "num_experts": 64, "top_k": min(8, given.get("num_experts", 64))}
    shape = {**defaults, **given}
    shape.setdefault("groups_per_token", shape.get("num_groups", 1))
    return Shape(**shape)
