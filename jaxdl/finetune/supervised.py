"""Supervised fine-tuning: what a model learns to answer, and not what it was asked."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdl.losses import cross_entropy
from jaxdl.nn.routing import keywords

Tokens = Sequence[int] | np.ndarray


def example(
    prompt: Tokens, answer: Tokens, *, seq_len: int | None = None
) -> dict[str, np.ndarray]:
    """One example for `data.pack`: inputs, targets and weights, each [length].

    Targets are the tokens one further on; weights are 1 where the target belongs to the
    answer and 0 in the prompt. The end-of-text token, where the model is to learn it,
    is part of the answer. What is beyond `seq_len` is cut off at the end. Raises
    ValueError where no token of the answer is left to learn.

    >>> example([5, 6], [7, 2])["weights"].tolist()
    [0.0, 1.0, 1.0]
    """
    tokens = np.array([*prompt, *answer], np.int32)
    weights = np.arange(1, len(tokens)) >= len(prompt)
    if seq_len is not None:
        tokens, weights = tokens[: seq_len + 1], weights[:seq_len]
    if not weights.any():
        raise ValueError(
            f"expected a token of the answer to learn, got a prompt of {len(prompt)} "
            f"tokens and an answer of {len(answer)} for seq_len={seq_len}"
        )
    return {
        "inputs": tokens[:-1],
        "targets": tokens[1:],
        "weights": weights.astype(np.float32),
    }


def conversation(
    turns: Sequence[tuple[Tokens, bool]], *, seq_len: int | None = None
) -> dict[str, np.ndarray]:
    """As `example`, of several turns: (tokens, whether they are learned) each.

    >>> conversation([([5, 6], False), ([7], True), ([8], False), ([9], True)])[
    ...     "weights"
    ... ].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    tokens = np.concatenate([np.asarray(turn, np.int32) for turn, _ in turns])
    learned = np.concatenate([np.full(len(t), learn) for t, learn in turns])
    whole = example(tokens[:1], tokens[1:], seq_len=seq_len)
    weights = learned[1:][:seq_len].astype(np.float32)
    if not weights.any():
        raise ValueError(f"expected a token to learn within seq_len={seq_len}")
    return {**whole, "weights": weights}


def supervised_loss(model: Any) -> Callable:
    """The loss of a language model on packed rows, for `make_step`.

    Cross-entropy of `targets` given `inputs`, by `weights`; of a batch as `data.pack`
    makes it of examples. Takes a key where the model does.
    """

    def loss_fn(params, batch, key):
        given = {name: batch[name] for name in ("segment_ids", "positions")}
        if "key" in keywords(model):
            given["key"] = key
        logits = model(params, batch["inputs"], **given)
        weights = batch["weights"]
        loss = cross_entropy(logits, batch["targets"], weights=weights)
        return loss, {"weight": jnp.sum(weights)}

    return loss_fn
