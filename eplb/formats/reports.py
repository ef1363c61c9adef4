"""The report file: JSON, versioned, one window and one layer a line."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from .. import metrics
from ..errors import InputError
from ..report import Report
from . import files

FORMAT, VERSION = "eplb-report", 1


def report_bytes(report: Report, extra: Mapping[str, Any] | None = None) -> bytes:
    """The report file of `report`, with further keys."""
    lines = [
        (b'"format"', _dump(FORMAT)),
        (b'"version"', _dump(VERSION)),
        (b'"summary"', _dump(report.summary())),
        *((_dump(key), _dump(value)) for key, value in (extra or {}).items()),
        (b'"windows"', _rows(_windows(report))),
        (b'"layers"', _rows(_layers(report))),
        (b'"model_constants"', _dump(dict(report.constants))),
    ]
    return b"{\n" + b",\n".join(key + b": " + value for key, value in lines) + b"\n}\n"


def read_report(path: str) -> Mapping[str, Any]:
    """The content of a report file, whose `summary` holds named figures; `-` is standard input.

    Raises
    ------
    InputError
        When it is no report; the message begins with its name.
    """
    name = files.name_of(path)
    content = files.read_own(path, "report", FORMAT, VERSION)
    summary = content.get("summary")
    if not isinstance(summary, Mapping):
        raise InputError(f"{name}: the report has no 'summary' of named figures")
    for key, value in summary.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name}: summary.{key} is {value!r}; a number is expected")
    return content


def _windows(report: Report) -> list[dict[str, Any]]:
    ratio = report.balancedness
    rows = []
    for index, window in enumerate(report.windows.tolist()):
        mean, peak = report.mean_load[index], report.peak_load[index]
        row = {
            "window": window,
            "mean_balancedness": float(ratio[index].mean()),
            "worst_balancedness": float(ratio[index].min()),
            "efficiency": float(mean.sum() / peak.sum()) if peak.any() else 1.0,
            "moves": int(report.moves[index]),
            "peak_load": peak,
        }
        if report.step_seconds is not None:
            row["step_seconds"] = float(report.step_seconds[index])
        rows.append(row)
    return rows


def _layers(report: Report) -> list[dict[str, Any]]:
    ratio, weight = report.balancedness, report.window_weight
    by_layer = metrics.over_windows(ratio, weight)
    peak = metrics.over_windows(report.peak_load, weight)
    mean = metrics.over_windows(report.mean_load, weight)
    rows = []
    for index, layer in enumerate(report.layer_ids.tolist()):
        row = {
            "layer": layer,
            "mean_balancedness": float(by_layer[index]),
            "p95_balancedness": float(np.quantile(ratio[:, index], 0.05, method="lower")),
            "worst_balancedness": float(ratio[:, index].min()),
            "mean_load": float(mean[index]),
            "peak_load": float(peak[index]),
        }
        if report.rank_load is not None:
            row["rank_load"] = report.rank_load[index]
        rows.append(row)
    return rows


def _rows(rows: list[dict[str, Any]]) -> bytes:
    return b"[\n" + b",\n".join(map(_dump, rows)) + b"\n]"


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
