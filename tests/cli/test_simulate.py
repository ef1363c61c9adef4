"""`eplb simulate`: replays, walks, and what they are refused."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb import metrics
from eplb.formats.plans import read_plan
from eplb.formats.traces import read_trace, write_trace
from eplb.routes import RouteTrace
from eplb.simulator.active import dynamic_redundancy
from eplb.trace import LoadTrace

from ..helpers import SAMPLES, eplb, random_loads

LOADS = random_loads(7, 12, 2, 8)
# The size of its experts is all that matters here.
CONFIG = {
    "model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 8,
    "num_experts_per_tok": 2, "hidden_size": 4096, "intermediate_size": 14336,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _a_trace_and_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve windows, a plan of the first eight, and the model's configuration."""
    monkeypatch.chdir(tmp_path)
    write_trace(LoadTrace(LOADS, window_steps=4, top_k=2), "t.npz")
    Path("config.json").write_text(json.dumps(CONFIG))
    done = eplb("plan", "t.npz", "--windows", ":8", "--gpus", "4", "--nodes", "2", "-o", "p.json")
    assert done.code == 0, done.err


def _report(*args: str) -> dict[str, Any]:
    done = eplb("simulate", *args, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)  # type: ignore[no-any-return]


def test_only_unseen_windows_are_scored() -> None:
    """Four of twelve, as `measure` scores them; all with --in-sample, which is said."""
    report = _report("t.npz", "--plan", "p.json")
    placement = read_plan("p.json").placement
    expected = metrics.measure(LOADS[8:], placement)
    assert [row["window"] for row in report["windows"]] == [8, 9, 10, 11]
    assert (report["left_out"], report["in_sample"]) == (8, False)
    assert report["summary"]["mean_balancedness"] == pytest.approx(expected.mean_balancedness)
    assert report["summary"]["efficiency"] == pytest.approx(expected.efficiency)
    assert set(report["beside"]) == {"linear", "deepseek"}
    report = _report("t.npz", "--plan", "p.json", "--in-sample")
    expected = metrics.measure(LOADS, placement)
    assert len(report["windows"]) == 12 and report["in_sample"]
    assert report["summary"]["mean_balancedness"] == pytest.approx(expected.mean_balancedness)
    assert "in-sample" in eplb("simulate", "t.npz", "--plan", "p.json", "--in-sample").out


def test_a_window_is_known_again_in_another_file() -> None:
    """JSON of the same loads among dense layers, read from standard input."""
    padded = np.insert(LOADS, 0, 0, axis=1)
    content = json.dumps({"loads": padded.tolist(), "layer_ids": [5, 0, 1]}).encode()
    done = eplb("simulate", "-", "--plan", "p.json", "--json", stdin=content)
    assert json.loads(done.out)["left_out"] == 8


def test_nothing_left_to_score_is_an_error() -> None:
    """With what would do."""
    done = eplb("simulate", "t.npz", "--windows", ":8", "--plan", "p.json")
    assert done.code == 2
    assert "all 8 windows of the trace were planned for" in done.err and "--in-sample" in done.err


def test_plans_without_digests_are_said_to_be_unknown() -> None:
    """An imported map does not say what it was made from."""
    eplb("export", "p.json", "--to", "vllm", "-o", "m.json")
    eplb("import", "m.json", "--from", "vllm", "--gpus", "4", "-o", "q.json")
    done = eplb("simulate", "t.npz", "--plan", "q.json")
    assert "does not say which windows it was made from" in done.err
    assert "published greedy is not beside it" in done.err
    assert "12 windows" in done.out


def test_losses_are_told() -> None:
    """A GPU, a node: what has no copy left, and the rest."""
    report = _report("t.npz", "--plan", "p.json", "--what-if", "lose:1", "--what-if", "lose-node:0")
    placement = read_plan("p.json").placement
    gpu, node = report["what_if"]
    assert (gpu["lose"], node["lose"]) == ("GPU 1", "node 0")
    held = placement.rank_copies.copy()
    held[:, 1] = 0
    assert len(gpu["lost"]) == int((held.sum(axis=1) == 0).sum())
    gone = held.sum(axis=1) == 0
    mean = LOADS[8:].mean(axis=0)
    assert gpu["lost_load_share"] == pytest.approx(mean[gone].sum() / mean.sum())
    assert node["lost_load_share"] > gpu["lost_load_share"]


def test_dispatch_by_program_is_a_bound() -> None:
    """No even split is better."""
    even = _report("t.npz", "--plan", "p.json")["summary"]
    best = _report("t.npz", "--plan", "p.json", "--dispatch", "lp")["summary"]
    assert best["mean_balancedness"] >= even["mean_balancedness"]


def test_dynamic_redundancy_is_beside_the_plan() -> None:
    """Chosen by the window before, and in hindsight, which is never worse than the former."""
    report = _report("t.npz", "--plan", "p.json", "--active-slots", "2")
    chosen, best = report["beside"]["2 active"], report["beside"]["2 active in hindsight"]
    assert best["mean_balancedness"] >= chosen["mean_balancedness"]
    assert eplb("simulate", "t.npz", "--plan", "p.json", "--active-slots", "1").code == 3
    done = eplb("simulate", "t.npz", "--plan", "p.json", "--active-slots", "4")
    assert done.code == 2 and "1 to 3, the slots it hosts" in done.err


def test_active_slots_are_chosen_by_the_window_before_whoever_planned_for_it() -> None:
    """That it was planned for keeps a window from being scored, not from being known."""
    report = _report("t.npz", "--windows", "7:9", "--plan", "p.json", "--active-slots", "2")
    placement = read_plan("p.json").placement
    chosen = dynamic_redundancy(LOADS[7:9], placement, 2)
    for name, slots in (("", chosen.slot_load), (" in hindsight", chosen.oracle_slot_load)):
        expected = metrics.balancedness(metrics.by_rank(slots[1:], 4)).mean()
        balance = report["beside"][f"2 active{name}"]["mean_balancedness"]
        assert balance == pytest.approx(expected)


def test_traffic_is_told_from_routes() -> None:
    """Measured where sources are recorded, expected where not; counts tell none."""
    rng = np.random.default_rng(0)
    routes = np.argsort(rng.random((1200, 2, 8)), axis=2)[:, :, :2]
    for sources, word in ((None, "expected"), (rng.integers(0, 4, 1200), "measured")):
        trace = RouteTrace(routes, 8, source_rank=sources, window_tokens=100)
        write_trace(trace, "r.npz", force=True)
        report = _report("r.npz", "--plan", "p.json")
        assert report["traffic_basis"].startswith(word)
        assert 0 < report["summary"]["remote_nodes_per_token"] < 1
        assert "traffic" in eplb("simulate", "r.npz", "--plan", "p.json").out
        near = _report("r.npz", "--plan", "p.json", "--dispatch", "nearest")["summary"]
        assert near["remote_nodes_per_token"] <= report["summary"]["remote_nodes_per_token"] + 1e-12
    assert "traffic_basis" not in _report("t.npz", "--plan", "p.json")


def test_traffic_and_dispatch_know_shared_experts() -> None:
    """Routes have none, counts are given them by the plan: the two must say the same."""
    rng = np.random.default_rng(0)
    routes = np.argsort(rng.random((1200, 2, 8)), axis=2)[:, :, :2]
    trace = RouteTrace(routes, 8, source_rank=np.arange(1200) % 4, window_tokens=100)
    write_trace(trace, "r.npz")
    plan = ("plan", "t.npz", "--gpus", "4", "--nodes", "2", "--shared-experts", "1")
    assert eplb(*plan, "--redundant", "3", "-o", "s.json").code == 0
    for rule in ("even", "nearest"):
        report = _report("r.npz", "--plan", "s.json", "--dispatch", rule)
        mean_load = sum(layer["mean_load"] for layer in report["layers"])
        assert mean_load == pytest.approx(2 * 100 * 3 / 4)  # two routed, one shared expert a token
        assert report["traffic_basis"].startswith("measured")
    trace = LoadTrace(LOADS, window_steps=4)  # which does not say its top-k; the plan does
    write_trace(trace, "unsaid.npz")
    assert len(_report("unsaid.npz", "--plan", "s.json", "--in-sample")["windows"]) == 12


def test_nearest_is_measured_from_standard_input_too() -> None:
    """A pipe says where tokens start as well as a file does."""
    routes = np.random.default_rng(0).integers(0, 8, (1200, 2, 1))
    trace = RouteTrace(routes, 8, source_rank=np.arange(1200) // 300, window_tokens=100)
    write_trace(trace, "r.npz")
    args = ("--plan", "p.json", "--dispatch", "nearest", "--json")
    piped = eplb("simulate", "-", *args, stdin=Path("r.npz").read_bytes())
    assert piped.out == eplb("simulate", "r.npz", *args).out


def test_shares_are_of_the_split_they_are_told_of() -> None:
    """Off home is computed for an even split over all copies, and told of nothing else."""
    assert "off_home_share" in _report("t.npz", "--plan", "p.json")["summary"]
    report = _report("t.npz", "--plan", "p.json", "--dispatch", "lp", "--active-slots", "2")
    assert "off_home_share" not in report["summary"]
    assert "off_home_share" not in report["beside"]["2 active"]


def test_seconds_are_those_of_each_plan_s_own_machines() -> None:
    """Beside a plan for four GPUs one for eight takes as long as alone."""
    eplb("plan", "t.npz", "--windows", ":8", "--gpus", "8", "-o", "eight.json")
    timed = ("--model", "config.json", "--hardware", "h100-ib400")
    alone = _report("t.npz", "--plan", "eight.json", *timed)["summary"]["step_seconds"]
    beside = _report("t.npz", "--plan", "p.json", "--plan", "eight.json", *timed)["beside"]
    assert beside["eight.json"]["step_seconds"] == alone


def test_plans_of_other_speeds_are_remarked_on() -> None:
    """Both are scored on the machines of the first."""
    Path("speed.json").write_text("[1, 2, 1, 1]")
    eplb("plan", "t.npz", "--gpus", "4", "--gpu-speed", "speed.json", "-o", "fast.json")
    both = ("--plan", "p.json", "--plan", "fast.json", "--in-sample")
    assert "fast.json was made for GPUs of other speeds" in eplb("simulate", "t.npz", *both).err


def test_windows_cut_otherwise_are_said_to_be_unknown() -> None:
    """Sums of windows that were planned for are in-sample and cannot be told from others."""
    text = "p.json was made from windows cut otherwise"
    assert text in eplb("simulate", "t.npz", "--plan", "p.json", "--window-steps", "8").err
    assert text not in eplb("simulate", "t.npz", "--plan", "p.json").err


def test_one_slot_a_gpu_is_said_to_be_moot() -> None:
    """By plan and by both ways to simulate."""
    size = ("--gpus", "12", "--redundant", "4", "--effort", "fast")
    assert "moot" in eplb("plan", "t.npz", *size, "-o", "one.json").out
    for args in (("--plan", "one.json", "--in-sample"), (*size, "--replan-every", "3")):
        assert "moot" in eplb("simulate", "t.npz", *args).out
    assert "moot" not in eplb("simulate", "t.npz", "--plan", "p.json").out


def test_seconds_are_modelled_with_hardware() -> None:
    """More balance takes less time; constants are in the report with their sources."""
    timed = ("--model", "config.json", "--hardware", "h100-ib400")
    report = _report("t.npz", "--plan", "p.json", *timed)
    assert report["summary"]["step_seconds"] > 0
    assert report["model_constants"]["hbm_bw"]["source"]
    text = eplb("simulate", "t.npz", "--plan", "p.json", *timed).out
    assert "modelled" in text and "step, ms" in text
    half = _report("t.npz", "--plan", "p.json", *timed, "--micro-batches", "2")
    assert half["summary"]["step_seconds"] != report["summary"]["step_seconds"]
    write_trace(LoadTrace(LOADS, top_k=2), "unsaid.npz")
    assert (
        "no seconds are modelled" in eplb("simulate", "unsaid.npz", "--plan", "p.json", *timed).err
    )


def test_calibration_finds_the_constants_that_made_the_times() -> None:
    """Step times modelled with other constants are matched, and the fit can be saved and used."""
    timed = ("--model", "config.json", "--in-sample")
    other = Path("other.yaml")
    from eplb.formats.hardware import hardware_bytes, read_hardware

    planted = read_hardware("h100-ib400").with_values({"hbm_efficiency": 0.4}, "planted")
    other.write_bytes(hardware_bytes(planted))
    made = _report("t.npz", "--plan", "p.json", *timed, "--hardware", "other.yaml")
    times = [row["step_seconds"] for row in made["windows"]]
    Path("times.json").write_text(json.dumps(times))
    fitted = _report(
        "t.npz", "--plan", "p.json", *timed, "--hardware", "h100-ib400",
        "--calibrate", "times.json", "--save-hardware", "mine.yaml",
    )  # fmt: skip
    assert fitted["calibration"]["error"] < 0.01 < fitted["calibration"]["error_before"]
    again = _report("t.npz", "--plan", "p.json", *timed, "--hardware", "mine.yaml")
    assert again["summary"]["step_seconds"] == pytest.approx(
        made["summary"]["step_seconds"], rel=0.01
    )


WALK = ("t.npz", "--gpus", "4", "--replan-every", "3", "--history", "6", "--effort", "fast")


def test_a_walk_serves_windows_that_its_plans_have_not_seen() -> None:
    """Six are history; moves stand at the windows before which they are made."""
    report = _report(*WALK)
    assert [row["window"] for row in report["windows"]] == list(range(6, 12))
    moves = [row["moves"] for row in report["windows"]]
    assert moves[0] == 0 and moves[1:3] == [0, 0] and moves[4:] == [0, 0]
    assert report["summary"]["moves"] == sum(moves)
    assert set(report["beside"]) == {"auto, never", "deepseek, every", "linear"}
    assert report["beside"]["auto, never"]["moves"] == 0
    text = eplb("simulate", *WALK).out
    assert re.search(r"re-plans +1 of 1 chances taken", text)


def test_a_walk_from_a_live_plan_within_a_budget() -> None:
    """No re-plan sends more than it may."""
    live = ("t.npz", "--gpus", "4", "--nodes", "2", "--current", "p.json", "--effort", "fast")
    report = _report(*live, "--replan-every", "2", "--history", "8", "--max-moves", "3")
    assert max(row["moves"] for row in report["windows"]) <= 3


def test_a_live_plan_serves_no_window_that_it_saw() -> None:
    """Unless --in-sample asks for it, which is said."""
    done = eplb("simulate", *WALK, "--current", "p.json")
    assert done.code == 2
    assert "p.json was made from 2 of the 6 windows" in done.err and "--history 8" in done.err
    assert not _report(*WALK, "--history", "8", "--current", "p.json")["in_sample"]
    report = _report(*WALK, "--current", "p.json", "--in-sample")
    assert report["in_sample"] and len(report["windows"]) == 6
    assert "in-sample" in eplb("simulate", *WALK, "--current", "p.json", "--in-sample").out


def test_a_walk_keeps_to_the_timeline() -> None:
    """Scenarios and windows of weight 0 are passed over; the others keep their numbers."""
    weight, scenario = np.ones(12), np.zeros(12, int)
    weight[3] = weight[7] = 0
    scenario[10:] = 1
    write_trace(LoadTrace(LOADS, window_weight=weight, scenario=scenario), "s.npz")
    report = _report("s.npz", *WALK[1:4], "2", "--history", "4", "--effort", "fast")
    assert [row["window"] for row in report["windows"]] == [5, 6, 8, 9]


def test_what_was_asked_for_is_not_replaced_by_what_stands_beside_it() -> None:
    """A repaired greedy goes by the name of the published one."""
    args = ("t.npz", "--gpus", "8", "--redundant", "24", "--strategy", "deepseek",
            "--replan-every", "3", "--history", "6")  # fmt: skip
    plain, repaired = _report(*args), _report(*args, "--repair")
    assert plain["plan"] == repaired["plan"] == "deepseek, every"
    assert plain["summary"] != repaired["summary"]


def test_worth_it_needs_seconds_and_weighs_them() -> None:
    """Experts of a large model are not moved for a few windows; they are for a million."""
    done = eplb("simulate", *WALK, "--policy", "worth-it")
    assert done.code == 2 and "--hardware" in done.err
    assert "--policy worth-it" in eplb("simulate", *WALK, "--horizon", "9").err
    timed = ("--policy", "worth-it", "--model", "config.json", "--hardware", "h100-ib400")
    kept = _report(*WALK, *timed)
    moved = _report(*WALK, *timed, "--horizon", "100000000")
    assert kept["summary"]["moves"] == 0 < moved["summary"]["moves"]
    assert moved["summary"]["moving_seconds"] > 0


def test_any_file_name_can_be_told() -> None:
    """Even one of bytes that are no text."""
    name = os.fsdecode(b"p\xff.json")
    Path(name).write_bytes(Path("p.json").read_bytes())
    assert "udcff.json" in _report("t.npz", "--plan", name)["plan"]


def test_the_same_command_gives_the_same_bytes() -> None:
    """And -o writes what --json prints."""
    first = eplb("simulate", *WALK, "--json").out
    assert eplb("simulate", *WALK, "--json", "-o", "r.json").out == first
    assert Path("r.json").read_text() == first


def test_a_larger_trace_is_streamed() -> None:
    """In blocks or whole, the report is the same."""
    streamed = _report("t.npz", "--plan", "p.json")
    trace = read_trace("t.npz").trace
    assert isinstance(trace, LoadTrace)
    write_trace(trace, "t.json")
    assert _report("t.json", "--plan", "p.json") == streamed


WRONG = [
    ((), 2, "either --plan PLAN"),
    (("--plan", "p.json", "--replan-every", "2"), 2, "either --plan PLAN"),
    (("--plan", "none.json"), 2, "none.json cannot be read"),
    (("--plan", "p.json", "--what-if", "lose:9"), 2, "GPUs are numbered 0 to 3"),
    (("--plan", "p.json", "--what-if", "lose-node:2"), 2, "nodes are numbered 0 to 1"),
    (("--plan", "p.json", "--what-if", "drop:1"), 2, "lose:GPU or lose-node:NODE"),
    (("--plan", "p.json", "--what-if", "lose:²"), 2, "lose:GPU or lose-node:NODE"),
    (("--plan", "linear"), 2, "a plan file named linear would be mistaken"),
    (("--plan", "p.json", "--gpus", "8"), 2, "--gpus is for plans made as the trace goes"),
    (("--plan", "p.json", "--policy", "never"), 2, "--policy is for plans made as"),
    (("--replan-every", "2", "--calibrate", "x.json"), 2, "--calibrate is for the replay"),
    (("--plan", "p.json", "-o", "t.npz", "--force"), 2, "would overwrite a file that is read"),
    (("--replan-every", "2", "--in-sample"), 2, "--in-sample is for a live plan"),
    (("--plan", "p.json", "--hardware", "h100-ib400"), 2, "needs --model"),
    (("--plan", "p.json", "--direct"), 2, "--direct is of the time model"),
    (("--plan", "p.json", "--calibrate", "x.json"), 2, "--calibrate is of the time model"),
    (("--replan-every", "2", "--what-if", "lose:1"), 2, "--what-if is for the replay"),
    (("--replan-every", "2", "--dispatch", "lp"), 2, "--dispatch is for the replay"),
    (("--replan-every", "2", "--history", "12"), 2, "leaves none to serve"),
    (("--replan-every", "2", "--policy", "daily"), 2, "never, every, below:B"),
    (("--replan-every", "2", "--policy", "below:2"), 2, "a balancedness above 0"),
    (("--replan-every", "2", "--gpus", "3", "--nodes", "2"), 3, "do not divide over 2 nodes"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "code", "message"), WRONG)
def test_wrong_options_are_answered(args: tuple[str, ...], code: int, message: str) -> None:
    """The code says which kind of mistake, the line says what and what would do."""
    Path("linear").write_bytes(Path("p.json").read_bytes())
    done = eplb("simulate", "t.npz", *args)
    assert done.code == code, done.err
    assert re.search(message, done.err), done.err


def test_plans_of_other_models_are_refused() -> None:
    """By layers or experts, of the trace or of each other."""
    write_trace(RouteTrace(np.zeros((9, 2, 1), int), 8, layer_ids=np.array([4, 5])), "routes.npz")
    for rule in ("even", "nearest"):
        done = eplb("simulate", "routes.npz", "--plan", "p.json", "--dispatch", rule)
        assert done.code == 4 and "do not cover the same layers" in done.err
    write_trace(LoadTrace(LOADS, layer_ids=np.array([4, 5])), "layers.npz")
    write_trace(LoadTrace(LOADS[:, :, :4]), "experts.npz")
    for trace in ("layers.npz", "experts.npz"):
        done = eplb("simulate", trace, "--plan", "p.json")
        assert done.code == 4 and "another model" in done.err
    eplb("plan", "experts.npz", "--gpus", "4", "-o", "other.json")
    done = eplb("simulate", "t.npz", "--plan", "p.json", "--plan", "other.json")
    assert done.code == 4 and "different models" in done.err


def test_real_routes_replay() -> None:
    """The recorded sample, cut into windows, under a plan of its first windows."""
    routes = str(SAMPLES / "tiny-dsv3-routes.npz")
    cut = (routes, "--window-tokens", "1024")
    eplb("plan", *cut, "--windows", ":4", "--gpus", "8", "-o", "r.json", "--effort", "fast")
    report = _report(*cut, "--plan", "r.json")
    assert [row["window"] for row in report["windows"]] == [4, 5, 6, 7]
