"""Traces: their rules, cutting routes into windows, joining files and scenarios."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.errors import InputError
from eplb.routes import RouteTrace
from eplb.timeline import add_scenario, join
from eplb.trace import LoadTrace


@pytest.mark.parametrize(
    ("loads", "message"),
    [
        (np.ones((2, 2)), "windows × layers × experts"),
        (np.ones((0, 1, 1)), "at least one of each"),
        (np.array([[[1, -3]]]), r"loads\[0\]\[0\]\[1\] is -3"),
        (np.array([[[1.0, np.nan]]]), r"loads\[0\]\[0\]\[1\] is NaN"),
        (np.array([[[np.inf, 1.0]]]), r"loads\[0\]\[0\]\[0\] is inf"),
        (np.array([[[2**53 + 1, 0]]]), "above 2\\^53"),
        (np.full((3, 1, 1), 2**52), "add up to more than 2\\^53"),
        (np.array([[["a"]]]), "numbers are expected"),
        (np.array([[[True]]]), "numbers are expected"),
    ],
)
def test_bad_loads_are_named(
    loads: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", message: str
) -> None:
    """Every load that makes no sense is refused, with its place."""
    with pytest.raises(InputError, match=message):
        LoadTrace(loads)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layer_ids": [1]}, "one integer for each of the 2 layers"),
        ({"layer_ids": [1, 1]}, "names a layer twice"),
        ({"window_weight": [1.0, 1.0]}, "each of the 1 windows"),
        ({"window_weight": [-1.0]}, "not negative"),
        ({"window_weight": [0.0]}, "every window has weight 0"),
        ({"num_groups": 3}, "4 experts do not divide into 3 groups; --groups 2"),
        ({"top_k": 5}, "top_k is 5; 1 to 4"),
        ({"window_steps": 0}, "window_steps is 0"),
    ],
)
def test_bad_metadata_is_named(kwargs: dict[str, object], message: str) -> None:
    """Metadata that does not fit the loads is refused."""
    with pytest.raises(InputError, match=message):
        LoadTrace(np.ones((1, 2, 4)), **kwargs)  # type: ignore[arg-type]


def test_counts_stay_whole_and_averages_stay_fractions() -> None:
    """Integers are kept as int64, fractions as float64."""
    assert LoadTrace(np.ones((1, 1, 2), np.uint8)).tokens.dtype == np.int64
    assert LoadTrace(np.full((1, 1, 2), 0.5, np.float32)).tokens.dtype == np.float64


def test_dense_layers_are_dropped_with_their_ids() -> None:
    """Layers without load in any window go; the others keep the model's numbers."""
    loads = np.zeros((2, 3, 2))
    loads[1, 2] = 5
    trace = LoadTrace(loads)
    kept = trace.layers(~trace.dense_layers())
    assert kept.layer_ids.tolist() == [2]
    assert kept.tokens.tolist() == [[[0, 0]], [[5, 5]]]


def test_windows_are_a_python_slice() -> None:
    """Negative edges count from the end; an empty slice is refused with the number there are."""
    trace = LoadTrace(np.arange(1, 5).reshape(4, 1, 1))
    assert trace.windows(slice(-2, None)).tokens.ravel().tolist() == [3, 4]
    with pytest.raises(InputError, match="the trace has 4 windows"):
        trace.windows(slice(4, None))


def _routes(num_tokens: int, **kwargs: object) -> RouteTrace:
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((num_tokens, 2, 6)), axis=2)[:, :, :3]
    return RouteTrace(experts, 6, **kwargs)  # type: ignore[arg-type]


@given(st.integers(1, 40), st.integers(1, 12))
def test_cut_routes_count_every_token_of_whole_windows(num_tokens: int, size: int) -> None:
    """A window of n tokens holds n · top_k assignments in each layer; a partial last one goes."""
    routes = _routes(num_tokens)
    if size > num_tokens:
        with pytest.raises(InputError, match="longer than the trace"):
            routes.windows(window_tokens=size)
        return
    loads = routes.windows(window_tokens=size)
    assert loads.num_windows == num_tokens // size
    assert (loads.tokens.sum(axis=2) == 3 * size).all()
    first = [int((routes.experts[:size, 1] == expert).sum()) for expert in range(6)]
    assert loads.tokens[0, 1].tolist() == first


def test_absent_experts_are_not_counted() -> None:
    """−1 marks a token that took fewer experts."""
    loads = RouteTrace(np.array([[[0, -1]], [[1, 0]]]), 2).windows()
    assert loads.tokens.tolist() == [[[2, 1]]]


def test_steps_cut_windows() -> None:
    """Windows of two steps, whatever tokens each step had; the partial last one is dropped."""
    routes = _routes(7, step=np.array([3, 3, 4, 5, 6, 6, 7]))
    loads = routes.windows(window_steps=2)
    assert loads.tokens.sum(axis=(1, 2)).tolist() == [3 * 6, 3 * 6]
    assert loads.window_steps == 2
    assert routes.windows().num_windows == 5


def test_suggested_windows_are_used() -> None:
    """Without options the trace's own window decides, and else all tokens are one window."""
    assert _routes(8, window_tokens=4).windows().num_windows == 2
    assert _routes(8).windows().num_windows == 1


@pytest.mark.parametrize(
    ("experts", "kwargs", "message"),
    [
        (np.zeros((2, 2)), {}, "tokens × layers × top_k"),
        (np.zeros((1, 1, 1)), {}, "integers are expected"),
        (np.array([[[4]]]), {}, r"routes\[0\]\[0\]\[0\] is expert 4; ids from 0 to 3"),
        (np.array([[[-2]]]), {}, "is expert -2"),
        (np.array([[[255]]], np.uint8), {}, "255 is a filler"),
        (np.array([[[0]]]), {"step": [0, 1]}, "one value for each of the 1 tokens"),
        (np.array([[[0]], [[1]]]), {"step": [1, 0]}, "step goes backwards"),
    ],
)
def test_bad_routes_are_named(experts: object, kwargs: dict[str, object], message: str) -> None:
    """Routes that make no sense are refused, with their place."""
    with pytest.raises(InputError, match=message):
        RouteTrace(np.asarray(experts), 4, **kwargs)  # type: ignore[arg-type]


def test_routes_without_steps_cannot_be_cut_by_steps() -> None:
    """The message names the option that can."""
    with pytest.raises(InputError, match="--window-tokens can"):
        _routes(4).windows(window_steps=2)
    with pytest.raises(InputError, match="exclude each other"):
        _routes(4).windows(2, 2)


def test_files_join_into_one_timeline() -> None:
    """Windows follow each other in the order given."""
    parts = [LoadTrace(np.full((2, 1, 2), value)) for value in (1, 2)]
    assert join(parts).tokens[:, 0, 0].tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (LoadTrace(np.ones((1, 1, 3))), "3 experts and the first 2"),
        (LoadTrace(np.ones((1, 1, 2)), layer_ids=np.array([7])), r"in one only: \[0, 7\]"),
        (LoadTrace(np.ones((1, 1, 2)), top_k=2), "top_k 2 and the first 1"),
    ],
)
def test_traces_of_different_models_do_not_join(other: LoadTrace, message: str) -> None:
    """Experts, layers and routing must be the same."""
    with pytest.raises(InputError, match=message):
        join([LoadTrace(np.ones((1, 1, 2)), top_k=1), other])


def test_a_scenario_weighs_what_it_is_told_to() -> None:
    """A scenario of weight 1 counts as much as the timeline, whatever its size and length."""
    timeline = LoadTrace(np.full((4, 1, 2), 10))
    both = add_scenario(timeline, LoadTrace(np.array([[[2000, 0]]])), weight=1.0)
    assert both.scenario.tolist() == [0, 0, 0, 0, 1]
    assert both.window_weight.tolist() == [1, 1, 1, 1, 4]
    assert both.tokens[4].tolist() == [[20, 0]]
    third = add_scenario(both, LoadTrace(np.ones((1, 1, 2))), weight=0.5)
    assert third.window_weight.tolist() == [1, 1, 1, 1, 4, 2]
    with pytest.raises(InputError, match="weight 0"):
        add_scenario(timeline, timeline, 0)
    with pytest.raises(InputError, match="carries no load"):
        add_scenario(timeline, LoadTrace(np.zeros((1, 1, 2))), 1)


def test_narrow_floats_are_read() -> None:
    """float16 holds no 2^53 to compare with, which is no reason to warn."""
    assert LoadTrace(np.ones((1, 1, 2), np.float16)).tokens.dtype == np.float64


@pytest.mark.parametrize("scenario", [[0.5], [np.nan]])
def test_scenarios_are_whole_numbers(scenario: list[float]) -> None:
    """Nothing is rounded silently."""
    with pytest.raises(InputError, match="scenario is of type float64; whole numbers"):
        LoadTrace(np.ones((1, 1, 2)), scenario=np.array(scenario))


def test_a_timeline_may_number_its_scenarios_from_one() -> None:
    """Its lowest scenario is what a further one is measured by, however many are added."""
    timeline = LoadTrace(np.full((4, 1, 2), 10), scenario=np.array([1, 1, 1, 2]))
    assert timeline.timeline().num_windows == 3
    both = add_scenario(timeline, LoadTrace(np.array([[[2000, 0]]])), weight=1.0)
    third = add_scenario(both, LoadTrace(np.ones((1, 1, 2))), weight=1.0)
    assert third.scenario.tolist() == [1, 1, 1, 2, 3, 4]
    assert third.window_weight.tolist() == [1, 1, 1, 1, 3, 3]
    assert third.tokens[4:].tolist() == [[[20, 0]], [[10, 10]]]


def test_gaps_in_steps_make_no_windows() -> None:
    """Steps may be times: windows without a token are left out, and take no memory."""
    routes = _routes(5, step=np.array([0, 0, 10**15, 10**15 + 1, 2 * 10**15]))
    assert routes.windows().tokens.sum(axis=(1, 2)).tolist() == [12, 6, 6, 6]
    assert routes.windows(window_steps=10).tokens.sum(axis=(1, 2)).tolist() == [12, 12]


def test_senseless_sizes_are_refused_before_memory_is_taken() -> None:
    """As many experts as no model has, and more counts than fit."""
    with pytest.raises(InputError, match="num_experts is 999999999; 1000000 at most"):
        RouteTrace(np.zeros((1, 1, 1), int), 999999999)
    routes = RouteTrace(np.zeros((3000, 1, 1), int), 1000000, step=np.arange(3000))
    with pytest.raises(InputError, match="too many counts; --window-tokens"):
        routes.windows()


def test_joining_takes_what_the_first_does_not_say() -> None:
    """Metadata come from whichever file has them; models of two names do not join."""
    bare = LoadTrace(np.ones((1, 1, 2)))
    known = LoadTrace(np.ones((1, 1, 2)), num_groups=2, top_k=1, window_steps=5, model="a")
    both = join([bare, known])
    assert (both.num_groups, both.top_k, both.window_steps, both.model) == (2, 1, 5, "a")
    with pytest.raises(InputError, match="trace 3 has model b and the first a"):
        join([bare, known, LoadTrace(np.ones((1, 1, 2)), model="b")])
    turned = [LoadTrace(np.ones((1, 2, 2)), layer_ids=np.array(ids)) for ids in ([0, 1], [1, 0])]
    with pytest.raises(InputError, match="the same in another order"):
        join(turned)


def test_an_open_slice_is_named_as_it_was_given() -> None:
    """Not with the word None."""
    with pytest.raises(InputError, match="no window in 40:; the trace has 1"):
        LoadTrace(np.ones((1, 1, 2))).windows(slice(40, None))


def test_windows_are_known_again_by_their_loads() -> None:
    """In another order of layers, among dense ones, in other types; not with other loads."""
    tokens = np.random.default_rng(3).poisson(20.0, (4, 3, 8))
    digests = LoadTrace(tokens, layer_ids=np.array([2, 5, 7])).window_digests()
    assert len(set(digests)) == 4
    turned = LoadTrace(tokens[:, ::-1].astype(float), layer_ids=np.array([7, 5, 2]))
    padded = LoadTrace(np.insert(tokens, 0, 0, axis=1))
    assert turned.window_digests() == padded.window_digests() == digests
    assert LoadTrace(tokens + 1).window_digests()[0] not in digests


def test_windows_add_up_by_steps() -> None:
    """Neighbours are summed, a partial last window is dropped, weights are averaged."""
    tokens = np.arange(1, 6).reshape(5, 1, 1)
    trace = LoadTrace(tokens, window_steps=2, window_weight=np.array([1.0, 3, 1, 1, 9]))
    summed = trace.summed(4)
    assert summed.tokens.ravel().tolist() == [3, 7]
    assert summed.window_weight.tolist() == [2, 1] and summed.window_steps == 4
    assert trace.summed(2).tokens.ravel().tolist() == [1, 2, 3, 4, 5]
    for steps, message in ((3, "--window-steps 2"), (12, "longer than the trace, which has 10")):
        with pytest.raises(InputError, match=message):
            trace.summed(steps)
    with pytest.raises(InputError, match="do not say how many engine steps"):
        LoadTrace(tokens).summed(2)


def test_windows_of_other_steps_are_not_joined() -> None:
    """A window of four steps is not one of two."""
    two, four = (LoadTrace(np.ones((2, 1, 2), int), window_steps=steps) for steps in (2, 4))
    with pytest.raises(InputError, match="--window-steps makes them alike"):
        join([two, four])
    assert join([two, LoadTrace(np.ones((1, 1, 2), int))]).window_steps == 2
