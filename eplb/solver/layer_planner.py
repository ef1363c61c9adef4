"""How `auto` plans one layer: windows to plan for, homes, a first packing, and the search."""

from copy import copy
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .. import metrics
from .._arrays import Bools, Floats, Ints
from ..placement import Placement
from ..problem import Problem
from . import hierarchical, kernels, nodes
from .anneal_kernels import anneal
from .layer_kernels import FREE, HOME, STRICT, Layer, layer_of
from .outlook import WINDOWS, Outlook, windows_to_plan
from .pooling import Point
from .search import search

RULES = {"free": FREE, "strict": STRICT, "home": HOME}

# Restarts a layer: as many as this work allows, in slots × windows a restart, but at least and at
# most so many. Small problems can be searched until nothing is left to find.
_WORK, _FEWEST, _MOST = 60_000, 3, 5_000
# One window is searched until it is this close to its bound.
_NEAR_BOUND = 1e-4
# Annealing under `home`: trials; heat as a share of the mean rank load; the balancedness above
# which nothing is gained, with one window and with several; the price of load off home.
_TRIALS, _HEAT, _GOOD_ONE, _GOOD_MANY, _OFF_PRICE = 100_000, 0.01, 0.99, 0.97, 0.2
# With a cap on load off home: the balancednesses and prices tried; the first is `strict`.
_LADDER = (
    (0.99, 0.1), (0.99, 0.2), (0.98, 0.3), (0.97, 0.3), (0.96, 0.4), (0.94, 0.5), (0.9, 0.6),
    (0.85, 0.7),
)  # fmt: skip


class Settings(NamedTuple):
    """How hard and for what `auto` searches: `effort` multiplies restarts and trials."""

    outlook: Outlook = WINDOWS
    effort: float = 1.0
    seed: int = 0


class LayerPlan(NamedTuple):
    """Slots (S,) on the live ranks, home nodes (E,), and the objective reached."""

    slots: Ints
    home: Ints
    peak: float


class LayerPlanner:
    """Plans one layer of a problem after another; holds what all layers share."""

    def __init__(self, problem: Problem, lower_bound: Floats, settings: Settings) -> None:
        self.problem, self.settings = problem, settings
        self._lower_bound = lower_bound
        topology = problem.topology
        self.node_R = topology.node_of_rank[topology.live_ranks].astype(np.int64)
        self.pace_R = topology.pace
        self.rule = RULES[problem.node_rule] if topology.num_nodes > 1 else FREE
        self._units = problem.groups_on_nodes
        self._ways: Ints | None = None
        if self.rule != FREE and self._units > 1:
            few = nodes.count_pairings(self._units, topology.num_nodes) <= nodes.MOST_PAIRINGS
            self._ways = nodes.pairings(self._units, topology.num_nodes) if few else None

    @cached_property
    def _published(self) -> list[tuple[float, Ints, Ints] | None]:
        """The published greedy's peak load, slots and homes of each layer where they break no
        rule; it knows nothing of unequal ranks and copies that must survive."""
        if not self.problem.topology.is_plain or self.problem.survive:
            return [None] * self.problem.num_layers
        return _deepseek_rows(self.problem)

    def plan(self, layer: int, hurry: bool = False) -> LayerPlan:
        """The best placement found of a layer, without a search in a `hurry`."""
        load_EW, value = self.loads(layer, self.settings.outlook)
        found = self._search(layer, load_EW, value, hurry)
        deepseek = None if hurry else self._published[layer]
        recorded = self.settings.outlook is WINDOWS
        peak = found.peak if recorded else self.peak(layer, found.slots)
        if deepseek is None or deepseek[0] >= peak:
            return found._replace(peak=peak)
        if not recorded:
            # The windows to come asked for too much of the recorded ones: plan for those.
            other_self = copy(self)
            other_self.settings = self.settings._replace(outlook=WINDOWS)
            return other_self.plan(layer)
        # Its homes and counts may be the better start, and are at the least as good an end.
        other = self._improve(layer, load_EW, deepseek[1].copy(), deepseek[2].copy(), False)
        return other if other.peak < peak else found

    def loads(self, layer: int, outlook: Outlook) -> tuple[Floats, Floats]:
        """A layer's windows to plan for, (E, V), times their weights, and the load that each expert
        is sized for, (E,)."""
        problem = self.problem
        windows, share = windows_to_plan(
            problem.loads[:, layer, :], problem.window_weight, problem.scenario == 0, outlook
        )
        load_EW = np.ascontiguousarray((windows * share[:, None]).T)
        mean = load_EW.sum(axis=1)
        variance = (share[:, None] * (windows - mean) ** 2).sum(axis=0)
        return load_EW, mean + outlook.swing * np.sqrt(np.maximum(variance, 0.0))

    def state(self, load_EW: Floats, slots: Ints, home: Ints, least_E: Ints | None = None) -> Layer:
        """The kernels' view of a layer."""
        return layer_of(
            load_EW,
            slots,
            home,
            self.node_R,
            rule=self.rule,
            fixed_homes=self._units > 1,
            pace_R=self.pace_R,
            least_E=least_E,
            off_price=_OFF_PRICE if self.rule == HOME else 0.0,
        )

    def trade_off(self, layer: int) -> list[Point]:
        """Under `home`: points (share of the load served off home, peak), from none off home to
        what balance alone would ask for."""
        load_EW, value = self.loads(layer, self.settings.outlook)
        home = self.homes_of(layer, load_EW)
        least_E = self.least_copies(value, home)
        start = self._first_slots(load_EW, value, home, least_E)
        mean_W = load_EW.sum(axis=0) / len(self.node_R)
        points = []
        for good, price in ((None, 0.0), *_LADDER):
            slots, own_home = start.copy(), home.copy()
            state = self.state(load_EW, slots, own_home, least_E)
            rng = np.random.default_rng([self.settings.seed, layer])
            if good is None:
                state = state._replace(rule=STRICT, off_price=0.0)
                search(state, 0.0, rng.random((self.restarts(load_EW), 17)))
            else:
                state = state._replace(off_price=price)
                trials = rng.random((int(_TRIALS * self.settings.effort), 4))
                anneal(state, mean_W / good, _HEAT * mean_W.sum(), trials)
                search(state, (mean_W / good).sum(), np.empty((0, 17)))
            peak = float(state.rank_load_RW.max(axis=0).sum())
            off = self.off_home(layer, slots, own_home)
            points.append(Point(off, peak / max(float(mean_W.sum()), 1e-300), slots, own_home))
        return points

    def off_home(self, layer: int, slots: Ints, home: Ints) -> float:
        """The share of a layer's recorded load that is served off its home node."""
        mean_E = self.loads(layer, WINDOWS)[0].sum(axis=1)
        away = np.repeat(self.node_R, self.problem.slots_per_rank) != home[slots]
        count = np.bincount(slots, minlength=len(home))
        return float((mean_E / count)[slots][away].sum() / max(float(mean_E.sum()), 1e-300))

    def restarts(self, load_EW: Floats) -> int:
        """How often a search of these windows is restarted."""
        work = _WORK // (self.problem.num_slots * load_EW.shape[1])
        return int(np.ceil(min(max(work, _FEWEST), _MOST) * self.settings.effort))

    def live(self, layer: int) -> Bools:
        """Which rank in service holds which expert now, (R, E); new ranks hold nothing."""
        current, live_ranks = self.problem.current, self.problem.topology.live_ranks
        assert current is not None
        held = np.zeros((len(live_ranks), self.problem.num_experts), bool)
        known = live_ranks < current.num_ranks
        held[known] = current.rank_copies[layer, live_ranks[known]] > 0
        return held

    def live_slots(self, layer: int) -> Ints | None:
        """What each slot of the ranks in service holds now; None when ranks have other slots."""
        current, topology = self.problem.current, self.problem.topology
        assert current is not None
        if (current.num_ranks, current.slots_per_rank) != (
            topology.num_ranks,
            self.problem.slots_per_rank,
        ):
            return None
        by_rank = current.physical_to_logical[layer].reshape(topology.num_ranks, -1)
        slots: Ints = by_rank[topology.live_ranks].astype(np.int64).ravel()
        return slots

    def homes_of(self, layer: int, load_EW: Floats) -> Ints:
        """The home nodes of a layer to start from: those of the live plan where they can be kept,
        else chosen by load."""
        home = None if self.problem.current is None else self.stated_homes(layer)
        return home if home is not None and self._homes_fit(home) else self._homes(load_EW)

    def stated_homes(self, layer: int) -> Ints | None:
        """The homes of the live plan where they make sense on these nodes: known nodes, whole
        groups, equally many on each node."""
        current, num_nodes = self.problem.current, self.problem.topology.num_nodes
        assert current is not None
        home: Ints = current.home_node[layer].astype(np.int64)
        if self.rule == FREE or home.max() >= num_nodes:
            return None
        if self._units > 1:
            units = home.reshape(self._units, -1)
            per_node = np.bincount(units[:, 0], minlength=num_nodes)
            if (units != units[:, :1]).any() or len(set(per_node.tolist())) > 1:
                return None
        return home

    def bound(self, layer: int) -> float:
        """The lower bound of a layer's peak load."""
        return float(self._lower_bound[layer])

    def _homes_fit(self, home: Ints) -> bool:
        """Whether every node's slots can hold the experts at home on it, without twins."""
        num_nodes, K = self.problem.topology.num_nodes, self.problem.slots_per_rank
        slots = np.bincount(self.node_R, minlength=num_nodes) * K
        at_home = np.bincount(home, minlength=num_nodes)
        fits = (at_home <= slots) & (at_home >= np.where(slots > 0, K, 0))
        return bool(fits.all())

    def allowed(self, home: Ints) -> Bools:
        """Which rank may hold which expert under the node rule, (R, E)."""
        if self.rule != STRICT:
            return np.ones((len(self.node_R), len(home)), bool)
        at_home: Bools = self.node_R[:, None] == home[None, :]
        return at_home

    def keeps_rule(self, slots: Ints, home: Ints) -> bool:
        """Whether slots keep the node rule with these homes."""
        if self.rule == FREE:
            return True
        at_home = np.repeat(self.node_R, self.problem.slots_per_rank) == home[slots]
        if self.rule == STRICT:
            return bool(at_home.all())
        return len(np.unique(slots[at_home])) == len(home)

    def least_copies(self, value: Floats, home: Ints) -> Ints:
        """Copies each expert must have: `survive` more than one, for the hottest experts first as
        far as slots allow; on different GPUs, so that so many may be lost. With a node rule each
        node's slots serve the experts at home there."""
        least = np.ones(len(value), np.int64)
        if self.problem.survive == 0:
            return least
        pool = np.zeros_like(home) if self.rule == FREE else home
        rank_pool = np.zeros_like(self.node_R) if self.rule == FREE else self.node_R
        for node in np.unique(pool):
            own = np.flatnonzero(pool == node)
            spare = int((rank_pool == node).sum()) * self.problem.slots_per_rank - len(own)
            hottest = own[np.argsort(-value[own], kind="stable")]
            least[hottest[: spare // self.problem.survive]] += self.problem.survive
        return least

    def peak(self, layer: int, slots: Ints) -> float:
        """The layer's peak load in the recorded windows."""
        load_EW, _ = self.loads(layer, WINDOWS)
        return float(metrics.slot_peaks(load_EW, slots, self.pace_R).sum())

    def _search(self, layer: int, load_EW: Floats, value: Floats, hurry: bool) -> LayerPlan:
        home = self.homes_of(layer, load_EW)
        least_E = self.least_copies(value, home)
        slots = self._first_slots(load_EW, value, home, least_E)
        return self._improve(layer, load_EW, slots, home, hurry, least_E)

    def _improve(
        self,
        layer: int,
        load_EW: Floats,
        slots: Ints,
        home: Ints,
        hurry: bool,
        least_E: Ints | None = None,
    ) -> LayerPlan:
        num_windows = load_EW.shape[1]
        rng = np.random.default_rng([self.settings.seed, layer])
        near = _NEAR_BOUND if num_windows == 1 else 1e-12
        # In a hurry every map is good enough as it is.
        goal = np.inf if hurry else self._lower_bound[layer] * (1 + near)
        kicks = self.restarts(load_EW)
        state = self.state(load_EW, slots, home, least_E)
        if self.rule == HOME and self._units > 1 and not hurry:
            mean_W = load_EW.sum(axis=0) / len(self.node_R)
            goal_W = mean_W / (_GOOD_ONE if num_windows == 1 else _GOOD_MANY)
            trials = rng.random((int(_TRIALS * self.settings.effort), 4))
            anneal(state, goal_W, _HEAT * mean_W.sum(), trials)
            goal, kicks = goal_W.sum(), 0
        search(state, goal, rng.random((0 if hurry else kicks, 17)))
        return LayerPlan(slots, home, float(state.rank_load_RW.max(axis=0).sum()))

    def _first_slots(self, load_EW: Floats, value: Floats, home: Ints, least_E: Ints) -> Ints:
        """Greedy counts and a packing that obeys the node rule."""
        K, num_ranks = self.problem.slots_per_rank, len(self.node_R)
        first = np.zeros_like(home)
        end = np.full_like(home, num_ranks)
        if self.rule == FREE:
            count = kernels.greedy_counts(value, least_E, num_ranks * K, num_ranks)
        else:
            count = np.empty_like(home)
            for node in range(self.problem.topology.num_nodes):
                own = np.flatnonzero(home == node)
                ranks = np.flatnonzero(self.node_R == node)
                first[own], end[own] = ranks[0], ranks[-1] + 1
                count[own] = kernels.greedy_counts(
                    value[own], least_E[own], len(ranks) * K, len(ranks)
                )
        share_EW = load_EW / count[:, None]
        order = np.argsort(-share_EW.sum(axis=1), kind="stable")
        slots: Ints = kernels.pack(share_EW, order, count, first, end, num_ranks, K)
        return slots

    def _homes(self, load_EW: Floats) -> Ints:
        """The home node of each expert to start from: the best pairing of whole groups with
        nodes, or a node for each expert where there are no groups to keep whole."""
        num_experts, num_nodes = len(load_EW), self.problem.topology.num_nodes
        if self.rule == FREE:
            return np.zeros(num_experts, np.int64)
        # A unit is what must share a home: a group, or a single expert.
        num_units = self._units if self._units > 1 else num_experts
        unit_load = load_EW.reshape(num_units, num_experts // num_units, -1).sum(axis=1)
        if self._ways is not None:
            peak = nodes.node_peaks(np.ascontiguousarray(unit_load.T), self._ways).sum(axis=1)
            if self.rule == HOME:
                off = nodes.least_off_home(unit_load.sum(axis=1), self._ways, _GOOD_ONE)
                node = self._ways[int(np.lexsort((peak, off.round(6)))[0])]
            else:
                node = self._ways[int(np.argmin(peak))]
        else:
            if self._units > 1:
                quota = np.full(num_nodes, num_units // num_nodes)
            else:
                ranks = np.bincount(self.node_R, minlength=num_nodes)
                quota = _quota(num_units, ranks, self.problem.slots_per_rank)
            order = np.argsort(-unit_load.sum(axis=1), kind="stable")
            node = kernels.spread(unit_load, order, quota)
        return np.repeat(node, num_experts // num_units)


def _quota(num_experts: int, ranks_of_node: Ints, slots_per_rank: int) -> Ints:
    """Experts at home on each node: as many as a rank has slots, so that no expert need be twice
    on one, and the rest in proportion to the ranks beyond the first."""
    alive = np.flatnonzero(ranks_of_node)
    quota = np.zeros(len(ranks_of_node), np.int64)
    quota[alive] = slots_per_rank
    rest, weight = num_experts - int(quota.sum()), ranks_of_node[alive] - 1
    if rest > 0:
        quota[alive] += rest * weight // weight.sum()
        most = slots_per_rank * ranks_of_node
        for node in alive:
            if quota.sum() < num_experts and quota[node] < most[node]:
                quota[node] += 1
    return quota


def _deepseek_rows(problem: Problem) -> list[tuple[float, Ints, Ints] | None]:
    """The published greedy's peak load, slots and homes of each layer where they break no rule."""
    slots, _ = hierarchical.place(problem)
    topology = problem.topology
    placement = Placement(slots, problem.num_experts, topology.num_ranks, topology.num_nodes)
    legal = problem.obeyed_by(placement)
    peak = metrics.measure(problem.loads, placement, problem.window_weight).peak_load
    home = placement.home_node.astype(np.int64)
    return [
        (float(peak[layer]), slots[layer], home[layer]) if legal[layer] else None
        for layer in range(problem.num_layers)
    ]
