"""`eplb sweep` as a stranger uses it."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from eplb_cli import sweeping

from ..helpers import EIGHT_EXPERTS, SAMPLES, eplb, random_loads, spawn

QUICK = ("--effort", "fast", "--jobs", 1)


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    """A small trace: 10 windows, 3 layers, 16 experts."""
    path = tmp_path / "loads.json"
    path.write_text(json.dumps(random_loads(1, 10, 3, 16).tolist()))
    return path


def _sweep(*args: object) -> Any:
    ending = eplb("sweep", *args, *QUICK, "--json")
    assert ending.code == 0, ending.err
    return json.loads(ending.out)


def test_the_usual_curve_and_its_knee(tmp_path: Path) -> None:
    """Without numbers: the least redundancy and up to four slots a GPU more. A few hot experts of
    thirty-two are evened out by one slot a GPU; the table marks it."""
    row = [30.0] + [9.0] * 7 + [1.0] * 24
    path = tmp_path / "t.json"
    path.write_text(json.dumps([row]))
    swept = _sweep(path)
    assert [point["redundant"] for point in swept["points"]] == [0, 8, 16, 24, 32]
    assert swept["knee"] == [{"gpus": 8, "nodes": 1, "max_moves": None, "redundant": 8}]
    assert swept["complete"] is True
    said = eplb("sweep", path, *QUICK).out
    (marked,) = [line for line in said.splitlines() if line.endswith("<")]
    assert marked.split()[:2] == ["8", "8"]
    assert "in-sample" in said
    assert "knee  8 GPUs, 8 redundant" in said


def test_plan_takes_the_same_knee(tmp_path: Path) -> None:
    """`plan --redundant auto` and a sweep of the same small trace agree."""
    path = tmp_path / "t.json"
    path.write_text(json.dumps([[30.0] + [9.0] * 7 + [1.0] * 24]))
    (knee,) = _sweep(path)["knee"]
    said = eplb("plan", path, "--redundant", "auto").err
    assert f"--redundant auto takes {knee['redundant']}, the knee" in said


def test_a_point_is_what_plan_and_simulate_say(loads: Path, tmp_path: Path) -> None:
    """The plan of the first six windows, replayed on the last four."""
    out = tmp_path / "plan.json"
    args = ("--gpus", 4, "--redundant", 8, "--effort", "fast")
    assert eplb("plan", loads, "--windows", ":6", *args, "-o", out).code == 0
    report = json.loads(eplb("simulate", loads, "--plan", out, "--json").out)
    (point,) = _sweep(loads, "--gpus", 4, "--redundant", 8)["points"]
    for key, value in point["held_out"].items():
        assert value == pytest.approx(report["summary"][key]), key


def test_axes_make_a_cross_product(loads: Path) -> None:
    """Machines with their nodes, lists and ranges; one curve after the other; what cannot be is
    left out with its reason."""
    swept = _sweep(loads, "--gpus", "4,8", "--nodes", "1,2", "--redundant", "0,8:16,20:24:2")
    found = [(p["gpus"], p["nodes"], p["redundant"]) for p in swept["points"]]
    assert found == [
        *((4, 1, count) for count in (0, 8, 12, 16, 20, 24)),
        *((8, 2, count) for count in (0, 8, 16, 24)),
    ]
    left_out = [(s["gpus"], s["redundant"]) for s in swept["skipped"]]
    assert left_out == [(4, 22), (8, 20), (8, 22)]
    assert "do not divide over 8 ranks" in swept["skipped"][1]["reason"]
    said = eplb("sweep", loads, "--gpus", 4, "--redundant", "0,1", *QUICK)
    assert (said.code, "left out: 4 GPUs, 1 redundant: 17 slots" in said.err) == (0, True)
    quiet = eplb("sweep", loads, "--gpus", 4, "--redundant", "0,1", *QUICK, "-q")
    assert quiet.err == ""


def test_budgets_of_moves_are_an_axis(loads: Path, tmp_path: Path) -> None:
    """Each a curve of its own, from the plan that is live; a budget in bytes is the same."""
    live = tmp_path / "live.json"
    eplb("plan", loads, "--windows", ":4", "--gpus", 4, "--redundant", 4, "-o", live)
    args = (loads, "--gpus", 4, "--redundant", 4, "--current", live, "--expert-bytes", 10)
    points = _sweep(*args, "--max-moves", "0,6")["points"]
    assert [(p["max_moves"], p["moves"] <= p["max_moves"]) for p in points] == [
        (0, True),
        (6, True),
    ]
    assert points[1]["moved_bytes"] == 10 * points[1]["moves"]
    assert _sweep(*args, "--max-bytes", 69)["points"] == points[1:]
    assert eplb("sweep", *args, "--max-bytes", 60, "--max-moves", 6).code == 2
    assert eplb("sweep", loads, "--gpus", 4, "--max-moves", 6).code == 2
    assert "move" in eplb("sweep", *args, "--max-moves", "0,6", *QUICK).out


def test_memory_and_cache(loads: Path) -> None:
    """Bytes of an expert give memory, bytes of a token the cache that it takes; a budget cuts."""
    args = (loads, "--gpus", 4, "--redundant", "0:16", "--expert-bytes", 2**30)
    points = _sweep(*args, "--kv-bytes-per-token", 2**20, "--budget-gib", 18)["points"]
    assert [p["bytes_per_gpu"] for p in points] == [12 * 2**30, 15 * 2**30, 18 * 2**30]
    assert [p["kv_tokens_lost_per_gpu"] for p in points] == [0, 3 * 1024, 6 * 1024]
    said = eplb("sweep", *args, "--kv-bytes-per-token", 2**20, *QUICK).out
    assert "24.00" in said and "12,288" in said
    for option in ("--kv-bytes-per-token", "--budget-gib"):
        assert "--expert-bytes" in eplb("sweep", loads, option, 5).err


def test_routes_show_traffic() -> None:
    """Nodes other than its own that a token reaches."""
    args = (SAMPLES / "tiny-dsv3-routes.npz", "--window-tokens", 1024, "--nodes", 2)
    points = _sweep(*args, "--redundant", "0,8")["points"]
    assert all(0 < p["remote_nodes_per_token"] < 1 for p in points)
    assert all(p["remote_assignments_per_token"] == pytest.approx(3, abs=0.1) for p in points)
    assert (
        "remote_nodes_per_token"
        not in _sweep(*args, "--windows", "2:", "--redundant", 0)["points"][0]
    )


def test_traces_can_be_swept_each_by_itself(loads: Path, tmp_path: Path) -> None:
    """Of other models even; points say whose they are, and every trace has its knee."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps(random_loads(2, 3, 2, 8).tolist()))
    swept = _sweep("--each", loads, other, "--gpus", 4)
    assert [knee["trace"] for knee in swept["knee"]] == [str(loads), str(other)]
    alone = _sweep(other, "--gpus", 4)
    of_other = [p for p in swept["points"] if p["trace"] == str(other)]
    assert [{k: v for k, v in p.items() if k != "trace"} for p in of_other] == alone["points"]
    assert str(other) in eplb("sweep", "--each", loads, other, "--gpus", 4, *QUICK).out
    assert eplb("sweep", loads, other, "--gpus", 4).code == 2, "no one timeline"
    assert eplb("sweep", "--each", loads, loads, "--gpus", 4).code == 2


def test_names_of_traces_may_be_no_text(loads: Path, tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are escaped."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/t\xff.json"))
    odd.write_bytes(loads.read_bytes())
    (point,) = _sweep("--each", odd, "--gpus", 4, "--redundant", 4)["points"]
    assert point["trace"] == f"{tmp_path}/t\\udcff.json"


def test_processes_and_file_names_change_no_byte(loads: Path, tmp_path: Path) -> None:
    """One process or two, file or standard output."""
    args = ("sweep", loads, "--gpus", "2,4", "--redundant", "0:8", "--effort", "fast", "--json")
    out = tmp_path / "sweep.json"
    alone = eplb(*args, "--jobs", 1, "-o", out).out
    assert out.read_text() == alone
    assert eplb(*args, "--jobs", 2).out == alone


@contextmanager
def _ctrl_c_after_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody presses Ctrl-C once two more points are done."""

    def interrupted(*args: Any) -> Iterator[Any]:
        for count, done in enumerate(run(*args), start=1):
            yield done
            if count == 2:
                os.kill(os.getpid(), signal.SIGINT)

    run = sweeping.run
    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "run", interrupted)
        yield


def test_ctrl_c_keeps_what_is_done(
    loads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has it, --resume makes the rest, and the end is as if nothing had happened."""
    out, whole = tmp_path / "sweep.json", tmp_path / "whole.json"
    args = ("sweep", loads, "--gpus", 4, "--redundant", "0:16", *QUICK, "-o")
    with _ctrl_c_after_two(monkeypatch):
        ending = eplb(*args, out)
        assert ending.code == 130
        assert "2 of 5 points are done and in" in ending.err
        part = json.loads(out.read_text())
        assert (len(part["points"]), part["complete"], part["knee"]) == (2, False, None)
        assert eplb(*args, out).code == 2, "no file is overwritten unasked"
        ending = eplb(*args, out, "--resume")
        assert ending.code == 130
        assert "2 of 5 points are taken from" in ending.err
        assert "4 of 5 points are done and in" in ending.err
    assert eplb(*args, out, "--resume").code == 0
    assert eplb(*args, whole).code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert json.loads(out.read_text())["complete"] is True


def test_ctrl_c_without_a_file(loads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done is shown, and how to keep it next time."""
    with _ctrl_c_after_two(monkeypatch):
        ending = eplb("sweep", loads, "--gpus", 4, "--redundant", "0:12", *QUICK)
    assert ending.code == 130
    assert "2 of 4 points are done; with -o FILE they are kept" in ending.err
    assert len([line for line in ending.out.splitlines() if line.startswith("   4")]) == 2


def _begin_long_sweep(folder: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A sweep in two processes whose first points are done, while others will take long."""
    out, short = folder / "sweep.json", folder / "short.json"
    short.write_text(json.dumps([EIGHT_EXPERTS.tolist()]))
    args = ("sweep", "--each", short, SAMPLES / "tiny-dsv3.npz", "--redundant", "0:448")
    process = spawn(*args, "--effort", "best", "--jobs", 2, "-o", out, start_new_session=True)
    for _ in range(600):
        if out.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    return process, out


def test_ctrl_c_reaches_processes(tmp_path: Path) -> None:
    """Two of them on a long sweep: both end at once, their finished points are kept, and nobody
    prints a traceback."""
    process, out = _begin_long_sweep(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone in the foreground
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert json.loads(out.read_text())["complete"] is False


def test_a_killed_sweep_leaves_no_process(tmp_path: Path) -> None:
    """Its processes end without being asked: whoever was to ask is gone."""
    process, _ = _begin_long_sweep(tmp_path)
    process.kill()
    try:
        process.communicate(timeout=60)  # which ends when none is left to write
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_smaller_budget_holds_for_points_that_are_kept(loads: Path, tmp_path: Path) -> None:
    """They are left out, as in a sweep from the start."""
    out, whole = tmp_path / "sweep.json", tmp_path / "whole.json"
    args = ("sweep", loads, "--gpus", 4, "--redundant", "0:8", "--expert-bytes", 2**30, *QUICK)
    assert eplb(*args, "-o", out).code == 0
    ending = eplb(*args, "--budget-gib", 15, "-o", out, "--resume")
    assert "2 of 3 points are taken from" in ending.err
    assert eplb(*args, "--budget-gib", 15, "-o", whole).code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_resuming_takes_only_what_is_the_same(loads: Path, tmp_path: Path) -> None:
    """More points go on from fewer; fewer leave some out and say so; another trace is refused."""
    out = tmp_path / "sweep.json"
    args = ("sweep", loads, "--gpus", 4, *QUICK, "-o", out, "--resume")
    assert eplb(*args, "--redundant", "0:8").code == 0, "nothing there yet is no error"
    more = eplb(*args, "--redundant", "0:12")
    assert "3 of 4 points are taken from" in more.err
    assert len(json.loads(out.read_text())["points"]) == 4
    less = eplb(*args, "--redundant", "0,4")
    assert "2 of 2 points are taken" in less.err
    assert "2 there are of another trace or of options not asked for" in less.err
    before = out.read_bytes()
    seeded = eplb(*args, "--redundant", "0:8", "--seed", 1)
    assert (seeded.code, "nothing to resume" in seeded.err) == (4, True)
    assert out.read_bytes() == before
    out.write_text("{}")
    assert eplb(*args).code == 2


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--redundant", "x"], 2, "no list of whole numbers"),
        (["--redundant", "8:0"], 2, "no list of whole numbers"),
        (["--redundant", "0:9:0"], 2, "no list of whole numbers"),
        (["--redundant", "0:999999999:1"], 2, "no list of whole numbers"),
        (["--redundant", "auto"], 2, "no list of whole numbers"),
        (["--gpus", "0"], 2, "no list of whole numbers of 1 or more"),
        (["--gpus", "4,8", "--nodes", "1,2,4"], 2, "--nodes has 3 numbers and --gpus 2"),
        (["--resume"], 2, "--resume needs the file"),
        (["--ray", "--jobs", "2"], 2, "--jobs counts processes here"),
        (["--gpus", "8", "--redundant", "1,3"], 3, "9|17 slots do not divide"),
        (["--gpus", "8", "--redundant", "1:7"], 3, "fills equal slots"),
        (["--gpus", "8", "--nodes", "3"], 3, "--nodes 1 or 2"),
        (["--gpus", "8", "--expert-bytes", "9", "--budget-gib", "1e-9"], 3, "--budget-gib"),
        (["--gpus", "8", "--exclude-gpu", "9"], 2, "--exclude-gpu 9"),
        (["--redundant", "0", "--strategy", "deepseek", "--survive", "1"], 2, "knows nothing of"),
    ],
)
def test_mistakes(loads: Path, args: list[str], code: int, message: str) -> None:
    """Each has its code and says what would do."""
    jobs = [] if "--jobs" in args else ["--jobs", "1"]
    ending = eplb("sweep", loads, *args, *jobs)
    assert ending.code == code, ending.err
    assert any(part in ending.err for part in message.split("|")), ending.err


def test_no_input_is_overwritten(loads: Path) -> None:
    """Not even with --force."""
    before = loads.read_bytes()
    assert eplb("sweep", loads, "-o", loads, "--force", *QUICK).code == 2
    assert loads.read_bytes() == before


def test_profiles_name_machines(tmp_path: Path) -> None:
    """The published prefill's GPUs and nodes, with redundancy swept all the same."""
    path = tmp_path / "t.json"
    path.write_text(json.dumps(random_loads(3, 1, 1, 256).tolist()))
    points = _sweep(path, "--profile", "deepseek-v3-prefill", "--redundant", "0,32")["points"]
    assert [(p["gpus"], p["nodes"], p["redundant"]) for p in points] == [(32, 4, 0), (32, 4, 32)]


def test_one_machine_has_one_knee_even_of_eight_experts(tmp_path: Path) -> None:
    """Eight experts on eight GPUs, the published example: copies pay at once."""
    path = tmp_path / "t.json"
    path.write_text(json.dumps([EIGHT_EXPERTS.tolist()]))
    points = _sweep(path, "--redundant", "0,8")["points"]
    assert points[0]["planned"]["mean_balancedness"] == pytest.approx(1450 / 8 / 600)
    assert points[1]["planned"]["mean_balancedness"] == pytest.approx(181.25 / 196.6666667)
    assert points[0]["survive_any_gpu"] == 0


def test_progress_is_for_terminals() -> None:
    """A bar of points on standard error once it takes long; nothing of it on standard output."""
    command = [
        sys.executable, "-c",
        "from eplb_cli import terminal; terminal.PATIENCE_SECONDS = 0;"
        "from eplb_cli.main import main; main()",
        "sweep", str(SAMPLES / "tiny-dsv3.npz"), "--effort", "fast", "--jobs", "1", "--json",
    ]  # fmt: skip
    parent, child = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=child) as process:
        os.close(child)
        said = b""
        while True:
            try:
                block = os.read(parent, 65536)
            except OSError:  # the other end is closed
                break
            said += block
        out, _ = process.communicate()
    os.close(parent)
    assert process.returncode == 0
    assert b"points" in said
    assert json.loads(out)["complete"] is True
