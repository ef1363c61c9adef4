"""`eplb import`: the plan that an engine's placement map holds."""

from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..options import file_options, model_option, output_options
from .export import ENGINES, remarks

if TYPE_CHECKING:
    from eplb.plan import Plan

# More layers than any model has.
_MOST_LAYERS = 10_000

_EPILOG = """\b
A map knows no loads: the plan holds the placement alone, for diff, simulate and plan --current.
Files of SGLang have rows for dense layers too, which --model or --layers leaves out; rows of vllm,
vllm-ascend and deepseek files are the layers with experts, which --model or --layers numbers.

\b
Examples:
  eplb import location.json --from sglang --gpus 32 --nodes 4 --model DeepSeek-V3 -o live.json
  eplb import expert_map.json --from vllm-ascend --layers 3:61 -o live.json
"""


class LayerList(click.ParamType[tuple[int, ...]]):
    """Layer numbers in ascending order: `3:61` as Python counts, `1,3,5`, or both."""

    name = "LAYERS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        layers: list[int] = []
        try:
            for part in value.split(","):
                first, colon, end = part.partition(":")
                low = int(first)
                high = int(end) if colon else low + 1
                if not 0 <= low < high <= _MOST_LAYERS:
                    raise ValueError
                layers += range(low, high)
        except ValueError:
            self.fail(f"{value!r} is no list of layers; 3:61, 1,3,5 or 0,3:61 are", param, ctx)
        if layers != sorted(set(layers)):
            self.fail(f"{value!r} is not in ascending order, each layer once", param, ctx)
        return tuple(layers)


@click.command("import", epilog=_EPILOG)
@click.argument("map_file", metavar="FILE")
@click.option(
    "--from", "engine", type=click.Choice(ENGINES), required=True, help="Whose file it is."
)
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    default=None,
    metavar="R",
    help="EP ranks in all; files of vllm-ascend say it themselves.",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Nodes they stand on.",
)
@model_option
@click.option(
    "--layers",
    type=LayerList(),
    default=None,
    help="The layers that rows are of, or of those in the file the ones to take: 3:61 or 1,3,5.",
)
@file_options("the plan")
@output_options
def command(**options: Any) -> None:
    """Read an engine's placement map into a plan; without -o the plan itself is printed."""
    from eplb.formats import files
    from eplb.formats.maps import import_map
    from eplb.formats.model_config import read_model
    from eplb.formats.plans import plan_bytes

    from ..outputs import check_output

    map_file, output = options["map_file"], options["output"]
    if output is not None:
        check_output(output, options["force"], [map_file])
    plan, notes = import_map(
        map_file,
        options["engine"],
        options["gpus"],
        options["nodes"],
        None if options["model"] is None else read_model(options["model"]),
        options["layers"],
    )
    remarks(notes, options["quiet"])
    data = plan_bytes(plan)
    if output is not None:
        files.write_bytes(output, data, options["force"])
    if output is None or options["as_json"]:
        click.echo(data, nl=False)
    else:
        _print(plan, output)


def _print(plan: "Plan", output: str) -> None:
    from eplb.findings import listed

    placement = plan.placement
    nodes = f"{placement.num_nodes} node{'s' if placement.num_nodes > 1 else ''}"
    terminal.facts([
        ("placement", f"layers {listed(plan.layer_ids)}: {placement.num_logical_experts} experts in"
                      f" {placement.num_slots} slots, {placement.slots_per_rank} on each of"
                      f" {placement.num_ranks} GPUs, {nodes}"),
        ("wrote", output),
        ("next", f"eplb show {output}"),
    ])  # fmt: skip
