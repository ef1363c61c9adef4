"""Constants of the time model: what may be a constant, and what they say together."""

import re
from typing import Any

import pytest

from eplb.errors import InputError, RefusedError
from eplb.hardware import Constant, Hardware, hardware_of
from eplb.topology import Topology

CONTENT: dict[str, Any] = {
    "peak_flops_bf16": {"value": 1, "unit": "PFLOP/s", "source": "sheet"},
    "peak_flops_fp8": {"value": 2000, "unit": "TFLOP/s", "source": "sheet"},
    "flop_efficiency": {"value": 0.5, "unit": "fraction", "source": "assumed"},
    "tile_rows": {"value": 128, "unit": "rows", "source": "kernel"},
    "hbm_bw": {"value": 4, "unit": "TB/s", "source": "sheet"},
    "hbm_efficiency": {"value": 0.75, "unit": "fraction", "source": "assumed"},
    "layer_overhead": {"value": 10, "unit": "us", "source": "assumed"},
    "intra_node_bw": {"value": 400, "unit": "GB/s", "source": "sheet"},
    "intra_node_efficiency": {"value": 0.5, "unit": "fraction", "source": "assumed"},
    "inter_node_bw": {"value": 400, "unit": "Gb/s", "source": "sheet"},
    "inter_node_efficiency": {"value": 0.8, "unit": "fraction", "source": "assumed"},
    "exchange_latency": {"value": 0.02, "unit": "ms", "source": "assumed"},
    "gpus_per_node": {"value": 8, "unit": "GPUs", "source": "sheet"},
}


def hardware(**values: float) -> Hardware:
    """Round constants, some of them replaced."""
    return hardware_of(CONTENT, "round").with_values(values, "test")


def test_values_come_in_base_units() -> None:
    """A rate is the nominal speed times what is reached of it, in FLOP/s or bytes/s."""
    it = hardware()
    assert it.peak_flops_bf16 == Constant(1e15, "FLOP/s", "sheet")
    assert it.flop_rate("bf16") == 0.5e15
    assert it.flop_rate("fp8") == 1e15
    assert it.hbm_rate == 3e12
    assert it.intra_node_rate == 200e9
    assert it.inter_node_rate == pytest.approx(40e9)
    assert it.exchange_latency.value == pytest.approx(20e-6)
    assert list(it.constants) == list(CONTENT)


def test_replaced_values_name_their_source() -> None:
    """A replaced value keeps its unit and says where the new one is from; the old one stays."""
    before = hardware()
    after = before.with_values({"hbm_efficiency": 0.5}, "measured")
    assert after.hbm_efficiency == Constant(0.5, "fraction", "measured")
    assert before.hbm_efficiency.value == 0.75


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("hbm_bw", None, " lacks hbm_bw; .*value: …, unit: bytes/s or GB/s or TB/s or Gb/s"),
        ("hbm_bw", 4e12, "hbm_bw is 4000000000000.0; value, unit and source are expected"),
        (
            "hbm_bw",
            {"unit": None, "source": None},
            "hbm_bw has value; value, unit and source are expected",
        ),
        ("hbm_bw", {"value": "4e12"}, r"value is '4e12'; a number is expected .*1\.0e\+12"),
        ("hbm_bw", {"value": True}, "value is True; a number is expected"),
        ("hbm_bw", {"value": float("nan")}, "value is nan; a number is expected"),
        ("hbm_bw", {"value": float("inf")}, "value is inf; a number is expected"),
        ("hbm_bw", {"value": 10**400}, "a number is expected"),
        ("hbm_bw", {"value": 0}, "hbm_bw is 0; a number above 0 is expected"),
        ("hbm_bw", {"value": -1}, "a number above 0 is expected"),
        ("hbm_bw", {"unit": "GiB/s"}, "unit is 'GiB/s'; bytes/s or GB/s or TB/s or Gb/s"),
        ("hbm_bw", {"unit": ["GB/s"]}, "unit is .'GB/s'.; bytes/s or"),
        ("hbm_bw", {"source": " "}, "hbm_bw has no source; say where its value is from"),
        ("hbm_efficiency", {"value": 75}, "hbm_efficiency is 75; a fraction above 0 and up to 1"),
        ("layer_overhead", {"value": -1}, "a number of 0 or more is expected"),
        ("tile_rows", {"value": 0.5}, "tile_rows is 0.5; a whole number is expected"),
        ("gpus_per_node", {"value": 0}, "gpus_per_node is 0; a number above 0 is expected"),
    ],
)
def test_hostile_constants_are_refused(key: str, change: Any, message: str) -> None:
    """Whatever is wrong with a constant is said with its name and that of the file."""
    if isinstance(change, dict):
        change = {k: v for k, v in (CONTENT[key] | change).items() if v is not None}
    content = {k: v for k, v in {**CONTENT, key: change}.items() if v is not None}
    with pytest.raises(InputError, match=f"^x.*{message}"):
        hardware_of(content, "x")


@pytest.mark.parametrize("content", [None, [], "h100", 3])
def test_a_file_without_constants_is_refused(content: object) -> None:
    """Constants are written by name."""
    with pytest.raises(InputError, match="x holds no mapping; constants by name are expected"):
        hardware_of(content, "x")


def test_a_misspelt_constant_is_refused() -> None:
    """The nearest name is offered."""
    content = {**CONTENT, "hbm_bandwith": CONTENT["hbm_bw"]}
    with pytest.raises(InputError, match=r"hbm_bandwith is not a constant.*; hbm_\w+ is"):
        hardware_of(content, "x")


def test_nodes_are_no_larger_than_the_fast_links() -> None:
    """Sixteen GPUs that only the network joins are not one node."""
    hardware().check(Topology(16, 2))
    message = "16 GPUs a node; on round the fast links join 8 GPUs, so that 32 GPUs are at least 4"
    with pytest.raises(RefusedError, match=re.escape(message)):
        hardware().check(Topology(32, 2))
