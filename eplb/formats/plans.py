"""The plan file: JSON, versioned, one layer a line, the same bytes for the same plan."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from .._arrays import Numbers
from ..errors import EplbError, InputError, RefusedError
from ..placement import Placement
from ..plan import Plan, placement_digest
from . import files

FORMAT, VERSION = "eplb-plan", 1

_REQUIRED = ("num_experts", "num_gpus", "slots_per_gpu", "physical_to_logical")
_MAPPINGS = ("summary", "options", "provenance")
_KNOWN = {
    *("format", "version", "num_nodes", "layer_ids", "home_node", "excluded_gpus"),
    *("peak_load", "lower_bound", "status", "mean_load", "frontier", *_REQUIRED, *_MAPPINGS),
}


def plan_bytes(plan: Plan) -> bytes:
    """The plan file of `plan`."""
    placement = plan.placement
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "num_experts": placement.num_logical_experts,
        "num_gpus": placement.num_ranks,
        "num_nodes": placement.num_nodes,
        "slots_per_gpu": placement.slots_per_rank,
        "layer_ids": plan.layer_ids,
        "physical_to_logical": placement.physical_to_logical,
        "home_node": placement.home_node,
        "excluded_gpus": list(placement.excluded_ranks) or None,
        "peak_load": plan.peak_load,
        "lower_bound": plan.lower_bound,
        "status": plan.status,
        "summary": dict(plan.summary),
        "frontier": list(plan.frontier) or None,
        "mean_load": plan.mean_load,
        "options": dict(plan.options),
        "provenance": dict(plan.provenance),
        **plan.extra,
    }
    lines = [
        _dump(key) + b": " + _value(value) for key, value in values.items() if value is not None
    ]
    return b"{\n" + b",\n".join(lines) + b"\n}\n"


def write_plan(plan: Plan, path: str, force: bool = False) -> None:
    """Write a plan whole or not at all.

    Raises
    ------
    InputError
        When the file exists and `force` is off, or cannot be written.
    """
    files.write_bytes(path, plan_bytes(plan), force)


def read_plan(path: str) -> Plan:
    """Read a plan and check it as if it were new; `-` is standard input.

    Raises
    ------
    InputError
        When the file cannot be read or the plan breaks a rule; the message begins with its name.
    RefusedError
        When it was edited after it was planned.
    """
    name = files.name_of(path)
    content = files.read_own(path, "plan", FORMAT, VERSION)
    try:
        return _plan(content)
    except EplbError as error:
        raise type(error)(f"{name}: {error}") from None


def _plan(content: Mapping[str, Any]) -> Plan:
    content = {key: value for key, value in content.items() if value is not None}
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise InputError(f"the plan has no {', '.join(map(repr, missing))}")
    num_ranks, slots = _count(content, "num_gpus"), _count(content, "slots_per_gpu")
    table = _table(content, "physical_to_logical", integers=True)
    if table.shape[1] != num_ranks * slots:
        raise InputError(
            f"physical_to_logical has {table.shape[1]} slots a layer;"
            f" {num_ranks} GPUs × {slots} slots = {num_ranks * slots} are expected"
        )
    num_experts = _count(content, "num_experts")
    if num_experts > table.shape[1]:
        raise InputError(f"'num_experts' is {num_experts}, more than the {table.shape[1]} slots")
    placement = Placement(
        physical_to_logical=table,
        num_logical_experts=num_experts,
        num_ranks=num_ranks,
        num_nodes=_count(content, "num_nodes") if "num_nodes" in content else 1,
        home_node=_table(content, "home_node", integers=True) if "home_node" in content else None,
        excluded_ranks=tuple(_row(content, "excluded_gpus", integers=True).tolist())
        if content.get("excluded_gpus")
        else (),
    )
    layer_ids = (
        _row(content, "layer_ids", integers=True)
        if "layer_ids" in content
        else np.arange(len(table))
    )
    for key in _MAPPINGS:
        if not isinstance(content.get(key, {}), Mapping):
            raise InputError(f"{key!r} is no object")
    for key, value in content.get("summary", {}).items():
        _check_number(value, f"summary.{key}")
    _check_said(content, num_ranks)
    status = content.get("status")
    if status is not None and not isinstance(status, list):
        raise InputError("'status' is no list")
    plan = Plan(
        placement=placement,
        layer_ids=layer_ids,
        status=status,
        mean_load=_table(content, "mean_load") if "mean_load" in content else None,
        extra={key: value for key, value in content.items() if key not in _KNOWN},
        peak_load=_row(content, "peak_load") if "peak_load" in content else None,
        lower_bound=_row(content, "lower_bound") if "lower_bound" in content else None,
        summary=content.get("summary", {}),
        frontier=_frontier(content.get("frontier", [])),
        options=content.get("options", {}),
        provenance=content.get("provenance", {}),
    )
    _check_digest(plan)
    return plan


def _check_said(content: Mapping[str, Any], num_ranks: int) -> None:
    """What other commands take from the options and the provenance is of the kind they expect."""
    options = content.get("options", {})
    if (expert_bytes := options.get("expert_bytes")) is not None:
        _check_number(expert_bytes, "options.expert_bytes")
    for key, least in (("groups", 1), ("shared_experts", 0)):
        value = options.get(key)
        if value is not None and (type(value) is not int or value < least):
            raise InputError(
                f"'options.{key}' is {value!r}; a whole number of {least} or more is expected"
            )
    speeds = options.get("gpu_speed")
    if speeds is not None and not (isinstance(speeds, list) and len(speeds) == num_ranks):
        raise InputError(f"'options.gpu_speed' is no list of {num_ranks} numbers, one for each GPU")
    for speed in speeds or ():
        _check_number(speed, "options.gpu_speed")
    windows = content.get("provenance", {}).get("windows")
    if windows is not None and not (
        isinstance(windows, list) and all(isinstance(digest, str) for digest in windows)
    ):
        raise InputError("'provenance.windows' is no list of digests")


def _frontier(value: Any) -> list[Mapping[str, Any]]:
    keys = {"max_share", "moves", "mean_balancedness"}
    if not isinstance(value, list) or not all(
        isinstance(point, Mapping) and keys <= set(point) for point in value
    ):
        raise InputError(f"'frontier' is not a list of objects with {', '.join(sorted(keys))}")
    for point in value:
        for key in sorted(keys):
            _check_number(point[key], f"frontier.{key}")
    return value


def _check_digest(plan: Plan) -> None:
    stated = plan.provenance.get("placement_digest")
    if stated is not None and stated != placement_digest(plan.placement, plan.layer_ids):
        raise RefusedError(
            "its placement is not the one that was planned (the digest differs), so its figures"
            " may be wrong: plan again, or delete provenance.placement_digest to accept the edit"
        )


def _count(content: Mapping[str, Any], key: str) -> int:
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{key!r} is {value!r}; a whole number of 1 or more is expected")
    return value


def _check_number(value: Any, key: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{key!r} is {value!r}; a number is expected")


def _row(content: Mapping[str, Any], key: str, integers: bool = False) -> Numbers:
    return _array(content[key], key, integers, 1)


def _table(content: Mapping[str, Any], key: str, integers: bool = False) -> Numbers:
    return _array(content[key], key, integers, 2)


def _array(value: Any, key: str, integers: bool, ndim: int) -> Numbers:
    expected = f"{'whole ' if integers else ''}numbers{' by layer' if ndim == 2 else ''}"
    try:
        array = np.array(value)
    except ValueError:
        raise InputError(f"the rows of {key!r} differ in length; {expected} are expected") from None
    if array.ndim != ndim or array.dtype.kind not in ("iu" if integers else "iuf"):
        raise InputError(f"{key!r} is not what it should be; {expected} are expected")
    return array


def _value(value: Any) -> bytes:
    """JSON of one value; a table has one line a row, so that plans can be compared by line."""
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return b"[\n" + b",\n".join(_dump(row) for row in value) + b"\n]"
    return _dump(value)


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
