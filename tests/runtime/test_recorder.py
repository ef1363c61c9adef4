"""Recorded loads are what the model's own gates chose, and nothing else."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

from eplb.errors import InputError
from eplb.formats.traces import read_trace, write_trace
from eplb.routes import RouteTrace
from eplb.runtime import LoadRecorder, tally
from eplb.trace import LoadTrace

from ..helpers import ROOT
from .families import (
    FAMILIES,
    NUM_EXPERTS,
    TOP_K,
    VOCABULARY,
    Decoder,
    FewExperts,
    build,
    watch_gates,
)

TINY = ROOT / "tests/data/tiny-dsv3"
TEXT = torch.tensor(list((ROOT / "README.md").read_bytes()[:1024]))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """Threads that wait for each other on a busy machine cost more than they save here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """The cut of a real model, in float32 so that batching does not tip its choices."""
    model, found = AutoModelForCausalLM.from_pretrained(
        TINY, dtype=torch.float32, output_loading_info=True
    )
    assert not any(found.values()), found
    return model


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return build("Qwen3Moe")


def _tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def _counts(chosen: list[torch.Tensor], num_layers: int, num_experts: int) -> np.ndarray:
    """Loads (W, L, E) of gates' ids, one entry a forward and layer; ids above are left out."""
    rows = [np.bincount(ids.ravel(), minlength=num_experts)[:num_experts] for ids in chosen]
    return np.reshape(rows, (-1, num_layers, num_experts))


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_and_routes_are_the_gates_own(family: str) -> None:
    """Every family, with layers numbered as in the model and dense layers left out."""
    model, layer_ids = build(family), FAMILIES[family][1]
    with watch_gates(model) as chosen, LoadRecorder(model, routes=True) as record:
        model(_tokens(2, 9))
        model(_tokens(1, 5))
    loads, routes = record.loads(), record.routes()
    assert loads.layer_ids.tolist() == routes.layer_ids.tolist() == layer_ids
    assert np.array_equal(loads.tokens, _counts(chosen, len(layer_ids), NUM_EXPERTS))
    assert loads.top_k == (None if family == "LongcatFlash" else TOP_K)
    assert loads.num_groups == getattr(model.config, "n_group", None)
    assert loads.model == model.config.model_type
    half = len(layer_ids)  # the gates of the first forward come first
    gates = np.concatenate([torch.stack(chosen[:half], 1), torch.stack(chosen[half:], 1)])
    gates[gates >= NUM_EXPERTS] = -1
    assert np.array_equal(np.sort(routes.experts), np.sort(gates))
    assert np.array_equal(routes.windows().tokens, loads.tokens)
    assert record.notes == []


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_however_the_experts_are_computed(small: nn.Module, implementation: str) -> None:
    """The loads do not depend on the way transformers multiplies."""
    small.set_experts_implementation(implementation)
    with watch_gates(small) as chosen, LoadRecorder(small) as record:
        small(_tokens(2, 8))
    assert np.array_equal(record.loads().tokens, _counts(chosen, 2, NUM_EXPERTS))


def test_a_real_model_while_it_generates(tiny: nn.Module) -> None:
    """The prompt is one step and each further token another, as the model's gates say."""
    with watch_gates(tiny) as chosen, LoadRecorder(tiny) as record:
        tiny.generate(TEXT.view(8, 128), max_new_tokens=6, do_sample=False)
    loads = record.loads()
    assert np.array_equal(loads.tokens, _counts(chosen, 2, 64))
    assert loads.tokens.sum(axis=2).tolist() == [[1024 * 6] * 2] + [[8 * 6] * 2] * 5
    assert (loads.layer_ids.tolist(), loads.num_groups, loads.top_k) == ([1, 2], 8, 6)


def test_the_documented_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ten lines of docs/recording.md write what the model's own gates say."""
    page = (ROOT / "docs/recording.md").read_text()
    script = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0]
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "README.md").symlink_to(ROOT / "README.md")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(script, "docs/recording.md", "exec"), names)
    assert len([line for line in script.splitlines() if line and "import" not in line]) <= 10
    with watch_gates(names["model"]) as chosen:
        names["model"].generate(names["tokens"], max_new_tokens=16, do_sample=False)
    written = read_trace("loads.npz").trace
    assert isinstance(written, LoadTrace)
    assert np.array_equal(written.tokens, _counts(chosen, 2, 64))


def _alone(model: nn.Module, rows: list[torch.Tensor], **options: Any) -> np.ndarray:
    """Loads of sequences that run one by one."""
    with LoadRecorder(model) as record:
        for row in rows:
            model.generate(row[None], **options) if options else model(row[None])
    steps = record.loads().tokens
    return steps.reshape(len(rows), -1, *steps.shape[1:]).sum(axis=0)


def test_padding_on_the_left_is_not_counted(tiny: nn.Module) -> None:
    """A padded batch gives the loads of its sequences run one by one, step by step."""
    rows = [TEXT[:30], TEXT[100:117], TEXT[200:201]]
    batch = torch.stack([nn.functional.pad(row, (30 - len(row), 0)) for row in rows])
    mask = torch.stack([nn.functional.pad(torch.ones_like(r), (30 - len(r), 0)) for r in rows])
    options = {"max_new_tokens": 5, "do_sample": False}
    with LoadRecorder(tiny, routes=True) as record:
        tiny.generate(batch, attention_mask=mask, **options)
    assert np.array_equal(record.loads().tokens, _alone(tiny, rows, **options))
    routes = record.routes()
    assert np.bincount(routes.request).tolist() == [34, 21, 5]
    assert np.array_equal(routes.windows().tokens, record.loads().tokens)


@pytest.mark.parametrize("by_name", [True, False])
def test_padding_on_the_right_is_not_counted(tiny: nn.Module, by_name: bool) -> None:
    """Whether the mask is given by name or by place, as whole numbers or as truth values."""
    rows = [TEXT[:20], TEXT[100:111]]
    batch = torch.stack([nn.functional.pad(row, (0, 20 - len(row))) for row in rows])
    mask = torch.stack([nn.functional.pad(torch.ones_like(r), (0, 20 - len(r))) for r in rows])
    with LoadRecorder(tiny) as record:
        if by_name:
            tiny(input_ids=batch, attention_mask=mask)
        else:
            tiny(batch, mask.bool())
    assert np.array_equal(record.loads().tokens, _alone(tiny, rows))


def test_a_mask_that_says_nothing_of_tokens_is_noted(small: nn.Module) -> None:
    """All tokens are counted then, and one remark says so."""
    mask = torch.zeros(2, 1, 6, 6)
    with LoadRecorder(small) as record:
        small(_tokens(2, 6), attention_mask=mask)
        small(_tokens(2, 6), attention_mask=mask)
    assert record.loads().tokens.sum(axis=2).tolist() == [[24, 24]] * 2
    (note,) = record.notes
    assert re.search(r"\(2, 1, 6, 6\).*padding could not be told", note)


def test_steps_and_requests_are_numbered(small: nn.Module) -> None:
    """Two sequences decode one token each, then a new one of three tokens starts."""
    with LoadRecorder(small, routes=True) as record:
        cache = DynamicCache()
        small(_tokens(2, 2), cache=cache)
        small(_tokens(2, 1), cache=cache)
        small(_tokens(1, 3))
    routes = record.routes()
    assert routes.step.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert routes.request.tolist() == [0, 0, 1, 1, 0, 1, 2, 2, 2]


def test_windows_sum_forwards(small: nn.Module) -> None:
    """Seven forwards are three windows of two and a rest that is left out, also when the loads are
    read in between."""
    with LoadRecorder(small) as single, LoadRecorder(small, window_steps=2) as double:
        for seed in range(7):
            small(_tokens(1, 4, seed=seed))
            assert single.loads().num_windows == seed + 1
    assert double.loads().window_steps == 2
    assert np.array_equal(double.loads().tokens, single.loads().summed(2).tokens)


@pytest.mark.parametrize(
    ("forwards", "tokens", "on_device"), [(64, 4096, 256), (3, 4096, 256), (64, 16, 1), (1, 1, 2)]
)
def test_when_ids_are_counted_does_not_matter(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch, forwards: int, tokens: int, on_device: int
) -> None:
    """Forwards of equal and of changing shapes, with and without padding, one by one or many at
    once."""
    monkeypatch.setattr(tally, "_FORWARDS", forwards)
    monkeypatch.setattr(tally, "_TOKENS", tokens)
    monkeypatch.setattr(tally, "_FORWARDS_ON_DEVICE", on_device)
    mask, real = torch.ones(2, 3, dtype=torch.long), []
    with watch_gates(small) as chosen, LoadRecorder(small, routes=True) as record:
        for seed, shape in enumerate([(1, 4)] * 5 + [(2, 3)] * 4 + [(3, 2), (1, 4)]):
            padded = shape == (2, 3)
            small(_tokens(*shape, seed=seed), attention_mask=mask if padded else None)
            keep = mask.flatten().bool() if padded else slice(None)
            real += [ids[keep] for ids in chosen[-2:]]
            mask[0, : seed % 3] = 0  # the mask of one batch may be written over for another
            mask[0, seed % 3 :] = 1
    assert np.array_equal(record.loads().tokens, _counts(real, 2, NUM_EXPERTS))
    assert (record.loads().tokens.sum(axis=2)[5:9] < 12).any()
    assert np.array_equal(record.routes().windows().tokens, record.loads().tokens)


def test_tokens_that_are_not_those_of_the_mask_are_noted() -> None:
    """A model that routes fewer tokens than it is given: all count, of no known request."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleList([FewExperts()])])

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
            self.layers[0][0](torch.zeros(2, 1), torch.tensor([[0], [3]]))  # type: ignore[index]

    model = Pooled()
    with LoadRecorder(model, routes=True) as record:
        model(torch.zeros(1, 4), torch.zeros(1, 4))
    assert record.loads().tokens.tolist() == [[[1, 0, 0, 1]]]
    assert record.routes().request is None
    assert re.match(r"the experts saw 2 tokens of a batch of 1 × 4: padding", record.notes[0])


def test_blocks_of_one_recorder_add_up(small: nn.Module) -> None:
    """Forwards between two blocks are not recorded, nor does inference mode matter."""
    record = LoadRecorder(small, window_steps=2)
    with record, torch.inference_mode():
        small(_tokens(1, 3))
    small(_tokens(1, 50))
    with record:
        small(_tokens(1, 4))
    assert record.loads().tokens.sum(axis=2).tolist() == [[14, 14]]


def test_a_failed_forward_leaves_nothing_behind(small: nn.Module) -> None:
    """Neither hooks nor half a forward."""

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    def hooks() -> int:
        kinds = ("_forward_hooks", "_forward_pre_hooks")
        return sum(len(vars(module)[kind]) for module in small.modules() for kind in kinds)

    before = hooks()
    record = LoadRecorder(small)
    handle = small.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"), record:
        small(_tokens(1, 9))
    handle.remove()
    assert hooks() == before
    with record:
        small(_tokens(1, 5))
    assert record.loads().tokens.sum(axis=2).tolist() == [[10, 10]]


def test_running_again_for_gradients_is_not_counted(small: nn.Module) -> None:
    """Gradient checkpointing runs the experts twice; the tokens are counted once."""
    small.activation_checkpointing_enable()
    small.train()
    try:
        with torch.enable_grad(), LoadRecorder(small) as record:
            small(_tokens(1, 6)).logits.sum().backward()
    finally:
        small.eval()
        small.activation_checkpointing_disable()
        small.zero_grad()
    assert record.loads().tokens.sum(axis=2).tolist() == [[12, 12]]


def test_a_part_of_a_model_is_recorded_alike(small: nn.Module) -> None:
    """The decoder inside the model sees the same forwards, masks and all."""
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with LoadRecorder(small) as whole, LoadRecorder(small.model) as part:
        small(_tokens(2, 4), attention_mask=mask)
    assert np.array_equal(whole.loads().tokens, part.loads().tokens)
    assert whole.loads().tokens.sum(axis=2).tolist() == [[12, 12]]


def test_counting_waits_for_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """It works where tensors have no values at all, so nothing asks for one before loads()."""
    monkeypatch.setattr(tally, "_FORWARDS", 1)
    with torch.device("meta"):
        model = build("Qwen3Moe")
        model.set_experts_implementation("batched_mm")
        model.set_attn_implementation("eager")  # the default looks at the mask
        with LoadRecorder(model, window_steps=2) as record:
            for _ in range(3):
                model(torch.zeros(2, 5, dtype=torch.long), attention_mask=torch.ones(2, 5))
    with pytest.raises(NotImplementedError, match="copy out of meta"):
        record.loads()


def test_what_was_recorded_survives_a_file(small: nn.Module, tmp_path: Path) -> None:
    """Loads and routes read back as they were."""
    with LoadRecorder(small, routes=True) as record:
        small(_tokens(2, 5))
    write_trace(record.loads(), str(tmp_path / "loads.json"))
    write_trace(record.routes(), str(tmp_path / "routes.npz"))
    loads = read_trace(str(tmp_path / "loads.json")).trace
    routes = read_trace(str(tmp_path / "routes.npz")).trace
    assert isinstance(loads, LoadTrace)
    assert isinstance(routes, RouteTrace)
    assert np.array_equal(loads.tokens, record.loads().tokens)
    assert np.array_equal(routes.experts, record.routes().experts)
    assert loads.model == routes.model == "qwen3_moe"


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([], "no forward of Decoder with experts ran inside the block"),
        ([[None, None]], "no forward of Decoder with experts ran inside the block"),
        ([[[[0, 1]], [[1, 4]]]], "experts of layer 1 were given 1 ids .* from 0 to 3"),
        ([[[[0, -1], [-1, 2]], [[1, 0]] * 2]], "experts of layer 0 were given 2 ids"),
        ([[[[0]], [[1]]], [[[0]], None]], r"layers \[1\] ran their experts in some forwards only"),
        ([[[[0]], [[1, 2]]]], r"layer 1 routes .* \(1, 2\) and layer 0 \(1, 1\)"),
    ],
)
def test_recordings_that_would_be_wrong(calls: list[Any], message: str) -> None:
    """Refused, rather than counted somewhere."""
    model = Decoder(FewExperts(), FewExperts())
    for take in (LoadRecorder.loads, LoadRecorder.routes):
        with pytest.raises(InputError, match=message):
            with LoadRecorder(model, routes=True) as record:
                for ids in calls:
                    model(*ids)
            take(record)


def test_a_layer_that_runs_twice_is_refused() -> None:
    """Its tokens would be counted as others'."""
    model = Decoder(FewExperts(), FewExperts())
    model.part0["layers"][1] = model.part0["layers"][0]  # type: ignore[index]
    with pytest.raises(InputError, match="layer 0 ran its experts twice"), LoadRecorder(model):
        model([[0]], [[1]])


def test_wrong_use_is_told(small: nn.Module) -> None:
    """Each mistake has its own words."""
    with pytest.raises(InputError, match="window_steps is 0; 1 or more"):
        LoadRecorder(small, window_steps=0)
    record = LoadRecorder(small, window_steps=3)
    with record:
        small(_tokens(1, 3))
        with pytest.raises(InputError, match="records already"):
            record.__enter__()
    with pytest.raises(InputError, match=r"window of 3 forwards is longer .* has 1"):
        record.loads()
    with pytest.raises(InputError, match=r"routes were not kept; .*routes=True"):
        record.routes()
