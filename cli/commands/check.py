"""`eplb check`: the gate for CI."""

import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..options import file_options, model_option, output_options, trace_arguments

if TYPE_CHECKING:
    from eplb.formats.verdicts import Judgement
    from eplb.study.limits import Limit

    from ..scoring import Scored

RULES_FILE = "eplb.toml"

# The options that name files to read.
_READ = ("plan", "baseline", "config", "model", "recorded_under")

_EPILOG = """\b
The plan is scored on the trace as `eplb simulate` does it, without windows that it was made from.
--fail-if sets limits, --baseline compares with an earlier report; what the command line says wins
over the rules file. A tolerance is of the baseline's figure (0.5%) or as it is (0.005).

\b
Examples:
  eplb check new.npz --plan plan.json --fail-if 'mean_balancedness < 0.9'
  eplb simulate new.npz --plan plan.json -o report.json
  eplb check new.npz --plan plan.json --baseline report.json --tolerance 0.5%
  eplb check --config eplb.toml --format junit -o junit.xml
"""


@click.command("check", epilog=_EPILOG)
@trace_arguments
@click.option("--plan", default=None, metavar="PLAN", help="The plan that is checked.")
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    metavar="EXPR",
    help="Fail where NAME OP NUMBER is true of the report's summary; repeatable.",
)
@click.option(
    "--baseline", default=None, metavar="REPORT", help="Fail where a figure is worse than here."
)
@click.option(
    "--tolerance",
    default=None,
    metavar="T",
    help="How much worse than the baseline is no failure.  [default: 0.1%]",
)
@click.option(
    "--config", default=None, metavar="FILE", help="Rules file, as eplb.toml; docs/ci.md has keys."
)
@click.option("--in-sample", is_flag=True, help="Score windows that the plan was made from, too.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json", "junit", "github", "sarif"]),
    default=None,
    help="JUnit XML, annotations of GitHub Actions, SARIF 2.1.0.  [default: text]",
)
@model_option
@file_options("the verdicts")
@output_options
def command(**options: Any) -> int:
    """Check PLAN on a trace: exit with 1 when a limit or the baseline is broken.

    TRACE may be what the plan has never seen; that is the normal case. With -o the verdicts go to
    FILE in the format asked for, and standard output has them as text.
    """
    from eplb.formats import files
    from eplb.formats.plans import read_plan
    from eplb.formats.rules import read_baseline
    from eplb.formats.verdicts import WRITERS, text
    from eplb.study.limits import parse_tolerance

    from ..scoring import score

    style = _style(options)
    where = _resolve(options)
    limits = _limits(options["fail_if"], where)
    tolerance = parse_tolerance(options["tolerance"])
    _check(options)
    plan = read_plan(options["plan"])
    baseline = None if options["baseline"] is None else read_baseline(options["baseline"])
    scored = score(options, {options["plan"]: plan}, beside=False)
    judgement = _judge(options, scored, limits, baseline, tolerance)
    if options["output"] is not None:
        files.write_bytes(
            options["output"], WRITERS[style](judgement).encode(errors="replace"), options["force"]
        )
    if style == "text" or options["output"] is not None:
        _print(text(judgement))
    else:
        click.echo(WRITERS[style](judgement), nl=False)
    if not judgement.passed:
        terminal.remark(judgement.ending)
    return int(not judgement.passed)


def _style(options: dict[str, Any]) -> str:
    """The format asked for; `--json` is short for one of them."""
    from eplb.errors import InputError

    style: str | None = options["style"]
    if not options["as_json"]:
        return style or "text"
    if style not in (None, "json"):
        raise InputError(f"--json and --format {style} exclude each other")
    return "json"


def _resolve(options: dict[str, Any]) -> str:
    """Fill in what the rules file says and the command line does not; returns where the limits are
    from."""
    from eplb.formats.rules import Rules, read_rules
    from eplb.study.limits import DEFAULT_TOLERANCE

    _check_none_empty(options)
    rules = Rules() if options["config"] is None else read_rules(options["config"])
    where = "--fail-if" if options["fail_if"] else f"{options['config']}: fail_if"
    for key, value in rules._asdict().items():
        options[key] = options[key] or value
    _check_complete(options)
    options["tolerance"] = options["tolerance"] or DEFAULT_TOLERANCE
    for key in ("plan", "baseline"):
        options[key] = options[key] and _from_here(options[key])
    options["traces"] = tuple(map(_from_here, options["traces"]))
    return where


def _check_none_empty(options: dict[str, Any]) -> None:
    """An empty value would pass for an option not given, and the gate would be without it."""
    from eplb.errors import InputError

    given = {f"--{key}": options[key] for key in ("plan", "baseline", "tolerance", "config")}
    for name, value in [*given.items(), *(("TRACE", trace) for trace in options["traces"])]:
        if value == "":
            raise InputError(f"{name} is given and empty: a variable that is not set?")


def _check_complete(options: dict[str, Any]) -> None:
    from eplb.errors import InputError

    here = ""
    if options["config"] is None and os.path.exists(RULES_FILE):
        here = f"; --config {RULES_FILE} reads the rules that are here"
    if options["plan"] is None:
        raise InputError(f"which plan is to be checked? --plan PLAN{here}")
    if not options["traces"]:
        raise InputError(f"on which trace is {options['plan']} to be checked? TRACE...{here}")
    if not options["fail_if"] and options["baseline"] is None:
        raise InputError(
            "nothing could fail: --fail-if 'mean_balancedness < 0.9' sets a limit, --baseline"
            f" report.json compares with what `eplb simulate` wrote earlier{here}"
        )
    if options["tolerance"] is not None and options["baseline"] is None:
        raise InputError(
            f"a tolerance ({options['tolerance']}) is for a baseline, and there is none; limits are"
            " exact"
        )


def _from_here(path: str) -> str:
    """A path as code hosts know it: relative, where it is beneath the working folder."""
    if path == "-":
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _limits(texts: tuple[str, ...], where: str) -> "list[Limit]":
    from eplb.errors import InputError
    from eplb.study.limits import parse_limit

    try:
        return [parse_limit(text) for text in texts]
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _check(options: dict[str, Any]) -> None:
    """What is known to go wrong before a trace is read."""
    from eplb.errors import InputError

    from ..outputs import check_output

    output, baseline = options["output"], options["baseline"]
    if output is not None:
        read = [*options["traces"], *map(options.get, _READ)]
        check_output(output, options["force"], read)
    if baseline not in (None, "-") and not os.path.exists(baseline):
        raise InputError(f"{baseline} does not exist; to write it: {_update(options)}")


def _update(options: dict[str, Any], force: bool = False) -> str:
    """The command that writes what is scored here as the baseline."""
    words = ["eplb", "simulate", *options["traces"], "--plan", options["plan"]]
    windows = options["windows"]
    if windows is not None:
        first, end = ("" if edge is None else edge for edge in (windows.start, windows.stop))
        words.append(f"--windows={first}:{end}")
    for key in ("window_tokens", "window_steps", "recorded_under", "model"):
        if options[key] is not None:
            words += [f"--{key.replace('_', '-')}", str(options[key])]
    words += ["--in-sample"] if options["in_sample"] else []
    return shlex.join([*words, "-o", options["baseline"], *(["--force"] if force else [])])


def _judge(
    options: dict[str, Any], scored: "Scored", limits: "list[Limit]", baseline: Any, tolerance: Any
) -> "Judgement":
    from eplb.formats.verdicts import Judgement
    from eplb.study.gate import judge_baseline, judge_limits

    (report,) = scored.reports.values()
    verdicts, notes = judge_limits(report, limits)
    if baseline is not None:
        against, unlike = judge_baseline(report, baseline, tolerance, scored.in_sample)
        verdicts, notes = [*verdicts, *against], [*notes, *unlike]
    return Judgement(
        plan=options["plan"],
        traces=options["traces"],
        scored=_scored(report, scored),
        summary=report.summary(),
        verdicts=tuple(verdicts),
        notes=tuple(notes),
        update=None if baseline is None else _update(options, force=True),
    )


def _scored(report: Any, scored: "Scored") -> str:
    """Which windows were scored, in a line."""
    num_windows, num_layers = len(report.windows), len(report.layer_ids)
    plurals = ["" if count == 1 else "s" for count in (num_windows, num_layers)]
    text = f"{num_windows} window{plurals[0]} × {num_layers} layer{plurals[1]}"
    if scored.in_sample:
        return f"{text}, in-sample: also those that the plan was made from"
    if scored.left_out:
        return f"{text}; {scored.left_out} that the plan was made from are left out"
    return text


def _print(text: str) -> None:
    """The text, its verdicts coloured where standard output is a terminal."""
    from rich.text import Text

    out = terminal.console()
    for line in text.splitlines():
        shown = Text(line)
        if line.startswith(("PASS", "gate passed")):
            shown.stylize("green", 0, 4)
        elif line.startswith(("FAIL", "gate failed")):
            shown.stylize("bold red", 0, 4)
        out.print(shown, soft_wrap=True)


# The traces may be named in the rules file instead.
for _parameter in command.params:
    if _parameter.name == "traces":
        _parameter.required = False
