"""Metrics: plain functions of arrays, jit-able, with weights for what does not count.

A mean over several batches is the mean of theirs weighted by the sums of their weights;
a confusion matrix is a sum. `weights` are 1 for what counts and 0 for padding, or any
numbers from 0; a sum of 0 gives 0. What has no meaning and counts, such as a label out
of range, makes the metric NaN.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from jaxdl.losses import weighted_mean

Average = Literal["macro", "micro", "weighted"] | None


def accuracy(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    weights: Real[Array, "*batch"] | None = None,
) -> Float[Array, ""]:
    """The share of labels that have the largest logit: [..., classes], [...] -> scalar.

    Of equal logits the first counts, as in `argmax`.

    >>> float(accuracy(jnp.eye(3), jnp.array([0, 1, 1])))
    0.6666666865348816
    """
    _check_classes(logits, labels)
    right = logits.argmax(-1) == labels
    return weighted_mean(_where_known(right, labels, logits), weights)


def top_k_accuracy(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    k: int,
    *,
    weights: Real[Array, "*batch"] | None = None,
) -> Float[Array, ""]:
    """The share of labels among the k largest logits: [..., classes], [...] -> scalar.

    Of equal logits those of lower index come first, so that k = 1 is `accuracy`. Raises
    ValueError unless 1 <= k <= classes.
    """
    _check_classes(logits, labels)
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k: expected 1 to {logits.shape[-1]} classes, got {k}")
    _, best = jax.lax.top_k(logits, k)
    right = (best == labels[..., None]).any(-1)
    return weighted_mean(_where_known(right, labels, logits), weights)


def perplexity(mean_nats: Float[Array, ""] | float) -> Float[Array, ""]:
    """exp of a mean cross-entropy in nats a token."""
    return jnp.exp(mean_nats)


def bits_per_byte(
    total_nats: Float[Array, ""] | float, total_bytes: Int[Array, ""] | int
) -> Float[Array, ""]:
    """A cross-entropy summed in nats over a text, in bits for each byte of the text.

    Unlike perplexity it compares models with different tokenisers.
    """
    return jnp.asarray(total_nats) / (jnp.log(2.0) * total_bytes)


def expected_calibration_error(
    probabilities: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    bins: int = 15,
    *,
    weights: Real[Array, "*batch"] | None = None,
) -> Float[Array, ""]:
    """How far confidence is from accuracy: [..., classes], [...] -> scalar in [0, 1].

    The mean over predictions of |accuracy - confidence| of their bin, with `bins` bins
    of equal width over (0, 1], closed on the right (Guo et al. 2017, arXiv:1706.04599).
    Rows that do not sum to 1 within 0.02 (logits, say) give NaN.
    """
    _check_classes(probabilities, labels)
    confidence = probabilities.max(-1).ravel()
    right = probabilities.argmax(-1) == labels
    right = _where_known(right, labels, probabilities).ravel()
    sums = probabilities.sum(-1, dtype=jnp.float32).ravel()
    gap = jnp.where(abs(sums - 1) <= 0.02, right - confidence, jnp.nan)
    weight = _flat_weights(weights, labels.shape)
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    # A bin's |accuracy - confidence| times its share is |sum of the differences|.
    gap = jnp.where(weight == 0, 0.0, weight * gap)
    gaps = jax.ops.segment_sum(gap, place, bins)
    return _ratio(jnp.abs(gaps).sum(), weight.sum())


def confusion_matrix(
    predictions: Int[Array, "*batch"],
    labels: Int[Array, "*batch"],
    num_classes: int,
    *,
    weights: Real[Array, "*batch"] | None = None,
) -> Float[Array, "classes classes"]:
    """Counts how often a label (row) was predicted as each class (column).

    [...], [...] -> float32 [num_classes, num_classes]; those of several batches add up.
    A pair with either out of range makes the whole matrix NaN, unless its weight is 0.

    >>> confusion_matrix(jnp.array([0, 1, 1]), jnp.array([0, 0, 1]), 2).tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    predictions, labels = jnp.asarray(predictions), jnp.asarray(labels)
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions: expected shape {labels.shape}, got {predictions.shape}"
        )
    weight = _flat_weights(weights, labels.shape)
    rows, columns = labels.ravel(), predictions.ravel()
    inside = (rows >= 0) & (rows < num_classes)
    inside &= (columns >= 0) & (columns < num_classes)
    cells = jnp.where(inside, rows * num_classes + columns, 0)
    counts = jax.ops.segment_sum(weight * inside, cells, num_classes**2)
    valid = jnp.all(inside | (weight == 0))
    return jnp.where(valid, counts.reshape(num_classes, num_classes), jnp.nan)


def precision(
    matrix: Float[Array, "classes classes"], average: Average = "macro"
) -> Float[Array, "..."]:
    """The share of the predictions of a class that are right; see `f1`."""
    return _averaged(matrix, average, _precision)


def recall(
    matrix: Float[Array, "classes classes"], average: Average = "macro"
) -> Float[Array, "..."]:
    """The share of a class that was found; see `f1`."""
    return _averaged(matrix, average, _recall)


def f1(
    matrix: Float[Array, "classes classes"], average: Average = "macro"
) -> Float[Array, "..."]:
    """The harmonic mean of precision and recall, from a confusion matrix.

    `average`: None gives one number for each class; "macro" their plain mean,
    "weighted" their mean by how often each class occurs, "micro" the number for all
    decisions together. 0/0 is 0; in the mean, a class that neither occurs nor is
    predicted counts as 0 too (scikit-learn with `zero_division=0` and all labels).
    """
    return _averaged(matrix, average, _f1)


def _averaged(matrix, average: Average, score) -> jax.Array:
    hits = jnp.diagonal(matrix)
    predicted, occurring = matrix.sum(0), matrix.sum(1)
    if average == "micro":
        return score(hits.sum(), predicted.sum(), occurring.sum())
    scores = score(hits, predicted, occurring)
    if average is None:
        return scores
    if average == "macro":
        return scores.mean()
    if average == "weighted":
        return _ratio(scores @ occurring, occurring.sum())
    raise ValueError(
        f'average: expected "macro", "micro", "weighted" or None, got {average!r}'
    )


def _precision(hits, predicted, occurring):
    return _ratio(hits, predicted)


def _recall(hits, predicted, occurring):
    return _ratio(hits, occurring)


def _f1(hits, predicted, occurring):
    return _ratio(2.0 * hits, predicted + occurring)


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    none = denominator == 0
    return jnp.where(none, 0.0, numerator / jnp.where(none, 1.0, denominator))


def _flat_weights(weights, shape: tuple[int, ...]) -> jax.Array:
    if weights is None:
        return jnp.ones(shape, jnp.float32).ravel()
    if jnp.shape(weights) != shape:
        raise ValueError(f"weights: expected shape {shape}, got {jnp.shape(weights)}")
    return jnp.asarray(weights, jnp.float32).ravel()


def _check_classes(scores, labels) -> None:
    if jnp.shape(scores)[:-1] != jnp.shape(labels):
        raise ValueError(
            f"labels: expected shape {jnp.shape(scores)[:-1]}, one for each row of "
            f"{jnp.shape(scores)}, got {jnp.shape(labels)}"
        )


def _where_known(values, labels, scores) -> jax.Array:
    """The values as numbers, NaN where the label is no class or a score is NaN."""
    known = (labels >= 0) & (labels < scores.shape[-1]) & ~jnp.isnan(scores).any(-1)
    return jnp.where(known, values, jnp.nan)
