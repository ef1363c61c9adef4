"""Bare lists of numbers, JSON or YAML: speeds of GPUs, measured step times."""

import yaml

from ..errors import InputError
from . import files


def read_numbers(path: str, what: str, each: str) -> tuple[float, ...]:
    """The numbers that a file lists, `what` of each `each` in order.

    Raises
    ------
    InputError
        When it is not a list of numbers; the message begins with its name.
    """
    name = files.name_of(path)
    try:
        content = yaml.safe_load(files.read_bytes(path))
    except yaml.YAMLError as error:
        raise InputError(f"{name} is neither JSON nor YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, list):
        raise InputError(f"{name} holds no list; one number for each {each} is expected")
    for place, number in enumerate(content):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InputError(
                f"{name}: {what} of {each} {place} is {number!r}; a number is expected"
            )
    return tuple(float(number) for number in content)
