"""What a model's structure says of a trace."""

import numpy as np
import pytest

from eplb.errors import RefusedError
from eplb.model import Model
from eplb.routes import RouteTrace
from eplb.trace import LoadTrace

# Five decoder layers, the last three with experts, and one multi-token-prediction layer.
MODEL = Model("deepseek_v3", 5, (2, 3, 4), 4, top_k=2, num_groups=2, mtp_layer_ids=(5,))
# Experts in every second layer of eight.
EVERY_SECOND = Model("llama4", 8, (1, 3, 5, 7), 4, top_k=1)
# As many layers with experts as decoder layers, counting the multi-token-prediction layer.
AS_MANY = Model("glm4_moe", 4, (1, 2, 3), 4, top_k=2, mtp_layer_ids=(4,))


def _loads(loaded: list[bool], layer_ids: list[int] | None = None) -> LoadTrace:
    """A row of load for every True, and an empty row for every False."""
    return LoadTrace(np.ones((1, 1, 4), int) * np.array(loaded)[:, None], layer_ids)


def _routes(loaded: list[bool], layer_ids: list[int] | None = None) -> RouteTrace:
    experts = np.where(np.array(loaded)[:, None], [[3, 1]], -1)
    return RouteTrace(np.stack([experts, experts]), 4, layer_ids=layer_ids)


ROWS = [
    ("all decoder layers", MODEL, [False, False, True, True, True], None, [0, 1, 2, 3, 4], 0),
    ("and the MTP layer", MODEL, [False] * 2 + [True] * 4, None, [0, 1, 2, 3, 4, 5], 0),
    ("layers with experts", MODEL, [True] * 3, None, [2, 3, 4], 1),
    ("and MTP", MODEL, [True] * 4, None, [2, 3, 4, 5], 1),
    ("own numbers", MODEL, [True] * 3, [2, 3, 4], [2, 3, 4], 0),
    ("own numbers and MTP", MODEL, [True] * 4, [2, 3, 4, 5], [2, 3, 4, 5], 0),
    ("own numbers in another order", MODEL, [True] * 3, [4, 2, 3], [4, 2, 3], 0),
    ("every second, in order", EVERY_SECOND, [True] * 4, None, [1, 3, 5, 7], 1),
    ("every second, of all", EVERY_SECOND, [False, True] * 4, None, list(range(8)), 0),
    ("as many rows as layers", AS_MANY, [False, True, True, True], None, [0, 1, 2, 3], 0),
    ("as many rows, MTP and no dense", AS_MANY, [True] * 4, None, [1, 2, 3, 4], 1),
]


@pytest.mark.parametrize("make", [_loads, _routes])
@pytest.mark.parametrize(("what", "model", "loaded", "ids", "expected", "num_notes"), ROWS)
def test_rows_take_the_models_numbers(
    make: "type[LoadTrace]",
    what: str,
    model: Model,
    loaded: list[bool],
    ids: list[int] | None,
    expected: list[int],
    num_notes: int,
) -> None:
    """Rows are of all decoder layers, of those with experts, or numbered as the model does."""
    if make is _routes and model.top_k == 1:
        model = Model(model.name, model.num_layers, model.moe_layer_ids, 4)
    trace, notes = model.describe(make(loaded, ids))
    assert trace.layer_ids.tolist() == expected
    assert len(notes) == num_notes, notes
    if num_notes:
        assert "rows are taken for layers" in notes[0]


def test_the_first_of_all_layers_are_not_those_with_experts() -> None:
    """Four rows of which just the dense ones are empty are layers 0 to 3 of eight, though there
    are four layers with experts; what is missing is remarked."""
    trace, notes = EVERY_SECOND.describe(_loads([False, True, False, True]))
    assert trace.layer_ids.tolist() == [0, 1, 2, 3]
    assert notes == ["no load in layers 5, 7, which have experts in the model"]


def test_unsaid_groups_and_top_k_come_from_the_model() -> None:
    """What the trace says itself stays; routes know their top-k."""
    trace, _ = MODEL.describe(_loads([True] * 3))
    assert (trace.num_groups, trace.top_k, trace.model) == (2, 2, "deepseek_v3")
    named, _ = MODEL.describe(LoadTrace(np.ones((1, 3, 4)), model="mine", num_groups=2))
    assert (named.model, named.num_groups) == ("mine", 2)
    routes, _ = MODEL.describe(_routes([True] * 3))
    assert (routes.num_groups, routes.top_k, routes.model) == (2, 2, "deepseek_v3")


def test_inputs_are_left_as_they_are() -> None:
    """A described trace is a new one."""
    before = _loads([True] * 3)
    MODEL.describe(before)
    assert before.layer_ids.tolist() == [0, 1, 2]
    assert before.num_groups is None


ONES = np.ones((1, 3, 4), int)
REFUSED: dict[str, tuple[LoadTrace | RouteTrace, str]] = {
    "other experts": (
        LoadTrace(np.ones((1, 3, 8))),
        r"has 8 experts a layer and the model \(deepseek_v3\) 4",
    ),
    "other groups": (LoadTrace(ONES, num_groups=4), "num_groups 4 and the model .* 2"),
    "another top-k": (LoadTrace(ONES, top_k=1), "top_k 1 and the model .* 2"),
    "routes of another top-k": (RouteTrace(np.ones((1, 3, 3), int), 4), "top_k 3 and the model"),
    "load in a dense layer": (
        _loads([True] * 5),
        r"load in layer 0, which has no experts in the model \(deepseek_v3: 3 such layers, 2 to 4",
    ),
    "routes in a dense layer": (_routes([False, True, True, True, True]), "load in layer 1"),
    "a layer behind all": (_loads([True] * 3, [2, 3, 6]), "load in layer 6"),
    "unsigned routes of all layers": (
        RouteTrace(np.full((1, 5, 2), [1, 2], np.uint8), 4),
        "load in layer 0",
    ),
    "zeros where no experts are": (
        RouteTrace(np.array([[[0, 0], [3, 1], [3, 1], [3, 1], [3, 1]]], np.uint8), 4),
        "routes of layer 0 name expert 0 only, 2 times for every token",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_traces_of_another_model_are_refused(what: str) -> None:
    """Each message says what does not fit."""
    trace, message = REFUSED[what]
    with pytest.raises(RefusedError, match=message):
        MODEL.describe(trace)


def test_filler_is_refused_where_rows_could_be_mistaken() -> None:
    """Four rows of zeros and routes could pass for three layers and MTP."""
    experts = np.array([[[0, 0], [3, 1], [3, 1], [3, 1]]])
    with pytest.raises(RefusedError, match="where a layer has no experts"):
        AS_MANY.describe(RouteTrace(experts, 4))


def test_all_layers_with_experts_are_listed_in_order() -> None:
    """Multi-token-prediction layers come last."""
    assert MODEL.all_layer_ids == (2, 3, 4, 5)
