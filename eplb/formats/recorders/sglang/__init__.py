"""SGLang's expert counts as JSON: `{"logical_count": [layers][experts]}`, or with passes first."""

from collections.abc import Mapping

from ...errors import InputError
from ...trace import LoadTrace
from ..native import as_windows, nested_array
from ..source import Hints, Source

NAME = "sglang"
DESCRIPTION = 'SGLang expert counts: JSON {"logical_count": [layers][experts]}, dense layers zero'

_KNOWN = ("logical_count", "rank", "average_utilization_rate_over_window")


def detect(source: Source) -> bool:
    """Whether it is JSON of this format."""
    return (
        source.kind == "json"
        and isinstance(source.content, Mapping)
        and "logical_count" in source.content
    )


def read(source: Source, hints: Hints) -> tuple[LoadTrace, list[str]]:
    """The trace that the file holds, and remarks on how it was read.

    Raises
    ------
    InputError
        When the counts are not a nested list of numbers.
    """
    content = source.content
    counts = content["logical_count"]
    if not isinstance(counts, list):
        raise InputError("'logical_count' is no list; [layers][experts] is expected")
    notes = [f"unknown key {key!r} was left aside" for key in content if key not in _KNOWN]
    return LoadTrace(as_windows(nested_array(counts, "logical_count"))), notes
