"""What recording the loads of a live model costs."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median

from .report import table

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests/data/tiny-dsv3"


def recording() -> None:
    """Forwards of the small real model with a `LoadRecorder` and without, in turns: processor time
    on one thread, which on an idle machine is wall-clock time; counting and reading included."""
    import torch
    from transformers import DeepseekV3ForCausalLM, DynamicCache

    torch.set_num_threads(1)
    model = DeepseekV3ForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    text = torch.tensor(list((ROOT / "README.md").read_bytes()[:2048]))

    def prompt(rows: int, length: int) -> Callable[[], object]:
        tokens = text[: rows * length].view(rows, length)
        mask = torch.ones_like(tokens)
        return lambda: model(tokens, attention_mask=mask)

    def decode(rows: int) -> Callable[[], object]:
        """One further token of each row after 16 and those that came before it."""
        cache, mask = DynamicCache(config=model.config), torch.ones(rows, 1024)
        model(text[: rows * 16].view(rows, 16), cache=cache)
        tokens = text[:rows, None]
        return lambda: model(
            tokens, cache=cache, attention_mask=mask[:, : cache.get_seq_length() + 1]
        )

    with torch.no_grad():
        rows = [
            _row("prompt, 8 × 256 tokens", model, lambda: prompt(8, 256), rounds=8, forwards=4),
            _row("prompt, 1 × 512 tokens", model, lambda: prompt(1, 512), rounds=8, forwards=16),
            _row("decoding, 8 sequences", model, lambda: decode(8), rounds=12, forwards=64),
            _row("decoding, 1 sequence", model, lambda: decode(1), rounds=12, forwards=64),
        ]
    head = ["forward", "plain, ms", "loads", "loads and routes", "plain again: noise"]
    table("Recording, medians in turns; loads wanted under +2 %", head, rows)


def _row(name, model, make, rounds: int, forwards: int) -> list[str]:  # type: ignore[no-untyped-def]
    from eplb.runtime import LoadRecorder

    kinds = ("plain", "loads", "routes", "again")
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    reading: dict[str, list[float]] = {"loads": [], "routes": []}
    for _ in range(rounds):
        recorders = {kind: LoadRecorder(model, routes=kind == "routes") for kind in reading}
        forward = make()
        for turn in range(forwards):
            for kind in (*kinds[turn % 4 :], *kinds[: turn % 4]):  # so that none is always first
                with recorders.get(kind, nullcontext()):
                    taken[kind].append(_spent(forward))
        for kind, recorder in recorders.items():
            reading[kind].append(_spent(getattr(recorder, kind)))
    plain = median(taken["plain"])
    ratios = [
        (median(times) + median(reading.get(kind, [0])) / forwards) / plain - 1
        for kind, times in list(taken.items())[1:]
    ]
    return [name, f"{plain * 1e3:.2f}", *(f"{ratio:+.1%}" for ratio in ratios)]


def _spent(action: Callable[[], object]) -> float:
    begin = time.process_time()
    action()
    return time.process_time() - begin
