"""Points of a sweep: what is planned for, what is scored, and every figure by hand."""

import numpy as np
import pytest

from eplb import metrics
from eplb.errors import InfeasibleError, InputError
from eplb.migration import migrate
from eplb.placement import linear
from eplb.problem import Problem
from eplb.solver.layer_planner import Settings
from eplb.solver.solve import solve
from eplb.study.backtest import plan_ahead
from eplb.study.sweep import (
    Setting,
    Study,
    digest,
    measure,
    plan_at,
    resized,
    scored,
    study_of,
    usual_redundant,
)
from eplb.synthetic import Shape, Traffic, generate, generate_routes
from eplb.topology import Topology

from ..helpers import problem, random_loads

QUICK = Settings(effort=0.1)


def test_the_first_part_is_planned_for_and_the_rest_scored() -> None:
    """Six of ten windows; one without load counts on neither side, and a scenario is planned for
    wherever it stands."""
    loads = random_loads(0, 12, 2, 8).astype(float)
    loads[3] = 0
    scenario = np.array([0] * 11 + [1])
    one = Problem(loads, Topology(2), 4, np.arange(1.0, 13.0), scenario)
    study = study_of(one)
    assert study.ahead is not None and study.ahead_weight is not None
    assert np.array_equal(study.ahead, loads[7:11])
    assert study.ahead_weight.tolist() == [8, 9, 10, 11]
    assert np.array_equal(study.problem.loads, loads[[0, 1, 2, 3, 4, 5, 6, 11]])
    assert study.problem.window_weight.tolist() == [1, 2, 3, 4, 5, 6, 7, 12]
    assert study.problem.scenario.tolist() == [0] * 7 + [1]


def test_short_traces_are_scored_on_themselves() -> None:
    """And the point says so: nothing is held out."""
    study = study_of(problem(random_loads(0, 7, 2, 8), 2, 4))
    assert study.ahead is None
    point = measure(study, Setting(2, 1, 2))
    assert point["held_out"] is None
    assert scored(point) == point["planned"]


def test_a_point_is_the_plan_of_the_past_on_the_future() -> None:
    """What `solve` makes of the first six windows, measured window by window on the last four."""
    loads = random_loads(1, 10, 3, 8)
    one = problem(loads, 4, 3)
    point = measure(study_of(one, settings=QUICK), Setting(4, 1, 8))
    plan = solve(problem(loads[:6], 4, 4), settings=QUICK)
    ratios = np.empty((4, 3))
    for window, layer in np.ndindex(4, 3):
        row = plan.placement.physical_to_logical[layer]
        share = loads[6 + window, layer] / np.bincount(row, minlength=8)
        by_gpu = share[row].reshape(4, 4).sum(axis=1)
        ratios[window, layer] = by_gpu.mean() / by_gpu.max()
    assert point["held_out"]["mean_balancedness"] == pytest.approx(ratios.mean())
    assert point["held_out"]["worst_balancedness"] == pytest.approx(ratios.mean(axis=0).min())
    assert point["planned"] == {key: plan.summary[key] for key in point["planned"]}
    assert set(point["planned"]) == {*point["held_out"], "max_gap"}
    assert (point["gpus"], point["redundant"], point["slots_per_gpu"]) == (4, 8, 4)


def test_with_a_back_test_a_point_is_what_the_planner_gives() -> None:
    """The outlook is chosen as for a plan."""
    trace = generate(Shape(2, 16, 2), Traffic(num_windows=16, tokens=2000, drift=0.4, seed=1))
    one = Problem.from_trace(trace, Topology(4))
    study = study_of(one, settings=QUICK, back_test=True)
    plan, _ = plan_ahead(study.problem, QUICK)
    mine = plan_at(study, Setting(4, 1, one.num_redundant))
    assert np.array_equal(mine.placement.physical_to_logical, plan.placement.physical_to_logical)
    assert mine.options["outlook"] == plan.options["outlook"]


def test_memory_is_counted_in_whole_experts() -> None:
    """3 layers of 8 experts of 1000 bytes on 4 GPUs × 3 slots: 9000 bytes a GPU, of which a share
    of the 4 redundant ones, 3000; at 700 bytes a token that is 5 tokens of cache, the last one in
    part."""
    one = problem(random_loads(2, 2, 3, 8), 4, 2, expert_bytes=1000)
    point = measure(Study(one, settings=QUICK, kv_bytes_per_token=700), Setting(4, 1, 4))
    assert point["bytes_per_gpu"] == 9000
    assert point["redundant_bytes_per_gpu"] == 3000
    assert point["kv_tokens_lost_per_gpu"] == 5
    none = measure(Study(one, settings=QUICK, kv_bytes_per_token=700), Setting(4, 1, 0))
    assert (none["bytes_per_gpu"], none["redundant_bytes_per_gpu"]) == (6000, 0)
    assert none["kv_tokens_lost_per_gpu"] == 0
    without = measure(Study(one, settings=QUICK), Setting(4, 1, 4))
    assert "kv_tokens_lost_per_gpu" not in without
    unknown = measure(Study(problem(one.loads, 4, 2), settings=QUICK), Setting(4, 1, 4))
    assert "bytes_per_gpu" not in unknown


def test_memory_on_the_gpus_in_service() -> None:
    """One of 4 GPUs is out: 3 × 4 slots hold 8 experts and 4 redundant ones, a third on each."""
    one = Problem(
        random_loads(3, 1, 1, 8).astype(float),
        Topology(4, excluded_ranks=(1,)),
        4,
        expert_bytes=30,
    )
    point = measure(Study(one, settings=QUICK), Setting(4, 1, 8))
    assert (point["bytes_per_gpu"], point["redundant_bytes_per_gpu"]) == (120, 40)


def test_points_over_the_budget_cannot_be() -> None:
    """9000 bytes fit into 9000 and not into 8999."""
    one = problem(random_loads(2, 1, 3, 8), 4, 2, expert_bytes=1000)
    measure(Study(one, settings=QUICK, budget_bytes=9000), Setting(4, 1, 4))
    with pytest.raises(InfeasibleError, match=r"3 slots a GPU and layer are .* --budget-gib"):
        measure(Study(one, settings=QUICK, budget_bytes=8999), Setting(4, 1, 4))


def test_moves_are_from_the_live_plan() -> None:
    """Counted and weighed, within the budget of the point."""
    loads = random_loads(4, 10, 2, 8)
    live = linear(2, 8, 12, 4)
    one = problem(loads, 4, 3, current=live, expert_bytes=10)
    study = study_of(one, settings=QUICK)
    free, tight = (measure(study, Setting(4, 1, 4, moves)) for moves in (None, 3))
    plan = plan_at(study, Setting(4, 1, 4, 3))
    assert tight["moves"] == migrate(live, plan.placement).num_moves <= 3 < free["moves"]
    assert tight["moved_bytes"] == 10 * tight["moves"]
    assert "moves" not in measure(study_of(problem(loads, 4, 3), settings=QUICK), Setting(4, 1, 4))


@pytest.mark.parametrize(("nodes", "rule"), [(1, "strict"), (2, "home"), (2, "free"), (4, "free")])
def test_survival_is_that_of_every_single_loss(nodes: int, rule: str) -> None:
    """By losing each GPU and each node in turn and looking for experts without a copy."""
    loads = random_loads(5, 10, 3, 12)
    study = study_of(problem(loads, 8, 2, nodes, node_rule=rule), settings=QUICK)
    setting = Setting(8, nodes, 12)
    point = measure(study, setting)
    assert point["experts"] == 36
    slots = plan_at(study, setting).placement.physical_to_logical.reshape(3, 8, 3)
    mean = loads[6:].mean(axis=0)
    for name, size in (("gpu", 1), ("node", 8 // nodes)):
        losses, gone = [], set()
        for part in range(8 // size):
            left = np.delete(slots, range(part * size, (part + 1) * size), axis=1)
            lost = [(la, e) for la in range(3) for e in range(12) if e not in left[la]]
            losses.append((sum(mean[pair] for pair in lost) / mean.sum(), len(lost)))
            gone.update(lost)
        assert point[f"survive_any_{name}"] == 36 - len(gone)
        if size == 8:
            assert point[f"worst_{name}_loss"] is None
            continue
        worst = point[f"worst_{name}_loss"]
        share, count = losses[worst[name]]
        assert share == pytest.approx(max(share for share, _ in losses))
        assert worst["lost_share"] == pytest.approx(share)
        assert worst["experts"] == count


def test_only_gpus_in_service_can_be_lost() -> None:
    """Where every expert has two copies nothing is lost, whichever GPU goes."""
    one = Problem(np.ones((1, 1, 4)), Topology(4, excluded_ranks=(0,)), 4, node_rule="free")
    point = measure(Study(one, settings=QUICK), Setting(4, 1, 12))
    assert point["survive_any_gpu"] == 4
    assert point["worst_gpu_loss"] == {"gpu": 1, "experts": 0, "lost_share": 0.0}
    assert point["worst_node_loss"] is None


def test_load_off_home_is_of_the_scored_windows() -> None:
    """None under `strict`; only with several nodes."""
    loads = random_loads(6, 10, 2, 8)
    strict = study_of(problem(loads, 4, 3, 2), settings=QUICK)
    assert measure(strict, Setting(4, 2, 4))["off_home_share"] == 0
    assert "off_home_share" not in measure(strict, Setting(4, 1, 4))


def test_traffic_is_that_of_the_scored_tokens() -> None:
    """Token by token, copy by copy: nodes other than its own that a token expects to reach, from
    routes whose windows are half planned for, half scored."""
    routes = generate_routes(Shape(2, 8, 2), Traffic(num_windows=10, tokens=40, seed=2))
    trace = routes.windows(window_tokens=41)  # nine, and 31 tokens that make no window
    assert trace.num_windows == 9
    study = study_of(
        Problem.from_trace(trace, Topology(4, 2), node_rule="free"), routes, settings=QUICK
    )
    assert study.tokens == (5 * 41, 9 * 41)
    setting = Setting(4, 2, 4)
    point = measure(study, setting)
    slots = plan_at(study, setting).placement.physical_to_logical.reshape(2, 2, 6)
    reached, assigned = [], []
    for token in routes.experts[5 * 41 : 9 * 41]:
        for layer, experts in enumerate(token):
            copies = np.array([[(slots[layer, n] == e).sum() for n in (0, 1)] for e in experts])
            share = copies / copies.sum(axis=1, keepdims=True)
            # It starts on either node as often: the other one is remote half of the time.
            reached.append(np.mean(1 - np.prod(1 - share, axis=0)))
            assigned.append(np.mean(share.sum(axis=0)))
    assert point["remote_nodes_per_token"] == pytest.approx(np.mean(reached))
    assert point["remote_assignments_per_token"] == pytest.approx(np.mean(assigned))
    assert "remote_nodes_per_token" not in measure(study, Setting(4, 1, 4))


def test_speeds_hold_for_what_is_scored() -> None:
    """A GPU of half the speed takes twice as long."""
    loads = random_loads(7, 10, 1, 6)
    one = Problem(loads.astype(float), Topology(2, rank_speed=(1.0, 2.0)), 4)
    study = study_of(one, settings=QUICK)
    plan = plan_at(study, Setting(2, 1, 2))
    expected = metrics.measure(loads[6:], plan.placement, None, (1.0, 2.0))
    assert measure(study, Setting(2, 1, 2))["held_out"]["efficiency"] == expected.efficiency


@pytest.mark.parametrize(
    ("num_experts", "topology", "expected"),
    [
        (32, Topology(8), [0, 8, 16, 24, 32]),
        (30, Topology(8), [2, 10, 18, 26, 34]),
        (4, Topology(2), [0, 2, 4]),  # never more slots on a GPU than experts
        (16, Topology(4, excluded_ranks=(0,)), [8, 12, 16, 20, 24]),
    ],
)
def test_usual_numbers_fill_equal_slots(
    num_experts: int, topology: Topology, expected: list[int]
) -> None:
    """From the least that holds every expert to four slots a GPU more."""
    assert usual_redundant(num_experts, topology) == expected


def test_sizes_that_cannot_be() -> None:
    """Slots that do not divide, nodes that do not, GPUs that do not exist."""
    one = problem(random_loads(8, 1, 1, 8), 4, 2)
    with pytest.raises(InfeasibleError, match="--redundant 0 or 4 would"):
        resized(Study(one), Setting(4, 1, 2))
    with pytest.raises(InfeasibleError, match="--nodes"):
        resized(Study(one), Setting(4, 3, 0))
    far = Problem(one.loads, Topology(4, excluded_ranks=(3,)), 4)
    with pytest.raises(InputError, match="--exclude-gpu 3"):
        resized(Study(far), Setting(2, 1, 0))


def test_digests_know_what_a_point_depends_on() -> None:
    """Not the sizes of the study's own problem, a budget of memory, or other points."""
    loads = random_loads(9, 10, 2, 8)
    setting = Setting(4, 1, 4)
    base = digest(study_of(problem(loads, 4, 3)), setting)
    assert digest(study_of(problem(loads, 2, 4), budget_bytes=10**9), setting) == base
    later = loads.copy()
    later[9, 0, 0] += 1
    earlier = loads.copy()
    earlier[0, 0, 0] += 1
    others = [
        digest(study_of(problem(later, 4, 3)), setting),
        digest(study_of(problem(earlier, 4, 3)), setting),
        digest(study_of(problem(loads, 4, 3)), Setting(4, 1, 8)),
        digest(study_of(problem(loads, 4, 3)), Setting(8, 1, 8)),
        digest(study_of(problem(loads, 4, 3, expert_bytes=7)), setting),
        digest(study_of(problem(loads, 4, 3), kv_bytes_per_token=7), setting),
        digest(study_of(problem(loads, 4, 3), strategy="deepseek"), setting),
        digest(study_of(problem(loads, 4, 3), back_test=True), setting),
        digest(study_of(problem(loads, 4, 3), settings=Settings(seed=1)), setting),
        digest(study_of(problem(loads, 4, 3, survive=1)), setting),
        digest(study_of(problem(loads, 4, 3, current=linear(2, 8, 12, 4))), setting),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_a_point_carries_its_digest() -> None:
    """So that it is known again in a file."""
    study = study_of(problem(random_loads(1, 10, 1, 8), 4, 3), settings=QUICK)
    assert measure(study, Setting(4, 1, 4))["digest"] == digest(study, Setting(4, 1, 4))


def test_published_strategies_can_be_swept() -> None:
    """Same-GPU copies and all."""
    one = problem(random_loads(2, 10, 2, 8), 4, 3, node_rule="free")
    study = study_of(one, strategy="deepseek", repair=True)
    assert 0 < measure(study, Setting(4, 1, 8))["held_out"]["mean_balancedness"] <= 1
