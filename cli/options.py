"""Options that several commands share, and how their values are read."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class WindowSlice(click.ParamType[slice]):
    """A Python slice of windows: `A:B`, `A:`, `:B`, with negative numbers counting from the end."""

    name = "A:B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> slice:
        if isinstance(value, slice):
            return value
        first, colon, end = value.partition(":")
        try:
            if not colon:
                raise ValueError
            return slice(int(first) if first else None, int(end) if end else None)
        except ValueError:
            self.fail(f"{value!r} is no range of windows; 8:, :8, 4:12 or -16: are", param, ctx)


class Scenario(click.ParamType[tuple[str, float]]):
    """A further trace with a weight: `FILE` or `FILE=WEIGHT`."""

    name = "FILE[=WEIGHT]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        if value == "-" or os.path.exists(value):
            return value, 1.0
        path, equals, weight = value.rpartition("=")
        if not equals:
            return value, 1.0
        try:
            return path, float(weight)
        except ValueError:
            self.fail(f"{weight!r} is no weight; a number above 0 is expected", param, ctx)


def trace_arguments(command: Command) -> Command:
    """The traces, and how they are cut into windows."""
    options = [
        click.argument("traces", metavar="TRACE...", nargs=-1, required=True),
        click.option(
            "--windows", type=WindowSlice(), default=None,
            help="Use only these windows, as a Python slice: 8:, :8, -16:.",
        ),
        click.option(
            "--window-tokens", type=click.IntRange(min=1), default=None, metavar="N",
            help="Cut token routes into windows of N tokens.",
        ),
        click.option(
            "--window-steps", type=click.IntRange(min=1), default=None, metavar="N",
            help="Sum routes or counts by forward pass into windows of N engine steps.",
        ),
        click.option(
            "--recorded-under", default=None, metavar="PLAN",
            help="The plan that was live while TRACE was recorded, where its counts are by slot.",
        ),
    ]  # fmt: skip
    return all_of(options, command)


def output_options(command: Command) -> Command:
    """How much is said, and whether as JSON."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead."),
        click.option("-q", "--quiet", is_flag=True, help="No remarks on standard error."),
        click.option("-v", "--verbose", is_flag=True, help="Say more."),
    ]
    return all_of(options, command)


def file_options(what: str) -> Callable[[Command], Command]:
    """Where `what` is written."""

    def decorate(command: Command) -> Command:
        options = [
            click.option(
                "-o", "--output", default=None, metavar="FILE", help=f"Write {what} to FILE."
            ),
            click.option("--force", is_flag=True, help="Overwrite FILE if it exists."),
        ]
        return all_of(options, command)

    return decorate


def model_option(command: Command) -> Command:
    """The structure of the model."""
    return click.option(
        "--model",
        "model",
        default=None,
        metavar="DIR|CONFIG",
        help="Hugging Face config.json or its folder: experts, top-k, groups, which layers are"
        " dense or MTP, bytes of an expert.",
    )(command)


def expert_bytes_option(default: str) -> Callable[[Command], Command]:
    """The weight of one expert, taken from `default` where it is not given."""
    return click.option(
        "--expert-bytes", type=click.IntRange(min=1), default=None, metavar="B",
        help=f"Bytes of one expert in one layer, to weigh moves with.  [default: from {default}]",
    )  # fmt: skip


def all_of(options: list[Callable[[Command], Command]], command: Command) -> Command:
    """`command` with these options, in this order."""
    for option in reversed(options):
        command = option(command)
    return command
