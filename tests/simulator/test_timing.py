"""Seconds of layers and steps: hand-computed examples, monotonicity and limits."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.errors import InputError, RefusedError
from eplb.formats.hardware import read_hardware
from eplb.simulator.exchange import Traffic, direct_traffic, relayed_traffic
from eplb.simulator.timing import (
    ExpertShape,
    Timing,
    layer_timing,
    overlapped_seconds,
    product_seconds,
    rank_seconds,
    rank_work,
    step_seconds,
    weight_seconds,
    window_timing,
)
from eplb.topology import Topology

from ..test_hardware import hardware

DEEPSEEK_V3 = ExpertShape(
    hidden_size=7168, expert_width=2048, expert_bytes=3 * 7168 * 2048 * (1 + 4 / 128**2), top_k=8
)
SMALL = ExpertShape(hidden_size=1000, expert_width=500, expert_bytes=1.5e6, top_k=2)
NOWHERE = Traffic(*(np.zeros(4),) * 4)
SECONDS = st.floats(0, 1, allow_subnormal=False)


def test_deepseek_v3_prefill_by_hand() -> None:
    """32 H100s on 4 nodes, 16,384 tokens each, perfectly balanced over 288 slots: computing,
    dispatch and combine of one layer as worked out with pencil and paper."""
    h100, topology = read_hardware("h100-ib400"), Topology(32, 4)
    slots = np.full((1, 288), 32 * 16384 * 8 / 288)
    work = rank_work(slots, 32, window_steps=1, tile_rows=128)
    assert work.tokens == pytest.approx(131_072)
    assert work.rows == pytest.approx(9 * 114 * 128)
    layer = layer_timing(work, relayed_traffic(work.tokens, 8, topology), DEEPSEEK_V3, h100)
    # 131,328 rows of 88.08 MFLOP at 1,207 TFLOP/s, and 15 us of launches
    assert layer.compute == pytest.approx(9.5826e-3 + 15e-6, rel=1e-4)
    # 524,288 tokens, .89989 of which visit a node, 3/4 of them from outside, by 8 ports of 45 GB/s
    assert layer.dispatch == pytest.approx(44_231 * 7392 / 45e9 + 20e-6, rel=1e-4)
    assert layer.combine == pytest.approx(44_231 * 14336 / 45e9 + 20e-6, rel=1e-4)
    assert step_seconds(layer) == pytest.approx(31.0e-3, rel=1e-2)


def test_deepseek_v3_decode_reads_weights() -> None:
    """With 8 tokens a GPU on 144 GPUs, reading the two experts of a GPU takes 34 us and decides:
    active experts cost, not tokens. With 128 tokens a GPU their products decide."""
    h100 = read_hardware("h100-ib400")
    slots = np.full(288, 144 * 8 * 8 / 288)  # 32 tokens an expert
    few, half, many = (rank_work(slots * part, 144, 1, 128) for part in (1, 0.5, 16))
    weights = weight_seconds(few, DEEPSEEK_V3, h100)
    assert weights == pytest.approx(33.7e-6, rel=1e-2)  # 2 × 44.05 MB at 2.613 TB/s
    assert (product_seconds(few, DEEPSEEK_V3, h100) < weights).all()
    seconds = [rank_seconds(work, DEEPSEEK_V3, h100) for work in (few, half, many)]
    assert np.array_equal(seconds[0], seconds[1])
    slots[: 288 // 4] = 0
    idle = rank_work(slots, 144, 1, 128)
    assert rank_seconds(idle, DEEPSEEK_V3, h100)[:36].max() == 0
    assert (product_seconds(many, DEEPSEEK_V3, h100) > weights).all()
    assert seconds[2] == pytest.approx(2 * 512 * 88.08e6 / 1207.1e12 + 15e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("tokens", "rows"), [(0, 0), (1, 128), (127, 128), (128, 128), (129, 256), (1280, 1280)]
)
def test_rows_are_whole_tiles(tokens: int, rows: int) -> None:
    """The tokens of an expert are padded to the next tile, each expert on its own."""
    work = rank_work(np.array([tokens, tokens]), 1, window_steps=1, tile_rows=128)
    assert work.rows.tolist() == [2 * rows]
    assert work.active.tolist() == [2 * (tokens > 0)]


def test_steps_of_a_window_are_averaged() -> None:
    """A window of many steps gives the mean step, in which a slot with half a token is active with
    the probability that a Poisson number is not 0; half a token of a single step is half an
    expert's turn."""
    window = rank_work(np.array([50]), 1, window_steps=100, tile_rows=64)
    assert window.tokens == pytest.approx(0.5)
    assert window.active == pytest.approx(1 - math.exp(-0.5))
    assert window.rows == pytest.approx(64 * (1 - math.exp(-0.5)))
    assert rank_work(np.array([0.5]), 1, 1, 64).active == pytest.approx(0.5)


def test_windows_are_timed_as_their_parts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole windows, in blocks or at once, give what work, traffic and layers give one by one; with
    slow and missing GPUs too."""
    topology = Topology(4, 2, rank_speed=(1.0, 0.5, 1.0, 1.0), excluded_ranks=(3,))
    slots = np.random.default_rng(1).integers(0, 3000, (7, 3, 8))
    slots[..., 6:] = 0
    pace = np.array([2.5 / 3, 5 / 3, 2.5 / 3, 1])
    work = rank_work(slots, 4, 10, 128, split=2)
    for relayed in (True, False):
        traffic = (
            relayed_traffic(work.tokens, 2, topology)
            if relayed
            else direct_traffic(work.tokens, topology)
        )
        parts = layer_timing(work, traffic, SMALL, hardware(), pace, 1e-3)
        for block in (2**20, 50):
            monkeypatch.setattr("eplb.simulator.timing._BLOCK", block)
            whole = window_timing(
                slots, 10, topology, SMALL, hardware(),
                relayed=relayed, split=2, other_seconds=1e-3,
            )  # fmt: skip
            for one, other in zip(whole, parts, strict=True):
                assert one.shape == (7, 3)
                assert one == pytest.approx(other)


def test_nodes_larger_than_the_hardware_has_are_refused() -> None:
    """Sixteen H100s of one node would be timed as if NVLink joined them."""
    with pytest.raises(RefusedError, match="16 GPUs a node; on round the fast links join 8 GPUs"):
        window_timing(np.ones((1, 1, 16)), 1, Topology(16), SMALL, hardware())


@given(st.lists(st.integers(0, 3000), min_size=8, max_size=8), st.integers(0, 7), st.integers(1, 9))
def test_more_tokens_never_take_less_time(tokens: list[int], slot: int, steps: int) -> None:
    """Adding tokens to any slot shortens no rank's time."""
    fewer, more = np.array(tokens), np.array(tokens)
    more[slot] += 100
    times = [
        rank_seconds(rank_work(each, 4, steps, 128), SMALL, hardware()) for each in (fewer, more)
    ]
    assert (times[1] >= times[0]).all()


@pytest.mark.parametrize(
    "name",
    ["flop_efficiency", "hbm_efficiency", "intra_node_efficiency", "inter_node_efficiency",
     "peak_flops_fp8", "hbm_bw", "intra_node_bw", "inter_node_bw"],
)  # fmt: skip
def test_faster_hardware_never_takes_longer(name: str) -> None:
    """Raising any speed lengthens no layer, and some speed always shortens one."""
    rng, topology = np.random.default_rng(2), Topology(8, 2)
    work = rank_work(rng.integers(0, 900, (20, 5, 16)), 8, 1, 128)
    before = hardware()
    after = before.with_values({name: before.constants[name].value * 1.2}, "test")
    traffic = relayed_traffic(work.tokens, 2, topology)
    slow, fast = (layer_timing(work, traffic, SMALL, it).total for it in (before, after))
    assert (fast <= slow).all()


def test_perfect_balance_takes_the_mean() -> None:
    """When all ranks have the same work, the layer computes as long as the mean rank; else longer,
    by as much as balancedness says where products decide."""
    even = rank_work(np.full(8, 128 * 50), 4, 1, 128)
    seconds = rank_seconds(even, SMALL, hardware())
    assert seconds.max() == pytest.approx(seconds.mean())
    uneven = rank_work(128 * 50 * np.array([2, 2, 1, 1, 1, 0, 1, 0]), 4, 1, 128)
    plain = hardware(layer_overhead=0.0, hbm_bw=math.inf)
    assert rank_seconds(uneven, SMALL, plain).max() == pytest.approx(
        2 * rank_seconds(even, SMALL, plain).max()
    )


def test_zero_load_takes_no_time() -> None:
    """Without tokens nothing is computed, read, launched or sent."""
    work = rank_work(np.zeros((2, 8)), 4, 1, 128)
    for traffic in (direct_traffic(work.tokens, Topology(4, 2)),
                    relayed_traffic(work.tokens, 2, Topology(4, 2))):  # fmt: skip
        assert not layer_timing(work, traffic, SMALL, hardware()).total.any()


def test_infinite_speed_leaves_the_fixed_costs() -> None:
    """With infinite bandwidth and FLOP/s only launches and latencies are left."""
    limit = hardware(
        peak_flops_fp8=math.inf, hbm_bw=math.inf, intra_node_bw=math.inf, inter_node_bw=math.inf
    )
    work = rank_work(np.full(8, 500), 4, 1, 128)
    layer = layer_timing(work, direct_traffic(work.tokens, Topology(4, 2)), SMALL, limit)
    assert layer.compute == pytest.approx(10e-6)
    assert layer.dispatch == pytest.approx(20e-6)
    assert layer.combine == pytest.approx(20e-6)


def test_pace_and_other_time() -> None:
    """A rank at half speed takes twice as long beside launching; attention's time is added."""
    work = rank_work(np.full(4, 1280), 4, 1, 128)
    it = hardware(layer_overhead=0.0)
    even = layer_timing(work, NOWHERE, SMALL, it)
    slow = layer_timing(work, NOWHERE, SMALL, it, np.array([1, 1, 2.0, 1]), other_seconds=1.0)
    assert slow.compute == pytest.approx(2 * even.compute)
    assert slow.total == pytest.approx(1.0 + 2 * even.compute)
    assert even.total == pytest.approx(even.compute)


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS, SECONDS), min_size=1, max_size=5))
def test_overlap_lies_between_its_bounds(layers: list[tuple[float, ...]]) -> None:
    """Two micro-batches take at least what either stream does for both, and at most what the
    halves take one after the other."""
    half = Timing(*np.array(layers).T)
    seconds = overlapped_seconds(half)
    assert seconds >= 2 * (half.other + half.compute).sum() - 1e-12
    assert seconds >= 2 * (half.dispatch + half.combine).sum() - 1e-12
    assert seconds <= 2 * step_seconds(half) + 1e-12


def test_overlap_hides_the_shorter_stream() -> None:
    """Three layers that compute 2 s and travel 1 + .5 s a half: 12 s of computing, and the first
    half's 1.5 s that nothing hides. Without traffic nothing is hidden nor lost."""
    ones = np.ones(3)
    assert overlapped_seconds(Timing(0 * ones, ones, 2 * ones, ones / 2)) == pytest.approx(13.5)
    assert overlapped_seconds(Timing(0 * ones, 0 * ones, 2 * ones, 0 * ones)) == pytest.approx(12)


def test_overlap_is_what_a_schedule_needs() -> None:
    """Played through event by event, two micro-batches on one computing and one travelling stream
    are done in that time, and not sooner when computing is the longer stream."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        dispatch, compute, combine = rng.random(3) * (0.3, 1, 0.3)
        layers = Timing(*(np.full(6, each) for each in (0.0, dispatch, compute, combine)))
        free, done = {"go": 0.0, "do": 0.0}, [0.0, 0.0]
        for layer in range(7):
            for batch in (0, 1):
                travel = (combine if layer else 0.0) + (dispatch if layer < 6 else 0.0)
                free["go"] = done[batch] = max(free["go"], done[batch]) + travel
                if layer < 6:
                    free["do"] = done[batch] = max(free["do"], done[batch]) + compute
        assert max(done) <= overlapped_seconds(layers) + 1e-12
        if compute >= dispatch + combine:
            assert max(done) == pytest.approx(overlapped_seconds(layers))


def test_halving_a_decode_batch_reads_weights_twice() -> None:
    """Where weights decide, two micro-batches can take longer than one batch: nothing is promised
    that the hardware cannot do."""
    slots, it = np.full((4, 8), 8), hardware(exchange_latency=0.0)
    whole, half = (rank_work(slots, 4, 1, 128, split) for split in (1, 2))
    assert np.array_equal(whole.active, half.active)
    one = step_seconds(layer_timing(whole, NOWHERE, SMALL, it))
    assert overlapped_seconds(layer_timing(half, NOWHERE, SMALL, it)) == pytest.approx(2 * one)


def test_bytes_of_a_token() -> None:
    """FP8 tokens carry a scale for every 128 values; results return in BF16; two matrices instead
    of three are two thirds of the work."""
    assert DEEPSEEK_V3.dispatch_bytes == 7168 + 56 * 4
    assert DEEPSEEK_V3.combine_bytes == 14336
    assert replace(DEEPSEEK_V3, dispatch_precision="bf16").dispatch_bytes == 14336
    assert DEEPSEEK_V3.row_flops == 6 * 7168 * 2048
    assert replace(DEEPSEEK_V3, gated=False).row_flops == 4 * 7168 * 2048


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0; a number above 0"),
        ({"expert_bytes": float("nan")}, "expert_bytes is nan"),
        ({"precision": "fp4"}, "precision is 'fp4'; fp8 or bf16 is expected"),
    ],
)
def test_impossible_experts_are_refused(change: dict[str, object], message: str) -> None:
    """A size or precision the model knows nothing of is said."""
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)  # type: ignore[arg-type]
