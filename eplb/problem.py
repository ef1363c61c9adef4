"""What is to be planned, validated once: loads, machines, slots and rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xxhash

from ._arrays import Bools, Filled, Floats, Numbers, frozen
from .errors import InfeasibleError, InputError, RefusedError
from .placement import Placement
from .topology import Topology
from .trace import LoadTrace, check_groups, checked_layer_ids

NodeRule = Literal["strict", "home", "free"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Loads to serve evenly, and what a placement must obey.

    Parameters
    ----------
    loads
        float64 of shape (W, L, E): token-expert assignments by window, layer and expert.
    topology
        The ranks and nodes.
    slots_per_rank
        K; with R ranks there are S = R·K slots, S − E of them redundant.
    window_weight
        Of shape (W,): how much each window counts; 1 by default.
    layer_ids
        Of shape (L,): the model's own layer numbers; 0 to L−1 by default.
    num_groups
        Routing groups (G), contiguous blocks of E / G ids.
    node_rule
        `strict`: every copy of an expert stays on its home node, and with routing groups that
        divide over the nodes all experts of a group share one home; `home`: at least one copy
        does; `free`: no rule.
    max_off_home
        Under `home`, the largest share of all load that may be served off its home node; None
        without a cap.
    survive
        Copies each expert must have beyond one, on different ranks, as far as slots allow, hottest
        experts first: so many ranks may be lost without losing it.
    current
        The live placement; None without one.
    max_moves
        With `current`: expert copies that may be sent over all layers; None without a limit.
    move_price
        With `current`: what one move must save, as a share of the layer's mean rank load.
    expert_bytes
        Bytes of one expert in one layer, to weigh moves with; None when unknown.

    Raises
    ------
    InfeasibleError
        When no placement can exist; the message names the nearest sizes that work.
    RefusedError
        When `current` is of other layers or experts.
    """

    loads: Floats
    topology: Topology
    slots_per_rank: int
    window_weight: Filled = None
    scenario: Filled = None
    layer_ids: Filled = None
    num_groups: int = 1
    node_rule: NodeRule = "strict"
    max_off_home: float | None = None
    survive: int = 0
    current: Placement | None = None
    max_moves: int | None = None
    move_price: float = 0.0
    expert_bytes: int | None = None

    def __post_init__(self) -> None:
        # A trace has checked the same things; a problem can also be built from bare arrays.
        trace = LoadTrace(self.loads, window_weight=self.window_weight, scenario=self.scenario)
        object.__setattr__(self, "loads", frozen(trace.tokens, np.float64))
        object.__setattr__(self, "window_weight", trace.window_weight)
        object.__setattr__(self, "scenario", trace.scenario)
        layer_ids = np.arange(self.num_layers) if self.layer_ids is None else self.layer_ids
        object.__setattr__(
            self, "layer_ids", checked_layer_ids(np.asarray(layer_ids), self.num_layers)
        )
        if self.node_rule not in get_args(NodeRule):
            raise InputError(f"node rule {self.node_rule!r}; one of {get_args(NodeRule)} is known")
        check_groups(self.num_groups, self.num_experts)
        check_slots(self.num_experts, self.slots_per_rank * self.topology.num_ranks, self.topology)
        self._check_limits()
        self._check_survivors()
        self._check_rule()
        if self.current is not None:
            self._check_current(self.current)

    @classmethod
    def from_trace(
        cls,
        trace: LoadTrace,
        topology: Topology,
        num_redundant: int | None = None,
        *,
        num_groups: int | None = None,
        **limits: Any,
    ) -> "Problem":
        """The problem of serving `trace` with `num_redundant` redundant experts a layer.

        By default one or more a rank (`default_redundant`), and the trace's own groups. Excluded
        ranks keep their slots empty, so that redundancy shrinks by them. `limits` are the other
        fields of a problem.
        """
        if num_redundant is None:
            bound = limits.get("node_rule", "strict") != "free" and topology.num_nodes > 1
            num_redundant = default_redundant(trace.num_experts, topology, bound)
        if num_redundant < 0:
            raise InputError(f"--redundant {num_redundant}; 0 or more is expected")
        num_slots = trace.num_experts + num_redundant
        check_slots(trace.num_experts, num_slots, topology)
        return cls(
            loads=frozen(trace.tokens, np.float64),
            topology=topology,
            slots_per_rank=num_slots // topology.num_ranks,
            window_weight=trace.window_weight,
            scenario=trace.scenario,
            layer_ids=trace.layer_ids,
            num_groups=num_groups or trace.num_groups or 1,
            **limits,
        )

    @property
    def num_windows(self) -> int:
        """W."""
        return int(self.loads.shape[0])

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.loads.shape[1])

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.loads.shape[2])

    @property
    def num_slots(self) -> int:
        """S, the slots of the ranks in service."""
        return self.topology.num_live_ranks * self.slots_per_rank

    @property
    def num_redundant(self) -> int:
        """S − E."""
        return self.num_slots - self.num_experts

    @property
    def groups_on_nodes(self) -> int:
        """Groups that are kept whole on a node: G where G > 1 divides over N > 1 nodes, else 1."""
        divides = self.topology.num_nodes > 1 and self.num_groups % self.topology.num_nodes == 0
        return self.num_groups if divides else 1

    @property
    def binds_nodes(self) -> bool:
        """Whether the node rule forbids anything: it cannot with one node."""
        return self.node_rule != "free" and self.topology.num_nodes > 1

    def digest(self) -> str:
        """xxh3-128 of the loads and every limit; the same problem has the same digest."""
        state = xxhash.xxh3_128()
        state.update(repr((self.loads.shape, self.topology, self.slots_per_rank)).encode())
        state.update(repr((self.num_groups, self.node_rule, self.max_off_home)).encode())
        state.update(repr((self.survive, self.max_moves, self.move_price)).encode())
        arrays: list[Numbers] = [self.loads, self.window_weight, self.scenario, self.layer_ids]
        if self.current is not None:
            arrays += [self.current.physical_to_logical, self.current.home_node]
        for array in arrays:
            state.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).data)
        return state.hexdigest()

    def obeyed_by(self, placement: Placement) -> Bools:
        """Of each layer, whether no rank holds an expert twice and the node rule is kept, (L,).

        With groups to keep whole, all experts of a group must share a home, and every node be home
        to equally many groups.
        """
        legal: Bools = placement.rank_copies.max(axis=(1, 2)) <= 1
        if not self.binds_nodes:
            return legal
        num_nodes = self.topology.num_nodes
        by_node = placement.rank_copies.reshape(
            placement.num_layers, num_nodes, -1, placement.num_logical_experts
        ).sum(axis=2)
        at_home = np.take_along_axis(by_node, placement.home_node[:, None, :], axis=1)[:, 0]
        needed = placement.replica_count if self.node_rule == "strict" else 1
        legal &= (at_home >= needed).all(axis=1)
        if self.groups_on_nodes > 1:
            home = placement.home_node.reshape(placement.num_layers, self.groups_on_nodes, -1)
            legal &= (home == home[:, :, :1]).all(axis=(1, 2))
            per_node = (home[:, :, :1] == np.arange(num_nodes)).sum(axis=1)
            legal &= (per_node == self.groups_on_nodes // num_nodes).all(axis=1)
        return legal

    def _check_limits(self) -> None:
        if self.expert_bytes is not None and self.expert_bytes < 1:
            raise InputError(f"an expert of {self.expert_bytes} bytes; 1 or more is expected")
        if self.max_off_home is not None and not 0 <= self.max_off_home <= 1:
            raise InputError(f"--max-off-home {self.max_off_home}; a share from 0 to 1 is expected")
        if self.max_off_home is not None and self.node_rule != "home":
            raise InputError(
                f"--max-off-home caps what --node-rule home allows; with {self.node_rule} it has"
                " no meaning"
            )
        if self.max_off_home is not None and self.current is not None:
            raise InputError("--max-off-home cannot be combined with --current yet; leave one out")
        if self.max_moves is not None and self.max_moves < 0:
            raise InputError(f"--max-moves {self.max_moves}; 0 or more is expected")
        if not (np.isfinite(self.move_price) and self.move_price >= 0):
            raise InputError(f"--move-price {self.move_price}; a number of 0 or more is expected")
        if self.current is None and (self.max_moves is not None or self.move_price > 0):
            raise InputError(
                "a budget or price of moves needs the plan that is live: --current PLAN"
            )

    def _check_survivors(self) -> None:
        """The ranks in service must hold every expert, and so many copies of each as must
        survive must be possible on different ranks."""
        topology, K = self.topology, self.slots_per_rank
        if self.num_slots < self.num_experts:
            raise InfeasibleError(
                f"{topology.num_live_ranks} GPUs left × {K} slots = {self.num_slots} slots are"
                f" fewer than the {self.num_experts} experts; at least"
                f" {-(-self.num_experts // K)} GPUs must be left, or more --redundant"
            )
        if self.survive < 0 or self.survive >= topology.num_live_ranks:
            raise InfeasibleError(
                f"--survive {self.survive} needs {self.survive + 1} copies of an expert on"
                f" different GPUs and {topology.num_live_ranks} are in service; --survive"
                f" {topology.num_live_ranks - 1} is the most that can be asked for"
            )

    def _check_rule(self) -> None:
        if not self.binds_nodes:
            return
        num_nodes, K = self.topology.num_nodes, self.slots_per_rank
        rule = f"--node-rule {self.node_rule}"
        if K * num_nodes > self.num_experts:
            most = self.num_experts // num_nodes
            fits = most * self.topology.num_ranks - self.num_experts
            remedy = f"--redundant {fits} or " if fits >= 0 else ""
            raise InfeasibleError(
                f"{rule} on {num_nodes} nodes leaves {most} experts a node, fewer than"
                f" the {K} slots of a GPU, so copies would share a GPU;"
                f" {remedy}--node-rule free would do"
            )
        ranks = np.bincount(
            self.topology.node_of_rank[self.topology.live_ranks], minlength=num_nodes
        )
        if self.groups_on_nodes > 1 and ranks.min() * K < self.num_experts // num_nodes:
            node = int(ranks.argmin())
            raise InfeasibleError(
                f"{rule} with whole groups at home needs {self.num_experts // num_nodes} slots on"
                f" every node and node {node} has {ranks[node]} GPUs × {K}; --node-rule free"
                " or --groups 1 would do"
            )
        # Under `home` too every copy starts on the home node; the search moves it later.
        if self.survive >= ranks[ranks > 0].min():
            raise InfeasibleError(
                f"--survive {self.survive} needs {self.survive + 1} GPUs in service on every node"
                f" under {rule}; --survive {ranks[ranks > 0].min() - 1} or --node-rule free would"
            )

    def _check_current(self, current: Placement) -> None:
        found = (current.num_layers, current.num_logical_experts)
        expected = (self.num_layers, self.num_experts)
        if found != expected:
            raise RefusedError(
                f"the current placement has {found[0]} layers of {found[1]} experts and the trace"
                f" {expected[0]} of {expected[1]}; they are of different models"
            )


def default_redundant(num_experts: int, topology: Topology, bound_to_nodes: bool = False) -> int:
    """The least number of redundant experts that is one or more a rank and fills equal slots.

    One a rank is DeepSeek-V3's choice for prefill (32 on 32 GPUs). Where that many copies cannot
    be on different ranks, or with experts bound to nodes on different ranks of their node, the
    most that can.
    """
    num_ranks = topology.num_ranks
    slots, least = -(-(num_experts + num_ranks) // num_ranks), -(-num_experts // num_ranks)
    most = num_experts // topology.num_nodes if bound_to_nodes else num_experts
    return max(min(slots, most), least) * num_ranks - num_experts


def legal_redundant(num_experts: int, topology: Topology) -> Sequence[int]:
    """Every number of redundant experts that fills equal slots with no copy twice on a rank."""
    num_ranks = topology.num_ranks
    return range((-num_experts) % num_ranks, num_experts * (num_ranks - 1) + 1, num_ranks)


def check_slots(num_experts: int, num_slots: int, topology: Topology) -> None:
    """Raise `InfeasibleError` unless the slots can hold every expert, equally over the ranks."""
    num_ranks = topology.num_ranks
    legal = np.array(legal_redundant(num_experts, topology))
    if num_slots - num_experts in legal:
        return
    nearest = sorted(
        legal[np.argsort(np.abs(legal - (num_slots - num_experts)), kind="stable")[:2]]
    )
    remedy = f"--redundant {' or '.join(str(n) for n in nearest)} would"
    if num_slots % num_ranks:
        raise InfeasibleError(
            f"{num_slots} slots do not divide over {num_ranks} ranks"
            f" ({num_slots} / {num_ranks} = {num_slots / num_ranks:.4g}); {remedy}"
        )
    if num_slots < num_experts:
        raise InfeasibleError(
            f"{num_slots} slots are fewer than the {num_experts} experts; {remedy} do"
        )
    raise InfeasibleError(
        f"{num_slots // num_ranks} slots a GPU are more than the {num_experts} experts, so copies"
        f" would share a GPU; {remedy} do"
    )
