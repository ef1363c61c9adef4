"""Relative speeds of GPUs: a JSON or YAML list of numbers."""

import yaml

from ..errors import InputError
from . import files


def read_speeds(path: str) -> tuple[float, ...]:
    """The speeds that a file lists, one a GPU.

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
        raise InputError(f"{name} holds no list; one number for each GPU is expected")
    for rank, speed in enumerate(content):
        if isinstance(speed, bool) or not isinstance(speed, int | float):
            raise InputError(f"{name}: the speed of GPU {rank} is {speed!r}; a number is expected")
    return tuple(float(speed) for speed in content)
