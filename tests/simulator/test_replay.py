"""Traces served by placements that are given, and by plans made as they go."""

from dataclasses import replace

import numpy as np
import pytest

from eplb import metrics
from eplb.errors import InputError, RefusedError
from eplb.placement import Placement, linear
from eplb.simulator import policy
from eplb.simulator.forward import edges, walk
from eplb.simulator.loss import lose, lost_share
from eplb.simulator.replay import Score, evenly, of_layers, replay, unseen
from eplb.topology import Topology
from eplb.trace import LoadTrace

from ..helpers import random_loads

TRACE = LoadTrace(random_loads(5, 12, 3, 8), layer_ids=np.array([2, 4, 6]), window_steps=10)
NARROW, WIDE = linear(3, 8, 8, 4), linear(3, 8, 12, 4, 2)
FOUR = Topology(4)


def _scores(parts: list[LoadTrace], seen: tuple[str, ...] = ()) -> dict[str, Score]:
    """Both placements on the windows that are not among those seen."""
    serve = {
        name: (Score(TRACE.layer_ids, FOUR), evenly(placement))
        for name, placement in (("n", NARROW), ("w", WIDE))
    }
    replay(unseen(parts, TRACE.layer_ids, 8, seen), serve)
    return {name: score for name, (score, _) in serve.items()}


def _independent(tokens: np.ndarray, placements: list[Placement]) -> tuple[float, float]:
    """Mean balancedness and efficiency, counted copy by copy: one placement a window."""
    ratios, means, peaks = [], 0.0, 0.0
    for window, placement in zip(tokens, placements, strict=True):
        for layer, loads in enumerate(window):
            slots = placement.physical_to_logical[layer].tolist()
            ranks = [0.0] * placement.num_ranks
            for slot, expert in enumerate(slots):
                ranks[slot // placement.slots_per_rank] += loads[expert] / slots.count(expert)
            mean, peak = sum(ranks) / len(ranks), max(ranks)
            ratios.append(mean / peak)
            means, peaks = means + mean, peaks + peak
    return sum(ratios) / len(ratios), means / peaks


def test_replay_is_what_an_independent_scorer_says() -> None:
    """Block by block or whole, under several placements at once."""
    blocks = [TRACE.windows(slice(0, 5)), TRACE.windows(slice(5, 12))]
    for parts in ([TRACE], blocks):
        scores = _scores(parts)
        for name, placement in (("n", NARROW), ("w", WIDE)):
            summary = scores[name].report().summary()
            mean, efficiency = _independent(TRACE.tokens, [placement] * 12)
            assert summary["mean_balancedness"] == pytest.approx(mean, rel=1e-12)
            assert summary["efficiency"] == pytest.approx(efficiency, rel=1e-12)
            assert scores[name].report().windows.tolist() == list(range(12))


def test_windows_that_were_planned_for_are_left_out() -> None:
    """By their loads alone: dense rows and other layer numbers do not hide them."""
    seen = TRACE.windows(slice(2, 5)).window_digests()
    padded = LoadTrace(np.insert(TRACE.tokens, 0, 0, axis=1), layer_ids=np.array([1, 2, 4, 6]))
    for trace in (TRACE, padded):
        scores = _scores([trace], seen)
        assert scores["n"].report().windows.tolist() == [0, 1, *range(5, 12)]
    scores = _scores([TRACE], TRACE.window_digests())
    with pytest.raises(InputError, match="no window is left"):
        scores["n"].report()


def test_windows_of_no_weight_are_left_out() -> None:
    """They count for nothing, be they all that was not planned for."""
    weighed = replace(TRACE, window_weight=np.array([1.0] * 8 + [0.0] * 4))
    assert _scores([weighed])["n"].report().windows.tolist() == list(range(8))
    scores = _scores([weighed, TRACE], TRACE.windows(slice(0, 8)).window_digests())
    assert scores["n"].report().windows.tolist() == list(range(20, 24))


def test_layers_are_matched_by_number() -> None:
    """A plan's layers are picked from the trace, in the plan's order; others must be empty."""
    own = of_layers(TRACE, np.array([6, 2, 4]), 8)
    assert own.tokens[0, 0].tolist() == TRACE.tokens[0, 2].tolist()
    for wrong in ([2, 4], [2, 4, 6, 7], [0, 1, 2]):
        with pytest.raises(RefusedError, match="do not cover the same layers"):
            of_layers(TRACE, np.array(wrong), 8)
    with pytest.raises(RefusedError, match="has 8 experts and the plan 9"):
        of_layers(TRACE, TRACE.layer_ids, 9)
    shared = of_layers(replace(TRACE, top_k=2), TRACE.layer_ids, 9, num_shared=1)
    assert shared.tokens[0, 0, 8] == TRACE.tokens[0, 0].sum() / 2


def test_speeds_weigh_loads() -> None:
    """A rank of half the mean speed feels twice the load."""
    speed = (1.5, 0.5, 1.0, 1.0)
    score = Score(TRACE.layer_ids, Topology(4, rank_speed=speed))
    score.add(TRACE, metrics.slot_loads(TRACE.tokens, NARROW), np.arange(12))
    plain = metrics.rank_loads(TRACE.tokens, NARROW).mean(axis=0)
    report = score.report()
    assert report.rank_load is not None
    assert report.rank_load[:, 1] == pytest.approx(2 * plain[:, 1])
    expected = metrics.measure(TRACE.tokens, NARROW, rank_speed=speed)
    assert report.balance.mean_balancedness == expected.mean_balancedness


def test_seconds_are_those_of_the_timer() -> None:
    """A model of time sees the tokens of slots and the steps of a window."""
    score = Score(TRACE.layer_ids, FOUR, timer=lambda slots, steps: slots.sum(axis=(1, 2)) / steps)
    score.add(TRACE, metrics.slot_loads(TRACE.tokens, WIDE), np.arange(12))
    seconds = score.report().step_seconds
    assert seconds == pytest.approx(TRACE.tokens.sum(axis=(1, 2)) / 10)


def test_seconds_need_the_steps_of_every_window() -> None:
    """Where one part of a trace does not say them there are none, in whatever order it comes."""
    for parts in (
        [TRACE, replace(TRACE, window_steps=None)],
        [replace(TRACE, window_steps=None), TRACE],
    ):
        score = Score(TRACE.layer_ids, FOUR, timer=lambda slots, steps: slots.sum(axis=(1, 2)))
        for part in parts:
            score.add(part, metrics.slot_loads(part.tokens, WIDE), np.arange(12))
        report = score.report()
        assert report.step_seconds is None and report.step_tokens is None


def test_edges_begin_after_the_history() -> None:
    """And end with the trace; a history that leaves nothing is refused."""
    assert edges(12, 4, 6) == [6, 10, 12]
    assert edges(12, 6, 6) == [6, 12]
    with pytest.raises(InputError, match="leaves none to serve; the trace has 12"):
        edges(12, 1, 12)


def _hottest_first(past: LoadTrace, _live: Placement | None) -> Placement:
    """A planner of three lines: the last window's hottest experts get the redundant slots."""
    hot = np.argsort(-past.tokens[-1], axis=1, kind="stable")
    return Placement(np.concatenate([hot, hot[:, :4]], axis=1), 8, 4)


def test_a_walk_is_what_an_independent_scorer_says() -> None:
    """Every stretch is scored under the plan of the windows just before it."""
    course = walk(TRACE, _hottest_first, policy.every, replan_every=3, history=4, topology=FOUR)
    served = []
    for first in range(4, 12, 3):
        plan = _hottest_first(TRACE.windows(slice(first - 4, first)), None)
        served += [plan] * min(3, 12 - first)
    mean, efficiency = _independent(TRACE.tokens[4:], served)
    summary = course.report.summary()
    assert summary["mean_balancedness"] == pytest.approx(mean, rel=1e-12)
    assert summary["efficiency"] == pytest.approx(efficiency, rel=1e-12)
    assert course.report.windows.tolist() == list(range(4, 12))
    moves = [
        sum(
            int(expert) not in before.physical_to_logical[layer].reshape(4, 3)[rank]
            for layer in range(3)
            for rank in range(4)
            for expert in set(after.physical_to_logical[layer].reshape(4, 3)[rank].tolist())
        )
        for before, after in ((served[0], served[3]), (served[3], served[6]))
    ]
    assert course.report.moves.tolist() == [0, 0, 0, moves[0], 0, 0, moves[1], 0]


@pytest.mark.parametrize(
    ("decide", "plans"),
    [(policy.never, 1), (policy.every, 3), (policy.below(1e-9), 1), (policy.below(1.0), 3)],
)
def test_policies_decide_who_plans(decide: policy.Policy, plans: int) -> None:
    """The first plan is always made; after that the policy asks or does not."""
    made = []

    def plan(past: LoadTrace, live: Placement | None) -> Placement:
        made.append(past.num_windows)
        return _hottest_first(past, live)

    walk(TRACE, plan, decide, replan_every=3, history=4, topology=FOUR)
    assert made == [4] * plans


@pytest.mark.parametrize(("price", "moved"), [(0.0, True), (1e9, False)])
def test_worth_it_weighs_seconds(price: float, moved: bool) -> None:
    """Moving pays when it costs nothing, and never when it costs more than it can save."""

    def seconds(recent: LoadTrace, placement: Placement) -> float:
        return metrics.measure(recent.tokens, placement).peak_load.sum()  # type: ignore[no-any-return]

    decide = policy.worth_it(seconds, lambda _old, _new: price, horizon=10)
    live = NARROW
    assert seconds(TRACE, WIDE) < seconds(TRACE, NARROW)
    assert (decide(TRACE, live, lambda: WIDE) is WIDE) == moved


def test_moves_from_a_live_placement_count() -> None:
    """With a live placement the first plan has moves of its own."""
    course = walk(TRACE, _hottest_first, policy.every, 3, 4, FOUR, live=linear(3, 8, 12, 4))
    assert course.report.moves[0] > 0
    kept = walk(TRACE, _hottest_first, policy.never, 3, 4, FOUR, live=linear(3, 8, 12, 4))
    assert kept.report.moves.sum() == 0


@pytest.mark.parametrize(
    ("topology", "live"),
    [(FOUR, linear(3, 8, 12, 2)), (Topology(4, excluded_ranks=(1,)), linear(3, 8, 12, 4))],
)
def test_what_the_ranks_in_service_cannot_serve_is_replaced_at_once(
    topology: Topology, live: Placement
) -> None:
    """Whatever the policy: a live placement on other ranks, or on one that is lost."""

    def plan(past: LoadTrace, _live: Placement | None) -> Placement:
        slots = np.tile(np.arange(8), (3, 1))
        if topology.excluded_ranks:
            slots = np.insert(slots, [3, 3, 3, 8], [-1, -1, -1, 0], axis=1)
        return Placement(slots, 8, 4, excluded_ranks=topology.excluded_ranks)

    course = walk(TRACE, plan, policy.never, 3, 4, topology, live)
    assert (course.replaced, len(course.changes)) == (1, 3)
    assert course.report.moves[0] > 0 and (course.report.balancedness <= 1).all()


def _after(placement: Placement, ranks: list[int], tokens: np.ndarray) -> tuple[Score, float]:
    trace = LoadTrace(tokens[None])
    loss = lose(placement, ranks)
    topology = Topology(placement.num_ranks, excluded_ranks=loss.ranks)
    score = Score(trace.layer_ids, topology)
    score.add(trace, loss.dispatch(trace, np.arange(1)), np.arange(1))
    return score, lost_share(loss, tokens)


def test_a_lost_rank_by_hand() -> None:
    """Two of eight experts live on each of four ranks: a loss takes two with it, or their copies
    take over."""
    tokens = np.arange(1, 9)[None]
    placement = linear(1, 8, 8, 4)
    assert lose(placement, [1]).lost.tolist() == [[0, 2], [0, 3]]
    score, share = _after(placement, [1], tokens)
    assert share == pytest.approx(7 / 36)
    assert score.report().balance.peak_load[0] == 15  # experts 6 and 7
    spread = Placement(np.array([[0, 1, 2, 3, 4, 5, 6, 7, 2, 3, 0, 1]]), 8, 4)
    score, share = _after(spread, [0], tokens)
    assert share == 0 and lose(spread, [0]).lost.size == 0
    # Rank 1: half of 4, 5, 6; rank 2: 7, 8, 3; rank 3: half of 4, 1, 2.
    assert score.report().balance.layer_balancedness[0] == pytest.approx(12 / 18)


@pytest.mark.parametrize("ranks", [[4], [-1], [0, 1, 2, 3]])
def test_losses_that_make_no_sense(ranks: list[int]) -> None:
    """Unknown ranks, and all of them, are refused."""
    with pytest.raises(InputError, match="GPU"):
        lose(NARROW, ranks)
