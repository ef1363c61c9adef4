"""Every finding on a trace that has it, and none on a trace that is sound."""

import re

import numpy as np
import pytest

from eplb.errors import InputError
from eplb.findings import RULES, inspect, listed, relative_error
from eplb.routes import RouteTrace
from eplb.synthetic import SHAPES, Shape, Traffic, generate, generate_routes
from eplb.timeline import add_scenario
from eplb.trace import LoadTrace

SHAPE = Shape(3, 16, 4)
SOUND = generate(SHAPE, Traffic(num_windows=8, tokens=20000, skew=0.5, drift=0.1, seed=1))


def _ids(trace: LoadTrace, routes: RouteTrace | None = None) -> list[str]:
    return [finding.id for finding in inspect(trace, routes)]


def _with(tokens: object, **kwargs: object) -> LoadTrace:
    return LoadTrace(np.asarray(tokens), top_k=4, **kwargs)  # type: ignore[arg-type]


def test_a_sound_trace_has_no_findings() -> None:
    """Synthetic traffic with noise and mild drift is what recorders should give."""
    assert _ids(SOUND) == []


def _dense() -> LoadTrace:
    tokens = SOUND.tokens.copy()
    tokens[:, 0] = 0
    return _with(tokens)


def _constant() -> LoadTrace:
    tokens = SOUND.tokens.copy()
    tokens[:, 1] = 5000
    return _with(tokens)


def _dead() -> LoadTrace:
    tokens = SOUND.tokens.copy()
    tokens[:, 2, 0] += tokens[:, 2, 7]
    tokens[:, 2, 7] = 0
    return _with(tokens)


def _one_rank() -> LoadTrace:
    tokens = np.zeros_like(SOUND.tokens)
    tokens[:, :, 4:8] = SOUND.tokens[:, :, 4:8]
    return LoadTrace(tokens)


def _lost() -> LoadTrace:
    tokens = SOUND.tokens.copy()
    tokens[3, 1, 0] -= 100
    return _with(tokens)


def _warm_up() -> LoadTrace:
    tokens = SOUND.tokens.copy()
    tokens[:3] = tokens[0]
    return _with(tokens)


def _filler() -> LoadTrace:
    tokens = SOUND.tokens.copy()
    tokens[2, 1] = 0
    tokens[2, 1, 0], tokens[2, 1, 1] = 40000, 40000
    return _with(tokens)


def _regimes() -> LoadTrace:
    other = generate(SHAPE, Traffic(num_windows=4, tokens=20000, skew=1, drift=0, seed=9))
    tokens = SOUND.tokens.copy()
    tokens[5:] = other.tokens[:3]
    return _with(tokens)


CASES = {
    "EP101": (_dense, "1 layer without load: 0"),
    "EP102": (_constant, "1 layer with equal loads: 1"),
    "EP103": (_dead, "1 expert of 48 never hit; most in layer 2: 7"),
    "EP104": (_one_rank, "experts 4 to 7 of 16, in every layer: those of rank 1 of 4"),
    "EP105": (_lost, "window 3: layer 1 has 79900 and layer 0 80000"),
    "EP106": (lambda: _with(SOUND.tokens * 3), "every load is a multiple of 3"),
    "EP107": (_warm_up, "windows 0 to 2 are identical; --windows 3: leaves them out"),
    "EP108": (_filler, "expert 0 has 50.0% of window 2 in layer 1; with top-4 routing 25.0%"),
    "EP109": (lambda: generate(SHAPE, Traffic(4, 200)), r"50 tokens a window, known to ±14%"),
    "EP110": (_regimes, "windows 0:5 and 5:8 differ by"),
    "EP111": (lambda: _with(np.concatenate([SOUND.tokens, SOUND.tokens[:1] * 0])), "window.*: 8"),
    "EP112": (lambda: SOUND.windows(slice(0, 1)), "one window"),
}


@pytest.mark.parametrize("name", RULES)
def test_each_fault_is_found_with_its_numbers(name: str) -> None:
    """A trace with one fault planted has that finding, and says the planted numbers."""
    make, numbers = CASES[name]
    found = [finding.found for finding in inspect(make()) if finding.id == name]
    assert len(found) == 1
    assert re.search(numbers, found[0]), found[0]


def test_repeated_ids_in_routes_are_found() -> None:
    """A padded row names one expert throughout, which no router does."""
    routes = generate_routes(SHAPE, Traffic(1, 500))
    assert "EP108" not in _ids(routes.windows(), routes)
    experts = routes.experts.copy()
    experts[17, 2] = 0
    padded = RouteTrace(experts, 16)
    found = [f.found for f in inspect(padded.windows(), padded) if f.id == "EP108"]
    assert found == ["1 route of 1500 name an expert twice; first: token 17, layer 2,"
                     " experts [0, 0, 0, 0]"]  # fmt: skip


def test_absent_ids_are_not_repeated_ids() -> None:
    """−1 may stand as often as it likes."""
    routes = RouteTrace(np.array([[[-1, -1, 0]], [[1, 2, 0]]]), 3)
    assert "EP108" not in _ids(routes.windows(), routes)


def test_a_trace_of_nothing_has_only_dense_layers() -> None:
    """No division by the load there is not."""
    assert _ids(LoadTrace(np.zeros((3, 2, 4)))) == ["EP101"]


def test_averages_have_no_counting_error() -> None:
    """Fractions are averages of unknown counts: nothing is said of their error."""
    assert "EP109" not in _ids(LoadTrace(SOUND.tokens / 1e6))


def test_the_error_bar() -> None:
    """A hundred counted tokens are known to ten percent."""
    assert relative_error(100) == 0.1
    assert relative_error(0) == float("inf")


def test_numbers_are_listed_in_few_words() -> None:
    """Runs are joined and long lists cut."""
    assert listed(np.array([0, 1, 2, 5, 7, 8])) == "0-2, 5, 7-8"
    assert listed(np.arange(0, 40, 2)).endswith("22 and more")


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_make_sound_traces(name: str) -> None:
    """Every named shape draws loads whose layers agree, by the model's numbers."""
    shape = SHAPES[name]
    trace = generate(shape, Traffic(num_windows=2, tokens=1000))
    assert trace.tokens.shape == (2, shape.num_layers, shape.num_experts)
    assert (trace.tokens.sum(axis=2) == 1000 * shape.top_k).all()
    assert trace.layer_ids[0] == shape.first_layer
    assert "EP105" not in _ids(trace)


def test_group_limited_routes_use_few_groups() -> None:
    """A token's experts come from at most the allowed number of groups, none twice."""
    shape = Shape(2, 32, 4, num_groups=8, groups_per_token=2)
    routes = generate_routes(shape, Traffic(2, 300, num_topics=3)).experts.astype(int)
    assert routes.shape == (600, 2, 4)
    ordered = np.sort(routes, axis=2)
    assert (np.diff(ordered, axis=2) > 0).all()
    groups = np.sort(routes // 4, axis=2)
    assert (1 + (np.diff(groups, axis=2) > 0).sum(axis=2)).max() == 2


def test_traffic_is_seeded_and_drifts() -> None:
    """The same seed gives the same loads; without drift only sampling noise moves them."""
    traffic = Traffic(num_windows=6, tokens=100000, drift=0)
    still = generate(SHAPE, traffic).tokens
    assert (generate(SHAPE, traffic).tokens == still).all()
    moving = generate(SHAPE, Traffic(num_windows=6, tokens=100000, drift=0.5)).tokens
    assert still.std(axis=0).mean() * 5 < moving.std(axis=0).mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shape(0, 4, 1), "0 layers"),
        (lambda: Shape(1, 4, 5), "top_k is 5"),
        (lambda: Shape(1, 4, 1, num_groups=3), "3 groups"),
        (lambda: Shape(1, 4, 1, num_groups=2, groups_per_token=3), "3 groups per token"),
        (lambda: Shape(1, 8, 4, num_groups=4, groups_per_token=1), "hold fewer than the 4"),
        (lambda: Traffic(tokens=0), "1 or more"),
        (lambda: Traffic(skew=-1), "a skew of -1"),
        (lambda: Traffic(drift=2), "a drift of 2"),
        (lambda: Traffic(seed=-1), "a seed of -1"),
    ],
)
def test_senseless_traffic_is_refused(make: "object", message: str) -> None:
    """Shapes and rates are checked at birth."""
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_scenarios_are_left_out() -> None:
    """Other windows, scaled to fractions, change nothing that is said of the timeline."""
    storm = generate(SHAPE, Traffic(4, 300, skew=2, seed=7))
    for timeline in (SOUND, _with(SOUND.tokens * 3)):
        assert _ids(add_scenario(timeline, storm, 1.0)) == _ids(timeline)


def test_regimes_name_the_windows_of_the_trace() -> None:
    """Idle windows are counted in their numbers, and a lone first window can differ."""
    tokens = np.insert(_regimes().tokens, 2, 0, axis=0)
    found = [f.found for f in inspect(_with(tokens)) if f.id == "EP110"]
    assert found[0].startswith("windows 0:6 and 6:9 differ by")
    other = generate(SHAPE, Traffic(1, 20000, skew=1, seed=9)).tokens
    lone = _with(np.concatenate([other, SOUND.tokens]))
    assert "windows 0:1 and 1:9 differ by" in str(inspect(lone))


def test_rounded_averages_add_up_nearly() -> None:
    """Two decimals cannot add up to the same total; a lost percent is no rounding."""
    averages = np.round(SOUND.tokens / 1024, 2)
    assert "EP105" not in _ids(LoadTrace(averages))
    averages[0, 0] *= 0.99
    assert "EP105" in _ids(LoadTrace(np.round(averages, 2)))


def test_equal_loads_are_no_pattern() -> None:
    """Where every token goes to all experts, or few loads differ, multiples and repeats tell
    nothing."""
    everyone = np.repeat(64 * np.arange(100, 120)[:, None], 8, axis=1)[:, None]
    assert "EP106" not in _ids(LoadTrace(everyone, top_k=8))
    assert "EP107" not in _ids(LoadTrace(np.repeat(everyone[:1], 3, axis=0), top_k=8))
    few = LoadTrace(np.tile([[[20, 40, 60, 80]]], (2, 1, 1)))
    assert not {"EP106", "EP107"} & set(_ids(few))


def test_multiples_are_seen_in_whole_floats() -> None:
    """Counts may be stored as floats."""
    assert "EP106" in _ids(LoadTrace(SOUND.tokens * 3.0))


def test_one_rank_may_have_idle_experts() -> None:
    """The block is the smallest that a rank could hold."""
    tokens = _one_rank().tokens.copy()
    tokens[:, :, [4, 7]] = 0
    tokens[:, :, 5:7] += 1
    found = [f.found for f in inspect(LoadTrace(tokens)) if f.id == "EP104"]
    assert "experts 4 to 7 of 16, in every layer: those of rank 1 of 4" in found[0]


def test_extreme_traffic_is_drawn_or_refused() -> None:
    """Any skew has finite shares; more than can be counted or held is told so."""
    assert generate(SHAPE, Traffic(2, 100, skew=1000)).tokens.sum() == 2 * 3 * 400
    assert generate_routes(SHAPE, Traffic(1, 50, skew=1000)).top_k == 4
    with pytest.raises(InputError, match=r"more than 2\^53 assignments"):
        generate(SHAPE, Traffic(1, 2**62))
    with pytest.raises(InputError, match=r"more than 2\^32 ids"):
        generate_routes(SHAPE, Traffic(1, 2**62))


def test_routes_of_many_experts_keep_their_ids() -> None:
    """Ids above 65535 do not wrap round."""
    experts = generate_routes(Shape(1, 70000, 4), Traffic(1, 200, skew=0)).experts
    assert experts.dtype == np.uint32
    assert experts.max() > 65535
