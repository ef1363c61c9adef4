"""What commands write, and what they must not write over."""

from collections.abc import Iterable
from pathlib import Path

from eplb.errors import InputError
from eplb.formats import files


def check_output(output: str, force: bool, read: Iterable[str | None]) -> None:
    """Find out before long work whether a file may be written: never over one that is `read`.

    Raises
    ------
    InputError
        When it may not be.
    """
    inputs = (path for path in read if path not in (None, "-"))
    if any(Path(str(path)).resolve() == Path(output).resolve() for path in inputs):
        raise InputError(f"-o {output} would overwrite a file that is read; give another name")
    files.check_output(output, force)
