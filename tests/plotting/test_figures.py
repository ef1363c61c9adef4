"""The figures as matplotlib axes: what is drawn is what the numbers say."""

import sys
from typing import Any

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eplb import plotting
from eplb.errors import InputError
from eplb.placement import linear
from eplb.plan import Plan
from eplb.plotting.palette import SERIES
from eplb.report import Report


@pytest.fixture
def ax() -> Axes:
    """Axes of a figure that no window knows."""
    return Figure().subplots()


def report(**kwargs: Any) -> Report:
    """Two layers, three windows, re-planned before the second."""
    mean = np.array([[10.0, 20.0], [10.0, 20.0], [10.0, 20.0]])
    peak = np.array([[20.0, 25.0], [10.0, 20.0], [12.5, 40.0]])
    return Report(
        np.array([3, 4]), np.array([8, 9, 10]), mean, peak, 2, moves=np.array([0, 6, 0]), **kwargs
    )


def plan(gap: float | None = 0.02) -> Plan:
    """Two layers of four experts in six slots of two GPUs."""
    bound = None if gap is None else np.array([100.0, 50.0])
    peak = None if gap is None else np.array([100.0, 50.0 * (1 + gap)])
    return Plan(linear(2, 4, 6, 2), np.array([3, 4]), peak_load=peak, lower_bound=bound)


def names(axes: Axes) -> list[str]:
    """What the legend says."""
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_the_heat_map_is_load_over_the_mean_of_its_layer(ax: Axes) -> None:
    """A row a layer, a column a GPU; half the mean and twice it are the ends of the scale."""
    plotting.heat_map(np.array([[1.0, 2.0, 3.0], [10.0, 10.0, 70.0]]), np.array([3, 60]), ax)
    (image,) = ax.get_images()
    drawn = np.exp2(np.asarray(image.get_array()))
    assert np.allclose(drawn, [[0.5, 1, 1.5], [0.5, 0.5, 2]])
    ax.figure.canvas.draw()
    labels = {tick.get_position()[1]: tick.get_text() for tick in ax.get_yticklabels()}
    assert labels[0] == "3" and labels[1] == "60"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("GPU", "layer")


def test_a_gpu_at_the_mean_has_the_colour_of_the_ground(ax: Axes) -> None:
    """Which makes the map read on light ground and dark; busier and idler differ in hue."""
    plotting.heat_map(np.array([[1.0, 2.0, 3.0]]), np.array([3]), ax)
    (image,) = ax.get_images()
    idle, mean, busy = image.to_rgba(np.asarray(image.get_array()))[0]
    assert mean[3] < 0.1
    assert idle[3] == 1 and idle[2] > idle[0]
    assert busy[3] > 0.5 and busy[0] > busy[2]


def test_gpus_out_of_service_are_no_idle_gpus(ax: Axes) -> None:
    """They are left out of the mean, and grey."""
    plotting.heat_map(np.array([[4.0, 0.0, 4.0]]), np.array([3]), ax, out_of_service={1})
    (image,) = ax.get_images()
    colours = image.to_rgba(image.get_array())[0]
    assert np.allclose(colours[1], 0.5)
    assert colours[0][3] < 0.1 and colours[2][3] < 0.1


def test_layers_without_load_are_even(ax: Axes) -> None:
    """No division by nothing."""
    plotting.heat_map(np.zeros((1, 2)), np.array([3]), ax)
    assert not np.asarray(ax.get_images()[0].get_array()).any()


def test_balance_by_layer_has_a_curve_for_each_report(ax: Axes) -> None:
    """Means over windows, by layer."""
    plotting.balance_by_layer({"old": report(), "new": report()}, ax)
    assert names(ax) == ["old", "new"]
    assert np.allclose(ax.get_lines()[0].get_ydata(), [(0.5 + 1 + 0.8) / 3, (0.8 + 1 + 0.5) / 3])


def test_time_lines_mark_re_plans(ax: Axes) -> None:
    """A dashed line in the colour of its curve stands before the window that copies were sent
    for."""
    plotting.balance_over_time({"walk": report()}, ax)
    curve, mark = ax.get_lines()
    assert np.allclose(curve.get_xdata(), [8, 9, 10])
    assert np.allclose(curve.get_ydata(), [0.65, 1, 0.65])
    assert np.allclose(np.asarray(mark.get_xdata())[:2], 8.5)
    assert mark.get_color() == curve.get_color() and mark.get_linestyle() == "--"


def test_load_over_time_is_that_of_the_busiest_gpus(ax: Axes) -> None:
    """Summed over layers, over the mean GPU's."""
    plotting.load_over_time({"walk": report()}, ax)
    assert np.allclose(ax.get_lines()[0].get_ydata(), [45, 30, 52.5])
    assert np.allclose(ax.get_lines()[1].get_ydata(), 30)
    assert names(ax) == ["walk", "mean GPU"]


def test_moves_stand_at_their_windows(ax: Axes) -> None:
    """Only where copies were sent."""
    plotting.moves_over_time({"none": report(), "walk": report()}, ax)
    marks, stems = ax.get_lines()[::2], ax.get_lines()[1::2]
    assert [line.get_xydata().tolist() for line in marks] == [[[9, 6]]] * 2
    assert [line.get_xydata()[:2].tolist() for line in stems] == [[[9, 0], [9, 6]]] * 2


def test_a_report_file_draws_what_its_report_draws(ax: Axes) -> None:
    """The rows of the file hold all that the time line needs."""
    import json

    from eplb.formats.reports import report_bytes

    read = plotting.timeline_of(json.loads(report_bytes(report())))
    for mine, other in zip(plotting.timeline_of(report()), read, strict=True):
        assert np.allclose(mine, other)
    plotting.load_over_time({"walk": read}, ax)
    assert np.allclose(ax.get_lines()[1].get_ydata(), 30)


def test_gaps_are_in_percent(ax: Axes) -> None:
    """A bar a layer; a plan without a bound has none to draw."""
    plotting.bound_gaps(plan(), ax)
    assert np.allclose([bar.get_height() for bar in ax.patches], [0, 2])
    with pytest.raises(InputError, match="carries no lower bound"):
        plotting.bound_gaps(plan(None), ax)


POINTS = [
    {"gpus": gpus, "redundant": redundant, "held_out": None, "digest": "ab", "max_moves": None,
     "planned": {"mean_balancedness": balance}}
    for gpus in (8, 16)
    for redundant, balance in ((16, 0.95), (0, 0.8), (8, 0.94))
]  # fmt: skip


def sweep(**kwargs: Any) -> dict[str, Any]:
    """The content of a sweep file."""
    return {"format": "eplb-sweep", "version": 1, "points": POINTS, **kwargs}


def test_the_sweep_has_a_curve_for_each_size_and_rings_at_its_knees(ax: Axes) -> None:
    """In the order of redundant experts, whatever the order of the points."""
    knees = [{"gpus": 8, "redundant": 8, "max_moves": None}, {"gpus": 16, "redundant": 16}]
    plotting.sweep_curve(plotting.sweep_of(sweep(knee=knees)), ax)
    eight, sixteen, ring = ax.get_lines()
    assert eight.get_xydata().tolist() == [[0, 0.8], [8, 0.94], [16, 0.95]]
    assert ring.get_xydata().tolist() == [[8, 0.94], [16, 0.95]]
    assert names(ax) == ["8 GPUs", "16 GPUs", "knee"]
    assert sixteen.get_color() == SERIES[1][0]


@pytest.mark.parametrize("knee", [None, 8, {"redundant": 8}, [8], []])
def test_knees_are_taken_as_they_come(ax: Axes, knee: object) -> None:
    """A number is one of redundant experts; none is no knee."""
    content = sweep(knee=knee, points=POINTS[:3])
    plotting.sweep_curve(plotting.sweep_of(content), ax)
    assert len(ax.get_lines()) == 1 + bool(knee)


def test_held_out_balance_goes_before_planned(ax: Axes) -> None:
    """And a bare figure of the point before both."""
    point = {
        "max_moves": 3,
        "planned": {"mean_balancedness": 0.9},
        "held_out": {"mean_balancedness": 0.8},
    }
    plotting.sweep_curve(
        plotting.sweep_of(sweep(points=[point, {"max_moves": 9, "mean_balancedness": 0.7}])), ax
    )
    assert ax.get_lines()[0].get_xydata().tolist() == [[3, 0.8], [9, 0.7]]
    assert ax.get_xlabel() == "moves"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "s.json: the format is 'list'; 'eplb-sweep' is expected"),
        ({"format": "eplb-plan"}, "s.json: the format is 'eplb-plan'"),
        (sweep(version=2), "s.json: it is version 2; this eplb reads version 1"),
        (sweep(points=None), "s.json: 'points' must be a list of objects"),
        (sweep(points=[3]), "s.json: 'points' must be a list of objects"),
        (sweep(points=[]), "s.json: no point of the sweep has a mean_balancedness"),
        (sweep(points=[{"redundant": 3, "mean_balancedness": True}]), "no point of the sweep has"),
    ],
)
def test_what_is_no_sweep_is_refused(content: Any, message: str) -> None:
    """By the name of the file, saying what was found."""
    with pytest.raises(InputError, match=message):
        plotting.sweep_of(content, "s.json")


def test_a_sweep_over_nothing_is_refused(ax: Axes) -> None:
    """A curve needs a horizontal axis."""
    bare = plotting.sweep_of(sweep(points=[{"mean_balancedness": 0.7}]))
    with pytest.raises(InputError, match="redundant or max_moves or gpus"):
        plotting.sweep_curve(bare, ax)


ROW = {"window": 0, "mean_balancedness": 0.9, "worst_balancedness": 0.8, "efficiency": 0.9,
       "moves": 0, "peak_load": [3, 4.5]}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "r.json: the format is 'NoneType'; 'eplb-report' is expected"),
        ({"windows": []}, "r.json: the report has no windows"),
        ({"windows": [{**ROW, "moves": "3"}]}, "r.json: window 0: moves is '3'; a number"),
        ({"windows": [ROW, {**ROW, "peak_load": []}]}, "window 1: peak_load must be a list of"),
        ({"windows": [{**ROW, "peak_load": [1, None]}]}, "window 0: peak_load must be a list"),
    ],
)
def test_what_is_no_report_is_refused(content: Any, message: str) -> None:
    """By the name of the file and the row."""
    if content is not None:
        content = {"format": "eplb-report", "version": 1, **content}
    with pytest.raises(InputError, match=message):
        plotting.timeline_of(content, "r.json")


def test_without_axes_a_figure_is_made() -> None:
    """For notebooks, by pyplot."""
    made = plotting.bound_gaps(plan())
    assert plt.gcf() is made.figure
    plt.close("all")


def test_names_are_no_formulas(ax: Axes) -> None:
    """Dollars, backslashes and leading underscores are taken as they are."""
    odd = {"$\\frac$": report(), "_live.json": report()}
    ax.figure.draw_without_rendering()
    plotting.balance_by_layer(odd, ax)
    ax.figure.draw_without_rendering()
    assert [name.strip().replace("\\$", "$") for name in names(ax)] == list(odd)


def test_names_may_hold_bytes_that_are_no_text(ax: Axes) -> None:
    """As names of files may; control characters, which no picture can hold, are replaced too."""
    plotting.balance_by_layer({"b\udcff\x1b\n.json": report()}, ax)
    ax.figure.draw_without_rendering()
    assert names(ax) == ["b\ufffd\ufffd\ufffd.json"]


def test_matplotlib_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to guess what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'eplb\[plot\]'"):
        plotting.bound_gaps(plan())
