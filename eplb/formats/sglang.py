"""SGLang's expert counts as JSON: `{"logical_count": [layers][experts]}`, or with passes first."""

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..trace import LoadTrace
from .native import as_windows, nested_array

NAME = "sglang"
DESCRIPTION = 'SGLang expert counts: JSON {"logical_count": [layers][experts]}, dense layers zero'

_KNOWN = ("logical_count", "rank", "average_utilization_rate_over_window")


def detect(content: Any) -> bool:
    """Whether parsed JSON is of this format."""
    return isinstance(content, Mapping) and "logical_count" in content


def read(content: Any, num_experts: int | None = None) -> tuple[LoadTrace, list[str]]:
    """The trace that `content` holds, and remarks on how it was read.

    Raises
    ------
    InputError
        When the counts are not a nested list of numbers.
    """
    counts = content["logical_count"]
    if not isinstance(counts, list):
        raise InputError("'logical_count' is no list; [layers][experts] is expected")
    notes = [f"unknown key {key!r} was left aside" for key in content if key not in _KNOWN]
    return LoadTrace(as_windows(nested_array(counts, "logical_count"))), notes
