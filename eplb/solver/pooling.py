"""One budget shared by all layers: which point of its own trade-off each layer should take.

A layer's points trade a cost (copies to send, load served off home) against its peak load. The
lower convex hull of each layer is walked, steepest steps of all layers first, while they fit; what
is left goes to any point that still fits.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .._arrays import Ints


class Point(NamedTuple):
    """A placement of a layer: what it costs, and its peak load (with all that is priced beside
    it) over the mean rank load in the windows planned for."""

    cost: float
    peak: float
    slots: Ints
    home: Ints


def within(found: Sequence[Sequence[Point]], max_cost: float | None) -> list[Point]:
    """Of each layer the point to take within a budget over all layers; without one, that of the
    lowest peak, and of equal peaks the one that costs least."""
    if max_cost is None:
        return [min(points, key=lambda p: (p.peak, p.cost)) for points in found]
    hulls = [_hull(points) for points in found]
    chosen = [hull[0] for hull in hulls]
    left = max_cost - sum(point.cost for point in chosen)
    steps = sorted(
        ((b.peak - a.peak) / (b.cost - a.cost), layer, index)
        for layer, hull in enumerate(hulls)
        for index, (a, b) in enumerate(pairwise(hull), start=1)
    )
    closed = set()
    for _, layer, index in steps:
        more = hulls[layer][index].cost - chosen[layer].cost
        if layer in closed or more > left:
            closed.add(layer)
            continue
        left -= more
        chosen[layer] = hulls[layer][index]
    while True:
        fits = [
            (point.peak - chosen[layer].peak, layer, point.cost, point)
            for layer, points in enumerate(found)
            for point in points
            if point.cost - chosen[layer].cost <= left and point.peak < chosen[layer].peak
        ]
        if not fits:
            return chosen
        _, layer, _, point = min(fits, key=lambda fit: fit[:3])
        left -= point.cost - chosen[layer].cost
        chosen[layer] = point


def at_price(found: Sequence[Sequence[Point]], price: float) -> list[Point]:
    """Of each layer the point whose peak, with its cost at `price`, is least."""
    return [min(points, key=lambda p: (p.peak + price * p.cost, p.cost)) for points in found]


def _hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull of the points, falling, from the one that costs least."""
    hull: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.peak)):
        if hull and (point.peak >= hull[-1].peak or point.cost == hull[-1].cost):
            continue
        while len(hull) > 1 and _steeper(hull[-1], point, hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _steeper(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the step from a to b falls at least as steeply as that from c to d."""
    return (b.peak - a.peak) * (d.cost - c.cost) <= (d.peak - c.peak) * (b.cost - a.cost)
