"""Which logical expert each slot holds."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ._arrays import Bools, Filled, Ints, Numbers, frozen
from .errors import InfeasibleError, InputError


class Duplicate(NamedTuple):
    """One expert held more than once by one rank: a wasted slot, and wrong results in engines
    that keep one table entry per expert and rank."""

    layer: int
    rank: int
    expert: int
    copies: int


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the experts live; slot s is on rank s // K, K slots a rank.

    Parameters
    ----------
    physical_to_logical
        int32 of shape (L, S): the logical expert of each slot; −1 only on excluded ranks.
    num_logical_experts
        E; every expert is in at least one slot of every layer.
    num_ranks, num_nodes
        R, dividing S, and N, dividing R.
    home_node
        int32 of shape (L, E): the node each expert belongs to; by default that of its first copy.
    excluded_ranks
        Ranks out of service; all their slots hold −1.

    Raises
    ------
    InputError
        When an expert is missing, an id is out of range or slots do not divide over the ranks.
    """

    physical_to_logical: Ints
    num_logical_experts: int
    num_ranks: int
    num_nodes: int = 1
    home_node: Filled = None
    excluded_ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        slots = np.asarray(self.physical_to_logical)
        if slots.ndim != 2 or 0 in slots.shape or slots.dtype.kind not in "iu":
            raise InputError(
                f"physical_to_logical has shape {slots.shape} and type {slots.dtype};"
                " integers of layers × slots are expected"
            )
        if self.num_ranks < 1 or slots.shape[1] % self.num_ranks:
            raise InfeasibleError(
                f"{slots.shape[1]} slots do not divide over {self.num_ranks} ranks"
            )
        if self.num_nodes < 1 or self.num_ranks % self.num_nodes:
            raise InfeasibleError(
                f"{self.num_ranks} ranks do not divide over {self.num_nodes} nodes"
            )
        excluded = np.zeros(self.num_ranks, bool)
        for rank in self.excluded_ranks:
            if not 0 <= rank < self.num_ranks:
                raise InputError(f"excluded rank {rank}; ranks are 0 to {self.num_ranks - 1}")
            excluded[rank] = True
        dead_slot = np.repeat(excluded, slots.shape[1] // self.num_ranks)
        self._check_ids(slots, dead_slot)
        object.__setattr__(self, "physical_to_logical", frozen(slots, np.int32))
        self._check_present()
        home = self._first_nodes() if self.home_node is None else np.asarray(self.home_node)
        if home.shape != (self.num_layers, self.num_logical_experts):
            raise InputError(
                f"home_node has shape {home.shape};"
                f" {(self.num_layers, self.num_logical_experts)} is expected"
            )
        if home.min() < 0 or home.max() >= self.num_nodes:
            raise InputError(f"home_node names a node outside 0 to {self.num_nodes - 1}")
        object.__setattr__(self, "home_node", frozen(home, np.int32))

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.physical_to_logical.shape[0])

    @property
    def num_slots(self) -> int:
        """S, slots of a layer over all ranks."""
        return int(self.physical_to_logical.shape[1])

    @property
    def slots_per_rank(self) -> int:
        """K."""
        return self.num_slots // self.num_ranks

    @cached_property
    def replica_count(self) -> Ints:
        """Copies of each logical expert, of shape (L, E); 1 or more."""
        return frozen(self.rank_copies.sum(axis=1), np.int64)

    @cached_property
    def rank_copies(self) -> Ints:
        """Copies of each expert on each rank, of shape (L, R, E)."""
        count = np.zeros((self.num_layers, self.num_ranks, self.num_logical_experts), np.int64)
        layer, slot = np.nonzero(self.physical_to_logical >= 0)
        expert = self.physical_to_logical[layer, slot]
        np.add.at(count, (layer, slot // self.slots_per_rank, expert), 1)
        return frozen(count, np.int64)

    @cached_property
    def logical_to_physical(self) -> Ints:
        """The slots of each expert in ascending order, of shape (L, E, C), padded with −1; C is
        the most copies that any expert has."""
        most = int(self.replica_count.max())
        table = np.full((self.num_layers, self.num_logical_experts, most), -1, np.int32)
        filled = np.zeros((self.num_layers, self.num_logical_experts), np.intp)
        layers = np.arange(self.num_layers)
        for slot in range(self.num_slots):
            expert = self.physical_to_logical[:, slot]
            live = layers[expert >= 0]
            table[live, expert[live], filled[live, expert[live]]] = slot
            filled[live, expert[live]] += 1
        return frozen(table, np.int32)

    def duplicates(self) -> list[Duplicate]:
        """The experts that a rank holds more than once, ordered by layer, rank and expert."""
        return [
            Duplicate(
                int(layer), int(rank), int(expert), int(self.rank_copies[layer, rank, expert])
            )
            for layer, rank, expert in np.argwhere(self.rank_copies > 1)
        ]

    def _first_nodes(self) -> Ints:
        rank = self.logical_to_physical[:, :, 0] // self.slots_per_rank
        return (rank // (self.num_ranks // self.num_nodes)).astype(np.int32)

    def _check_ids(self, slots: Numbers, dead_slot: Bools) -> None:
        low = np.where(dead_slot, -1, 0)
        high = np.where(dead_slot, -1, self.num_logical_experts - 1)
        wrong = np.argwhere((slots < low) | (slots > high))
        if len(wrong):
            layer, slot = wrong[0]
            expected = (
                "−1, as its rank is excluded"
                if dead_slot[slot]
                else f"an expert from 0 to {self.num_logical_experts - 1}"
            )
            raise InputError(
                f"physical_to_logical[{layer}][{slot}] is {slots[layer, slot]};"
                f" {expected} is expected"
            )

    def _check_present(self) -> None:
        missing = np.argwhere(self.replica_count == 0)
        if len(missing):
            layer, expert = missing[0]
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise InputError(
                f"expert {expert} has no slot in row {layer} of physical_to_logical{more};"
                " every expert must be present in every layer"
            )


def linear(
    num_layers: int, num_experts: int, num_slots: int, num_ranks: int, num_nodes: int = 1
) -> Placement:
    """The placement engines start with: slot p holds expert p mod E."""
    row = np.arange(num_slots, dtype=np.int32) % num_experts
    return Placement(np.tile(row, (num_layers, 1)), num_experts, num_ranks, num_nodes)
