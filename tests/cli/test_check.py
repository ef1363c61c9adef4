"""`eplb check` as a CI job uses it."""

import json
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from ..helpers import ROOT, SAMPLES, eplb
from ..regress import CASES, regress

HELD, BROKEN = "mean_balancedness < 0.1", "mean_balancedness < 0.999"
PAGE = (ROOT / "docs/ci.md").read_text()


@pytest.fixture
def _job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a plan of the first windows of a trace, a report on the rest, and the
    rest as a trace of its own."""
    monkeypatch.chdir(tmp_path)
    loads = np.random.default_rng(5).poisson(50.0, (8, 3, 8)) + 20 * np.arange(8)
    np.savez("trace.npz", loads=loads, layer_ids=[3, 4, 7], top_k=2)
    np.savez("new.npz", loads=loads[4:], layer_ids=[3, 4, 7], top_k=2)
    plan = ("plan", "trace.npz", "--windows", ":4", "--gpus", 4, "--effort", "fast", "-q")
    assert eplb(*plan, "-o", "plan.json").code == 0
    assert eplb("simulate", "trace.npz", "--plan", "plan.json", "-o", "report.json").code == 0


def _change(path: str, **figures: float) -> None:
    """Another summary in a report file."""
    report = json.loads(Path(path).read_text())
    report["summary"].update(figures)
    Path(path).write_text(json.dumps(report))


def _summary() -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(Path("report.json").read_text())["summary"]
    return summary


@pytest.mark.usefixtures("_job")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--fail-if", HELD], 0),
        (["--fail-if", BROKEN], 1),
        (["--fail-if", HELD, "--fail-if", BROKEN], 1),
        (["--baseline", "report.json"], 0),
        (["--baseline", "report.json", "--tolerance", "0"], 0),
        (["--baseline", "report.json", "--fail-if", BROKEN], 1),
        (["--fail-if", HELD, "--in-sample"], 0),
    ],
)
def test_the_exit_code_is_the_gate(args: list[str], code: int) -> None:
    """0 where every rule holds, 1 where one is broken; the last line of standard output says so,
    and standard error too when it fails."""
    ending = eplb("check", "trace.npz", "--plan", "plan.json", *args)
    assert ending.code == code, ending.err
    last = ending.out.splitlines()[-1]
    assert last.startswith("gate failed: 1 of " if code else "gate passed: ")
    assert (last in ending.err) == bool(code)
    assert ("in-sample" in ending.out) == ("--in-sample" in args)


@pytest.mark.usefixtures("_job")
def test_check_scores_what_simulate_does() -> None:
    """The same figures to the last digit, so that a fresh baseline holds without any tolerance; the
    windows planned for are left out of both."""
    args = ("check", "trace.npz", "--plan", "plan.json", "--baseline", "report.json")
    document = json.loads(eplb(*args, "--tolerance", "0", "--json").out)
    assert document["summary"] == _summary()
    assert document["scored"] == (
        "4 windows × 3 layers; 4 that the plan was made from are left out"
    )
    assert document["advice"] is None
    assert not document["notes"]


@pytest.mark.usefixtures("_job")
def test_a_new_trace_is_the_normal_case() -> None:
    """It is scored whole and stated, not refused."""
    ending = eplb("check", "new.npz", "--plan", "plan.json", "--baseline", "report.json")
    assert ending.code == 0
    assert "plan.json on new.npz: 4 windows × 3 layers\n" in ending.out


@pytest.mark.usefixtures("_job")
@pytest.mark.parametrize(
    ("change", "tolerance", "code", "said"),
    [
        (0.995, "1%", 0, ""),
        (1.005, "1%", 0, ""),
        (1.02, "1%", 1, r"next  if this is meant, make it the new baseline: eplb simulate"),
        (
            0.98,
            "1%",
            0,
            r"\+2\.04%\), better\n[^$]*next  better than the baseline in efficiency; to",
        ),
    ],
)
def test_a_baseline_holds_within_its_tolerance(
    change: float, tolerance: str, code: int, said: str
) -> None:
    """Worse beyond it fails and better beyond it says so; both with the command that updates it."""
    _change("report.json", efficiency=_summary()["efficiency"] * change)
    args = ("--baseline", "report.json", "--tolerance", tolerance)
    ending = eplb("check", "trace.npz", "--plan", "plan.json", *args)
    assert ending.code == code
    assert re.search(said, ending.out)
    assert ("next  " in ending.out) == bool(said)


@pytest.mark.usefixtures("_job")
def test_the_update_command_updates() -> None:
    """As it is printed, with the options that say what is scored; afterwards the gate holds without
    tolerance or advice."""
    Path("my report.json").write_text(Path("report.json").read_text())
    _change("my report.json", mean_balancedness=0.999)
    options = ["--windows", "2:-1", "--in-sample", "--baseline", "my report.json"]
    args = ["check", "trace.npz", "--plan", "plan.json", *options, "--tolerance", "0"]
    failed = eplb(*args)
    assert failed.code == 1
    (command,) = re.findall(r"^next .*baseline: eplb (.*)$", failed.out, flags=re.M)
    assert eplb(*shlex.split(command)).code == 0
    ending = eplb(*args)
    assert ending.code == 0
    assert "next" not in ending.out


@pytest.mark.usefixtures("_job")
def test_a_baseline_that_is_missing_says_how_to_make_it() -> None:
    """Word for word."""
    args = ("check", "new.npz", "--plan", "plan.json", "--baseline", "none.json")
    ending = eplb(*args)
    assert ending.code == 2
    (command,) = re.findall(r"none\.json does not exist; to write it: eplb (.*)$", ending.err, re.M)
    assert eplb(*shlex.split(command)).code == 0
    assert eplb(*args).code == 0


@pytest.mark.usefixtures("_job")
@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["new.npz", "--plan", "plan.json"], 2, "nothing could fail: --fail-if"),
        (["new.npz", "--fail-if", HELD], 2, "which plan is to be checked"),
        (["--plan", "plan.json", "--fail-if", HELD], 2, "on which trace is plan.json to be"),
        (["new.npz", "--plan", "plan.json", "--fail-if", "x < 1"], 2, "--fail-if: no figure is"),
        (["new.npz", "--plan", "plan.json", "--fail-if", HELD, "--tolerance", "1%"], 2,
         r"a tolerance \(1%\) is for a baseline, and there is none"),
        (["new.npz", "--plan", "plan.json", "--baseline", "report.json", "--tolerance", "x"], 2,
         "'x' is no tolerance"),
        (["new.npz", "--plan", "plan.json", "--baseline", "plan.json"], 2, "a report .* is expe"),
        (["new.npz", "--plan", "none.json", "--fail-if", HELD], 2, "none.json cannot be read"),
        (["none.npz", "--plan", "plan.json", "--fail-if", HELD], 2, "none.npz"),
        (["trace.npz", "--windows", ":4", "--plan", "plan.json", "--fail-if", HELD], 2,
         "all 4 windows of the trace were planned for"),
        (["new.npz", "--plan", "plan.json", "--fail-if", "off_home_share > 0.1"], 2,
         "has no off_home_share, which needs a plan on several nodes"),
        (["other.npz", "--plan", "plan.json", "--fail-if", HELD], 4, "not cover the same layers"),
        (["fewer.npz", "--plan", "plan.json", "--fail-if", HELD], 4, "expert"),
        (["new.npz", "--plan", "plan.json", "--fail-if", HELD, "--json", "--format", "sarif"], 2,
         "--json and --format sarif exclude each other"),
        (["new.npz", "--plan", "plan.json", "--fail-if", HELD, "-o", "report.json"], 2,
         "report.json exists; --force overwrites it"),
        (["new.npz", "--plan", "plan.json", "--fail-if", HELD, "-o", "plan.json", "--force"], 2,
         "-o plan.json would overwrite a file that is read"),
        (["new.npz", "--plan", "plan.json", "--baseline", "report.json", "-o", "./report.json",
          "--force"], 2, "would overwrite a file that is read"),
        (["--config", "none.toml"], 2, "none.toml cannot be read"),
        (["new.npz", "--plan", "plan.json", "--fail-if", HELD, "--baseline", ""], 2,
         "--baseline is given and empty"),
        (["new.npz", "", "--plan", "plan.json", "--fail-if", HELD], 2, "TRACE is given and empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged(args: list[str], code: int, message: str) -> None:
    """Exit code 2 for what makes no sense, 4 for a plan of another model; nothing is written."""
    rng = np.random.default_rng(1)
    np.savez("other.npz", loads=rng.poisson(50.0, (4, 3, 8)), layer_ids=[3, 4, 8])
    np.savez("fewer.npz", loads=rng.poisson(50.0, (4, 3, 6)), layer_ids=[3, 4, 7])
    before = {path: path.read_bytes() for path in Path().iterdir()}
    ending = eplb("check", *args)
    assert (ending.code, ending.out) == (code, "")
    assert re.search(message, ending.err), ending.err
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


@pytest.mark.usefixtures("_job")
def test_an_edited_plan_is_refused() -> None:
    """A gate on a plan that nobody planned says nothing."""
    plan = json.loads(Path("plan.json").read_text())
    plan["physical_to_logical"][0].reverse()
    Path("plan.json").write_text(json.dumps(plan))
    assert eplb("check", "new.npz", "--plan", "plan.json", "--fail-if", HELD).code == 4


def _write_rules(**changes: Any) -> None:
    rules = {
        "plan": "../plan.json", "traces": ["../new.npz"], "fail_if": [HELD],
        "baseline": "../report.json", "tolerance": "5%", **changes,
    }  # fmt: skip
    Path("ci").mkdir(exist_ok=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in rules.items() if value is not None]
    Path("ci/eplb.toml").write_text("\n".join(["[check]", *lines]))


@pytest.mark.usefixtures("_job")
def test_a_rules_file_is_the_whole_command() -> None:
    """Paths are beside the file, and named from the working folder."""
    _write_rules()
    ending = eplb("check", "--config", "ci/eplb.toml")
    assert ending.code == 0
    assert "scored  plan.json on new.npz: 4 windows" in ending.out
    _write_rules(fail_if=[HELD, BROKEN])
    assert eplb("check", "--config", "ci/eplb.toml").code == 1


@pytest.mark.usefixtures("_job")
def test_the_command_line_wins_over_the_rules_file() -> None:
    """Option by option; a list is replaced, not extended."""
    _write_rules(fail_if=[BROKEN], plan="none.json", traces=["none.npz"])
    args = ["check", "trace.npz", "--config", "ci/eplb.toml", "--plan", "plan.json"]
    assert eplb(*args).code == 1
    ending = eplb(*args, "--fail-if", "moves > 3", "--format", "json")
    verdicts = json.loads(ending.out)["verdicts"]
    assert [v["title"] for v in verdicts if v["rule"].startswith("limit/")] == ["moves > 3"]
    assert verdicts[1]["bound"] == pytest.approx(0.95 * _summary()["mean_balancedness"])
    ending = eplb(*args, "--fail-if", "moves > 3", "--tolerance", "20%", "--json")
    bound = json.loads(ending.out)["verdicts"][1]["bound"]
    assert bound == pytest.approx(0.8 * _summary()["mean_balancedness"])


@pytest.mark.usefixtures("_job")
def test_a_bad_limit_in_the_rules_file_names_the_file() -> None:
    """And a rules file that could be read is pointed to, but not read unasked."""
    _write_rules(fail_if=["mean_balancedness < 90"])
    ending = eplb("check", "--config", "ci/eplb.toml")
    assert ending.code == 2
    assert "ci/eplb.toml: fail_if: 'mean_balancedness < 90': mean_bal" in ending.err
    Path("eplb.toml").write_text("[check]")
    assert "--config eplb.toml reads the rules that are here" in eplb("check").err


@pytest.mark.usefixtures("_job")
@pytest.mark.parametrize("style", ["json", "junit", "github", "sarif"])
def test_every_format_is_what_its_reader_reads(style: str) -> None:
    """On standard output alone, or in a file beside the text; the same bytes twice."""
    args = ["check", "new.npz", "--plan", "plan.json", "--fail-if", BROKEN, "--format", style]
    ending = eplb(*args)
    assert ending.code == 1
    if style == "junit":
        assert len(list(ElementTree.fromstring(ending.out.encode()).iter("failure"))) == 1
    elif style == "github":
        found = "^::error file=plan.json,title=eplb%3A mean_balancedness < 0.999::mean_bal"
        assert re.search(found, ending.out, flags=re.M)
    else:
        assert json.loads(ending.out)["version"] == {"json": 1, "sarif": "2.1.0"}[style]
    written = eplb(*args, "-o", "out")
    assert written.code == 1
    assert Path("out").read_text() == ending.out
    assert written.out == eplb(*args[:-2]).out


@pytest.mark.usefixtures("_job")
def test_text_can_be_written_too(tmp_path: Path) -> None:
    """Both places have the same."""
    args = ("check", "new.npz", "--plan", "plan.json", "--fail-if", HELD, "-o", "gate.txt")
    assert eplb(*args).out == Path("gate.txt").read_text()
    assert eplb(*args).code == 2
    assert eplb(*args, "--force").code == 0


@pytest.mark.usefixtures("_job")
def test_a_plan_beneath_the_working_folder_is_named_from_there(tmp_path: Path) -> None:
    """So that code hosts find it, however it was given; a trace may be standard input."""
    plan, style = tmp_path / "plan.json", ("--fail-if", BROKEN, "--format", "sarif")
    ending = eplb("check", "-", "--plan", plan, *style, stdin=Path("new.npz").read_bytes())
    (result,) = json.loads(ending.out)["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place == {"uri": "plan.json", "uriBaseId": "%SRCROOT%"}


def test_a_sample_is_planned_as_well_as_before(tmp_path: Path, monkeypatch: Any) -> None:
    """One of those that `make regress` checks; each of them has a baseline."""
    monkeypatch.chdir(ROOT)
    sample = "tiny-dsv3.npz"
    ending = regress(sample, str(tmp_path))
    assert ending.code == 0, ending.out
    assert "gate passed" in ending.out
    kept = {path.name.partition(".")[0] for path in (ROOT / "tests/golden/regress").iterdir()}
    samples = {path.name for path in SAMPLES.iterdir() if path.name != "README.md"}
    assert set(CASES) == samples
    assert kept == {name.partition(".")[0] for name in CASES}


def test_a_planner_that_got_worse_is_caught(tmp_path: Path, monkeypatch: Any) -> None:
    """The engines' start in place of a plan breaks the baseline."""
    monkeypatch.chdir(ROOT)
    planning, scoring = CASES["tiny-dsv3.npz"]
    monkeypatch.setitem(CASES, "tiny-dsv3.npz", ([*planning, "--strategy", "linear"], scoring))
    assert regress("tiny-dsv3.npz", str(tmp_path)).code == 1


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def _documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the page's reader would be: beside the samples, after the page's own commands."""
    (tmp_path / "sample_loads").symlink_to(SAMPLES)
    monkeypatch.chdir(tmp_path)
    for line in _blocks("console")[0].splitlines():
        ending = eplb(*shlex.split(line.removeprefix("$ eplb ")))
        assert ending.code == 0, f"{line}: {ending.err}"


@pytest.mark.usefixtures("_documented")
def test_the_page_s_commands_and_output_are_real() -> None:
    """Every command runs, and prints what the page shows."""
    for block in _blocks("text"):
        command, _, expected = block.partition("\n")
        assert eplb(*shlex.split(command.removeprefix("$ eplb "))).out == expected


@pytest.mark.usefixtures("_documented")
def test_the_page_s_workflows_run() -> None:
    """The gate of every workflow, with the page's rules file, on the page's plan; what a workflow
    uploads is what its gate wrote."""
    (rules,) = _blocks("toml")
    Path("eplb.toml").write_text(rules)
    commands = []
    for block in _blocks("yaml"):
        (job,) = [job for job in _jobs(yaml.safe_load(block)) if job]
        (command,) = [line for line in job if line.startswith("eplb ")]
        assert "pip install eplb" in job
        commands.append(command)
        assert eplb(*shlex.split(command.removeprefix("eplb "))).code == 0
        for written in re.findall(r"-o (\S+)", command):
            assert block.count(written) == 2
            assert Path(written).stat().st_size
    assert [re.findall(r"--format (\w+)", line) for line in commands] == [
        ["github"], ["sarif"], ["junit"],
    ]  # fmt: skip


def _jobs(document: dict[Any, Any]) -> list[list[str]]:
    """The shell lines of the jobs of a workflow, of either kind."""
    if "jobs" in document:
        return [
            [step["run"] for step in job["steps"] if "run" in step]
            for job in document["jobs"].values()
        ]
    return [job["script"] for job in document.values()]


def test_the_page_names_every_figure_and_format() -> None:
    """And no other."""
    from eplb.formats.verdicts import WRITERS
    from eplb.study.limits import DEFAULT_TOLERANCE, FIGURES

    rows = re.findall(r"^\| (`.*?) \| (?:more|less|–) \|", PAGE, flags=re.M)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == list(FIGURES)
    section = PAGE[PAGE.index("## Formats") :]
    assert re.findall(r"^\| `(\w+)`", section, flags=re.M) == list(WRITERS)
    assert f"The default is {DEFAULT_TOLERANCE}" in PAGE
