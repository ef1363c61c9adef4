"""The sweep file: JSON, versioned, one point a line."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..errors import InputError
from . import files

FORMAT, VERSION = "eplb-sweep", 1


def sweep_bytes(
    points: Sequence[Mapping[str, Any]],
    skipped: Sequence[Mapping[str, Any]],
    knee: Sequence[Mapping[str, Any]] | None,
) -> bytes:
    """The sweep file of these points; `knee` is None while there are points to come."""
    lines = [
        (b"format", orjson.dumps(FORMAT)),
        (b"version", orjson.dumps(VERSION)),
        (b"complete", orjson.dumps(knee is not None)),
        (b"points", _rows(points)),
        (b"skipped", _rows(skipped)),
        (b"knee", orjson.dumps(knee)),
    ]
    return b"{\n" + b",\n".join(b'"' + key + b'": ' + text for key, text in lines) + b"\n}\n"


def read_points(path: str) -> list[dict[str, Any]]:
    """The points of a sweep file, each with its `digest`.

    Raises
    ------
    InputError
        When it is no sweep; the message begins with its name.
    """
    name = files.name_of(path)
    content = files.read_own(path, "sweep", FORMAT, VERSION)
    points = content.get("points")
    if not isinstance(points, list) or not all(
        isinstance(point, Mapping) and isinstance(point.get("digest"), str) for point in points
    ):
        raise InputError(f"{name}: 'points' must be a list of objects, each with its 'digest'")
    return [dict(point) for point in points]


def _rows(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"[\n" + b",\n".join(map(orjson.dumps, rows)) + b"\n]" if rows else b"[]"
