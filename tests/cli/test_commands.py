"""The commands as a stranger uses them: streams, exit codes, files."""

import gzip
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from eplb.findings import RULES
from eplb.formats.plans import read_plan
from eplb.formats.traces import READERS, read_trace, write_trace
from eplb.synthetic import Shape, Traffic, generate
from eplb.trace import LoadTrace
from eplb_cli import terminal
from eplb_cli.loading import load

from ..helpers import EIGHT_EXPERTS, SAMPLES, eplb, random_loads, spawn

TINY = SAMPLES / "tiny-dsv3.npz"


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    """A small trace: 3 windows, 4 layers, 16 experts."""
    path = tmp_path / "loads.json"
    path.write_text(json.dumps(random_loads(1, 3, 4, 16).tolist()))
    return path


def test_plan_writes_what_it_says(loads: Path, tmp_path: Path) -> None:
    """The file is a checked plan of the size asked for; data on stdout, advice on stderr."""
    out = tmp_path / "plan.json"
    ending = eplb("plan", loads, "--gpus", 4, "--redundant", 8, "-o", out)
    plan = read_plan(str(out))
    assert (plan.placement.num_ranks, plan.placement.num_slots) == (4, 24)
    assert "24 slots on 4 GPUs, 6 each, 8 redundant" in ending.out
    assert f"eplb show {out}" in ending.out
    assert len(ending.out.splitlines()) < 24, "at most a screen"


def test_json_is_the_plan_itself(loads: Path, tmp_path: Path) -> None:
    """One object on standard output, byte for byte the file."""
    out = tmp_path / "plan.json"
    ending = eplb("plan", loads, "--gpus", 4, "-o", out, "--json")
    assert ending.out == out.read_text()
    assert json.loads(ending.out)["format"] == "eplb-plan"


def test_the_same_input_gives_the_same_bytes(loads: Path, tmp_path: Path) -> None:
    """The names of files, in and out, do not matter."""
    first = eplb("plan", loads, "--gpus", 4, "--json").out
    copy = tmp_path / "other.json.gz"
    copy.write_bytes(gzip.compress(loads.read_bytes()))
    assert eplb("plan", copy, "--gpus", 4, "--json", "-o", tmp_path / "p.json").out == first
    assert str(tmp_path) not in first


def test_standard_input_is_read(loads: Path) -> None:
    """`-` is standard input, once."""
    piped = eplb("plan", "-", "--gpus", 4, "--json", stdin=loads.read_bytes())
    assert piped.out == eplb("plan", loads, "--gpus", 4, "--json").out
    assert eplb("plan", "-", "-", stdin=loads.read_bytes()).code == 2


def test_files_are_one_timeline(loads: Path, tmp_path: Path) -> None:
    """Windows of several files follow each other; --windows cuts the whole."""
    parts = [tmp_path / f"{name}.json" for name in "ab"]
    for part, windows in zip(parts, (slice(0, 1), slice(1, 3)), strict=True):
        part.write_text(json.dumps(json.loads(loads.read_text())[windows]))
    whole = json.loads(eplb("plan", loads, "--gpus", 4, "--json").out)
    assert json.loads(eplb("plan", *parts, "--gpus", 4, "--json").out) == whole
    cut = json.loads(eplb("plan", loads, "--windows", ":2", "--gpus", 4, "--json").out)
    assert cut["provenance"]["num_windows"] == 2
    assert cut["options"]["windows"] == ":2"


def test_scenarios_are_planned_for(tmp_path: Path) -> None:
    """A heavy scenario gets the copies that the timeline alone would not give it."""
    calm, storm = tmp_path / "calm.json", tmp_path / "storm.json"
    calm.write_text(json.dumps([[10, 10, 10, 10]]))
    storm.write_text(json.dumps([[97, 1, 1, 1]]))
    args = ("plan", calm, "--gpus", 2, "--redundant", 2, "--json", "-q")
    weights = {
        weight: json.loads(eplb(*args, "--scenario", f"{storm}={weight}").out) for weight in (1, 9)
    }
    for weight, plan in weights.items():
        assert plan["options"]["scenario_weights"] == [weight]
        assert plan["physical_to_logical"][0].count(0) == 2
    assert weights[1]["peak_load"] == pytest.approx([20])


def test_dense_layers_are_dropped_and_said_so(tmp_path: Path) -> None:
    """The plan covers the other layers, by the model's numbers."""
    dump = tmp_path / "dump.json"
    rows = [[0] * 8, *random_loads(2, 2, 8).tolist()]
    dump.write_text(json.dumps({"logical_count": rows}))
    ending = eplb("plan", dump, "--gpus", 4, "-o", tmp_path / "plan.json")
    assert "dense layers dropped (no load): 0" in ending.out
    assert read_plan(str(tmp_path / "plan.json")).layer_ids.tolist() == [1, 2]


def test_what_was_assumed_is_said(loads: Path) -> None:
    """GPUs, nodes and redundancy that nobody gave."""
    assert "8 GPUs, 1 node, 8 redundant experts" in eplb("plan", loads).out


def test_eight_experts_say_their_mean(tmp_path: Path) -> None:
    """The known example: optimum 196.67 against a mean of 181.25; the published greedy needs 232
    and wastes a slot, which --repair mends."""
    path = tmp_path / "eight.json"
    path.write_text(json.dumps([EIGHT_EXPERTS.tolist()]))
    args = ("plan", path, "--gpus", 8, "--redundant", 8)
    auto = " ".join(eplb(*args).out.split())
    assert "busiest GPU 196.67, bound 181.25, mean 181.25" in auto
    published = " ".join(eplb(*args, "--strategy", "deepseek").out.split())
    assert "busiest GPU 232," in published
    assert "1 same-GPU copy" in published and "--repair removes them" in published
    mended = eplb(*args, "--strategy", "deepseek", "--repair")
    assert "same-GPU" not in mended.out


def test_moves_are_counted_from_the_current_plan(loads: Path, tmp_path: Path) -> None:
    """With the bytes of an expert they are weighed."""
    old = tmp_path / "old.json"
    eplb("plan", loads, "--gpus", 4, "--strategy", "linear", "-o", old)
    new = eplb("plan", loads, "--gpus", 4, "--current", old, "--expert-bytes", 1024, "--json")
    plan = json.loads(new.out)
    assert plan["summary"]["moved_bytes"] == 1024 * plan["summary"]["moves"] > 0
    same = eplb("plan", loads, "--gpus", 4, "--strategy", "linear", "--current", old, "--json")
    assert json.loads(same.out)["summary"]["moves"] == 0


def test_the_node_rule_says_what_it_costs(tmp_path: Path) -> None:
    """Strict holds balance to what whole groups on nodes allow; free would allow more."""
    path = tmp_path / "skew.json"
    path.write_text(json.dumps([[100, 90, 80, 70, 1, 1, 1, 1]]))
    args = ("plan", path, "--gpus", 4, "--nodes", 2, "--redundant", 4, "--groups", 2)
    text = " ".join(eplb(*args).out.split())
    assert "strict allows an efficiency of at most 0.506" in text
    assert "--node-rule home, redundant copies crossing nodes, would do better" in text
    assert "free allows 1.000" in text
    assert "node rule free" in eplb(*args, "--node-rule", "free").out


REFUSALS = [
    ("slots", ["--gpus", "5", "--redundant", "3"], 3, "--redundant 4 or 9 would"),
    ("too few slots", ["--gpus", "4", "--redundant", "50"], 3, "more than the 16 experts|do not"),
    ("nodes", ["--gpus", "4", "--nodes", "3"], 3, "--nodes 1 or 2 or 4 would"),
    ("strict", ["--gpus", "8", "--nodes", "8", "--redundant", "16"], 3, "--node-rule free"),
    ("groups", ["--groups", "3"], 2, "16 experts do not divide into 3 groups"),
    ("gpus", ["--gpus", "0"], 2, "Invalid value for '--gpus'"),
    ("windows", ["--windows", "x"], 2, "is no range of windows"),
    ("window", ["--windows", "7:"], 2, "the trace has 3 windows"),
    ("weight", ["--scenario", "x=heavy"], 2, "'heavy' is no weight"),
    ("scenario", ["--scenario", "none.json"], 2, "none.json cannot be read"),
    ("counts", ["--window-tokens", "4"], 2, "cannot be cut by tokens"),
    ("repair", ["--repair"], 2, "--repair mends what"),
    ("strategy", ["--strategy", "magic"], 2, "Invalid value for '--strategy'"),
    ("option", ["--colour"], 2, "No such option"),
    ("current", ["--current", "none.json"], 2, "none.json cannot be read"),
]


@pytest.mark.parametrize(
    ("name", "args", "code", "message"), REFUSALS, ids=[r[0] for r in REFUSALS]
)
def test_wrong_options_are_answered(
    loads: Path, name: str, args: list[str], code: int, message: str
) -> None:
    """The code says which kind of mistake, the line says what and what would do."""
    ending = eplb("plan", loads, *args)
    assert ending.code == code
    assert re.search(message, ending.err), ending.err
    assert ending.out == ""


def test_a_current_plan_of_other_layers_is_refused(loads: Path, tmp_path: Path) -> None:
    """Exit 4: it was made for another model."""
    other = tmp_path / "other.json"
    eplb("plan", TINY, "-o", other)
    ending = eplb("plan", loads, "--current", other)
    assert ending.code == 4
    assert "made for another model" in ending.err


def test_nothing_is_overwritten_unasked(loads: Path, tmp_path: Path) -> None:
    """Found out before any work; --force overwrites."""
    out = tmp_path / "plan.json"
    out.write_text("mine")
    ending = eplb("plan", loads, "-o", out)
    assert (ending.code, out.read_text()) == (2, "mine")
    assert "exists; --force overwrites it" in ending.err
    assert eplb("plan", loads, "-o", out, "--force").code == 0
    assert eplb("plan", loads, "-o", tmp_path / "none" / "plan.json").code == 2


def test_no_load_at_all_is_refused(tmp_path: Path) -> None:
    """There is nothing to plan."""
    path = tmp_path / "zero.json"
    path.write_text("[[0, 0]]")
    assert eplb("plan", path).code == 2


def test_doubtful_traces_are_warned_of(tmp_path: Path) -> None:
    """On standard error, unless quiet; what is normal is left to inspect."""
    path = tmp_path / "twice.json"
    path.write_text(json.dumps((2 * random_loads(1, 4, 16)).tolist()))
    assert "EP106" in eplb("plan", path).err
    assert "EP112" not in eplb("plan", path).err
    assert eplb("plan", path, "-q").err == ""


def test_inspect_strict_fails_on_findings(tmp_path: Path) -> None:
    """Exit 1 with a line; ignored ids do not count; a sound trace passes."""
    path = tmp_path / "one.npz"
    write_trace(generate(Shape(2, 8, 2), Traffic(1, 20000, skew=0.5)), str(path))
    found = eplb("inspect", path, "--strict")
    assert (found.code, "EP112" in found.out) == (1, True)
    assert eplb("inspect", path, "--strict", "--ignore", "ep112").code == 0
    assert eplb("inspect", path).code == 0
    assert eplb("inspect", path, "--ignore", "EP999").code == 2


def test_inspect_json(tmp_path: Path) -> None:
    """One object with every trace, its facts and its findings."""
    document = json.loads(eplb("inspect", TINY, SAMPLES / "tiny-dsv3-routes.npz", "--json").out)
    first, second = document["traces"]
    assert (first["num_windows"], first["moe_layers"], first["num_experts"]) == (32, 5, 64)
    assert first["findings"] == []
    assert {finding["id"] for finding in second["findings"]} == {"EP109", "EP110"}


def test_inspect_cuts_routes(tmp_path: Path) -> None:
    """The options that cut windows are those of plan."""
    routes = SAMPLES / "tiny-dsv3-routes.npz"
    assert "2 windows" in eplb("inspect", routes, "--window-tokens", 4096).out
    assert eplb("inspect", routes, "--window-steps", 2).code == 2


def test_show_explains(tmp_path: Path) -> None:
    """A screen for the plan, and a layer GPU by GPU."""
    out = tmp_path / "plan.json"
    eplb("plan", TINY, "--gpus", 8, "-o", out)
    text = eplb("show", out).out
    assert "64 experts in 72 slots, 9 on each of 8 GPUs" in " ".join(text.split())
    assert "mean load of each GPU" in text
    layer = eplb("show", out, "--layer", 3)
    assert "GPU 7" in layer.out and "copies; " in layer.out
    assert eplb("show", out, "--layer", 0).code == 2
    document = json.loads(eplb("show", out, "--json").out)
    assert [layer["layer"] for layer in document["layers"]] == [1, 2, 3, 4, 5]
    held = document["layers"][0]["gpus"]
    assert held == read_plan(str(out)).placement.physical_to_logical[0].reshape(8, 9).tolist()


def test_show_names_twins_and_missing_digests(tmp_path: Path) -> None:
    """A minimal foreign plan is shown with what it lacks."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({
        "format": "eplb-plan", "version": 1, "num_experts": 2, "num_gpus": 2, "slots_per_gpu": 2,
        "physical_to_logical": [[0, 0, 0, 1]], "colour": 1,
    }))  # fmt: skip
    ending = eplb("show", path)
    assert "1 same-GPU copy" in ending.out and "GPU 0, expert 0 ×2" in " ".join(ending.out.split())
    assert "carries no digest" in ending.err and "'colour'" in ending.err
    assert "GPU 0 holds expert 0 2 times" in eplb("show", path, "--layer", 0).err


def test_diff_compares_what_gpus_hold(loads: Path, tmp_path: Path) -> None:
    """Exit 0 when the same, 1 when not, 4 when of different models."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    eplb("plan", loads, "--gpus", 4, "--strategy", "linear", "-o", old)
    eplb("plan", loads, "--gpus", 4, "-o", new)
    same = eplb("diff", old, old)
    assert (same.code, "every GPU holds the same experts" in same.out) == (0, True)
    changed = eplb("diff", old, new, "--expert-bytes", 2**20, "--json")
    assert changed.code == 1
    document = json.loads(changed.out)
    received = sum(len(e) for layer in document["layers"] for e in layer["received"].values())
    assert document["summary"]["moves"] == received > 0
    assert document["summary"]["moved_bytes"] == received * 2**20
    assert "the plans differ" in changed.err
    eplb("plan", TINY, "-o", tmp_path / "other.json")
    assert eplb("diff", old, tmp_path / "other.json").code == 4
    assert "receives" in eplb("diff", old, new, "-v").out


def test_gen_is_seeded_and_says_synthetic(tmp_path: Path) -> None:
    """The same options give the same bytes, and the file names itself synthetic."""
    args = ("gen", "--shape", "mixtral", "--windows", 3, "--tokens", 500, "--seed", 4)
    paths = [tmp_path / f"{name}.npz" for name in "ab"]
    for path in paths:
        assert eplb(*args, "-o", path).code == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    trace = read_trace(str(paths[0])).trace
    assert trace.model == "synthetic"
    assert isinstance(trace, LoadTrace) and trace.tokens.shape == (3, 32, 8)


def test_gen_options_override_the_shape(tmp_path: Path) -> None:
    """A named shape is a start."""
    path = tmp_path / "t.npz"
    eplb("gen", "--shape", "deepseek-v3", "--layers", 2, "--windows", 1, "--routes",
         "--tokens", 64, "-o", path)  # fmt: skip
    trace = read_trace(str(path)).trace
    assert (trace.num_experts, trace.top_k, trace.num_groups) == (256, 8, 8)
    assert np.asarray(trace.experts).shape == (64, 2, 8)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "-o FILE names the trace"),
        (["-o", "x.txt"], r".npz, .json or .json.gz"),
        (["-o", "x.npz", "--shape", "gpt"], "no shape is called 'gpt'"),
        (["-o", "x.npz", "--experts", "4", "--top-k", "5"], "top_k is 5"),
        (["-o", "x.json", "--routes", "--tokens", "8", "--windows", "1"], "NPZ only"),
    ],
)
def test_gen_refuses_nonsense(args: list[str], message: str, tmp_path: Path) -> None:
    """With a line that says what is expected."""
    args = [str(tmp_path / arg) if arg.startswith("x.") else arg for arg in args]
    ending = eplb("gen", *args)
    assert ending.code == 2
    assert re.search(message, ending.err)
    assert list(tmp_path.iterdir()) == []


def test_explain_knows_every_finding() -> None:
    """Each id has a meaning and a remedy; unknown ones are answered with the list."""
    for name in RULES:
        text = eplb("explain", name.lower()).out
        assert name in text and "why" in text and "remedy" in text
    assert all(name in eplb("explain").out for name in RULES)
    assert eplb("explain", "EP999").code == 2


def test_formats_lists_readers() -> None:
    """What can be read is listed with what it looks like."""
    text = eplb("formats").out
    for reader in READERS:
        assert re.search(rf"^{reader.NAME} +\S", text, flags=re.MULTILINE)
    assert "eplb-plan" in text


def test_version_and_no_arguments() -> None:
    """The version is the package's; no command at all prints the help and is wrong usage."""
    assert eplb("--version").out.startswith("eplb ")
    nothing = eplb()
    assert nothing.code == 2
    assert "Commands:" in nothing.err
    assert eplb("colour").code == 2


def test_ctrl_c_writes_the_best_plan_so_far(tmp_path: Path) -> None:
    """Exit 130, a legal plan on disk, its unsearched layers marked stopped."""
    trace, out = tmp_path / "big.npz", tmp_path / "plan.json"
    # So much to search that the signal always comes first.
    write_trace(generate(Shape(400, 256, 8), Traffic(64, 4096)), str(trace))
    process = spawn("plan", trace, "--gpus", 64, "--redundant", 128, "-o", out)
    assert process.stderr is not None
    # The plan is long in the making once the trace has been read: wait for the planner's threads.
    threads = Path(f"/proc/{process.pid}/task")
    while len(list(threads.iterdir())) < 3 + (os.cpu_count() or 1):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "marked stopped" in stderr and "Traceback" not in stderr
    plan = read_plan(str(out))
    assert plan.status is not None and "stopped" in plan.status
    assert plan.placement.duplicates() == []
    assert "wrote" in stdout


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    """Before anything is planned there is nothing to write: exit 130 with a line."""
    fifo = tmp_path / "never.json"
    os.mkfifo(fifo)
    process = spawn("plan", fifo, "-o", tmp_path / "plan.json")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr.strip() == "eplb: interrupted"
    assert not (tmp_path / "plan.json").exists()


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """`eplb explain | head -1` ends quietly."""
    with spawn("explain") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait() == 0
        assert process.stderr.read() == ""


def test_colour_only_on_a_terminal(tmp_path: Path) -> None:
    """Escapes on a terminal, none with NO_COLOR, none in a file."""

    def escapes(**env: str) -> bool:
        ours, theirs = pty.openpty()
        subprocess.run(
            [sys.executable, "-c", "from eplb_cli.main import main; main()", "explain", "EP101"],
            stdout=theirs, env={**os.environ, "TERM": "xterm-256color", **env}, check=True,
        )  # fmt: skip
        os.close(theirs)
        said = os.read(ours, 65536)
        os.close(ours)
        return re.search(rb"\x1b\[[\d;]*3\dm", said) is not None

    assert escapes()
    assert not escapes(NO_COLOR="1")
    assert "\x1b" not in eplb("explain", "EP101").out


def _shell(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A command line of the shell, in which `eplb` is ours."""
    ours = f'eplb() {{ "{sys.executable}" -c "from eplb_cli.main import main; main()" "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", ours + command], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("plan loads.json --gpus 4 -o p.json --force", 0),
        ("inspect loads.json --strict", 1),
        ("diff a.json b.json", 1),
        ("--help", 0),
        ("plan none.json", 2),
    ],
)
def test_nobody_listening_changes_no_verdict(loads: Path, command: str, code: int) -> None:
    """With both streams of a command in a pipe whose reader is gone."""
    for name, strategy in (("a", "linear"), ("b", "auto")):
        eplb(
            "plan", loads, "--gpus", 4, "--strategy", strategy, "-o", loads.parent / f"{name}.json"
        )
    _shell(f"(sleep 0.2; eplb {command}; echo $? > code) 2>&1 | true", loads.parent)
    while not (loads.parent / "code").exists() or not (loads.parent / "code").read_text():
        time.sleep(0.05)
    assert (loads.parent / "code").read_text() == f"{code}\n"
    assert (loads.parent / "p.json").exists() == command.startswith("plan loads")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("plan loads.json --gpus 4 -q >/dev/full", 2, "standard output: No space left on device"),
        ("--help >/dev/full", 2, "standard output: No space left on device"),
        ("plan none.json 2>/dev/full", 2, ""),
        ("explain >&-", 0, ""),
        ("plan none.json 2>&-", 2, ""),
        ("inspect - <&-", 2, "standard input (-) is closed"),
    ],
)
def test_full_and_closed_streams(loads: Path, command: str, code: int, message: str) -> None:
    """One line where it can be said, the right code where not; never a traceback."""
    done = _shell(f"eplb {command}", loads.parent)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_progress_is_told_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bar is started, however many threads find that there is none yet."""
    monkeypatch.setattr(terminal, "PATIENCE_SECONDS", -1.0)
    progress = terminal.LayerProgress(np.ones(400), quiet=False)
    monkeypatch.setattr(progress, "_shown", True)
    started: list[Any] = []

    def start() -> None:
        started.append(None)
        time.sleep(0.01)
        monkeypatch.setattr(progress, "_bar", MagicMock())

    monkeypatch.setattr(progress, "_start", start)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda row: progress.layer(row, 1.0), range(400)))
    assert len(started) == 1


def test_standard_input_is_no_two_plans(loads: Path) -> None:
    """It is gone once it was read, whichever options name it."""
    plan = eplb("plan", loads, "--gpus", 4, "--json").out.encode()
    for command in ("diff", "inspect"):
        given = plan if command == "diff" else loads.read_bytes()
        ending = eplb(command, "-", "-", stdin=given)
        assert (ending.code, "can be read once only" in ending.err) == (2, True)


def test_routes_come_with_what_was_counted_from_them(loads: Path) -> None:
    """So that plan finds what inspect does; a timeline of several files has none."""
    routes = str(SAMPLES / "tiny-dsv3-routes.npz")
    assert load([routes]).routes is not None
    assert load([routes, routes]).routes is None
    assert load([str(loads)]).routes is None


def test_inspect_says_why_when_asked() -> None:
    """-v adds why a finding matters."""
    routes = SAMPLES / "tiny-dsv3-routes.npz"
    assert "follows the noise" not in eplb("inspect", routes).out
    assert "follows the noise" in eplb("inspect", routes, "-v").out


def test_gen_of_a_shape_without_groups(tmp_path: Path) -> None:
    """Fewer groups than the shape's tokens use are no contradiction."""
    args = ("gen", "--shape", "deepseek-v3", "--groups", 1, "--layers", 1, "--windows", 1)
    assert eplb(*args, "-o", tmp_path / "t.npz").code == 0


def test_diff_counts_how_often_a_gpu_holds_an_expert(tmp_path: Path) -> None:
    """Copies given up and copies that only change GPUs are differences; JSON names same-GPU
    copies; -q says nothing."""
    few = {"format": "eplb-plan", "version": 1, "num_experts": 2, "num_gpus": 2}
    maps = {"a": [0, 0, 1, 0, 1, 1], "b": [0, 1, 1, 0, 0, 1], "c": [0, 1, 0, 1]}
    for name, row in maps.items():
        plan = {**few, "slots_per_gpu": len(row) // 2, "physical_to_logical": [row]}
        (tmp_path / f"{name}.json").write_text(json.dumps(plan))
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    ending = eplb("diff", a, b, "--json")
    assert (ending.code, json.loads(ending.out)["summary"]["layers_changed"]) == (1, 1)
    assert json.loads(ending.out)["duplicates"]["PLAN_A"] == [
        {"layer": 0, "gpu": 0, "expert": 0, "copies": 2},
        {"layer": 0, "gpu": 1, "expert": 1, "copies": 2},
    ]
    assert eplb("diff", a, c).code == 1
    with spawn("diff", a, c, "-q") as process:
        assert (process.wait(), process.stderr.read()) == (1, "")  # type: ignore[union-attr]


def test_show_leaves_out_gpus_out_of_service(tmp_path: Path) -> None:
    """Means are over the GPUs and slots that serve, and the others are named."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({
        "format": "eplb-plan", "version": 1, "num_experts": 2, "num_gpus": 3, "slots_per_gpu": 2,
        "physical_to_logical": [[0, 1, -1, -1, 0, 1]], "excluded_gpus": [1],
        "mean_load": [[6, 2]],
    }))  # fmt: skip
    layer = json.loads(eplb("show", path, "--json").out)["layers"][0]
    assert layer["mean_gpu_load"] == 4
    assert [copies["slots_worth"] for copies in layer["redundant"]] == [3, 1]
    text = eplb("show", path).out
    assert "out of service: GPU 1" in text
    assert "1.000" in text.splitlines()[-3]
    assert "out of service" in eplb("show", path, "--layer", 0).out
