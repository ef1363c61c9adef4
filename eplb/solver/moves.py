"""Re-planning from a live placement: what balance each number of moves can buy.

Every layer gets a set of points (moves, peak): the live placement, searches from the best known
point at a ladder of prices per received copy, and a fresh plan whose ranks are renumbered so that
least is moved. A budget is pooled over layers (`pooling`).
"""

from collections.abc import Callable

import numpy as np

from .._arrays import Bools, Floats, Ints
from .layer_kernels import FREE
from .layer_planner import LayerPlan, LayerPlanner
from .local_search import for_each_layer
from .pooling import Point
from .search import search

# Prices of one received copy, as shares of the mean rank load, at which a layer is searched.
_PRICES = np.geomspace(1e-4, 1e-1, 13)
# Shares of all slots that the frontier is drawn at; the last is no limit.
FRONTIER = (0.0, 0.01, 0.02, 0.05, 0.10, 0.20, 1.0)


def curves(
    planner: LayerPlanner,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, float], None] = lambda layer, peak: None,
) -> tuple[list[list[Point]], Bools]:
    """The points of every layer, and which layers were cut short, (L,)."""
    num_layers = planner.problem.num_layers
    found: list[list[Point]] = [[] for _ in range(num_layers)]
    stopped = np.zeros(num_layers, bool)

    def draw(layer: int) -> None:
        stopped[layer] = stop()
        found[layer] = _curve(planner, layer, bool(stopped[layer]))
        progress(layer, planner.peak(layer, min(found[layer], key=lambda p: p.peak).slots))

    for_each_layer(num_layers, draw)
    return found, stopped


def _curve(planner: LayerPlanner, layer: int, hurry: bool) -> list[Point]:
    problem, settings = planner.problem, planner.settings
    load_EW, value = planner.loads(layer, settings.outlook)
    mean = load_EW.sum() / len(planner.node_R)
    live_RE = planner.live(layer)
    home = planner.homes_of(layer, load_EW)
    least_E = planner.least_copies(value, home)

    def point(plan: LayerPlan) -> Point:
        ranks = np.repeat(np.arange(len(planner.node_R)), problem.slots_per_rank)
        moves = int((~live_RE[ranks, plan.slots]).sum())
        state = planner.state(load_EW, plan.slots, plan.home, least_E)
        objective = float(search(state, np.inf, np.empty((0, 17))))
        return Point(moves, objective / mean if mean > 0 else 1.0, plan.slots, plan.home)

    points = []
    near = None
    for own in (planner.stated_homes(layer), home):
        if near is None and own is not None:
            near = _nearest(planner, load_EW, live_RE, own, least_E)
    if near is not None:
        points.append(point(near))
    if hurry and points:
        return points
    fresh = planner.plan(layer, hurry)
    points.append(point(fresh._replace(slots=_relabelled(planner, fresh.slots, live_RE))))
    best = planner.bound(layer) / mean if mean > 0 else 1.0
    if hurry or any(p.cost == 0 and p.peak <= best * (1 + 1e-9) for p in points):
        return points
    rng = np.random.default_rng([settings.seed, layer])
    for price in _PRICES[::-1]:
        start = min(points, key=lambda p: p.peak + price * p.cost)
        slots, home = start.slots.copy(), start.home.copy()
        state = planner.state(load_EW, slots, home, least_E)
        state = state._replace(move_price=price * mean, live_RE=live_RE)
        search(state, 0.0, rng.random((planner.restarts(load_EW), 17)))
        points.append(point(LayerPlan(slots, home, 0.0)))
    return points


def _nearest(
    planner: LayerPlanner, load_EW: Floats, live_RE: Bools, home: Ints, least_E: Ints
) -> LayerPlan | None:
    """The live placement, changed only where it must be: where ranks are gone or new, where it
    breaks a rule, or where an expert has too few copies. None where that does not work out."""
    K = planner.problem.slots_per_rank
    held = live_RE & planner.allowed(home)
    count = held.sum(axis=0)
    mean_E = load_EW.sum(axis=1)
    # Ranks that hold more than fits now give up the copies that matter least.
    for r in np.flatnonzero(held.sum(axis=1) > K):
        for e in sorted(np.flatnonzero(held[r]), key=lambda e: mean_E[e] / count[e]):
            if held[r].sum() > K and count[e] > 1:
                held[r, e] = False
                count[e] -= 1
        for e in sorted(np.flatnonzero(held[r]), key=lambda e: mean_E[e]):
            if held[r].sum() > K:
                held[r, e] = False
                count[e] -= 1
    # Free slots first bring back what is missing, then share the hottest copies.
    while (free := K - held.sum(axis=1)).sum():
        missing = np.flatnonzero(count < least_E)
        order = np.argsort(-mean_E[missing], kind="stable") if len(missing) else None
        experts = (
            missing[order] if order is not None else np.argsort(-mean_E / count, kind="stable")
        )
        placed = False
        for e in experts:
            ranks = np.flatnonzero((free > 0) & ~held[:, e] & planner.allowed(home)[:, e])
            if len(ranks):
                busy = (held[ranks] * (mean_E / np.maximum(count, 1))).sum(axis=1)
                held[ranks[np.argmin(busy * planner.pace_R[ranks])], e] = True
                count[e] += 1
                placed = True
                break
        if not placed:
            return None
    slots = np.nonzero(held)[1].astype(np.int64)
    if (count < least_E).any() or not planner.keeps_rule(slots, home):
        return None
    return LayerPlan(slots, home.copy(), 0.0)


def _relabelled(planner: LayerPlanner, slots: Ints, live_RE: Bools) -> Ints:
    """The same placement with ranks renumbered so that as few copies as possible are received:
    an assignment inside each class of ranks that are alike."""
    from scipy.optimize import linear_sum_assignment

    by_rank = slots.reshape(len(planner.node_R), -1)
    kept = np.array([live_RE[:, own].sum(axis=1) for own in by_rank])
    out = by_rank.copy()
    # With a node rule homes stay where they are, so ranks change places inside their node only.
    node = planner.node_R if planner.rule != FREE else np.zeros_like(planner.node_R)
    for alike in {(int(n), float(p)) for n, p in zip(node, planner.pace_R, strict=True)}:
        own = np.flatnonzero((node == alike[0]) & (planner.pace_R == alike[1]))
        new, old = linear_sum_assignment(-kept[np.ix_(own, own)])
        out[own[old]] = by_rank[own[new]]
    return out.ravel()


def renumbered(planner: LayerPlanner, layer: int, slots: Ints) -> Ints:
    """A finished layer with ranks and slots numbered so that least is moved from the live one."""
    return in_live_slots(planner, layer, _relabelled(planner, slots, planner.live(layer)))


def in_live_slots(planner: LayerPlanner, layer: int, slots: Ints) -> Ints:
    """The slots of a layer in an order that leaves every expert that stays on its rank in the slot
    it has there now; the others fill the slots between in ascending order."""
    K = planner.problem.slots_per_rank
    now = planner.live_slots(layer)
    out = np.sort(slots.reshape(-1, K), axis=1)
    if now is None:
        return out.ravel()
    for r, (before, after) in enumerate(zip(now.reshape(-1, K), out.copy(), strict=True)):
        stays = np.isin(before, after)
        row = np.where(stays, before, -1)
        row[~stays] = np.setdiff1d(after, before[stays])
        out[r] = row
    return out.ravel()
