"""Node rules, unequal and missing ranks, surviving copies: kept on every random problem."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eplb import metrics
from eplb.errors import InfeasibleError, InputError
from eplb.formats.plans import plan_bytes
from eplb.problem import Problem
from eplb.solver import bounds
from eplb.solver.layer_planner import Settings
from eplb.solver.outlook import FUTURES, WINDOWS, windows_to_plan
from eplb.solver.solve import solve
from eplb.topology import Topology
from eplb.traffic import off_home_share, off_home_shares

from ..helpers import best_peak, problem, random_loads
from ..strategies import problems


@st.composite
def harder_problems(draw: st.DrawFn) -> Problem:
    """Problems with every rule and limit: home, speeds, missing ranks, surviving copies."""
    one = draw(problems())
    num_ranks, num_nodes = one.topology.num_ranks, one.topology.num_nodes
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    speed = tuple(rng.uniform(0.5, 2, num_ranks)) if draw(st.booleans()) else None
    gone = draw(st.integers(0, num_ranks // 3))
    excluded = tuple(sorted(rng.permutation(num_ranks)[:gone].tolist()))
    rule = draw(st.sampled_from(["strict", "home", "free"]))
    try:
        return replace(
            one,
            topology=Topology(num_ranks, num_nodes, speed, excluded),
            node_rule=rule,
            survive=draw(st.sampled_from([0, 0, 1])),
        )
    except InfeasibleError:
        assume(False)
        raise


@given(one=harder_problems(), mirrored=st.booleans())
@settings(max_examples=120, deadline=None)
def test_every_rule_is_kept(one: Problem, mirrored: bool) -> None:
    """No twin, homes as the rule says, nothing on missing ranks, a bound below the peak, and as
    many experts with copies to spare as the slots of their homes allow."""
    plan = solve(one, settings=Settings(effort=0.1, outlook=FUTURES if mirrored else WINDOWS))
    placement = plan.placement
    assert one.obeyed_by(placement).all()
    assert placement.excluded_ranks == one.topology.excluded_ranks
    assert placement.rank_copies[:, list(one.topology.excluded_ranks)].sum() == 0
    assert plan.peak_load is not None and plan.lower_bound is not None
    assert (plan.lower_bound <= plan.peak_load * (1 + 1e-9)).all()
    if one.survive and one.node_rule == "free":
        spare = one.num_slots - one.num_experts
        covered = (placement.replica_count > one.survive).sum(axis=1)
        assert (covered >= min(one.num_experts, spare // one.survive)).all()


@pytest.mark.parametrize("rule", ["strict", "home", "free"])
def test_rules_are_ordered(rule: str) -> None:
    """What strict allows home allows too, and what home allows free does."""
    one = problem(random_loads(3, 1, 16), 4, 6, 2, num_groups=4, node_rule=rule)
    peaks = {
        r: float(bounds.lower_bounds(replace(one, node_rule=r))[0])
        for r in ("strict", "home", "free")
    }
    assert peaks["free"] <= peaks["home"] <= peaks["strict"]


def test_home_balances_where_strict_cannot() -> None:
    """One hot group on two nodes: its copies go to the other node, its experts keep one at home."""
    loads = np.array([100, 90, 80, 70, 5, 4, 3, 2])
    strict = solve(problem(loads, 4, 4, 2, num_groups=2))
    home = solve(problem(loads, 4, 4, 2, num_groups=2, node_rule="home"))
    assert home.summary["mean_balancedness"] > strict.summary["mean_balancedness"] + 0.2
    assert 0 < home.summary["off_home_share"] < 0.5


@pytest.mark.parametrize("cap", [0.0, 0.05, 0.2])
def test_the_cap_on_load_off_home_is_kept(cap: float) -> None:
    """And a looser cap never balances worse."""
    loads = random_loads(8, 1, 4, 32)
    one = problem(loads, 8, 6, 2, num_groups=4, node_rule="home", max_off_home=cap)
    plan = solve(one)
    assert off_home_share(one.loads, plan.placement) <= cap + 1e-12
    tighter = solve(replace(one, max_off_home=cap / 2))
    assert plan.summary["efficiency"] >= tighter.summary["efficiency"] - 1e-9


def test_load_off_home_by_hand() -> None:
    """Expert 0 has one of two copies away from node 0, which serves half of its 10 tokens."""
    plan = solve(problem([10, 4, 4, 2], 4, 1, 2, node_rule="free"))
    placement = replace(plan.placement, home_node=np.zeros((1, 4), np.int32))
    away = [e for r in (2, 3) for e in np.flatnonzero(placement.rank_copies[0, r])]
    tokens = np.array([[[10, 4, 4, 2]]])
    assert off_home_shares(tokens, placement).tolist() == [tokens[0, 0, away].sum() / 20]


def test_fast_ranks_serve_more() -> None:
    """A rank of twice the speed carries about twice the load, and no plan is below the bound."""
    loads = random_loads(9, 1, 64)
    topology = Topology(4, rank_speed=(1, 1, 1, 2))
    plan = solve(Problem(loads[None].astype(float), topology, 18))
    served = metrics.rank_loads(loads[None], plan.placement)[0, 0]
    assert served[3] / served[:3].mean() == pytest.approx(2, rel=0.05)
    assert plan.summary["mean_balancedness"] > 0.98


def test_speeds_are_scale_free() -> None:
    """Only ratios of speeds matter."""
    loads = random_loads(10, 1, 1, 16).astype(float)
    plans = [
        solve(Problem(loads, Topology(4, rank_speed=speed), 5))
        for speed in ((1.0, 2.0, 1.0, 1.0), (3.0, 6.0, 3.0, 3.0))
    ]
    maps = [plan.placement.physical_to_logical.tolist() for plan in plans]
    assert maps[0] == maps[1]
    assert plans[0].summary == plans[1].summary


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank_speed": (1.0, 0.0)}, "the speed of GPU 1 is 0.0"),
        ({"rank_speed": (1.0,)}, "1 GPU speeds; one for each of the 2"),
        ({"excluded_ranks": (2,)}, "--exclude-gpu 2; the GPUs are numbered 0 to 1"),
        ({"excluded_ranks": (0, 0)}, "a GPU is excluded twice"),
    ],
)
def test_senseless_machines_are_refused(kwargs: dict[str, object], message: str) -> None:
    """Speeds of zero, wrong lengths, unknown GPUs."""
    with pytest.raises(InputError, match=message):
        Topology(2, **kwargs)  # type: ignore[arg-type]


def test_limits_that_cannot_be_met_name_the_nearest() -> None:
    """Too few GPUs left, too many to lose, no GPU left on a node that must hold groups."""
    with pytest.raises(InfeasibleError, match="at least 3 GPUs must be left"):
        Problem(np.ones((1, 1, 9)), Topology(4, excluded_ranks=(0, 1)), 3)
    with pytest.raises(InfeasibleError, match="--survive 3 is the most"):
        Problem(np.ones((1, 1, 9)), Topology(4), 3, survive=4)
    with pytest.raises(InfeasibleError, match="node 0 has 1 GPUs × 4"):
        Problem(np.ones((1, 1, 12)), Topology(4, 2, excluded_ranks=(0,)), 4, num_groups=2)
    with pytest.raises(InfeasibleError, match="every GPU is excluded"):
        Topology(1, excluded_ranks=(0,))
    with pytest.raises(InputError, match="strategy deepseek knows nothing of --survive"):
        solve(problem(np.ones(4), 2, 3, survive=1), "deepseek")


def test_surviving_copies_cover_the_most_load() -> None:
    """With three spare slots the three hottest experts get a second copy."""
    plan = solve(problem([50, 40, 30, 20, 10, 1], 3, 3, survive=1))
    assert plan.placement.replica_count.tolist() == [[2, 2, 2, 1, 1, 1]]


def test_tiny_home_problems_against_brute_force() -> None:
    """Without groups a price on load off home costs no balance that matters: within 5 %."""
    for seed in range(4):
        one = problem(random_loads(seed, 1, 1, 5), 4, 2, 2, node_rule="home")
        plan = solve(one)
        assert plan.peak_load is not None
        # A placement's homes are those of first copies here, which any placement obeys.
        assert plan.peak_load[0] <= best_peak(one) * 1.25


def test_windows_to_come_keep_the_level_and_mirror_what_swung() -> None:
    """Two windows: what rose in the second is planned to rise and to fall around the late level."""
    loads = np.array([[10.0, 30.0], [20.0, 20.0]])
    made, weight = windows_to_plan(loads, np.ones(2), np.ones(2, bool), FUTURES)
    assert made.shape == (4, 2)
    assert weight.sum() == pytest.approx(1)
    assert made.sum(axis=1) == pytest.approx(40)
    level = made.mean(axis=0) / 40
    late = 2 / 3 * 0.5 + 1 / 3 * 0.25
    assert level[0] == pytest.approx(0.375 + 0.8 * (late - 0.375))
    assert (made[0] + made[2]) / 2 == pytest.approx(level * 40)


def test_scenarios_are_planned_for_as_they_are() -> None:
    """Only the timeline is moved; its weight and that of the scenario stay."""
    loads = np.array([[10.0, 30.0], [20.0, 20.0], [7.0, 1.0]])
    timeline = np.array([True, True, False])
    made, weight = windows_to_plan(loads, np.array([1.0, 1.0, 2.0]), timeline, FUTURES)
    assert made[-1].tolist() == [7, 1]
    assert weight[-1] == pytest.approx(0.5)
    assert weight[:-1].sum() == pytest.approx(0.5)


def test_the_same_settings_give_the_same_bytes() -> None:
    """With every rule at once."""
    one = Problem(
        random_loads(1, 4, 3, 24).astype(float),
        Topology(8, 2, tuple(np.linspace(1, 2, 8)), (5,)),
        4,
        node_rule="home",
        survive=1,
    )
    assert plan_bytes(solve(one)) == plan_bytes(solve(one))
