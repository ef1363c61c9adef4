"""The machines: EP ranks and the nodes they stand on."""

from dataclasses import dataclass

import numpy as np

from ._arrays import Floats, Ints, frozen
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
    rank_speed
        R relative speeds above 0; None when all are alike.
    excluded_ranks
        Ranks out of service; they keep their numbers and hold nothing.
    """

    num_ranks: int
    num_nodes: int = 1
    rank_speed: tuple[float, ...] | None = None
    excluded_ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_counts()
        for rank in self.excluded_ranks:
            if not 0 <= rank < self.num_ranks:
                raise InputError(
                    f"--exclude-gpu {rank}; the GPUs are numbered 0 to {self.num_ranks - 1}"
                )
        if len(set(self.excluded_ranks)) != len(self.excluded_ranks):
            raise InputError("a GPU is excluded twice")
        if len(self.excluded_ranks) == self.num_ranks:
            raise InfeasibleError("every GPU is excluded; at least one must be left")
        if self.rank_speed is not None:
            if len(self.rank_speed) != self.num_ranks:
                raise InputError(
                    f"{len(self.rank_speed)} GPU speeds; one for each of the"
                    f" {self.num_ranks} GPUs is expected"
                )
            for rank, speed in enumerate(self.rank_speed):
                if not (np.isfinite(speed) and speed > 0):
                    raise InputError(
                        f"the speed of GPU {rank} is {speed}; a number above 0 is expected"
                        " (--exclude-gpu leaves a GPU out)"
                    )

    def _check_counts(self) -> None:
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

    @property
    def live_ranks(self) -> Ints:
        """The ranks in service, ascending."""
        return frozen(np.setdiff1d(np.arange(self.num_ranks), self.excluded_ranks), np.int64)

    @property
    def num_live_ranks(self) -> int:
        """Ranks in service."""
        return self.num_ranks - len(self.excluded_ranks)

    @property
    def pace(self) -> Floats:
        """Time per token of each live rank, relative: the mean speed over its own."""
        speed = np.ones(self.num_ranks) if self.rank_speed is None else np.array(self.rank_speed)
        live = speed[self.live_ranks]
        return frozen(live.mean() / live, np.float64)

    @property
    def is_plain(self) -> bool:
        """Whether all ranks are alike and in service."""
        return not self.excluded_ranks and (
            self.rank_speed is None or len(set(self.rank_speed)) == 1
        )
