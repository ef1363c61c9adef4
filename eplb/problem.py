"""What is to be planned, validated once: loads, machines, slots and rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import xxhash

from ._arrays import Bools, Filled, Floats, Numbers, frozen
from .errors import InfeasibleError, InputError, RefusedError
from .placement import Placement
from .topology import Topology
from .trace import LoadTrace, check_groups, checked_layer_ids

NodeRule = Literal["strict", "free"]


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
        divide over the nodes all experts of a group share one home; `free`: no rule.
    current
        The live placement, for counting moves; None without one.
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
    layer_ids: Filled = None
    num_groups: int = 1
    node_rule: NodeRule = "strict"
    current: Placement | None = None
    expert_bytes: int | None = None

    def __post_init__(self) -> None:
        # A trace has checked the same things; a problem can also be built from bare arrays.
        trace = LoadTrace(self.loads, window_weight=self.window_weight)
        object.__setattr__(self, "loads", frozen(trace.tokens, np.float64))
        object.__setattr__(self, "window_weight", trace.window_weight)
        layer_ids = np.arange(self.num_layers) if self.layer_ids is None else self.layer_ids
        object.__setattr__(
            self, "layer_ids", checked_layer_ids(np.asarray(layer_ids), self.num_layers)
        )
        if self.node_rule not in get_args(NodeRule):
            raise InputError(f"node rule {self.node_rule!r}; one of {get_args(NodeRule)} is known")
        check_groups(self.num_groups, self.num_experts)
        check_slots(self.num_experts, self.num_slots, self.topology)
        self._check_rule()
        if self.expert_bytes is not None and self.expert_bytes < 1:
            raise InputError(f"an expert of {self.expert_bytes} bytes; 1 or more is expected")
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
        node_rule: NodeRule = "strict",
        current: Placement | None = None,
        expert_bytes: int | None = None,
    ) -> "Problem":
        """The problem of serving `trace` with `num_redundant` redundant experts a layer.

        By default one or more a rank (`default_redundant`), and the trace's own groups.
        """
        if num_redundant is None:
            num_redundant = default_redundant(trace.num_experts, topology)
        if num_redundant < 0:
            raise InputError(f"--redundant {num_redundant}; 0 or more is expected")
        num_slots = trace.num_experts + num_redundant
        check_slots(trace.num_experts, num_slots, topology)
        return cls(
            loads=frozen(trace.tokens, np.float64),
            topology=topology,
            slots_per_rank=num_slots // topology.num_ranks,
            window_weight=trace.window_weight,
            layer_ids=trace.layer_ids,
            num_groups=num_groups or trace.num_groups or 1,
            node_rule=node_rule,
            current=current,
            expert_bytes=expert_bytes,
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
        """S."""
        return self.topology.num_ranks * self.slots_per_rank

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
        return self.node_rule == "strict" and self.topology.num_nodes > 1

    def digest(self) -> str:
        """xxh3-128 of the loads and every limit; the same problem has the same digest."""
        state = xxhash.xxh3_128()
        state.update(repr((self.loads.shape, self.topology, self.slots_per_rank)).encode())
        state.update(repr((self.num_groups, self.node_rule)).encode())
        arrays: list[Numbers] = [self.loads, self.window_weight, self.layer_ids]
        if self.current is not None:
            arrays += [self.current.physical_to_logical, self.current.home_node]
        for array in arrays:
            state.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).data)
        return state.hexdigest()

    def obeyed_by(self, placement: Placement) -> Bools:
        """Of each layer, whether no rank holds an expert twice and the node rule is kept, (L,).

        With groups to keep whole, all experts of a group must share a home.
        """
        legal: Bools = placement.rank_copies.max(axis=(1, 2)) <= 1
        if not self.binds_nodes:
            return legal
        num_nodes = self.topology.num_nodes
        by_node = placement.rank_copies.reshape(
            placement.num_layers, num_nodes, -1, placement.num_logical_experts
        ).sum(axis=2)
        at_home = np.take_along_axis(by_node, placement.home_node[:, None, :], axis=1)[:, 0]
        legal &= (at_home == placement.replica_count).all(axis=1)
        if self.groups_on_nodes > 1:
            home = placement.home_node.reshape(placement.num_layers, self.groups_on_nodes, -1)
            legal &= (home == home[:, :, :1]).all(axis=(1, 2))
        return legal

    def _check_rule(self) -> None:
        num_nodes = self.topology.num_nodes
        if self.binds_nodes and self.slots_per_rank * num_nodes > self.num_experts:
            most = self.num_experts // num_nodes
            fits = most * self.topology.num_ranks - self.num_experts
            remedy = f"--redundant {fits} or " if fits >= 0 else ""
            raise InfeasibleError(
                f"--node-rule strict on {num_nodes} nodes leaves {most} experts a node, fewer than"
                f" the {self.slots_per_rank} slots of a GPU, so copies would share a GPU;"
                f" {remedy}--node-rule free would do"
            )

    def _check_current(self, current: Placement) -> None:
        found = (current.num_layers, current.num_logical_experts)
        expected = (self.num_layers, self.num_experts)
        if found != expected:
            raise RefusedError(
                f"the current placement has {found[0]} layers of {found[1]} experts and the trace"
                f" {expected[0]} of {expected[1]}; they are of different models"
            )


def default_redundant(num_experts: int, topology: Topology) -> int:
    """The least number of redundant experts that is one or more a rank and fills equal slots.

    One a rank is DeepSeek-V3's choice for prefill (32 on 32 GPUs). Where that many copies cannot
    be on different ranks, the most that can.
    """
    num_ranks = topology.num_ranks
    slots = -(-(num_experts + num_ranks) // num_ranks)
    return min(slots, num_experts) * num_ranks - num_experts


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
