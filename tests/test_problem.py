"""Problems: what is feasible, and what the message says when it is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.errors import EplbError, InfeasibleError, InputError, RefusedError
from eplb.placement import Placement, linear
from eplb.problem import Problem, check_slots, default_redundant, legal_redundant
from eplb.topology import Topology
from eplb.trace import LoadTrace

from .helpers import problem


@pytest.mark.parametrize(
    ("num_experts", "num_ranks", "expected"),
    [(256, 32, 32), (256, 320, 384), (12, 8, 12), (8, 8, 8), (4, 2, 2), (2, 8, 14), (1, 8, 7)],
)
def test_default_redundancy(num_experts: int, num_ranks: int, expected: int) -> None:
    """One copy a GPU or the least above that fills equal slots; DeepSeek-V3 prefill has 32."""
    assert default_redundant(num_experts, Topology(num_ranks)) == expected


@given(st.integers(1, 40), st.integers(1, 40))
def test_default_redundancy_is_legal(num_experts: int, num_ranks: int) -> None:
    """What is assumed without being asked for can always be planned."""
    topology = Topology(num_ranks)
    num_redundant = default_redundant(num_experts, topology)
    assert num_redundant in legal_redundant(num_experts, topology)
    check_slots(num_experts, num_experts + num_redundant, topology)


@pytest.mark.parametrize(
    ("num_experts", "num_redundant", "num_ranks", "message"),
    [
        (256, 32, 40, r"288 slots do not divide over 40 ranks \(288 / 40 = 7.2\);"
                      " --redundant 24 or 64 would"),
        (256, 0, 320, "256 slots do not divide over 320 ranks"),
        (4, 16, 4, "5 slots a GPU are more than the 4 experts"),
    ],
)  # fmt: skip
def test_impossible_slots_name_the_nearest(
    num_experts: int, num_redundant: int, num_ranks: int, message: str
) -> None:
    """The message says what would work."""
    trace = LoadTrace(np.ones((1, 1, num_experts)))
    with pytest.raises(InfeasibleError, match=message):
        Problem.from_trace(trace, Topology(num_ranks), num_redundant)


def test_nodes_must_divide_gpus() -> None:
    """The message says which numbers of nodes do."""
    with pytest.raises(InfeasibleError, match="--nodes 2 or 4 or 8 would"):
        Topology(8, 5)
    with pytest.raises(InputError, match="0 GPUs"):
        Topology(0)


def test_strict_needs_as_many_experts_on_a_node_as_slots_on_a_gpu() -> None:
    """Otherwise copies would have to share a GPU; the message gives two ways out."""
    with pytest.raises(InfeasibleError, match="--redundant 8 or --node-rule free"):
        problem(np.ones(8), 8, 4, 4)
    assert problem(np.ones(8), 8, 4, 4, node_rule="free").num_redundant == 24


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"node_rule": "near"}, "node rule .near."),
        ({"num_groups": 3}, "8 experts do not divide into 3 groups"),
        ({"expert_bytes": 0}, "0 bytes"),
        ({"window_weight": np.array([-1.0])}, "window_weight"),
    ],
)
def test_senseless_settings_are_refused(kwargs: dict[str, object], message: str) -> None:
    """Settings are checked once, at birth."""
    with pytest.raises(InputError, match=message):
        problem(np.ones(8), 4, 3, **kwargs)


def test_a_current_plan_of_another_model_is_refused() -> None:
    """Layers and experts must be the same."""
    with pytest.raises(RefusedError, match="of different models"):
        problem(np.ones(8), 4, 3, current=linear(2, 8, 12, 4))


def test_groups_that_do_not_divide_are_not_kept_whole() -> None:
    """Six groups on four nodes count as one."""
    assert problem(np.ones(12), 4, 3, 4, num_groups=6).groups_on_nodes == 1
    assert problem(np.ones(12), 4, 3, 2, num_groups=6).groups_on_nodes == 6
    assert problem(np.ones(12), 4, 3, 1, num_groups=6).groups_on_nodes == 1


def test_the_digest_tells_problems_apart() -> None:
    """Every input that can change a plan changes the digest; the same input never does."""
    loads = np.arange(1, 9)
    same = problem(loads, 4, 3).digest()
    assert problem(loads, 4, 3).digest() == same
    others = [
        problem(loads + 1, 4, 3),
        problem(loads, 2, 5),
        problem(loads, 4, 3, 2),
        problem(loads, 4, 3, num_groups=2),
        problem(loads, 4, 3, node_rule="free"),
        problem(loads, 4, 3, layer_ids=np.array([5])),
        problem(loads, 4, 3, current=linear(1, 8, 12, 4)),
    ]
    assert len({same, *(other.digest() for other in others)}) == len(others) + 1


def test_rules_are_told_apart() -> None:
    """A twin, a copy off its node and a split group each break a rule; a clean map breaks none."""
    strict = problem(np.ones(4), 4, 2, 2, num_groups=2)

    def obeys(*slots: int, home: tuple[int, ...] | None = None) -> bool:
        homes = None if home is None else np.array([home])
        return bool(strict.obeyed_by(Placement(np.array([slots]), 4, 4, 2, homes))[0])

    assert obeys(0, 1, 0, 1, 2, 3, 2, 3)
    assert not obeys(0, 0, 0, 1, 2, 3, 2, 3)
    assert not obeys(0, 1, 0, 2, 1, 3, 2, 3)
    assert not obeys(0, 2, 0, 2, 1, 3, 1, 3), "groups {0, 1} and {2, 3} are split"
    assert not obeys(0, 1, 0, 1, 2, 3, 2, 3, home=(1, 1, 0, 0))


def test_every_error_is_one_family() -> None:
    """A caller can catch them all at once."""
    assert issubclass(InfeasibleError, EplbError)
    assert issubclass(EplbError, ValueError)
