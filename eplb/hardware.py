"""What GPUs, their memory and their links can do: the constants of the time model.

Each constant is a value with its unit and where it comes from. A nominal speed is the maker's; the
share of it that real kernels reach is a constant of its own, so that a calibration changes what was
guessed and leaves what was published.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from .errors import InputError, RefusedError
from .topology import Topology

# Of each kind of constant, the units it may be written in and their size in the first of them.
_UNITS = {
    "flops": {"FLOP/s": 1.0, "TFLOP/s": 1e12, "PFLOP/s": 1e15},
    "bandwidth": {"bytes/s": 1.0, "GB/s": 1e9, "TB/s": 1e12, "Gb/s": 1e9 / 8},
    "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "fraction": {"fraction": 1.0},
    "rows": {"rows": 1.0},
    "gpus": {"GPUs": 1.0},
}
# No constant is as large as this; not a number and infinity are not smaller either.
_LIMIT = 1e30
_KIND = {
    "peak_flops_bf16": "flops",
    "peak_flops_fp8": "flops",
    "flop_efficiency": "fraction",
    "tile_rows": "rows",
    "hbm_bw": "bandwidth",
    "hbm_efficiency": "fraction",
    "layer_overhead": "seconds",
    "intra_node_bw": "bandwidth",
    "intra_node_efficiency": "fraction",
    "inter_node_bw": "bandwidth",
    "inter_node_efficiency": "fraction",
    "exchange_latency": "seconds",
    "gpus_per_node": "gpus",
}


class Constant(NamedTuple):
    """A number with its unit (FLOP/s, bytes/s, s, fraction, rows or GPUs) and its source."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Hardware:
    """The constants of the time model; all of one GPU, bandwidths in one direction.

    Parameters
    ----------
    name
        Of the preset or file.
    peak_flops_bf16, peak_flops_fp8
        Dense matrix FLOP/s by the maker's data sheet.
    flop_efficiency
        Share of them that grouped matrix products reach.
    tile_rows
        Tokens of an expert are computed in blocks of so many rows.
    hbm_bw, hbm_efficiency
        Bytes/s of the GPU's memory, and the share that reading weights reaches.
    layer_overhead
        Seconds that launching the kernels of a layer's experts takes, whatever the load.
    intra_node_bw, intra_node_efficiency
        Bytes/s between GPUs of a node, and the share that dispatch reaches.
    inter_node_bw, inter_node_efficiency
        Bytes/s of a GPU's share of the network between nodes, and the share that dispatch reaches.
    exchange_latency
        Seconds that one dispatch or combine takes beside its bytes.
    gpus_per_node
        GPUs that the fast links join, at most.

    Raises
    ------
    InputError
        When a value cannot be of its kind.
    """

    name: str
    peak_flops_bf16: Constant
    peak_flops_fp8: Constant
    flop_efficiency: Constant
    tile_rows: Constant
    hbm_bw: Constant
    hbm_efficiency: Constant
    layer_overhead: Constant
    intra_node_bw: Constant
    intra_node_efficiency: Constant
    inter_node_bw: Constant
    inter_node_efficiency: Constant
    exchange_latency: Constant
    gpus_per_node: Constant

    def __post_init__(self) -> None:
        for key, constant in self.constants.items():
            problem = _problem(_KIND[key], constant.value)
            if problem:
                raise InputError(f"{self.name}: {key} is {constant.value:g}; {problem}")

    @property
    def constants(self) -> dict[str, Constant]:
        """All constants by name, in the order of the documentation."""
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}

    def flop_rate(self, precision: str) -> float:
        """FLOP/s that grouped products of `precision` (bf16 or fp8) reach."""
        peak: Constant = getattr(self, f"peak_flops_{precision}")
        return peak.value * self.flop_efficiency.value

    @property
    def hbm_rate(self) -> float:
        """Bytes/s at which weights are read."""
        return self.hbm_bw.value * self.hbm_efficiency.value

    @property
    def intra_node_rate(self) -> float:
        """Bytes/s that a GPU sends, and receives, inside its node."""
        return self.intra_node_bw.value * self.intra_node_efficiency.value

    @property
    def inter_node_rate(self) -> float:
        """Bytes/s that a GPU sends to other nodes, and receives from them."""
        return self.inter_node_bw.value * self.inter_node_efficiency.value

    def with_values(self, values: Mapping[str, float], source: str) -> "Hardware":
        """These constants with some values replaced, which come from `source`."""
        changed: dict[str, Any] = {
            key: Constant(value, self.constants[key].unit, source) for key, value in values.items()
        }
        return replace(self, **changed)

    def check(self, topology: Topology) -> None:
        """Make sure that the nodes of `topology` are joined by fast links.

        Raises
        ------
        RefusedError
            When it has more GPUs on a node than they join.
        """
        most = int(self.gpus_per_node.value)
        if topology.ranks_per_node > most:
            nodes = math.ceil(topology.num_ranks / most)
            raise RefusedError(
                f"{topology.ranks_per_node} GPUs a node; on {self.name} the fast links join"
                f" {most} GPUs, so that {topology.num_ranks} GPUs are at least {nodes} nodes"
            )


def hardware_of(content: object, name: str) -> Hardware:
    """The hardware that the parsed content of a file describes, its values in base units.

    Raises
    ------
    InputError
        When a constant is missing, unknown, or lacks its value, unit or source.
    """
    if not isinstance(content, dict):
        raise InputError(f"{name} holds no mapping; constants by name are expected")
    for key in content:
        if key not in _KIND:
            near = difflib.get_close_matches(str(key), _KIND, n=1)
            meant = f"; {near[0]} is" if near else f"; there are {', '.join(_KIND)}"
            raise InputError(f"{name}: {key} is not a constant of the time model{meant}")
    missing = [key for key in _KIND if key not in content]
    if missing:
        raise InputError(
            f"{name} lacks {', '.join(missing)}; each is written as {{value: …, unit:"
            f" {' or '.join(_UNITS[_KIND[missing[0]]])}, source: …}}"
        )
    return Hardware(name, **{key: _constant(content[key], key, name) for key in _KIND})


def _constant(entry: object, key: str, name: str) -> Constant:
    where = f"{name}: {key}"
    if not isinstance(entry, dict) or set(entry) != {"value", "unit", "source"}:
        found = f"has {', '.join(map(str, entry))}" if isinstance(entry, dict) else f"is {entry!r}"
        raise InputError(f"{where} {found}; value, unit and source are expected")
    value, unit, source = entry["value"], entry["unit"], entry["source"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LIMIT:
        hint = " (YAML wants a point and a sign: 1.0e+12)" if isinstance(value, str) else ""
        raise InputError(f"{where}: the value is {value!r}; a number is expected{hint}")
    units = _UNITS[_KIND[key]]
    if unit not in list(units):  # which may be anything, even a list
        raise InputError(f"{where}: the unit is {unit!r}; {' or '.join(units)} is expected")
    if not isinstance(source, str) or not source.strip():
        raise InputError(f"{where} has no source; say where its value is from, or 'assumed'")
    return Constant(float(value) * units[unit], next(iter(units)), source.strip())


def _problem(kind: str, value: float) -> str:
    """What is wrong with a value, or nothing; infinite speed is a limit that may be asked for."""
    if math.isnan(value) or value < 0 or (value == 0 and kind != "seconds"):
        return f"a number {'of 0 or more' if kind == 'seconds' else 'above 0'} is expected"
    if kind == "fraction" and value > 1:
        return "a fraction above 0 and up to 1 is expected"
    if kind in ("rows", "gpus") and value != math.floor(value):
        return "a whole number is expected"
    return ""
