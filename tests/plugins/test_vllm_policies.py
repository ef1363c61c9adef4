"""What the vLLM plug-in answers: slots that stay, and live planning."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eplb.errors import InfeasibleError
from eplb.placement import Placement, linear
from eplb.plugins import vllm as plugin
from eplb.plugins.vllm_live import plan_live
from eplb.plugins.vllm_policies import Asked, Saved, SavedPlans, policy_class

from ..helpers import problem, random_loads
from .seam import START, DefaultPolicy, ask, run_code


@given(st.data())
def test_ranks_hold_their_experts_and_those_that_stay_keep_their_slots(data: st.DataObject) -> None:
    """Of any plan after any live map; the answer to one's own answer is that answer."""
    num_ranks, slots, num_layers = (data.draw(st.integers(1, 4)) for _ in range(3))
    num_experts = data.draw(st.integers(1, num_ranks * slots))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows = [rng.permutation(np.arange(num_ranks * slots) % num_experts) for _ in range(num_layers)]
    placement = Placement(np.array(rows), num_experts, num_ranks)
    old = rng.integers(-1, num_experts, (num_layers, num_ranks * slots))

    plan = SavedPlans([Saved("plan.json", placement, "")])
    policy = {"default": policy_class(DefaultPolicy, plan)}
    sizes = {"num_slots": num_ranks * slots, "num_ranks": num_ranks}
    found = ask(policy, np.ones((num_layers, num_experts)), old, **sizes)

    rows = found.numpy().reshape(-1, slots)
    for row, planned, was in zip(
        rows, placement.physical_to_logical.reshape(-1, slots), old.reshape(-1, slots), strict=True
    ):
        assert sorted(row) == sorted(planned)
        for expert in set(planned.tolist()):
            staying = min((planned == expert).sum(), (was == expert).sum())
            assert ((row == expert) & (was == expert)).sum() == staying
    assert torch.equal(ask(policy, np.ones((num_layers, num_experts)), found, **sizes), found)


def _asked(load: Any, old: Any = None, **sizes: int) -> Asked:
    given = {"num_slots": 6, "num_groups": 1, "num_nodes": 1, "num_ranks": 2, **sizes}
    return Asked(load=np.asarray(load, float), old=old, **given)


def test_live_planning_balances_by_hand() -> None:
    """Loads 8, 4, 4, 4 in six slots on two GPUs: expert 0 is on both, and each serves 10."""
    load = np.array([[8, 4, 4, 4]])
    placement = plan_live(_asked(load))
    share = load[0] / placement.replica_count[0]
    by_rank = share[placement.physical_to_logical[0]].reshape(2, -1).sum(axis=1)
    assert by_rank.tolist() == [10, 10]


def test_live_planning_stays_once_it_is_balanced(
    policies: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skewed loads are placed better than the start; the same loads again move nothing."""
    monkeypatch.setenv(plugin.POLICY, "live")
    plugin.register()
    load, start = random_loads(1, 3, 16), linear(3, 16, 20, 4)
    sizes = {"num_slots": 20, "num_ranks": 4}
    found = ask(policies, load, start.physical_to_logical, **sizes)
    placement = Placement(found.numpy(), 16, 4)
    one = problem(load, 4, 5)
    assert one.obeyed_by(placement).all()
    peaks = [
        (load / p.replica_count)[np.arange(3)[:, None], p.physical_to_logical]
        .reshape(3, 4, 5)
        .sum(axis=2)
        .max(axis=1)
        for p in (start, placement)
    ]
    assert (peaks[1] < peaks[0]).all()
    assert torch.equal(ask(policies, load, found, **sizes), found)


@pytest.mark.parametrize(
    "old", [START, np.full((2, 6), -1), np.array([[0, 1, 2, 0, 1, 2]] * 2)],
    ids=["live", "unfilled", "expert missing"],
)  # fmt: skip
def test_without_load_the_live_map_stays(old: "np.ndarray[Any, Any]") -> None:
    """Profiling and idle servers move nothing; a map that is none gives way to vLLM's start."""
    found = plan_live(_asked(np.zeros((2, 4)), old))
    assert found.physical_to_logical.tolist() == START.tolist()


@pytest.mark.parametrize(
    ("num_groups", "num_experts", "num_slots", "bound"),
    [(4, 8, 12, True), (3, 9, 12, False), (3, 8, 12, False), (2, 4, 12, False)],
    ids=[
        "groups on nodes",
        "groups do not divide",
        "nor do experts",
        "more slots a GPU than experts a node",
    ],
)
def test_groups_stay_on_nodes_where_vllm_keeps_them_there(
    num_groups: int, num_experts: int, num_slots: int, bound: bool
) -> None:
    """By vLLM's own test, unless a GPU would have to hold an expert twice."""
    asked = _asked(
        random_loads(2, 2, num_experts), num_slots=num_slots, num_groups=num_groups, num_nodes=2,
        num_ranks=4,
    )  # fmt: skip
    placement = plan_live(asked)
    assert not placement.duplicates()
    rows = placement.physical_to_logical.reshape(2, 2, -1)
    apart = [not set(row[0].tolist()) & set(row[1].tolist()) for row in rows]
    assert all(apart) == bound


def test_sizes_without_a_legal_placement_are_refused_while_profiling() -> None:
    """More slots a GPU than experts would be copies sharing a GPU."""
    with pytest.raises(InfeasibleError, match="copies would share a GPU"):
        plan_live(_asked(np.zeros((1, 2)), num_slots=6))


LIVE = """
import sys
from types import ModuleType
names = ["vllm", "vllm.distributed", "vllm.distributed.eplb", "vllm.distributed.eplb.policy"]
sys.modules.update({name: ModuleType(name) for name in names})
class Default:
    @classmethod
    def rebalance_experts(cls, weight, num_replicas, num_groups, num_nodes, num_ranks,
                          old_global_expert_indices=None): ...
policies = sys.modules[names[-1]].EPLB_POLICIES = {"default": Default}
from eplb.plugins.vllm import register
register()
import numpy, torch
load = torch.from_numpy(numpy.random.default_rng(5).zipf(1.5, (3, 32)).clip(max=9999))
old = torch.arange(48).remainder(32).expand(3, -1)
for _ in range(2):
    old = policies["default"].rebalance_experts(load, 48, 2, 2, 8, old)
    load = load.flip(0)
    print(old.tolist())
"""


def test_live_planning_is_the_same_in_every_process() -> None:
    """Two fresh processes with other hash seeds give the same maps, twice in a row."""
    said = [run_code(LIVE, {plugin.POLICY: "live", "PYTHONHASHSEED": seed}) for seed in ("1", "2")]
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == 2
