"""Only experts whose ids can be trusted are listened to."""

import pytest
from torch import nn

from eplb.errors import InputError
from eplb.runtime import LoadRecorder

from .families import Decoder, FewExperts, SharedExperts, ZayaExperts


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), r"Linear has no experts.*'Experts'.*top_k_index or router_indices"),
        (Decoder(SharedExperts()), "Decoder has no experts to listen to"),
        (Decoder(FewExperts(num_experts=4), FewExperts(num_experts=8)), "layer 1 has 8 .* 0 4;"),
        (Decoder(FewExperts(num_experts=None)), r"part0.layers.0.0 does not say its number"),
        (Decoder(FewExperts(_is_expert_parallel=True)), "one rank's experts only"),
        (Decoder(ZayaExperts()), "ZayaExperts .* cannot be recorded: a token that skips"),
        (nn.ModuleList([FewExperts()]), "at '0' does not say its layer"),
    ],
)
def test_models_that_cannot_be_recorded(model: nn.Module, message: str) -> None:
    """Refused before anything runs, with what was looked for."""
    with pytest.raises(InputError, match=message):
        LoadRecorder(model)


def test_two_sets_of_experts_in_a_layer_are_refused() -> None:
    """And the part that has one of them is recorded."""
    model = Decoder(FewExperts(), FewExperts())
    model.vision = Decoder(FewExperts())
    with pytest.raises(InputError, match=r"twice, at part0.layers.0.0 and vision.part0.layers.0.0"):
        LoadRecorder(model)
    with LoadRecorder(model.vision) as record:
        model([[0]], [[1]])
        model.vision([[3], [1]])
    assert record.loads().tokens.tolist() == [[[0, 1, 0, 1]]]
