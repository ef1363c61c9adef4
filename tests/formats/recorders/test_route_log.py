"""Logs of routes, a line for each token and layer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb.errors import InputError, RefusedError
from eplb.formats.recorders import route_log
from eplb.formats.source import Hints, Source
from eplb.routes import RouteTrace

HEAD = {"type": "meta", "model_id": "org/moe", "top_k": 2, "layers_logged": [1, 4], "seed": 1}
HINTS = Hints(num_experts=8)


def route(request: object, token: object, layer: object, *ids: Any, **more: Any) -> dict[str, Any]:
    """A line as the patches write it."""
    return {
        "type": "route",
        "req_id": request,
        "token_idx": token,
        "layer": layer,
        "topk_ids": list(ids),
        "topk_weights": [0.5] * len(ids),
    } | more


def read(path: Path, *records: object, hints: Hints = HINTS) -> tuple[RouteTrace, list[str]]:
    """What the reader makes of JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = Source(str(path))
    assert route_log.detect(source)
    return route_log.read(source, hints)


def test_tokens_come_in_order_of_appearance(tmp_path: Path) -> None:
    """Lines of a token need not be neighbours; requests are numbered as they appear."""
    trace, notes = read(
        tmp_path / "log.jsonl",
        HEAD,
        route("b", 7, 4, 3, 2),
        route("a", 0, 1, 0, 1),
        route("b", 7, 1, 6, 5),
        route("a", 0, 4, 1, 2),
    )
    assert trace.experts.tolist() == [[[6, 5], [3, 2]], [[0, 1], [1, 2]]]
    assert trace.request is not None
    assert (trace.request.tolist(), trace.layer_ids.tolist()) == ([0, 1], [1, 4])
    assert (trace.num_experts, trace.model, notes) == (8, "org/moe", [])


def test_layers_without_a_line_are_absent(tmp_path: Path) -> None:
    """They count nothing, and it is said; so is a layer that no token has a line for."""
    head = HEAD | {"layers_logged": [1, 4, 9]}
    trace, notes = read(
        tmp_path / "log.jsonl",
        head,
        route(1, 0, 1, 0, 1),
        route(1, 0, 4, 2, 3),
        route(1, 1, 1, 0, 2),
    )
    assert trace.experts[1].tolist() == [[0, 2], [-1, -1], [-1, -1]]
    assert notes == [
        "layers 9 were to be logged and have no line",
        "3 of 6 places of a token and a layer have no line and count nothing",
    ]


def test_a_head_is_not_needed(tmp_path: Path) -> None:
    """Layers are those seen, and experts as many as the largest id says."""
    trace, notes = read(tmp_path / "log.jsonl", route(0, 0, 5, 3), route(0, 1, 5, 2), hints=Hints())
    assert (trace.experts.tolist(), trace.layer_ids.tolist()) == ([[[3]], [[2]]], [5])
    assert trace.num_experts == 4
    assert "4 is taken, the largest id + 1" in notes[0]


def test_a_head_may_say_how_many_experts_there_are(tmp_path: Path) -> None:
    """Some patches write it."""
    trace, notes = read(
        tmp_path / "log.jsonl",
        HEAD | {"num_experts": 60, "layers_logged": [0]},
        route(0, 0, 0, 3, 1),
        hints=Hints(),
    )
    assert (trace.num_experts, notes) == (60, [])


def test_token_numbers_that_start_anew_are_new_tokens(tmp_path: Path) -> None:
    """Some patches repeat head and numbers with each forward pass, under one request."""
    head = HEAD | {"layers_logged": [0]}
    trace, notes = read(
        tmp_path / "log.jsonl",
        head,
        route("r1", 0, 0, 1, 2),
        route("r1", 1, 0, 3, 4),
        head,
        route("r1", 0, 0, 5, 6),
        head,
        route("r1", 0, 0, 7, 0),
    )
    assert trace.experts.tolist() == [[[1, 2]], [[3, 4]], [[5, 6]], [[7, 0]]]
    assert "2 lines repeat a token number" in notes[0]


def test_many_lines_are_what_a_plain_loop_makes_of_them(tmp_path: Path) -> None:
    """Sorting by columns agrees with a dictionary of tokens, whatever the order of the lines."""
    rng = np.random.default_rng(0)
    lines = [
        route(f"q{request}", token, layer, *rng.choice(8, 2, replace=False).tolist())
        for request in range(4)
        for token in range(5)
        for layer in (1, 4)
        if rng.random() < 0.8
    ]
    lines = [lines[i] for i in rng.permutation(len(lines))]
    trace, _ = read(tmp_path / "log.jsonl", HEAD, *lines)
    tokens: dict[tuple[str, int], dict[int, list[int]]] = {}
    for line in lines:
        layers = tokens.setdefault((line["req_id"], line["token_idx"]), {})
        layers[line["layer"]] = line["topk_ids"]
    absent = [-1, -1]
    assert trace.experts.tolist() == [
        [layers.get(layer, absent) for layer in (1, 4)] for layers in tokens.values()
    ]


GOOD = route("a", 0, 1, 0, 1)
HOSTILE: dict[str, tuple[list[object], str]] = {
    "a head only": ([HEAD, HEAD], "no route in it"),
    "a foreign line": ([HEAD, GOOD, {"type": "x"}], "line 3 is neither.*its keys are 'type'"),
    "a number for a line": ([HEAD, 7], "line 2 is neither .* no object"),
    "no layer": ([HEAD, {"type": "route", "topk_ids": [1], "req_id": 1, "token_idx": 0}],
                 "line 2 has no 'layer'; its keys are 'type'"),
    "no ids": ([HEAD, route("a", 0, 1)], r"topk_ids is \[\]"),
    "ids of text": ([HEAD, route("a", 0, 1, "1", "2")], "list of expert ids"),
    "fractional ids": ([HEAD, route("a", 0, 1, 1, 2.5)], "list of expert ids"),
    "ids of truth": ([HEAD, route("a", 0, 1, True, False)], "list of expert ids"),
    "more ids than top_k": ([HEAD, route("a", 0, 1, 1, 2, 3)], "line 2 has 3 experts; 2 are"),
    "fewer ids than before": ([route("a", 0, 1, 1, 2), route("a", 1, 1, 1)], "has 1 experts; 2"),
    "negative ids": ([HEAD, route("a", 0, 1, 1, -2)], "expert -2"),
    "an id that fills memory": ([HEAD, route("a", 0, 1, 1, 2**40)], "too large for any model"),
    "a layer that fills memory": ([HEAD, route("a", 0, 2**40, 1, 2)], "too large for any model"),
    "a negative layer": ([HEAD, route("a", 0, -1, 1, 2)], "layer -1; whole numbers"),
    "a token of text": ([HEAD, route("a", "0", 1, 1, 2)], "token_idx is '0'"),
    "a token too large": ([HEAD, route("a", 2**31, 1, 1, 2)], "token_idx is 2147483648"),
    "a request that is a list": ([HEAD, route([1], 0, 1, 1, 2)], r"req_id is \[1\]"),
    "a layer not logged": ([HEAD, route("a", 0, 2, 1, 2)], "routes of layer 2.*layers 1, 4 were"),
    "an expert twice": ([HEAD, GOOD, route("a", 3, 4, 5, 5)],
                        "request 'a', token 3, layer 4 has expert 5 twice"),
    "another model": ([HEAD, GOOD, HEAD | {"model_id": "b"}], "line 3: the model is 'b' and was"),
    "another top_k": ([HEAD, GOOD, HEAD | {"top_k": 4}], "top_k is 4 and was 2"),
    "layers of text": ([HEAD | {"layers_logged": ["1"]}, GOOD], "no list of layers"),
    "top_k of zero": ([HEAD | {"top_k": 0}, GOOD], "'top_k' is 0"),
    "experts of text": ([HEAD | {"num_experts": "8"}, GOOD], "'num_experts' is '8'"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_logs_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so."""
    records, message = HOSTILE[what]
    with pytest.raises(InputError, match=message):
        read(tmp_path / "log.jsonl", *records)


def test_routes_of_another_model_are_refused(tmp_path: Path) -> None:
    """The model has fewer experts than are named."""
    with pytest.raises(RefusedError, match=r"expert 8; ids from 0 to 7 .* another model"):
        read(tmp_path / "log.jsonl", HEAD, route("a", 0, 1, 1, 8))


@pytest.mark.parametrize("content", ["{}", '{"type": "route"}', '{"type": "meta"}', "[]", "x"])
def test_foreign_files_are_left_alone(tmp_path: Path, content: str) -> None:
    """They are for other readers."""
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    assert not route_log.detect(Source(str(path)))
