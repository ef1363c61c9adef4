"""Walking forward through a trace: plan on the past, serve what comes, never the other way."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from .placement import Placement

# From the windows that may be seen and the placement that is live (None at first) to the placement
# that serves what follows; the live one itself when nothing is to change.
Choose = Callable[[slice, Placement | None], Placement]


class Stretch(NamedTuple):
    """Windows `first` to `end`, the end excluded, that one placement serves."""

    first: int
    end: int
    placement: Placement


def walk_forward(
    edges: Sequence[int], choose: Choose, history: int | None = None
) -> Iterator[Stretch]:
    """Serve the windows between neighbouring `edges` each with what `choose` makes of the windows
    before them: the last `history` of them, or all. No window is served by a plan that saw it."""
    current: Placement | None = None
    for first, end in pairwise(edges):
        seen = slice(0 if history is None else max(0, first - history), first)
        current = choose(seen, current)
        yield Stretch(first, end, current)
