"""Routes that servers return with their responses."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb.errors import EplbError, InputError, RefusedError
from eplb.formats.recorders import routed_experts
from eplb.formats.source import Hints, Source
from eplb.model import Model
from eplb.routes import RouteTrace

# One dense layer and two with four experts, two for each token.
MODEL = Model("tiny", num_layers=3, moe_layer_ids=(1, 2), num_experts=4, top_k=2)
HINTS = Hints(model=MODEL)
# Two tokens and three layers; the dense one holds zeros.
IDS = [[[0, 0], [1, 2], [3, 0]], [[0, 0], [0, 1], [2, 3]]]
MASKED = [[[-1, -1], [1, 2], [3, 0]], [[-1, -1], [0, 1], [2, 3]]]


def raw(ids: object) -> str:
    """As SGLang encodes ids: little-endian int32 without any header."""
    return base64.b64encode(np.array(ids, "<i4").tobytes()).decode()


def npy(ids: object, dtype: str = "uint8") -> str:
    """As vLLM encodes ids: a whole .npy file."""
    out = io.BytesIO()
    np.save(out, np.array(ids, dtype))
    return base64.b64encode(out.getvalue()).decode()


def vllm(*values: object) -> dict[str, Any]:
    """A response of vLLM with one choice for each value."""
    choices = [{"index": i, "text": "a", "routed_experts": v} for i, v in enumerate(values)]
    return {"id": "cmpl-1", "choices": choices}


def sglang(value: object) -> dict[str, Any]:
    """A response of SGLang's own route."""
    return {"text": "a", "meta_info": {"id": "1", "routed_experts": value}}


def read(path: Path, content: object, hints: Hints = HINTS) -> tuple[RouteTrace, list[str]]:
    """What the reader makes of JSON, or of JSON lines where `content` is text."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    source = Source(str(path))
    assert routed_experts.detect(source)
    return routed_experts.read(source, hints)


def lines(*responses: object) -> str:
    """JSON lines."""
    return "".join(json.dumps(response) + "\n" for response in responses)


def test_sglang_ids_take_their_shape_from_the_model(tmp_path: Path) -> None:
    """Raw int32 of [tokens, layers, top_k]; the dense layer counts nothing."""
    trace, notes = read(tmp_path / "r.json", sglang(raw(IDS)))
    assert trace.experts.tolist() == MASKED
    assert (trace.num_experts, notes) == (4, [])
    assert trace.layer_ids.tolist() == [0, 1, 2]
    assert trace.windows().tokens.tolist() == [[[0, 0, 0, 0], [1, 2, 1, 0], [1, 0, 1, 2]]]
    assert (trace.window_tokens, trace.step) == (None, None)


def test_sglang_openai_routes_have_them_in_sglext(tmp_path: Path) -> None:
    """The OpenAI routes put the same value elsewhere."""
    response = {"choices": [{"text": "a"}], "sglext": {"routed_experts": raw(IDS)}}
    assert read(tmp_path / "r.json", response)[0].experts.tolist() == MASKED


def test_vllm_ids_carry_their_shape(tmp_path: Path) -> None:
    """No model is needed: a layer of zeros cannot be routed, so it is dense."""
    for dtype in ("uint8", "uint16", "int32"):
        trace, notes = read(tmp_path / "r.json", vllm(npy(IDS, dtype)), Hints())
        assert trace.experts.tolist() == MASKED
        assert notes == [
            "layers with zeros only are taken for dense: 0",
            "the routes do not say how many experts there are; 4 is taken, the largest id + 1",
        ]


def test_responses_are_requests(tmp_path: Path) -> None:
    """Each choice is one, in a list as in JSON lines; those without routes keep their number."""
    responses = [vllm(npy(IDS), None), {"error": "busy"}, vllm(npy(IDS[:1]))]
    for content in (responses, lines(*responses)):
        trace, notes = read(tmp_path / "r.json", content)
        assert trace.request is not None
        assert trace.request.tolist() == [0, 0, 3]
        assert trace.experts.tolist() == [*MASKED, MASKED[0]]
        assert notes == ["2 of 4 responses have no routes"]


def test_empty_values_are_responses_without_routes(tmp_path: Path) -> None:
    """A prompt of one token, answered with one, has no row."""
    trace, notes = read(tmp_path / "r.json", [sglang(""), sglang(raw(IDS))])
    assert trace.request is not None
    assert trace.request.tolist() == [1, 1]
    assert notes == ["1 of 2 responses have no routes"]


def test_a_zero_layer_of_top_1_is_doubtful(tmp_path: Path) -> None:
    """With one expert a token, all may have gone to expert 0; a model tells."""
    ids = [[[0], [1]], [[0], [0]]]
    trace, notes = read(tmp_path / "r.json", vllm(npy(ids)), Hints(num_experts=2))
    assert trace.experts.tolist() == [[[-1], [1]], [[-1], [0]]]
    assert "expert 0 may be meant: --model tells" in notes[0]
    model = Model("one", num_layers=2, moe_layer_ids=(0, 1), num_experts=2, top_k=1)
    trace, notes = read(tmp_path / "r.json", vllm(npy(ids)), Hints(model=model))
    assert (trace.experts.tolist(), notes) == (ids, [])


def test_ids_keep_a_small_type(tmp_path: Path) -> None:
    """Millions of tokens are held, so ids take two bytes unless they need more."""
    assert read(tmp_path / "r.json", sglang(raw(IDS)))[0].experts.dtype == np.int16
    large = [[[0, 0], [40_000, 1]]]
    trace, _ = read(tmp_path / "r.json", vllm(npy(large, "int32")), Hints())
    assert trace.experts.dtype == np.int32
    assert trace.experts[0, 1].tolist() == [40_000, 1]


def _bytes(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _lying() -> bytes:
    """An .npy file whose header says far more than any memory holds."""
    out = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 10**6, 8)}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue()


def _pickled() -> str:
    out = io.BytesIO()
    np.save(out, np.array([[[None, {}]]], object))
    return _bytes(out.getvalue())


NO_TOP_K = Model("tiny", num_layers=3, moe_layer_ids=(1, 2), num_experts=4)
HOSTILE: dict[str, tuple[object, Hints, str]] = {
    "no model": (sglang(raw(IDS)), Hints(), "without their shape.*--model"),
    "no top_k": (sglang(raw(IDS)), Hints(model=NO_TOP_K), "--model.*experts per token"),
    "no base64": (sglang("a*b"), HINTS, "line 1, meta_info.routed_experts is not base64"),
    "half of base64": (sglang("abc"), HINTS, "not base64"),
    "letters of other scripts": (sglang("äöü"), HINTS, "not base64"),
    "a list": (sglang([1]), HINTS, "is a list; a text in base64"),
    "a number": (sglang(7), HINTS, "is a int; a text in base64"),
    "a cut array": (sglang(_bytes(bytes(25))), HINTS, "25 bytes.*3 layers × 2 experts × 4 bytes"),
    "a cut npy": (vllm(_bytes(base64.b64decode(npy(IDS))[:-3])), HINTS, "not a readable NPY file"),
    "a npy head only": (vllm(_bytes(b"\x93NUMPY\x01")), HINTS, "not a readable NPY file"),
    "a npy that lies": (vllm(_bytes(_lying())), HINTS, "not a readable NPY file"),
    "pickled objects": (vllm(_pickled()), HINTS, "never loaded"),
    "fractional ids": (vllm(npy(IDS, "float32")), HINTS, "type float32; integers of"),
    "two axes": (vllm(npy(IDS[0])), HINTS, r"shape \(3, 2\).*\[tokens, layers, top_k\]"),
    "negative ids": (sglang(raw([[[0, 0], [1, -2], [0, 1]]])), HINTS, "expert -2; no expert"),
    "huge ids": (vllm(npy([[[0, 0], [2**31 - 1, 1]]], "int32")), Hints(), "1000000 at most"),
    "an expert twice": (
        [sglang(raw(IDS)), sglang(raw([[[0, 0], [1, 2], [3, 3]]]))],
        HINTS,
        "request 1, token 0, layer 2 has expert 3 twice",
    ),
    "a row of zeros": (sglang(raw([*IDS, [[0, 0]] * 3])), HINTS, "token 2, layer 1.*empty rows"),
    "a row of fillers": (
        vllm(npy([*IDS, [[0, 0], [255, 255], [255, 255]]])),
        Hints(num_experts=256),
        "expert 255 twice.*filler",
    ),
    "only zeros": (vllm(npy([[[0, 0]]])), Hints(), "every layer holds zeros only"),
    "responses of two models": (
        [vllm(npy(IDS)), vllm(npy([[[1, 2]]]))],
        Hints(),
        r"entry 2, choices\[0\].* 1 layers × 2 experts a token and the first 3 × 2",
    ),
    "no routes at all": (lines(vllm(None), vllm(None)), HINTS, "none of 2 responses.*--enable"),
    "a line that is no JSON": (lines(vllm(npy(IDS))) + "oops\n", HINTS, "line 2.*neither JSON"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_responses_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so."""
    content, hints, message = HOSTILE[what]
    with pytest.raises(InputError, match=message):
        read(tmp_path / "r.json", content, hints)


OTHERS = {
    "other layers": (vllm(npy([[[1, 2]]])), "1 layers and the model .* 3"),
    "a dense layer with routes": (sglang(raw([[[1, 2]] * 3])), "layer 0 has routes"),
    "ids above E": (sglang(raw([[[0, 0], [1, 9], [0, 1]]])), "expert 9; ids from 0 to 3"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_routes_of_another_model_are_refused(tmp_path: Path, what: str) -> None:
    """The layers with experts are not where the model has them."""
    content, message = OTHERS[what]
    with pytest.raises(RefusedError, match=message):
        read(tmp_path / "r.json", content)


@pytest.mark.parametrize("content", ["{}", "[]", "[3]", '{"choices": [{"text": 1}]}', "3", "a,b\n"])
def test_foreign_files_are_left_alone(tmp_path: Path, content: str) -> None:
    """Nothing in them is a place for routes."""
    path = tmp_path / "r.json"
    path.write_text(content)
    try:
        assert not routed_experts.detect(Source(str(path)))
    except EplbError as error:  # pragma: no cover
        pytest.fail(str(error))
