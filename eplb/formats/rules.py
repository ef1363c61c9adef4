"""What a gate is told: its rules file (`eplb.toml`) and the report that is its baseline."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import InputError
from . import files
from .reports import read_report

TABLE = "check"
KEYS = ("plan", "traces", "fail_if", "baseline", "tolerance")


class Rules(NamedTuple):
    """The table `[check]`; limits and the tolerance are as they were written, paths as they are
    from the working folder."""

    plan: str | None = None
    traces: tuple[str, ...] = ()
    fail_if: tuple[str, ...] = ()
    baseline: str | None = None
    tolerance: str | None = None


class Baseline(NamedTuple):
    """The named figures of an earlier report, and what they were scored on where it says so."""

    name: str
    summary: Mapping[str, float]
    num_windows: int | None = None
    num_layers: int | None = None
    in_sample: bool | None = None


def read_rules(path: str) -> Rules:
    """Read a rules file; `-` is standard input. Its paths are relative to its own folder.

    Raises
    ------
    InputError
        When it cannot be read, is no TOML, or says what is not understood; the message begins with
        its name.
    """
    name = files.name_of(path)
    try:
        content = tomllib.loads(files.read_bytes(path).decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no UTF-8 text: byte {error.start} is not") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is not valid TOML: {error}") from None
    _check_keys(content, (TABLE,), "table", name)
    table = content.get(TABLE)
    if not isinstance(table, dict):
        raise InputError(f"{name} has no table [{TABLE}], where the rules of the gate are expected")
    _check_keys(table, KEYS, "key", f"{name}: [{TABLE}]")
    folder = os.path.dirname(path)

    def beside(target: str) -> str:
        return target if target == "-" else os.path.join(folder, target)

    plan, baseline = (_text(table, key, name) for key in ("plan", "baseline"))
    return Rules(
        plan=None if plan is None else beside(plan),
        traces=tuple(beside(trace) for trace in _texts(table, "traces", name)),
        fail_if=_texts(table, "fail_if", name),
        baseline=None if baseline is None else beside(baseline),
        tolerance=_tolerance(table, name),
    )


def read_baseline(path: str) -> Baseline:
    """Read the figures of a report file, and how much it was scored on.

    Raises
    ------
    InputError
        When it is no report.
    """
    if path == "-":
        raise InputError("--baseline - ; the name of a report file is expected, to update it by")
    content = read_report(path)
    windows, layers, in_sample = (content.get(key) for key in ("windows", "layers", "in_sample"))
    return Baseline(
        path,
        content["summary"],
        len(windows) if isinstance(windows, list) and windows else None,
        len(layers) if isinstance(layers, list) and layers else None,
        in_sample if isinstance(in_sample, bool) else None,
    )


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], kind: str, where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
            meant = f" ({near[0]!r} is meant?)" if near else ""
            raise InputError(
                f"{where}: no {kind} is called {key!r}{meant}; known: {', '.join(known)}"
            )


def _text(table: Mapping[str, Any], key: str, name: str) -> str | None:
    value = table.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise InputError(f"{name}: {key} is {value!r}; the name of a file is expected")
    return value


def _texts(table: Mapping[str, Any], key: str, name: str) -> tuple[str, ...]:
    values = table.get(key, [])
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise InputError(f"{name}: {key} is {values!r}; a list of texts, [{'...'!r}], is expected")
    return tuple(values)


def _tolerance(table: Mapping[str, Any], name: str) -> str | None:
    value = table.get("tolerance")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f'{name}: tolerance is {value!r}; "0.5%" or 0.005 is expected')
    return str(value)
