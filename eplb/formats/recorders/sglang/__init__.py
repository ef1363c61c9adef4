"""SGLang's expert distribution recorder: which of its dumps a file or folder is.

Modes `stat` and `stat_approx` write one file of counts by pass and logical expert (`stat`),
`per_pass` and `per_token` one a rank by pass and slot (`passes`); versions before them wrote
one CSV a rank (`table`). People also keep the counts as JSON.
"""

from collections.abc import Mapping

from ....errors import InputError
from ....routes import RouteTrace
from ....trace import LoadTrace
from ...source import Hints, Source
from .passes import read_passes
from .stat import read_json, read_stat
from .table import is_table, read_tables

NAME = "sglang"
DESCRIPTION = (
    "SGLang expert counts: .pt dumps of every recorder mode (file or folder), its old CSV, JSON"
)

_DUMPS = {"stat": read_stat, "passes": read_passes, "csv": read_tables}
# How the recorder begins the names of all its files.
_OWN_NAME = "expert_distribution_"


def detect(source: Source) -> bool:
    """Whether it is a dump of the recorder, a folder of such, or JSON of its counts."""
    return _mode(source) == "json" or bool(_dumps(source))


def read(source: Source, hints: Hints) -> tuple[LoadTrace | RouteTrace, list[str]]:
    """The trace that a file or folder holds, and remarks on how it was read.

    Raises
    ------
    InputError
        When a file is not as the recorder writes it, or the files do not fit together.
    RefusedError
        When the recording is of another number of experts than the hints say.
    """
    if source.kind == "json":
        return read_json(source.content, hints)
    dumps = _dumps(source)
    return _DUMPS[_mode(dumps[0])](dumps, hints)


def _dumps(source: Source) -> list[Source]:
    """The files of a recording, in time order; none when it is no recording of SGLang."""
    if not source.is_folder:
        return [source] if _mode(source) in _DUMPS else []
    dumps: list[Source] = []
    try:
        for ending in (".pt", ".csv"):
            # Other files last, so that they are told not to belong to the recording.
            members = sorted(
                source.members(ending), key=lambda member: not member.base.startswith(_OWN_NAME)
            )
            if members and _mode(members[0]) in _DUMPS:
                dumps += members
    except InputError:
        # The folder may be another recorder's, unless names say otherwise.
        if any(name.startswith(_OWN_NAME) for name in source.names):
            raise
    return dumps


def _mode(source: Source) -> str:
    """What a file holds: json, stat, passes or csv; empty when it is not SGLang's."""
    if source.kind == "text":
        return "csv" if is_table(source) else ""
    if source.kind not in ("json", "torch") or not isinstance(source.content, Mapping):
        return ""
    if "logical_count" in source.content:
        return "json" if source.kind == "json" else "stat"
    by_pass = source.kind == "torch" and "records" in source.content
    return "passes" if by_pass and "last_physical_to_logical_map" in source.content else ""
