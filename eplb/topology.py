"""The machines: EP ranks and the nodes they stand on."""

from dataclasses import dataclass

import numpy as np

from ._arrays import Ints, frozen
from .errors import InfeasibleError, InputError


@dataclass(frozen=True)
class Topology:
    """EP ranks, numbered node by node: rank r is on node r // ranks_per_node.

    Parameters
    ----------
    num_ranks
        EP ranks in all (R); one rank is one GPU.
    num_nodes
        Nodes they stand on (N); must divide `num_ranks`.
    """

    num_ranks: int
    num_nodes: int = 1

    def __post_init__(self) -> None:
        if self.num_ranks < 1 or self.num_nodes < 1:
            raise InputError(
                f"{self.num_ranks} GPUs on {self.num_nodes} nodes; at least one of each is needed"
            )
        if self.num_ranks % self.num_nodes:
            legal = [n for n in range(1, self.num_ranks + 1) if self.num_ranks % n == 0]
            nearest = sorted(sorted(legal, key=lambda n: (abs(n - self.num_nodes), n))[:3])
            raise InfeasibleError(
                f"{self.num_ranks} GPUs do not divide over {self.num_nodes} nodes"
                f" ({self.num_ranks} / {self.num_nodes} = {self.num_ranks / self.num_nodes:.4g});"
                f" --nodes {' or '.join(map(str, nearest))} would"
            )

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each node."""
        return self.num_ranks // self.num_nodes

    @property
    def node_of_rank(self) -> Ints:
        """The node of each rank, of shape (R,)."""
        return frozen(np.arange(self.num_ranks) // self.ranks_per_node, np.int32)
