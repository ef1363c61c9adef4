"""What the figures have in common: axes, colours, ticks, the marks of re-plans, legends."""

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .._arrays import Floats, Ints, Numbers
from ..errors import InputError
from .palette import BUSY, IDLE, MARKERS, SERIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.lines import Line2D

    from ..report import Report
    from .series import Timeline

Value = TypeVar("Value")
Style = dict[str, str]

# Curves of so few points mark each of them.
_FEW = 40
# More re-plans than this are marked at the foot of the axes, so as not to cover the curves.
_FEW_REPLANS = 60


def require_matplotlib() -> None:
    """Raise `InputError` when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "figures are drawn by matplotlib, which is not installed: pip install 'eplb[plot]'"
        ) from None


def own_axes(ax: "Axes | None") -> "Axes":
    """The axes given, or those of a new figure, which notebooks show."""
    if ax is not None:
        return ax
    require_matplotlib()
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def ground_at_mean() -> "Colormap":
    """Blue, fading out to the mean, orange: what is near the mean still shows, by the root."""
    from matplotlib.colors import ListedColormap, to_rgb

    steps = np.linspace(-1, 1, 257)
    colours = np.where(steps[:, None] > 0, to_rgb(BUSY), to_rgb(IDLE))
    table = np.column_stack([colours, np.sqrt(np.abs(steps))])
    return ListedColormap(table, "load").with_extremes(bad=(0.5, 0.5, 0.5, 0.5))


def layer_ticks(axis: "Axis", layer_ids: Ints) -> None:
    """The model's own layer numbers at rows 0, 1, 2, …, as many as fit."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    names = [str(layer) for layer in layer_ids.tolist()]

    def name(row: float, _position: object) -> str:
        return names[int(row)] if row == int(row) and 0 <= row < len(names) else ""

    axis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(name))


def whole_numbers(axis: "Axis") -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))


def styled(named: "Mapping[str, Value]") -> "Iterator[tuple[Style, tuple[str, Value]]]":
    """Each of `named` with a colour and a marker of its own, as far as they go."""
    for number, item in enumerate(named.items()):
        at = number % len(SERIES)
        yield {"color": SERIES[at][0], "marker": MARKERS[at]}, item


def marked(style: Style, num_points: int) -> "dict[str, Any]":
    """The style of a curve, whose points are marked where they are few."""
    own = {"color": style["color"], "linewidth": 1.6}
    return {**own, "marker": style["marker"], "markersize": 4} if num_points <= _FEW else own


def mark_replans(ax: "Axes", sources: "Mapping[str, Report | Timeline]") -> None:
    """A dashed line before each window that copies were sent for."""
    for style, (_, source) in styled(sources):
        at = source.windows[np.flatnonzero(source.moves)] - 0.5
        if len(at):
            height = 1.0 if len(at) <= _FEW_REPLANS else 0.05
            x, y = upright(at, np.zeros(len(at)), np.full(len(at), height))
            whole_height = ax.get_xaxis_transform()
            ax.plot(
                x, y, color=style["color"], linestyle="--", linewidth=1, alpha=0.8,
                transform=whole_height,
            )  # fmt: skip


def upright(x: Numbers, low: Numbers, high: Numbers) -> tuple[Floats, Floats]:
    """Lines from `low` to `high` as the points of one path with gaps, which is small in a file."""
    gap = np.full(len(x), np.nan)
    return np.column_stack([x, x, gap]).ravel(), np.column_stack([low, high, gap]).ravel()


def plain(name: str) -> str:
    """A name as it is: no formula between dollars, and not left out for a leading underscore; what
    no font has, as bytes that are no text, replaced."""
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def finish(ax: "Axes", lines: "Sequence[Line2D]") -> "Axes":
    """Light grid lines below what is drawn, and the names of curves above it."""
    ax.set_axisbelow(True)
    ax.grid(axis="y", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if lines:
        ax.legend(
            handles=list(lines), loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False,
            borderaxespad=0.2,
        )  # fmt: skip
    return ax
