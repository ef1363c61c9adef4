"""The options of `eplb plan` that shape a plan: moves, nodes, machines, redundancy, effort."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb.formats.plans import read_plan
from eplb.migration import migrate

from ..helpers import SAMPLES, eplb, random_loads

TINY = SAMPLES / "tiny-dsv3.npz"


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    """Ten windows of three layers of sixteen experts, two of every four in a group."""
    path = tmp_path / "loads.json"
    trace = {"loads": random_loads(1, 10, 3, 16).tolist(), "num_groups": 4, "top_k": 2}
    path.write_text(json.dumps(trace))
    return path


def _plan(*args: object) -> dict[str, Any]:
    ending = eplb("plan", *args, "--json", "-q")
    assert ending.code == 0, ending.err
    plan: dict[str, Any] = json.loads(ending.out)
    return plan


def test_held_out_balance_is_told(loads: Path, tmp_path: Path) -> None:
    """With its error and what was planned for; not for a short trace, nor with --effort fast."""
    text = " ".join(eplb("plan", loads, "--gpus", 4).out.split())
    assert re.search(r"held out 0\.\d+ ± 0\.\d+ mean balancedness of windows not planned for", text)
    assert "planned for: " in text
    plan = _plan(loads, "--gpus", 4)
    assert plan["summary"]["held_out_error"] > 0
    assert plan["options"]["outlook"] in ("windows", "futures")
    short = " ".join(eplb("plan", loads, "--gpus", 4, "--windows", ":2").out.split())
    assert "not known: 2 windows are too short a trace to tell" in short
    assert "not estimated" in eplb("plan", loads, "--gpus", 4, "--effort", "fast").out


def test_home_reports_what_is_served_off_home(loads: Path) -> None:
    """And the cap is kept."""
    args = (loads, "--gpus", 4, "--nodes", 2, "--redundant", 8, "--node-rule", "home")
    text = " ".join(eplb("plan", *args).out.split())
    assert "of the load is served off its home node" in text
    assert _plan(*args, "--max-off-home", 0.02)["summary"]["off_home_share"] <= 0.02


def test_budgets_and_the_frontier(loads: Path, tmp_path: Path) -> None:
    """Moves and bytes are kept within; the frontier is printed, kept in the plan and shown."""
    live, new = tmp_path / "live.json", tmp_path / "new.json"
    assert eplb("plan", TINY, "--windows", ":16", "-o", live).code == 0
    args = ("plan", TINY, "--windows", "16:", "--current", live)
    ending = eplb(*args, "--max-moves", 9, "--frontier", "-o", new)
    assert "frontier" in ending.out and "0 moves (0.0% of all slots)" in ending.out
    plan = read_plan(str(new))
    assert migrate(read_plan(str(live)).placement, plan.placement).num_moves <= 9
    shown = eplb("show", new).out
    assert "frontier" in shown and "of all slots" in shown and "held out" not in shown
    assert "held out" in eplb("show", live).out
    assert len(json.loads(eplb("show", new, "--json").out)["frontier"]) == 7
    assert [point["max_share"] for point in plan.frontier] == [0, 0.01, 0.02, 0.05, 0.1, 0.2, 1]
    by_bytes = _plan(TINY, "--windows", "16:", "--current", live, "--expert-bytes", 100,
                     "--max-bytes", 950)  # fmt: skip
    assert by_bytes["summary"]["moved_bytes"] <= 950
    kept = eplb(*args, "--move-price", 5)
    assert "keep the present plan" in " ".join(kept.out.split())


def test_missing_and_unequal_gpus(loads: Path, tmp_path: Path) -> None:
    """An excluded GPU holds −1 and is named; speeds are read as JSON and as YAML."""
    plan = _plan(loads, "--gpus", 4, "--redundant", 12, "--exclude-gpu", 2)
    assert plan["excluded_gpus"] == [2]
    assert all(row[14:21] == [-1] * 7 for row in plan["physical_to_logical"])
    json_file, yaml_file = tmp_path / "speed.json", tmp_path / "speed.yaml"
    json_file.write_text("[1, 1, 1, 2]")
    yaml_file.write_text("- 1\n- 1\n- 1\n- 2\n")
    plans = [_plan(loads, "--gpus", 4, "--gpu-speed", f) for f in (json_file, yaml_file)]
    assert plans[0] == plans[1]
    assert plans[0]["options"]["gpu_speed"] == [1, 1, 1, 2]


def test_surviving_copies_are_told(loads: Path) -> None:
    """Full cover, or what would be lost."""
    full = eplb("plan", loads, "--gpus", 4, "--redundant", 16, "--survive", 1).out
    assert "every expert survives the loss of any 1 GPU(s)" in full
    some = " ".join(eplb("plan", loads, "--gpus", 4, "--redundant", 8, "--survive", 1).out.split())
    assert re.search(r"24 of 48 experts, [\d.]+% of the load, may be lost with 1 GPU", some)


def test_shared_experts_are_loaded_by_every_token(tmp_path: Path) -> None:
    """100 assignments with top-2 are 50 tokens, which the shared expert all gets."""
    path = tmp_path / "t.json"
    path.write_text(json.dumps([[40, 30, 20, 10]]))
    plan = _plan(path, "--gpus", 2, "--shared-experts", 1, "--top-k", 2, "--redundant", 1)
    assert plan["num_experts"] == 5
    assert plan["mean_load"] == [[40, 30, 20, 10, 50]]
    ending = eplb("plan", path, "--gpus", 2, "--shared-experts", 1)
    assert (ending.code, "--top-k" in ending.err) == (2, True)


def test_profiles_set_sizes_and_options_win(tmp_path: Path) -> None:
    """The published prefill on 32 GPUs; a given number of nodes wins over it."""
    path = tmp_path / "t.npz"
    eplb("gen", "--shape", "deepseek-v3", "--layers", 1, "--windows", 1, "-o", path)
    prefill = _plan(path, "--profile", "deepseek-v3-prefill")
    assert (prefill["num_gpus"], prefill["num_nodes"], prefill["slots_per_gpu"]) == (32, 4, 9)
    other = _plan(path, "--profile", "deepseek-v3-prefill", "--nodes", 2)
    assert (other["num_gpus"], other["num_nodes"]) == (32, 2)
    decode = _plan(path, "--profile", "deepseek-v3-decode")
    assert (decode["num_gpus"], decode["slots_per_gpu"], decode["num_experts"]) == (320, 1, 257)


def test_redundant_auto_takes_the_knee(tmp_path: Path) -> None:
    """It says the curve, and a budget of memory cuts it."""
    path = tmp_path / "t.json"
    row = [9.0] * 8 + [1.0] * 24
    row[0] = 30.0
    path.write_text(json.dumps([row]))
    ending = eplb("plan", path, "--gpus", 8, "--redundant", "auto")
    assert "--redundant auto takes 8, the knee" in ending.err
    args = ("plan", path, "--gpus", 8, "--redundant", "auto", "--expert-bytes", 2**30)
    assert "takes 0" in eplb(*args, "--budget-gib", 4.5).err
    assert eplb(*args, "--budget-gib", 3).code == 3


def test_a_time_limit_gives_a_legal_plan_at_once(loads: Path) -> None:
    """Nothing is searched, everything is placed, and it is said."""
    ending = eplb("plan", loads, "--gpus", 4, "--time-limit", 0, "--json")
    plan = json.loads(ending.out)
    assert ending.code == 0
    assert set(plan["status"]) <= {"stopped", "optimal"}
    assert "--time-limit came first" in ending.err
    for row in plan["physical_to_logical"]:
        assert all(len(set(own)) == len(own) for own in np.array(row).reshape(4, -1).tolist())


REFUSALS = [
    (["--max-moves", "3"], 2, "--current PLAN"),
    (["--frontier"], 2, "--current PLAN"),
    (["--max-bytes", "3"], 2, "needs --expert-bytes"),
    (["--budget-gib", "3"], 2, "is for --redundant auto"),
    (["--redundant", "auto", "--budget-gib", "3"], 2, "needs --expert-bytes"),
    (["--redundant", "many"], 2, "--redundant many; a whole number"),
    (["--redundant", "-3"], 2, "--redundant -3; a whole number"),
    (["--max-off-home", "0.1"], 2, "caps what --node-rule home allows"),
    (["--exclude-gpu", "9"], 2, "--exclude-gpu 9; the GPUs are numbered 0 to 3"),
    (["--exclude-gpu", "0", "--exclude-gpu", "1", "--exclude-gpu", "2"], 3, "GPUs must be left"),
    (["--gpu-speed", "none.json"], 2, "none.json cannot be read"),
    (["--survive", "4"], 3, "--survive 3 is the most"),
    (["--strategy", "deepseek", "--survive", "1"], 2, "knows nothing of --survive"),
    (["--effort", "huge"], 2, "Invalid value for '--effort'"),
]


@pytest.mark.parametrize(("args", "code", "message"), REFUSALS, ids=lambda v: str(v)[:40])
def test_wrong_limits_are_answered(loads: Path, args: list[str], code: int, message: str) -> None:
    """Which kind of mistake, and what would do."""
    ending = eplb("plan", loads, "--gpus", 4, *args)
    assert ending.code == code, ending.err
    assert message in ending.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "holds no list"),
        ("[1, 'a', 1, 1]", "the speed of GPU 1 is 'a'"),
        ("[1, 0, 1, 1]", "the speed of GPU 1 is 0"),
        ("[1, 1]", "2 GPU speeds; one for each of the 4"),
        ("[1, ", "neither JSON nor YAML"),
        ("[.nan, 1, 1, 1]", "the speed of GPU 0 is nan"),
    ],
)
def test_hostile_speeds(loads: Path, tmp_path: Path, content: str, message: str) -> None:
    """Each is told what is wrong."""
    path = tmp_path / "speed"
    path.write_text(content)
    ending = eplb("plan", loads, "--gpus", 4, "--gpu-speed", path)
    assert (ending.code, message in ending.err) == (2, True), ending.err


def test_an_input_is_never_overwritten(loads: Path) -> None:
    """Not even with --force."""
    before = loads.read_bytes()
    ending = eplb("plan", loads, "-o", loads, "--force")
    assert ending.code == 2
    assert "would overwrite a file that is read" in ending.err
    assert loads.read_bytes() == before


def test_other_strategies_are_not_bound_by_node_rules(loads: Path) -> None:
    """They ignore the rule, so it cannot make them infeasible."""
    args = ("plan", loads, "--gpus", 8, "--nodes", 8, "--redundant", 16, "--groups", 16)
    assert eplb(*args).code == 3
    assert eplb(*args, "--strategy", "linear").code == 0


def test_held_out_figures_of_other_plans_are_not_kept(loads: Path, tmp_path: Path) -> None:
    """With a live plan the back-test's plans are made afresh: said, and not stored."""
    live = tmp_path / "live.json"
    eplb("plan", loads, "--gpus", 4, "-o", live)
    ending = eplb("plan", loads, "--gpus", 4, "--current", live, "--max-moves", 0)
    assert "of plans made afresh, without the live plan" in " ".join(ending.out.split())
    plan = _plan(loads, "--gpus", 4, "--current", live, "--max-moves", 0)
    assert "held_out_balancedness" not in plan["summary"]
    assert plan["summary"]["moves"] == 0


def test_exact_is_numbered_from_the_live_plan_and_says_when_it_was_stopped(
    loads: Path, tmp_path: Path
) -> None:
    """Ranks and slots are renumbered; --frontier is refused; a time limit marks its layers."""
    live = tmp_path / "live.json"
    eplb("plan", loads, "--gpus", 4, "--strategy", "exact", "--effort", "fast", "-o", live)
    args = (loads, "--gpus", 4, "--strategy", "exact", "--effort", "fast")
    assert _plan(*args, "--current", live)["summary"]["moves"] == 0
    assert eplb("plan", *args, "--current", live, "--frontier").code == 2
    stopped = _plan(*args, "--time-limit", 0)
    assert set(stopped["status"]) <= {"stopped", "optimal"}


def test_redundant_auto_and_defaults_fit_the_node_rule(tmp_path: Path) -> None:
    """Eight experts on eight nodes: one a node, so no redundancy is assumed or chosen."""
    path = tmp_path / "t.json"
    path.write_text("[[8, 7, 6, 5, 4, 3, 2, 1]]")
    args = (path, "--gpus", 8, "--nodes", 8)
    assert _plan(*args)["options"]["redundant"] == 0
    assert _plan(*args, "--redundant", "auto")["options"]["redundant"] == 0
    gone = [part for gpu in range(5) for part in ("--exclude-gpu", gpu)]
    assert _plan(path, "--gpus", 8, *gone, "--redundant", "auto")["slots_per_gpu"] >= 3
