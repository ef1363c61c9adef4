"""The plan file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from eplb import metrics
from eplb.errors import InfeasibleError, InputError, RefusedError
from eplb.formats.plans import plan_bytes, read_plan, write_plan
from eplb.placement import Placement
from eplb.plan import Plan, gaps
from eplb.solver.solve import solve

from ..helpers import problem, random_loads
from ..strategies import placements
from ..test_metrics import TOKENS

# The plan of the file's documentation, a right answer to the documented trace.
DOCUMENTED: dict[str, Any] = {
    "format": "eplb-plan", "version": 1, "num_experts": 4, "num_gpus": 2, "num_nodes": 1,
    "slots_per_gpu": 3, "layer_ids": [3, 4],
    "physical_to_logical": [[0, 1, 2, 0, 1, 3], [0, 2, 3, 1, 2, 3]],
    "home_node": [[0, 0, 0, 0], [0, 0, 0, 0]],
    "peak_load": [14.75, 14.5], "lower_bound": [14.0, 14.0],
    "status": ["heuristic", "heuristic"],
    "summary": {"mean_balancedness": 0.958, "worst_balancedness": 0.949, "efficiency": 0.957,
                "max_gap": 0.054, "moves": 0},
    "options": {}, "provenance": {},
}  # fmt: skip
MINIMAL = {
    key: DOCUMENTED[key]
    for key in ("format", "version", "num_experts", "num_gpus", "slots_per_gpu",
                "physical_to_logical")
}  # fmt: skip


def _write(folder: Path, content: object) -> str:
    path = folder / "plan.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_the_documented_plan_is_right(tmp_path: Path) -> None:
    """Its figures are those of its placement on the documented trace."""
    plan = read_plan(_write(tmp_path, DOCUMENTED))
    balance = metrics.measure(TOKENS, plan.placement)
    assert plan.peak_load is not None and plan.gap is not None
    assert balance.peak_load.tolist() == plan.peak_load.tolist()
    for key in ("mean_balancedness", "worst_balancedness", "efficiency"):
        assert getattr(balance, key) == pytest.approx(plan.summary[key], abs=5e-4), key
    assert plan.gap.max() == pytest.approx(plan.summary["max_gap"], abs=5e-4)


def test_a_minimal_plan_is_read(tmp_path: Path) -> None:
    """Only the placement is required."""
    plan = read_plan(_write(tmp_path, MINIMAL))
    assert plan.layer_ids.tolist() == [0, 1]
    assert (plan.peak_load, plan.gap, plan.status, plan.placement.num_nodes) == (
        None,
        None,
        None,
        1,
    )


def test_a_plan_reads_back_the_same(tmp_path: Path) -> None:
    """Every figure survives, and writing again gives the same bytes."""
    plan = solve(problem(random_loads(3, 3, 2, 12), 4, 4, 2), "auto")
    path = str(tmp_path / "plan.json")
    write_plan(plan, path)
    read = read_plan(path)
    assert plan_bytes(read) == plan_bytes(plan) == Path(path).read_bytes()
    assert read.status == plan.status
    assert dict(read.summary) == dict(plan.summary)


@given(placements())
def test_any_placement_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, placement: Placement
) -> None:
    """Same-rank copies, several nodes and all."""
    path = str(tmp_path_factory.mktemp("p") / "plan.json")
    write_plan(Plan(placement, np.arange(placement.num_layers)), path)
    read = read_plan(path).placement
    assert (read.physical_to_logical == placement.physical_to_logical).all()
    assert (read.home_node == placement.home_node).all()
    assert (read.num_ranks, read.num_nodes) == (placement.num_ranks, placement.num_nodes)


def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    """What a later version wrote is still there after an earlier one rewrote the file."""
    plan = read_plan(_write(tmp_path, {**MINIMAL, "colour": {"of": "money"}}))
    assert plan.extra == {"colour": {"of": "money"}}
    assert json.loads(plan_bytes(plan))["colour"] == {"of": "money"}


def test_excluded_gpus_are_kept(tmp_path: Path) -> None:
    """Their slots hold −1."""
    content = {**MINIMAL, "num_gpus": 3, "excluded_gpus": [2],
               "physical_to_logical": [[*row, -1, -1, -1] for row in
                                       DOCUMENTED["physical_to_logical"]]}  # fmt: skip
    plan = read_plan(_write(tmp_path, content))
    assert plan.placement.excluded_ranks == (2,)
    assert json.loads(plan_bytes(plan))["excluded_gpus"] == [2]


def test_an_edited_plan_is_refused(tmp_path: Path) -> None:
    """The figures of an edited plan may be wrong; deleting the digest accepts the edit."""
    content = json.loads(plan_bytes(solve(problem(random_loads(4, 1, 8), 4, 3))))
    row = content["physical_to_logical"][0]
    other = next(slot for slot in range(3, 12) if row[slot] not in row[:3])
    row[0], row[other] = row[other], row[0]
    with pytest.raises(RefusedError, match="the digest differs"):
        read_plan(_write(tmp_path, content))
    del content["provenance"]["placement_digest"]
    assert read_plan(_write(tmp_path, content)).placement.num_slots == 12


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "another format": ({"format": "eplb-trace"}, "the format is 'eplb-trace'"),
    "a later version": ({"version": 2}, "version 2"),
    "a missing expert": ({"physical_to_logical": [[0, 1, 2, 0, 1, 2]] * 2}, "expert 3 has no slot"),
    "an expert out of range": ({"physical_to_logical": [[0, 1, 2, 3, 4, 0]] * 2}, "is 4"),
    "ragged rows": ({"physical_to_logical": [[0, 1, 2, 0, 1, 3], [0]]}, "differ in length"),
    "too many slots": ({"slots_per_gpu": 2}, "2 GPUs × 2 slots = 4 are expected"),
    "fractions for experts": ({"physical_to_logical": [[0.5] * 6] * 2}, "whole numbers"),
    "text for a map": ({"physical_to_logical": "all"}, "whole numbers by layer"),
    "no gpus": ({"num_gpus": 0}, "'num_gpus' is 0"),
    "gpus of true": ({"num_gpus": True}, "'num_gpus' is True"),
    "nodes of text": ({"num_nodes": "two"}, "'num_nodes' is 'two'"),
    "wrong layer ids": ({"layer_ids": [1]}, "each of the 2 layers"),
    "wrong peaks": ({"peak_load": [1.0]}, "peak_load has shape"),
    "negative peaks": ({"peak_load": [1.0, -1.0]}, "not negative"),
    "peaks of text": ({"peak_load": ["a", "b"]}, "'peak_load' is not"),
    "a status unknown": ({"status": ["fine", "fine"]}, "status must be one of"),
    "a status of text": ({"status": "fine"}, "'status' is no list"),
    "a summary of text": ({"summary": "good"}, "'summary' is no object"),
    "homes out of range": ({"home_node": [[0, 0, 0, 9]] * 2}, "outside 0 to 0"),
    "excluded gpus in use": ({"excluded_gpus": [0]}, "rank is excluded"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_plans_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so, with the file's name."""
    change, message = HOSTILE[what]
    path = _write(tmp_path, {**DOCUMENTED, **change})
    with pytest.raises(InputError, match=message) as caught:
        read_plan(path)
    assert path in str(caught.value)


@pytest.mark.parametrize("key", [key for key in MINIMAL if key not in ("format", "version")])
def test_required_keys_are_required(tmp_path: Path, key: str) -> None:
    """A plan without them is no plan."""
    content = {k: v for k, v in DOCUMENTED.items() if k != key}
    with pytest.raises(InputError, match=f"the plan has no '{key}'"):
        read_plan(_write(tmp_path, content))


def test_nodes_that_do_not_divide(tmp_path: Path) -> None:
    """That is infeasible, not unreadable."""
    with pytest.raises(InfeasibleError, match="2 ranks do not divide over 3 nodes"):
        read_plan(_write(tmp_path, {**DOCUMENTED, "num_nodes": 3}))


def test_a_list_is_no_plan(tmp_path: Path) -> None:
    """A trace given for a plan is told so."""
    with pytest.raises(InputError, match="the format is 'list'"):
        read_plan(_write(tmp_path, [[1]]))


def test_gaps_never_fall_below_zero() -> None:
    """Rounding cannot make a peak better than its bound; a layer without load has no gap."""
    assert gaps(np.array([1.0, 3.0, 0.0]), np.array([1.0 + 1e-16, 2.0, 0.0])).tolist() == [
        0,
        0.5,
        0,
    ]


NO_NUMBERS = {
    "summary.mean_balancedness": {"summary": {"mean_balancedness": "x"}},
    "summary.efficiency": {"summary": {"efficiency": None}},
    "summary.moves": {"summary": {"moves": "many"}},
    "options.expert_bytes": {"options": {"expert_bytes": "abc"}},
    "options.groups": {"options": {"groups": "two"}},
    "options.shared_experts": {"options": {"shared_experts": -1}},
    "options.gpu_speed": {"options": {"gpu_speed": [1.0]}},
    "provenance.windows": {"provenance": {"windows": "all"}},
    "frontier.moves": {"frontier": [{"max_share": 1, "mean_balancedness": 1, "moves": "x"}]},
}


@pytest.mark.parametrize("key", NO_NUMBERS)
def test_figures_are_numbers(tmp_path: Path, key: str) -> None:
    """What is taken from a plan later is checked when it is read, by its name."""
    with pytest.raises(InputError, match=f"'{key}' is (no list|.*; a (whole )?number)"):
        read_plan(_write(tmp_path, {**DOCUMENTED, **NO_NUMBERS[key]}))


@pytest.mark.parametrize("key", [key for key in DOCUMENTED if key not in MINIMAL])
def test_null_is_absent(tmp_path: Path, key: str) -> None:
    """Of every key that a plan may do without."""
    left_out = {k: v for k, v in DOCUMENTED.items() if k != key}
    nulled = read_plan(_write(tmp_path, {**DOCUMENTED, key: None}))
    assert plan_bytes(nulled) == plan_bytes(read_plan(_write(tmp_path, left_out)))


def test_senseless_numbers_of_experts_take_no_memory(tmp_path: Path) -> None:
    """No more experts than slots."""
    with pytest.raises(InputError, match="'num_experts' is 999999999, more than the 6 slots"):
        read_plan(_write(tmp_path, {**DOCUMENTED, "num_experts": 999999999}))
