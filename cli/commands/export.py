"""`eplb export`: the file with which an engine starts with a plan."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..options import file_options, model_option, output_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eplb.formats.engines.exports import Export
    from eplb.plan import Plan

# As in eplb.formats.maps, which is loaded on use.
ENGINES = ("sglang", "vllm", "trtllm", "vllm-ascend", "deepseek")

_EPILOG = """\b
The ending of FILE chooses among an engine's forms: sglang .json or .pt; vllm .json (list by layer)
or .jsonl (mapping record), both proposed and read by no released vLLM up to 0.33; trtllm .yaml;
vllm-ascend .json; deepseek .npz or .pt. Without -o the file itself is printed.

\b
What an engine would serve wrongly is refused (exit code 4); `eplb explain EP201` and the like say
why. With --model, layers and experts are checked against the model.

\b
Examples:
  eplb export plan.json --to sglang --model DeepSeek-V3 -o location.json
  eplb export plan.json --to trtllm --model DeepSeek-V3/config.json -o balancer.yaml
  eplb export plan.json --to deepseek -o maps.npz
"""


@click.command("export", epilog=_EPILOG)
@click.argument("plan_file", metavar="PLAN")
@click.option(
    "--to", "engine", type=click.Choice(ENGINES), required=True, help="Who reads the file."
)
@model_option
@file_options("the engine's file")
@output_options
def command(
    plan_file: str,
    engine: str,
    model: str | None,
    output: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write the file with which an engine starts with a plan, and print the flags to start with."""
    from eplb.errors import InputError
    from eplb.formats import files
    from eplb.formats.maps import ENGINES as MODULES
    from eplb.formats.maps import export_plan
    from eplb.formats.model_config import read_model
    from eplb.formats.plans import read_plan

    from ..outputs import check_output

    if output is None and as_json:
        raise InputError("--json describes the file that is written; -o FILE names it")
    if output is not None:
        check_output(output, force, [plan_file])
    plan = read_plan(plan_file)
    structure = None if model is None else read_model(model)
    name = output or f"FILE{MODULES[engine].ENDINGS[0]}"
    export = export_plan(plan, engine, name, structure)
    if output is None:
        _print_file(export, engine, quiet)
        return
    files.write_bytes(output, export.data, force)
    remarks(export.notes, quiet)
    if as_json:
        click.echo(json.dumps(_description(plan, export, engine, output)))
    else:
        _print(plan, export, engine, output)


def remarks(notes: "Sequence[str]", quiet: bool) -> None:
    """Notes of the library on standard error, and where to read about the first rule."""
    for text in notes:
        terminal.remark(text, quiet)
    if rules := [text.split()[0] for text in notes if text.startswith("EP2")]:
        terminal.remark(f"`eplb explain {rules[0]}` says what it means", quiet)


def _print_file(export: "Export", engine: str, quiet: bool) -> None:
    """The file on standard output, the rest on standard error."""
    from eplb.errors import InputError

    is_text = b"\x00" not in export.data
    if not is_text and sys.stdout.isatty():
        raise InputError(f"a file for {engine} is no text; -o FILE writes it")
    click.echo(export.data, nl=False)
    remarks((*export.flags, *export.notes), quiet)


def _description(plan: "Plan", export: "Export", engine: str, output: str) -> dict[str, Any]:
    placement = plan.placement
    return {
        "format": "eplb-export", "version": 1, "engine": engine, "file": output,
        "num_gpus": placement.num_ranks, "num_experts": placement.num_logical_experts,
        "slots_per_gpu": placement.slots_per_rank, "flags": list(export.flags),
        "notes": list(export.notes),
    }  # fmt: skip


def _print(plan: "Plan", export: "Export", engine: str, output: str) -> None:
    placement = plan.placement
    terminal.facts([
        ("wrote", f"{output}: for {engine}, {placement.num_logical_experts} experts in"
                  f" {placement.num_slots} slots on {placement.num_ranks} GPUs,"
                  f" {terminal.size(len(export.data))}"),
    ])  # fmt: skip
    if export.flags:
        # Not in a table, which would break what is to be copied.
        click.echo("start with")
        click.echo("\n".join(f"  {flag}" for flag in export.flags))
