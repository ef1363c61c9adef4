"""Routes that SGLang and vLLM servers return with each response, one response or many."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..._arrays import Bools, Ints
from ...errors import InputError, RefusedError
from ...model import Model
from ...routes import RouteTrace
from .. import files
from ..source import Hints, Source
from .experts import largest_expert
from .records import check_once, each, first

NAME = "routed-experts"
DESCRIPTION = (
    "Responses of SGLang or vLLM with routed_experts (base64): JSON, a list of them, or JSON lines"
)

_KEY = "routed_experts"
_NPY = b"\x93NUMPY"


def detect(source: Source) -> bool:
    """Whether the first response has a place for routes."""
    return any(True for _ in _values(first(source)))


def read(source: Source, hints: Hints) -> tuple[RouteTrace, list[str]]:
    """The routes of all responses, and remarks on how they were read.

    Layers are all decoder layers; `request` is the number of a response in the file, or of a
    choice where a response has several.

    Raises
    ------
    InputError
        When a value cannot be decoded, or responses do not fit together.
    RefusedError
        When they are of another model.
    """
    parts: list[Ints] = []
    requests: list[int] = []
    number = 0
    without = 0
    for where, response in each(source):
        values = list(_values(response)) if isinstance(response, Mapping) else []
        # A response without any place for routes, an error for one, is counted as one without.
        for place, value in values or [(_KEY, None)]:
            ids = None if value is None else _decode(value, f"{where}, {place}", hints.model)
            if ids is None or not len(ids):
                without += 1
            else:
                _check_shape(ids, parts, f"{where}, {place}")
                parts.append(_narrow(ids, f"{where}, {place}"))
                requests.append(number)
            number += 1
    if not parts:
        raise InputError(
            f"none of {number} responses has routes; servers return them when started with"
            " --enable-return-routed-experts and asked for return_routed_experts (SGLang)"
        )
    notes = [f"{without} of {number} responses have no routes"] if without else []
    experts, largest = _joined(parts, requests, hints.model, notes)
    trace = RouteTrace(
        experts=experts,
        num_experts=largest_expert("routes", largest, hints, notes),
        request=np.repeat(requests, [len(part) for part in parts]),
    )
    return trace, notes


def _values(response: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The places for routes in a response, with what is there."""
    for key in ("meta_info", "sglext"):
        block = response.get(key)
        if isinstance(block, Mapping) and _KEY in block:
            yield f"{key}.{_KEY}", block[_KEY]
    choices = response.get("choices")
    for index, choice in enumerate(choices if isinstance(choices, list) else []):
        if isinstance(choice, Mapping) and _KEY in choice:
            yield f"choices[{index}].{_KEY}", choice[_KEY]


def _decode(value: Any, where: str, model: Model | None) -> Ints:
    """Ids of shape (T, L, K)."""
    if not isinstance(value, str):
        raise InputError(f"{where} is a {type(value).__name__}; a text in base64 is expected")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where} is not base64: {error}") from None
    return _npy(data, where) if data.startswith(_NPY) else _raw(data, where, model)


def _npy(data: bytes, where: str) -> Ints:
    """The array that vLLM encodes with its shape."""
    ids = files.read_npy(data, where)
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or 0 in ids.shape[1:]:
        raise InputError(
            f"{where} is an array of shape {ids.shape} and type {ids.dtype};"
            " integers of [tokens, layers, top_k] are expected"
        )
    return ids


def _raw(data: bytes, where: str, model: Model | None) -> Ints:
    """The bare numbers that SGLang encodes: their shape is the model's."""
    if model is None or model.top_k is None:
        raise InputError(
            f"{where} holds ids without their shape, as SGLang sends them: --model, the model's"
            " folder or config.json with its layers and experts per token, is needed to read them"
        )
    row = 4 * model.num_layers * model.top_k
    if len(data) % row:
        raise InputError(
            f"{where} has {len(data)} bytes, which are no whole tokens of {model.num_layers}"
            f" layers × {model.top_k} experts × 4 bytes ({row}); it is cut, or of another model"
            f" than {model.name}"
        )
    return np.frombuffer(data, "<i4").reshape(-1, model.num_layers, model.top_k)


def _check_shape(ids: Ints, parts: list[Ints], where: str) -> None:
    if parts and ids.shape[1:] != parts[0].shape[1:]:
        raise InputError(
            f"{where} has {ids.shape[1]} layers × {ids.shape[2]} experts a token and the first"
            f" {parts[0].shape[1]} × {parts[0].shape[2]}; responses must be of one model"
        )


def _narrow(ids: Ints, where: str) -> Ints:
    """Checked ids in the smallest signed type that holds them."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise InputError(f"{where} has expert {low if low < 0 else high}; no expert has such an id")
    return ids.astype(np.int16 if high <= np.iinfo(np.int16).max else np.int32)


def _joined(
    parts: list[Ints], requests: list[int], model: Model | None, notes: list[str]
) -> tuple[Ints, int]:
    """All tokens of all responses, dense layers marked absent, and the largest id."""
    empty = np.all([~part.any(axis=(0, 2)) for part in parts], axis=0)
    dense = _guess_dense(empty, parts[0].shape[2], notes) if model is None else _dense(empty, model)
    layer_ids = np.flatnonzero(~dense)
    for request, part in zip(requests, parts, strict=True):
        check_once(part[:, ~dense], layer_ids, partial("request {}, token {}".format, request))
    experts = np.concatenate(parts)
    largest = int(experts.max())
    experts[:, dense] = -1
    experts.setflags(write=False)  # a trace takes a read-only array over without a copy
    return experts, largest


def _dense(empty: Bools, model: Model) -> Bools:
    """Which layers have no experts in the model: servers write zeros there."""
    if len(empty) != model.num_layers:
        raise RefusedError(
            f"the routes have {len(empty)} layers and the model ({model.name})"
            f" {model.num_layers}, dense ones included; they are of another model"
        )
    dense = ~np.isin(np.arange(len(empty)), model.moe_layer_ids)
    if (dense & ~empty).any():
        raise RefusedError(
            f"layer {np.flatnonzero(dense & ~empty)[0]} has routes and no experts in the model"
            f" ({model.name}); they are of another model"
        )
    return dense


def _guess_dense(empty: Bools, top_k: int, notes: list[str]) -> Bools:
    """Which layers are dense, told by zeros alone: with several experts a token, a router cannot
    give expert 0 to all of them."""
    if empty.all():
        raise InputError("every layer holds zeros only, as layers without experts do")
    if empty.any():
        layers = ", ".join(map(str, np.flatnonzero(empty).tolist()))
        sure = (
            "" if top_k > 1 else "; with one expert a token, expert 0 may be meant: --model tells"
        )
        notes.append(f"layers with zeros only are taken for dense: {layers}{sure}")
    return empty
