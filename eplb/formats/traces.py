"""Any trace file, found by its content, and the project's own files written."""

from typing import Any, NamedTuple

from ..errors import InputError
from ..trace import LoadTrace, RouteTrace
from . import files, native, sglang

READERS = (native, sglang)


class Reading(NamedTuple):
    """A trace, the name of the format it was in, and remarks on how it was read."""

    trace: LoadTrace | RouteTrace
    format: str
    notes: tuple[str, ...]


def read_trace(path: str, num_experts: int | None = None) -> Reading:
    """Read a trace in any known format; `-` is standard input.

    `num_experts` serves routes whose file does not say how many experts there are.

    Raises
    ------
    InputError
        When the file cannot be read or makes no sense; the message begins with its name.
    """
    with files.paused_gc():
        return _read(path, num_experts)


def _read(path: str, num_experts: int | None) -> Reading:
    name = files.name_of(path)
    data = files.read_bytes(path)
    content: Any
    if data.startswith(files.ZIP_MAGIC):
        content = files.read_npz(data, name)
    else:
        content = files.parse_json(data, name)
    del data
    if isinstance(content, dict) and content.get("format") == "eplb-plan":
        raise InputError(f"{name} is a plan; a trace of loads is expected here")
    for reader in READERS:
        if reader.detect(content):
            try:
                trace, notes = reader.read(content, num_experts)
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
            return Reading(trace, reader.NAME, tuple(notes))
    keys = ", ".join(map(repr, list(content)[:6])) if isinstance(content, dict) else repr(content)
    raise InputError(
        f"{name} is of no format known here (it holds {keys[:80]}); `eplb formats` lists them"
    )


def write_trace(trace: LoadTrace | RouteTrace, path: str, force: bool = False) -> None:
    """Write a trace as `.npz`, `.json` or `.json.gz`, by the name's ending.

    Raises
    ------
    InputError
        When the ending is another, or the file exists or cannot be written.
    """
    import gzip

    if not path.endswith((".npz", ".json", ".json.gz")):
        raise InputError(f"{path}: a name ending in .npz, .json or .json.gz is expected")
    data = native.to_bytes(trace, npz=path.endswith(".npz"))
    if path.endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    files.write_bytes(path, data, force)
