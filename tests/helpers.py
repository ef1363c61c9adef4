"""What several tests need: the command line in this process, small problems, a brute force."""

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eplb.placement import Placement
from eplb.problem import Problem
from eplb.topology import Topology
from eplb_cli.main import run

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_loads"

# The worked example that DeepSeek published with its balancer.
PUBLISHED_LOADS = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)
PUBLISHED_MAP = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
EIGHT_EXPERTS = np.array([600, 560, 120, 120, 20, 10, 10, 10])


class Ending(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@contextmanager
def _streams(stdin: bytes) -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    before = sys.stdin, sys.stdout, sys.stderr, os.environ.get("COLUMNS")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    sys.stdout, sys.stderr = out, err
    os.environ["COLUMNS"] = "80"
    try:
        yield out, err
    finally:
        sys.stdin, sys.stdout, sys.stderr = before[:3]
        if before[3] is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before[3]


def eplb(*args: object, stdin: bytes = b"") -> Ending:
    """Run the command line in this process."""
    with _streams(stdin) as (out, err):
        code = run([str(arg) for arg in args])
        for stream in (out, err):
            stream.flush()
        said = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    ending = Ending(code, *said)
    assert "Traceback" not in ending.err, ending.err
    assert code == 0 or ending.err, "a failure must say why"
    return ending


def spawn(*args: object, **kwargs: object) -> "subprocess.Popen[str]":
    """Start the command line as a process of its own."""
    command = [sys.executable, "-c", "from eplb_cli.main import main; main()", *map(str, args)]
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def problem(
    loads: object, num_ranks: int, slots_per_rank: int, num_nodes: int = 1, **kwargs: object
) -> Problem:
    """A problem of loads (E,), (L, E) or (W, L, E)."""
    array = np.asarray(loads)
    array = array.reshape((1,) * (3 - array.ndim) + array.shape)
    return Problem(array, Topology(num_ranks, num_nodes), slots_per_rank, **kwargs)  # type: ignore[arg-type]


def random_loads(seed: int, *shape: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """Skewed loads without ties."""
    rng = np.random.default_rng(seed)
    return np.ceil(1000 * rng.lognormal(0, 1, shape)).astype(np.int64)


def best_peak(one: Problem) -> float:
    """The least weighted mean peak of a one-layer problem, by trying every placement."""
    weight = one.window_weight / one.window_weight.sum()
    loads = one.loads[:, 0, :]
    contents = list(itertools.combinations(range(one.num_experts), one.slots_per_rank))
    best = np.inf
    for choice in itertools.product(contents, repeat=one.topology.num_ranks):
        slots = np.array(choice).reshape(1, -1)
        if len(np.unique(slots)) < one.num_experts:
            continue
        placement = Placement(
            slots, one.num_experts, one.topology.num_ranks, one.topology.num_nodes
        )
        if not one.obeyed_by(placement)[0]:
            continue
        share = loads / placement.replica_count[0]
        by_rank = share[:, slots[0]].reshape(len(loads), one.topology.num_ranks, -1).sum(axis=2)
        best = min(best, float((weight * by_rank.max(axis=1)).sum()))
    return best
