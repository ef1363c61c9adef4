"""The project's own trace files: JSON or NPZ with the same keys, and bare nested lists."""

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from .._arrays import Numbers
from ..errors import InputError
from ..routes import RouteTrace
from ..trace import LoadTrace
from .recorders.experts import by_expert
from .source import Hints, Source

NAME = "eplb"
DESCRIPTION = (
    "traces: .npz, .json, .json.gz with loads [W][L][E]; .npz with token routes [T, L, k]; bare"
    " nested lists"
)
FORMAT, VERSION = "eplb-trace", 1

_COMMON = ("layer_ids", "num_groups", "window_steps", "phase", "model")
_HEADER = ("format", "version", "num_experts", "top_k")
_OF_LOADS = ("loads", "window_weight", "scenario")
_OF_ROUTES = ("routes", "source_rank", "request", "step", "window_tokens")


def detect(source: Source) -> bool:
    """Whether it is JSON or an NPZ file of this format."""
    if source.kind not in ("json", "npz"):
        return False
    content = source.content
    if isinstance(content, Mapping):
        has_format = str(_plain(content.get("format"))) == FORMAT
        return has_format or "loads" in content or "routes" in content
    return isinstance(content, list)


def read(source: Source, hints: Hints) -> tuple[LoadTrace | RouteTrace, list[str]]:
    """The trace that a file holds, and remarks on how it was read.

    Raises
    ------
    InputError
        When keys are missing or values are not what they should be.
    RefusedError
        When a bare list is of another model, or of slots and the live placement is another.
    """
    return parse(source.content, hints)


def parse(content: Any, hints: Hints) -> tuple[LoadTrace | RouteTrace, list[str]]:
    """The trace that parsed JSON, or the arrays of an NPZ file, hold, and remarks.

    Raises
    ------
    InputError, RefusedError
        As `read`.
    """
    if isinstance(content, list):
        return by_expert(LoadTrace(as_windows(nested_array(content, "loads"))), hints)
    _check_header(content)
    is_routes = "routes" in content
    known = (*_COMMON, *_HEADER, *(_OF_ROUTES if is_routes else _OF_LOADS))
    notes = [f"unknown key {key!r} was left aside" for key in content if key not in known]
    if hints.recorded_under is not None:
        notes.append("loads of this format are by expert already, so no live plan is needed for it")
    trace = _routes(content, notes, hints.experts()) if is_routes else _loads(content)
    return trace, notes


def to_bytes(trace: LoadTrace | RouteTrace, npz: bool) -> bytes:
    """The file of a trace; routes only as NPZ.

    Raises
    ------
    InputError
        When routes are asked for as JSON.
    """
    from . import files

    values: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    values |= {key: getattr(trace, key) for key in _COMMON}
    values["num_experts"], values["top_k"] = trace.num_experts, trace.top_k
    if isinstance(trace, RouteTrace):
        if not npz:
            raise InputError("routes are written as NPZ only; give the file a name ending in .npz")
        values["routes"] = trace.experts
        values |= {key: getattr(trace, key) for key in _OF_ROUTES[1:]}
    else:
        if (trace.window_weight != 1).any():
            values["window_weight"] = trace.window_weight
        if trace.scenario.any():
            values["scenario"] = trace.scenario
        values["loads"] = trace.tokens
    values = {key: value for key, value in values.items() if value is not None}
    if npz:
        arrays = {key: np.asarray(value) for key, value in values.items()}
        if "loads" in arrays:
            arrays["loads"] = _narrow(arrays["loads"])
        return files.npz_bytes(arrays)
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def _narrow(loads: Numbers) -> Numbers:
    """Counts in the smallest type that holds them, which unpacks several times faster."""
    return loads if loads.dtype.kind == "f" else loads.astype(np.min_scalar_type(loads.max()))


def nested_array(value: list[Any], name: str) -> Numbers:
    """A nested list of two or three levels as an array, checked row by row.

    Raises
    ------
    InputError
        When rows differ in length or hold anything but numbers; says where.
    """
    depth, first = 0, value
    shape = []
    while isinstance(first, list):
        if not first:
            raise InputError(f"{name}{'[0]' * depth} is empty; numbers are expected")
        shape.append(len(first))
        depth, first = depth + 1, first[0]
    if depth not in (2, 3):
        raise InputError(
            f"{name} is nested {depth} deep; [layers][experts] or [windows][layers][experts]"
            " is expected"
        )
    rows: list[tuple[str, Any]] = []
    for i, outer in enumerate(value):
        if depth == 2:
            rows.append((f"{name}[{i}]", outer))
            continue
        if not isinstance(outer, list) or len(outer) != shape[1]:
            raise InputError(
                f"{name}[{i}] has {_length(outer)} and {name}[0] {shape[1]};"
                " every window must have the same layers"
            )
        rows += [(f"{name}[{i}][{j}]", row) for j, row in enumerate(outer)]
    return _stack(rows, shape[-1]).reshape(shape)


def as_windows(loads: Numbers) -> Numbers:
    """Loads of shape (W, L, E); a single [L][E] table is one window."""
    return loads[None] if loads.ndim == 2 else loads


def _stack(rows: list[tuple[str, Any]], width: int) -> Numbers:
    """Rows of one width as one array; int64 unless a number has a fraction or an exponent."""
    out: Numbers = np.empty((len(rows), width), np.int64)
    code = "q"
    for index, (where, row) in enumerate(rows):
        if not isinstance(row, list) or len(row) != width:
            raise InputError(
                f"{where} has {_length(row)} and {rows[0][0]} {width};"
                " every layer must have the same experts"
            )
        if isinstance(row[0], bool):  # array() takes booleans; looking at each would cost double
            _check_numbers(row, where)
        try:
            # array() is several times faster than numpy here, and takes no text for a number.
            out[index] = np.frombuffer(array(code, row), code)
        except (TypeError, OverflowError):
            _check_numbers(row, where)
            if code == "q":
                out, code = out.astype(np.float64), "d"
            out[index] = row
    out.setflags(write=False)  # a trace takes a read-only array over without a copy
    return out


def _check_numbers(row: list[Any], where: str) -> None:
    for position, item in enumerate(row):
        if isinstance(item, bool) or not isinstance(item, int | float):
            shown = orjson.dumps(item).decode() if not isinstance(item, dict | list) else "a list"
            raise InputError(f"{where}[{position}] is {shown[:40]}; a number is expected")


def _length(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list) else "no list"


def _check_header(content: Mapping[str, Any]) -> None:
    found = _plain(content.get("format", FORMAT))
    if str(found) != FORMAT:
        raise InputError(f"the format is {found!r}; {FORMAT!r} is expected")
    version = _plain(content.get("version", VERSION))
    if str(version) != str(VERSION):
        raise InputError(
            f"the file is version {version!r} of {FORMAT}; this eplb reads version {VERSION}"
        )
    if "loads" not in content and "routes" not in content:
        raise InputError("there is neither 'loads' nor 'routes' in it; one of them is expected")
    if "loads" in content and "routes" in content:
        raise InputError("there are both 'loads' and 'routes' in it; one of them is expected")


def _loads(content: Mapping[str, Any]) -> LoadTrace:
    loads = content["loads"]
    if isinstance(loads, list):
        loads = nested_array(loads, "loads")
    elif not isinstance(loads, np.ndarray):
        raise InputError(f"'loads' is {_kind(loads)}; a nested list of numbers is expected")
    trace = LoadTrace(
        tokens=as_windows(loads),
        top_k=_integer(content, "top_k"),
        window_weight=_vector(content, "window_weight"),
        scenario=_vector(content, "scenario"),
        **_metadata(content),
    )
    stated = _integer(content, "num_experts")
    if stated is not None and stated != trace.num_experts:
        raise InputError(
            f"num_experts is {stated} and the rows of loads have {trace.num_experts} numbers"
        )
    return trace


def _routes(content: Mapping[str, Any], notes: list[str], num_experts: int | None) -> RouteTrace:
    routes = content["routes"]
    if not isinstance(routes, np.ndarray):
        raise InputError("'routes' are read from NPZ files only")
    if routes.dtype.kind not in "iu" or routes.ndim != 3:
        raise InputError(
            f"'routes' has shape {routes.shape} and type {routes.dtype};"
            " integers of [tokens, layers, top_k] are expected"
        )
    stated = _integer(content, "num_experts") or num_experts
    if stated is None:
        stated = int(routes.max()) + 1 if routes.size else 1
        notes.append(
            f"the routes do not say how many experts there are; {stated} is taken, the largest"
            " id + 1"
        )
    top_k = _integer(content, "top_k")
    if top_k is not None and top_k != routes.shape[2]:
        raise InputError(f"top_k is {top_k} and the routes have {routes.shape[2]} ids a token")
    return RouteTrace(
        experts=routes,
        num_experts=stated,
        window_tokens=_integer(content, "window_tokens"),
        source_rank=_vector(content, "source_rank"),
        request=_vector(content, "request"),
        step=_vector(content, "step"),
        **_metadata(content),
    )


def _metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "layer_ids": _vector(content, "layer_ids"),
        "num_groups": _integer(content, "num_groups"),
        "window_steps": _integer(content, "window_steps"),
        "phase": _text(content, "phase"),
        "model": _text(content, "model"),
    }


def _plain(value: Any) -> Any:
    """A zero-dimensional array of an NPZ file as the Python value it holds."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _integer(content: Mapping[str, Any], key: str) -> int | None:
    value = _plain(content.get(key))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{key!r} is {_kind(value)}; a whole number of 1 or more is expected")
    return value


def _text(content: Mapping[str, Any], key: str) -> str | None:
    value = _plain(content.get(key))
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key!r} is {_kind(value)}; a text is expected")
    return value


def _vector(content: Mapping[str, Any], key: str) -> Numbers | None:
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, list):
        _check_numbers(value, key)
    vector = np.asarray(value)
    if vector.ndim != 1 or vector.dtype.kind not in "iuf":
        raise InputError(f"{key!r} is {_kind(value)}; a list of numbers is expected")
    return vector


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, list | dict):
        return f"a {type(value).__name__}"
    return repr(value)[:60]
