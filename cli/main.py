"""`eplb`: the commands and what their endings mean."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, TextIO

import click

from eplb.errors import EplbError, InfeasibleError, RefusedError

# Loaded on use, so that help and completion need neither numpy nor the planner.
COMMANDS = {
    "plan": "Choose redundant experts and place every copy.",
    "show": "Explain a plan: layers, GPUs, redundant experts, bound and gap.",
    "diff": "Compare two plans: copies added, dropped and moved.",
    "inspect": "Say what a trace holds and what is wrong with it.",
    "gen": "Write a synthetic trace of stated skew and drift.",
    "simulate": "Replay a trace under plans, or re-plan as it goes.",
    "sweep": "Draw balance, memory and moves over redundant experts.",
    "check": "Check a plan against limits and a baseline: the gate for CI.",
    "report": "Draw plans on a trace as one page of HTML.",
    "export": "Write the file with which an engine starts with a plan.",
    "import": "Read an engine's placement map into a plan.",
    "explain": "Say what a finding means and what to do about it.",
    "formats": "List the files that can be read and written.",
}

INTERRUPTED = 130

_EPILOG = """\b
Exit codes:
  0    done; gate passed; plans the same
  1    a gate failed; two plans differ; inspect --strict found something
  2    wrong usage; input that cannot be read; output that cannot be written
  3    infeasible; the nearest feasible setting is printed
  4    refused for safety: made for another model, layer set or topology
  130  interrupted
"""


class _Stream(io.FileIO):
    """A standard stream that complains of a failed write at most once and then drops the rest, so
    that it cannot fail again when Python flushes at exit.

    What is in `forgives` is no complaint at all: the command goes on to its own ending.
    """

    def __init__(self, number: int, forgives: type[OSError]) -> None:
        super().__init__(number, "w", closefd=False)
        self._forgives = forgives
        self._lost = False

    def write(self, data: Any) -> int | None:
        if not self._lost:
            try:
                return super().write(data)
            except OSError as error:
                self._lost = True
                if not isinstance(error, self._forgives):
                    raise
        return len(data)


class _Commands(click.Group):
    """The commands of the table, each in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f".commands.{name}", __package__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"eplb {version('eplb')}")
        ctx.exit()


@click.group(
    cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the version and exit.",
)  # fmt: skip
def cli() -> None:
    """Plan where the experts of Mixture-of-Experts models live.

    From recorded loads of every expert, choose which experts get redundant copies and place all
    copies on the GPUs, so that no GPU makes the others wait.
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code that its ending has."""
    # A reader may stop reading, as `head` does; of remarks none is worth more than the work.
    sys.stdout = _opened(sys.stdout, 1, forgives=BrokenPipeError)
    sys.stderr = _opened(sys.stderr, 2, forgives=OSError)
    sys.exit(run(args))


def _opened(stream: TextIO | None, number: int, forgives: type[OSError]) -> TextIO:
    """A standard stream for commands to write to; nowhere when the caller closed it."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(number, forgives)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=number == 2 or stream.isatty(),
    )


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line; every ending but 0 prints a line on standard error."""
    try:
        code = cli.main(args, prog_name="eplb", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except EplbError as error:
        click.echo(f"eplb: error: {error}", err=True)
        return (
            4 if isinstance(error, RefusedError) else 3 if isinstance(error, InfeasibleError) else 2
        )
    except (KeyboardInterrupt, click.Abort):
        click.echo("eplb: interrupted", err=True)
        return INTERRUPTED
    except OSError as error:
        where = error.filename or "standard output"
        click.echo(f"eplb: error: {where}: {error.strerror or error}", err=True)
        return 2
    except MemoryError:
        click.echo("eplb: error: out of memory; use fewer windows (--windows)", err=True)
        return 2
    return code if isinstance(code, int) else 0
