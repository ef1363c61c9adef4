"""Walking forward: what is seen and what is served."""

from eplb.placement import Placement, linear
from eplb.walk import walk_forward


def test_no_window_is_served_by_a_plan_that_saw_it() -> None:
    """Every plan sees only what lies before the windows that it serves, as far back as history."""
    seen: list[tuple[int, int]] = []

    def plan(past: slice, _live: Placement | None) -> Placement:
        seen.append((past.start, past.stop))
        return linear(1, 2, 2, 1)

    served = [(s.first, s.end) for s in walk_forward([3, 5, 7, 8], plan, history=4)]
    assert served == [(3, 5), (5, 7), (7, 8)]
    assert seen == [(0, 3), (1, 5), (3, 7)]
    assert [s.first for s in walk_forward([2, 4], plan)] == [2]
    assert seen[-1] == (0, 2)


def test_the_live_placement_is_handed_on() -> None:
    """A planner gets what serves now, and may return it."""
    first = linear(1, 2, 2, 1)
    lives: list[Placement | None] = []

    def plan(_past: slice, live: Placement | None) -> Placement:
        lives.append(live)
        return live or first

    stretches = list(walk_forward([1, 2, 3], plan))
    assert lives[0] is None and lives[1] is first
    assert all(stretch.placement is first for stretch in stretches)
