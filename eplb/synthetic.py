"""Synthetic traffic of stated skew and drift.

Every layer has a few topics, each a log-normal preference over the experts; the shares of the
topics, the same in all layers, follow an AR(1) walk from window to window. A window's loads are a
multinomial draw from the mixture, so that sampling noise is as in recorded counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from ._arrays import Floats, Ints
from .errors import InputError
from .routes import RouteTrace
from .trace import LARGEST_COUNT, LoadTrace, check_groups, check_top_k


@dataclass(frozen=True)
class Shape:
    """The routed part of a model, as far as traffic goes.

    `first_layer` is the model's number of its first MoE layer; `groups_per_token` how many of
    `num_groups` routing groups a token may use.
    """

    num_layers: int
    num_experts: int
    top_k: int
    num_groups: int = 1
    groups_per_token: int = 1
    first_layer: int = 0

    def __post_init__(self) -> None:
        if min(self.num_layers, self.num_experts) < 1:
            raise InputError(f"{self.num_layers} layers of {self.num_experts} experts; 1 or more")
        check_top_k(self.top_k, self.num_experts)
        check_groups(self.num_groups, self.num_experts)
        if not 1 <= self.groups_per_token <= self.num_groups:
            raise InputError(
                f"{self.groups_per_token} groups per token; 1 to {self.num_groups} is expected"
            )
        if self.top_k > self.groups_per_token * (self.num_experts // self.num_groups):
            raise InputError(
                f"{self.groups_per_token} groups hold fewer than the {self.top_k} experts that a"
                " token needs"
            )


# From the models' published configurations.
SHAPES = {
    "deepseek-v3": Shape(58, 256, 8, num_groups=8, groups_per_token=4, first_layer=3),
    "kimi-k2": Shape(60, 384, 8, first_layer=1),
    "qwen3-235b": Shape(94, 128, 8),
    "gpt-oss-120b": Shape(36, 128, 4),
    "mixtral": Shape(32, 8, 2),
    "olmoe": Shape(16, 64, 8),
}


# Far beyond, preferences are no longer finite numbers; from about 100 on one expert takes all.
_MOST_SKEW = 1_000_000
# Ids of routes: 16 GiB at most.
_MOST_IDS = 2**32


@dataclass(frozen=True)
class Traffic:
    """How loads are drawn.

    Parameters
    ----------
    num_windows, tokens
        Windows, and tokens in each.
    num_topics
        Kinds of traffic that are mixed.
    skew
        Scale of the log-normal preferences; 0 is uniform.
    drift
        How far the topics' log-shares move in one window, in their standard deviations: 0 is
        constant traffic, 1 independent windows.
    seed
        The same seed draws the same traffic.
    """

    num_windows: int = 32
    tokens: int = 16384
    num_topics: int = 8
    skew: float = 1.0
    drift: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_windows, self.tokens, self.num_topics) < 1:
            raise InputError("windows, tokens and topics must be 1 or more")
        if not 0 <= self.skew <= _MOST_SKEW:
            raise InputError(f"a skew of {self.skew}; 0 to {_MOST_SKEW} is expected")
        if not 0 <= self.drift <= 1:
            raise InputError(f"a drift of {self.drift}; 0 to 1 is expected")
        if self.seed < 0:
            raise InputError(f"a seed of {self.seed}; 0 or more is expected")


def generate(shape: Shape, traffic: Traffic) -> LoadTrace:
    """Loads of every window.

    Raises
    ------
    InputError
        When they add up to more than a sum can hold.
    """
    assignments = traffic.num_windows * traffic.tokens * shape.top_k
    if assignments > LARGEST_COUNT:
        raise InputError(
            f"{traffic.num_windows} windows × {traffic.tokens} tokens × top-{shape.top_k} are more"
            " than 2^53 assignments, which no sum holds exactly; fewer --tokens would do"
        )
    rng = np.random.default_rng(traffic.seed)
    preference = _softmax(_preferences(shape, traffic, rng))
    shares = np.stack(list(_topic_shares(traffic, rng)))
    mixed = np.einsum("wt,tle->wle", shares, preference)
    tokens = rng.multinomial(traffic.tokens * shape.top_k, mixed)
    return LoadTrace(
        tokens=tokens,
        layer_ids=_layer_ids(shape),
        num_groups=shape.num_groups,
        top_k=shape.top_k,
        model="synthetic",
    )


def generate_routes(shape: Shape, traffic: Traffic) -> RouteTrace:
    """The experts of every token: each token has one topic and takes the experts that score best
    in it, among the groups that score best when routing is group-limited.

    Raises
    ------
    InputError
        When they are more than memory holds.
    """
    size = (traffic.num_windows * traffic.tokens, shape.num_layers, shape.top_k)
    if prod(size) > _MOST_IDS:
        raise InputError(
            f"{size[0]} tokens × {size[1]} layers × top-{size[2]} are more than 2^32 ids;"
            " fewer --tokens or --windows would do"
        )
    rng = np.random.default_rng(traffic.seed)
    score = _preferences(shape, traffic, rng)
    dtype = np.min_scalar_type(shape.num_experts - 1)
    experts = np.empty(size, dtype)
    for window, shares in enumerate(_topic_shares(traffic, rng)):
        topic = rng.choice(traffic.num_topics, size=traffic.tokens, p=shares)
        own = slice(window * traffic.tokens, (window + 1) * traffic.tokens)
        for layer in range(shape.num_layers):
            # Gumbel noise makes the best-scoring expert a draw from the topic's preferences.
            noisy = score[topic, layer] + rng.gumbel(size=(traffic.tokens, shape.num_experts))
            experts[own, layer] = _top_experts(noisy, shape)
    return RouteTrace(
        experts=experts,
        num_experts=shape.num_experts,
        layer_ids=_layer_ids(shape),
        num_groups=shape.num_groups,
        window_tokens=traffic.tokens,
        model="synthetic",
    )


def _layer_ids(shape: Shape) -> Ints:
    return np.arange(shape.first_layer, shape.first_layer + shape.num_layers)


def _preferences(shape: Shape, traffic: Traffic, rng: np.random.Generator) -> Floats:
    """Each topic's preferences over the experts, logarithms of shape (topics, L, E)."""
    size = (traffic.num_topics, shape.num_layers, shape.num_experts)
    preference: Floats = traffic.skew * rng.standard_normal(size)
    return preference


def _softmax(score: Floats) -> Floats:
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    share: Floats = weight / weight.sum(axis=-1, keepdims=True)
    return share


def _topic_shares(traffic: Traffic, rng: np.random.Generator) -> Iterator[Floats]:
    """The topics' shares of each window: softmax of a stationary AR(1) walk of unit variance."""
    keep = np.sqrt(1 - traffic.drift**2)
    walk = rng.standard_normal(traffic.num_topics)
    for window in range(traffic.num_windows):
        if window:
            walk = keep * walk + traffic.drift * rng.standard_normal(traffic.num_topics)
        yield _softmax(walk)


def _top_experts(score: Floats, shape: Shape) -> Ints:
    """The ids of the top_k best scores of each row, in the best groups as DeepSeek-V3 ranks them:
    by the sum of a group's two best scores."""
    if shape.groups_per_token < shape.num_groups:
        by_group = score.reshape(len(score), shape.num_groups, -1)
        two = min(2, by_group.shape[2])
        best_two = np.partition(by_group, -two, axis=2)[:, :, -two:].sum(axis=2)
        group = np.argpartition(-best_two, shape.groups_per_token - 1, axis=1)
        barred = np.ones((len(score), shape.num_groups), bool)
        np.put_along_axis(barred, group[:, : shape.groups_per_token], False, axis=1)
        score = np.where(barred[:, :, None], -np.inf, by_group).reshape(score.shape)
    best: Ints = np.argsort(-score, axis=1, kind="stable")[:, : shape.top_k]
    return best
