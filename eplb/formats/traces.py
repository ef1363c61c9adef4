"""Any trace file, found by its content, and the project's own files written."""

from typing import NamedTuple

from ..errors import EplbError, InputError, RefusedError
from ..model import Model
from ..placement import Placement
from ..routes import RouteTrace
from ..trace import LoadTrace
from . import files, native
from .recorders import (
    arrays,
    imatrix,
    megatron,
    mindie,
    route_log,
    routed_experts,
    sglang,
    tables,
    trtllm,
    vllm,
)
from .source import Hints, Source

# In the order they are asked; `native` last, as it takes any list for loads.
READERS = (
    sglang,
    vllm,
    trtllm,
    routed_experts,
    route_log,
    imatrix,
    mindie,
    megatron,
    tables,
    arrays,
    native,
)


_KINDS = {
    "json": "JSON",
    "jsonl": "JSON lines",
    "npz": "an NPZ file",
    "npy": "an NPY file",
    "torch": "a torch file",
    "gguf": "a GGUF file",
    "parquet": "a Parquet file",
}


class Reading(NamedTuple):
    """A trace, the name of the format it was in, and remarks on how it was read."""

    trace: LoadTrace | RouteTrace
    format: str
    notes: tuple[str, ...]


def read_trace(
    path: str,
    num_experts: int | None = None,
    model: Model | None = None,
    window_steps: int | None = None,
    recorded_under: Placement | None = None,
) -> Reading:
    """Read a trace in any known format; `-` is standard input, a folder is one recording.

    The other parameters say what the recording may not say itself: see `Hints`. With a model, the
    trace is checked against it and takes its layer numbers.

    Raises
    ------
    InputError
        When the file cannot be read or makes no sense; the message begins with its name.
    RefusedError
        When it is of another model, or was not recorded under that placement.
    """
    with files.paused_gc():
        source = Source(path)
        try:
            return _read(source, Hints(num_experts, model, window_steps, recorded_under))
        except EplbError as error:
            if str(error).startswith(source.name):
                raise
            raise type(error)(f"{source.name}: {error}") from None


def _read(source: Source, hints: Hints) -> Reading:
    fitting = (reader for reader in READERS if reader.detect(source))
    reader = next(fitting, None)
    if reader is None:
        raise InputError(f"no recording known here: {_found(source)}; `eplb formats` lists what is")
    if source.is_folder and (other := next(fitting, None)):
        raise InputError(
            f"it has files of two recordings, {reader.NAME} and {other.NAME}; move one of them into"
            " a folder of its own"
        )
    trace, notes = reader.read(source, hints)
    live = hints.recorded_under
    if live is not None and trace.num_experts != live.num_logical_experts:
        raise RefusedError(
            f"the recording has counts of {trace.num_experts} experts, and the placement recorded"
            f" under has {live.num_logical_experts}; of this format ({reader.NAME}) counts are not"
            " by slot, or it was not the one that was live"
        )
    if hints.model is not None:
        trace, remarks = hints.model.describe(trace)
        notes = [*notes, *remarks]
    return Reading(trace, reader.NAME, tuple(notes))


def _found(source: Source) -> str:
    """What is in a file that nobody reads."""
    if source.kind == "folder":
        return f"a folder with {', '.join(source.names[:4]) or 'no file'}"
    if source.kind == "json" and isinstance(source.content, dict):
        if source.content.get("format") == "eplb-plan":
            raise InputError("it is a plan; a trace of loads is expected here")
        return f"JSON with {', '.join(map(repr, list(source.content)[:6]))[:80] or 'no key'}"
    if source.kind in ("text", "bytes"):
        data = source.data()
        return f"it begins with {data[:8]!r}" if data.strip() else "it is empty"
    return _KINDS[source.kind]


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
