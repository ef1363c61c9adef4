"""Constants fitted to step times: planted ones come back, and what cannot be known is said."""

import numpy as np
import pytest

from eplb._arrays import Floats
from eplb.errors import InputError
from eplb.formats.hardware import read_hardware
from eplb.hardware import Hardware
from eplb.simulator.calibration import FITTED, Model, calibrate
from eplb.simulator.exchange import direct_traffic, relayed_traffic
from eplb.simulator.timing import layer_timing, rank_work, step_seconds
from eplb.topology import Topology

from .test_timing import DEEPSEEK_V3

H100 = read_hardware("h100-ib400")
PLANTED = [
    {"flop_efficiency": 0.45, "hbm_efficiency": 0.6, "layer_overhead": 40e-6,
     "intra_node_efficiency": 0.5, "inter_node_efficiency": 0.7, "exchange_latency": 60e-6},
    {"flop_efficiency": 0.8, "hbm_efficiency": 0.95, "layer_overhead": 6e-6,
     "intra_node_efficiency": 0.9, "inter_node_efficiency": 0.97, "exchange_latency": 8e-6},
    {"flop_efficiency": 0.4, "hbm_efficiency": 0.7, "layer_overhead": 5e-6,
     "intra_node_efficiency": 0.95, "inter_node_efficiency": 0.3, "exchange_latency": 100e-6},
]  # fmt: skip


def _observed(seed: int, sizes: list[float], topologies: list[Topology]) -> Model:
    """Steps of 3 layers with log-normal loads, in each size (assignments a slot) and topology."""
    rng = np.random.default_rng(seed)
    steps = []
    for topology in topologies:
        for size in sizes:
            slots = np.round(size * rng.lognormal(0, 0.7, (2, 3, topology.num_ranks * 9)))
            slots[..., 0] += 1  # no layer is without load
            work = rank_work(slots, topology.num_ranks, 1, 128)
            traffic = (
                direct_traffic(work.tokens, topology)
                if size < 50
                else relayed_traffic(work.tokens, 8, topology)
            )
            steps.append((work, traffic))

    def model(hardware: Hardware) -> Floats:
        return np.concatenate(
            [step_seconds(layer_timing(*step, DEEPSEEK_V3, hardware)) for step in steps]
        )

    return model


EVERYTHING = _observed(5, [0.2, 1, 4, 30, 300, 3000], [Topology(1), Topology(8), Topology(16, 2)])


@pytest.mark.parametrize("planted", PLANTED)
def test_planted_constants_come_back(planted: dict[str, float]) -> None:
    """Steps of every kind (one GPU, one node, two; decode and prefill) give each constant back
    within 1 %, and the error falls to nothing."""
    measured = EVERYTHING(H100.with_values(planted, "planted"))
    it = calibrate(EVERYTHING, measured, H100)
    assert it.undetermined == {}
    assert it.fitted == pytest.approx(planted, rel=0.01)
    assert it.error < 1e-4 < it.error_before
    assert it.hardware.hbm_efficiency.source == "fitted to 36 measured steps, from h100-ib400"
    assert it.hardware.hbm_bw == H100.hbm_bw


def test_noise_is_reported() -> None:
    """With 3 % noise the error is about 3 %, and the constants are near the planted ones, as near
    as their standard errors say."""
    noise = np.exp(np.random.default_rng(6).normal(0, 0.03, 36))
    measured = EVERYTHING(H100.with_values(PLANTED[0], "planted")) * noise
    it = calibrate(EVERYTHING, measured, H100)
    assert 0.015 < it.error < 0.04
    for name, value in it.fitted.items():
        assert 0 < it.uncertainty[name] < 0.3
        assert abs(np.log(value / PLANTED[0][name])) < 4 * it.uncertainty[name]


def test_what_no_step_depends_on_keeps_its_value() -> None:
    """Steps of a single GPU say nothing of links, and small ones nothing of FLOP/s."""
    model = _observed(7, [0.3, 1, 3, 10], [Topology(1)])
    planted = H100.with_values({"hbm_efficiency": 0.5, "layer_overhead": 50e-6}, "planted")
    it = calibrate(model, model(planted), H100)
    assert it.fitted == pytest.approx({"hbm_efficiency": 0.5, "layer_overhead": 50e-6}, rel=0.01)
    assert set(it.undetermined) == set(FITTED) - set(it.fitted)
    assert it.undetermined["inter_node_efficiency"] == "no measured step depends on it"
    assert it.hardware.inter_node_efficiency == H100.inter_node_efficiency


def test_a_stage_that_never_decides_is_not_fitted() -> None:
    """Products at a fifth of the nominal speed always take longer than reading weights, for any
    memory at least half as fast as it may be: its value stays."""
    planted = PLANTED[0] | {"flop_efficiency": 0.2, "hbm_efficiency": 0.9}
    it = calibrate(EVERYTHING, EVERYTHING(H100.with_values(planted, "planted")), H100)
    assert it.undetermined == {"hbm_efficiency": "no measured step depends on it"}
    assert it.hardware.hbm_efficiency == H100.hbm_efficiency
    assert it.fitted["flop_efficiency"] == pytest.approx(0.2, rel=0.01)


def test_what_another_constant_can_stand_for_is_said() -> None:
    """Steps that all have the same layers cannot tell launches from latency."""
    model = _observed(8, [30, 300, 3000, 9000], [Topology(8)])
    it = calibrate(model, model(H100), H100, ["layer_overhead", "exchange_latency"])
    assert len(it.fitted) == 1
    (reason,) = it.undetermined.values()
    assert reason.startswith("it cannot be told apart from ")
    assert it.error < 1e-6


def test_one_step_determines_no_more_than_one_constant() -> None:
    """With fewer steps than constants the rest keep their values, and no uncertainty is made up."""
    model = _observed(9, [300], [Topology(8)])
    it = calibrate(lambda h: model(h)[:1], model(H100)[:1] * 1.2, H100)
    assert len(it.fitted) == 1
    assert it.error < 1e-3
    assert it.uncertainty == {}


def test_a_value_that_the_steps_contradict_is_a_limit() -> None:
    """Where the network given is too slow for any measured step, what is fitted says only that it
    is faster; the given value does not come back."""
    slow = H100.with_values({"inter_node_efficiency": 0.01}, "guess")
    model = _observed(10, [300, 1000, 3000], [Topology(16, 2)])
    fast = slow.with_values(
        {"inter_node_efficiency": 0.9, "intra_node_efficiency": 0.02}, "planted"
    )
    names = ["inter_node_efficiency", "intra_node_efficiency"]
    it = calibrate(model, model(fast), slow, names)
    assert it.error < 1e-3
    assert it.fitted["intra_node_efficiency"] == pytest.approx(0.02, rel=0.01)
    assert it.undetermined["inter_node_efficiency"].startswith("only a limit is known")
    assert it.fitted["inter_node_efficiency"] > 0.01


@pytest.mark.parametrize(
    ("measured", "names", "message"),
    [
        ([], FITTED, "0 measured steps; a list of at least one"),
        ([[1.0]], FITTED, "1 measured steps; a list"),
        ([0.0] * 36, FITTED, "not above 0 seconds"),
        ([float("nan")] * 36, FITTED, "not above 0 seconds"),
        ([1.0] * 35, FITTED, "35 step times were measured and 36 modelled"),
        ([1.0] * 36, ["hbm_bw"], "hbm_bw is not fitted; flop_efficiency, "),
    ],
)
def test_hostile_measurements_are_refused(
    measured: list[float], names: list[str], message: str
) -> None:
    """What cannot be fitted is said."""
    with pytest.raises(InputError, match=message):
        calibrate(EVERYTHING, np.array(measured), H100, names)


def test_steps_without_load_are_refused() -> None:
    """A measured step with no tokens has no modelled time to compare with."""
    with pytest.raises(InputError, match="no tokens to model its time from"):
        calibrate(lambda _: np.zeros(2), np.ones(2), H100)
