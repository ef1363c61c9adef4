"""Option values that are several whole numbers: `0,16,32` or `A:B[:STEP]`."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

# More points than anyone waits for: such a list is a slip of the keyboard.
_MOST = 10_000


class Span(NamedTuple):
    """The numbers from `first` to `last`, both included; without a step, those that make sense."""

    first: int
    last: int
    step: int | None


class Counts(click.ParamType[tuple[Span, ...]]):
    """Numbers and spans of numbers, separated by commas."""

    name = "A,B,..|A:B[:STEP]"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Span, ...]:
        if isinstance(value, tuple):
            return value
        spans = [self._span(part) for part in value.split(",")]
        if None in spans:
            self.fail(
                f"{value!r} is no list of whole numbers of {self.least} or more; 16, 0,16,32,"
                " 0:64 and 0:64:16 (both ends included) are",
                param,
                ctx,
            )
        return tuple(spans)  # type: ignore[arg-type]

    def _span(self, text: str) -> Span | None:
        found = re.fullmatch(r"(\d{1,9})(?::(\d{1,9})(?::(\d{1,9}))?)?", text.strip())
        if found is None:
            return None
        first, last, step = (None if part is None else int(part) for part in found.groups())
        assert first is not None
        last, step = (first, 1) if last is None else (last, step)
        if first < self.least or last < first or step == 0 or last - first >= _MOST * (step or 1):
            return None
        return Span(first, last, step)


def numbers(spans: Sequence[Span] | None, sensible: Sequence[int] | None = None) -> list[int]:
    """The numbers of all spans in the order given; spans without a step hold those of `sensible`
    numbers that lie in them, or all."""
    found: list[int] = []
    for first, last, step in spans or ():
        if step is not None or sensible is None:
            found += range(first, last + 1, step or 1)
        else:
            found += [number for number in sensible if first <= number <= last]
    return found
