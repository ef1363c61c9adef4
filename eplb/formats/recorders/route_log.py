"""Logs of routes as patched vLLM servers write them: JSON lines, one for each token and layer."""

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._arrays import Ints
from ...errors import InputError
from ...routes import RouteTrace
from ..source import Hints, Source
from .experts import largest_expert
from .records import check_once, each, first, keys_of, whole

NAME = "route-log"
DESCRIPTION = 'Route logs: JSON lines {"type": "meta"} and {"type": "route", "topk_ids": [...]}'

_ROUTE = ("req_id", "token_idx", "layer", "topk_ids")
# Tokens × layers × top_k: 8 GiB at the most.
_MOST_IDS = 2**31
_MOST_TOKENS = 2**31


def detect(source: Source) -> bool:
    """Whether the first line is the head of such a log, or a route."""
    record = first(source)
    if record.get("type") == "meta":
        return "layers_logged" in record or "top_k" in record
    return record.get("type") == "route" and "topk_ids" in record


def read(source: Source, hints: Hints) -> tuple[RouteTrace, list[str]]:
    """The routes of all tokens in order of appearance, and remarks.

    A layer that a token has no line for is absent (−1). A token number that comes again with a
    layer it already had is a new token: some logs start numbering anew with each forward pass.

    Raises
    ------
    InputError
        When a line is no route, or does not fit the head or the others.
    """
    log = _Log()
    for where, record in each(source):
        kind = record.get("type") if isinstance(record, Mapping) else None
        if kind == "route":
            log.add(record, where)
        elif kind == "meta":
            log.start(record, where)
        else:
            raise InputError(
                f"{where} is neither a 'meta' nor a 'route' line; its keys are {keys_of(record)}"
            )
    if not log.layers:
        raise InputError("there is no route in it, only the head; was the server asked anything?")
    return log.trace(hints)


class _Log:
    """The lines of a log in columns, a few bytes a number."""

    def __init__(self) -> None:
        self.head: Mapping[str, Any] = {}
        self.logged: list[int] = []
        self.top_k = 0
        self.requests: dict[Any, int] = {}
        self.request, self.token = array("q"), array("q")
        self.layers, self.ids = array("i"), array("i")

    def start(self, head: Mapping[str, Any], where: str) -> None:
        """Take over a head; some logs repeat it with each forward pass."""
        logged = head.get("layers_logged")
        if logged is not None and not (isinstance(logged, list) and _are_whole(logged)):
            raise InputError(f"{where}: 'layers_logged' is no list of layers: {str(logged)[:60]}")
        top_k = whole(head, "top_k", where, least=1) if "top_k" in head else 0
        if self.top_k and top_k and top_k != self.top_k:
            raise InputError(
                f"{where}: top_k is {top_k} and was {self.top_k}; logs of two models are in one"
            )
        model = self.head.get("model_id", head.get("model_id"))
        if head.get("model_id") != model:
            raise InputError(
                f"{where}: the model is {head.get('model_id')!r} and was {model!r};"
                " logs of two models are in one"
            )
        self.head = {**head, **self.head}
        self.top_k = self.top_k or top_k
        self.logged += [layer for layer in logged or [] if layer not in self.logged]

    def add(self, route: Mapping[str, Any], where: str) -> None:
        """Append one line."""
        try:
            ids = route["topk_ids"]
            request, token, layer = route["req_id"], route["token_idx"], route["layer"]
        except KeyError as error:
            raise InputError(
                f"{where} has no {error}; its keys are {keys_of(route)} and"
                f" {', '.join(map(repr, _ROUTE))} are expected"
            ) from None
        if not (isinstance(ids, list) and ids and _are_whole(ids)):
            raise InputError(f"{where}: topk_ids is {str(ids)[:60]}; a list of expert ids expected")
        self.top_k = self.top_k or len(ids)
        if len(ids) != self.top_k:
            raise InputError(
                f"{where} has {len(ids)} experts; {self.top_k} are expected, as in the lines before"
            )
        if (
            type(token) is not int
            or type(layer) is not int
            or not (0 <= token < _MOST_TOKENS and layer >= 0)
        ):
            raise InputError(
                f"{where}: token_idx is {token!r} and layer {layer!r}; whole numbers are expected"
            )
        if isinstance(request, list | dict):
            raise InputError(f"{where}: req_id is {str(request)[:60]}; a name or number expected")
        self.request.append(self.requests.setdefault(request, len(self.requests)))
        self.token.append(token)
        try:
            self.layers.append(layer)
            self.ids.extend(ids)
        except OverflowError:
            raise InputError(
                f"{where}: layer {layer} or an id of {ids} is too large for any model"
            ) from None

    def trace(self, hints: Hints) -> tuple[RouteTrace, list[str]]:
        """All lines by token and layer."""
        notes: list[str] = []
        layers = np.frombuffer(self.layers, np.int32)
        ids = np.frombuffer(self.ids, np.int32).reshape(-1, self.top_k)
        layer_ids = self._layers(np.unique(layers).tolist(), notes)
        if "num_experts" in self.head:
            num_experts = whole(self.head, "num_experts", "the head", least=1)
        else:
            num_experts = largest_expert("routes", int(ids.max()), hints, notes)
        request = np.frombuffer(self.request, np.int64)
        token, start = _tokens(request, np.frombuffer(self.token, np.int64), layers, notes)
        num_tokens, num_lines = len(start), len(token)
        places = num_tokens * len(layer_ids)
        if places * self.top_k > _MOST_IDS:
            raise InputError(
                f"{num_tokens} tokens × {len(layer_ids)} layers × {self.top_k} experts are too"
                f" many, with {num_lines} lines; are tokens numbered anew in each layer?"
            )
        small = int(ids.max()) <= np.iinfo(np.int16).max and int(ids.min()) >= -1
        experts = np.full(
            (num_tokens, len(layer_ids), self.top_k), -1, np.int16 if small else np.int32
        )
        experts[token, np.searchsorted(layer_ids, layers)] = ids
        names = list(self.requests)
        check_once(
            experts,
            layer_ids,
            lambda t: f"request {names[request[start[t]]]!r}, token {self.token[start[t]]}",
        )
        if num_lines < places:
            notes.append(
                f"{places - num_lines} of {places} places of a token and a layer have no line and"
                " count nothing"
            )
        experts.setflags(write=False)  # a trace takes a read-only array over without a copy
        model = self.head.get("model_id")
        return RouteTrace(
            experts=experts,
            num_experts=num_experts,
            request=request[start],
            layer_ids=layer_ids,
            model=model if isinstance(model, str) else None,
        ), notes

    def _layers(self, seen: list[int], notes: list[str]) -> list[int]:
        """The logged layers, ascending; those seen where the head does not say."""
        logged = sorted(self.logged) or seen
        if strange := [layer for layer in seen if layer not in logged]:
            raise InputError(
                f"there are routes of layer {strange[0]}, and the head says that layers"
                f" {str(logged[:8])[1:-1]} were logged"
            )
        if unseen := [layer for layer in logged if layer not in seen]:
            notes.append(f"layers {str(unseen[:8])[1:-1]} were to be logged and have no line")
        return logged


def _are_whole(values: list[Any]) -> bool:
    """Whether all are integers: neither fractions nor truth values."""
    return set(map(type, values)) == {int}


def _tokens(request: Ints, token: Ints, layer: Ints, notes: list[str]) -> tuple[Ints, Ints]:
    """Which token, in order of appearance, each line is of, and the first line of each token."""
    number = np.unique(request * _MOST_TOKENS + token, return_inverse=True)[1]
    # How often the same token number had the same layer before.
    order = np.lexsort((layer, number))  # stable
    apart = np.ones(len(order), bool)
    apart[1:] = (np.diff(number[order]) != 0) | (np.diff(layer[order]) != 0)
    starts = np.flatnonzero(apart)
    again = np.empty(len(order), np.int64)
    again[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    if again.any():
        notes.append(
            f"{np.count_nonzero(again)} lines repeat a token number, as when each forward pass"
            " numbers its tokens anew; each repetition is a token of its own"
        )
    _, start, group = np.unique(
        number * (again.max() + 1) + again, return_index=True, return_inverse=True
    )
    place = np.empty(len(start), np.int64)
    place[np.argsort(start)] = np.arange(len(start))
    return place[group], np.sort(start)
