"""What the arguments of a model's forward say of its tokens."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch


class Batch(NamedTuple):
    """The tokens of one forward.

    Parameters
    ----------
    rows, length
        Sequences, and tokens of each; 0 where the arguments do not say.
    real
        Of shape (rows, length): which tokens are no padding; None where all count.
    note
        Why a mask could not be used; None where it was, or none was given.
    """

    rows: int
    length: int
    real: torch.Tensor | None
    note: str | None


def read_batch(arguments: Mapping[str, Any]) -> Batch:
    """The batch of a forward's arguments, given by name."""
    rows, length = _shape(arguments)
    real, note = None, None
    mask = arguments.get("attention_mask")
    if mask is not None:
        # A mask covers earlier tokens as well; those of this forward are its last.
        if isinstance(mask, torch.Tensor) and mask.ndim == 2 and _covers(mask, rows, length):
            real = mask.narrow(1, mask.shape[1] - length, length) != 0
        else:
            shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
            note = (
                f"an attention_mask ({shape}) is not of [sequences, tokens]:"
                " padding could not be told from tokens and was counted"
            )
    return Batch(rows, length, real, note)


def has_cache(arguments: Mapping[str, Any]) -> bool:
    """Whether a forward's sequences have a cache of earlier tokens."""
    for name in ("cache", "past_key_values", "cache_params"):
        cache = arguments.get(name)
        if cache is not None:
            return not hasattr(cache, "get_seq_length") or bool(cache.get_seq_length())
    return False


def _shape(arguments: Mapping[str, Any]) -> tuple[int, int]:
    for name in ("input_ids", "inputs_embeds"):
        value = arguments.get(name)
        if isinstance(value, torch.Tensor) and value.ndim >= 2:
            return value.shape[0], value.shape[1]
    return 0, 0


def _covers(mask: torch.Tensor, rows: int, length: int) -> bool:
    return mask.shape[0] == rows and 0 < length <= mask.shape[1]
