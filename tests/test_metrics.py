from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from jaxdl import metrics

seeds = st.integers(0, 10**6)
CLASSES, SIZE = 5, 40


def draw(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(SIZE, CLASSES)).astype(np.float32)
    return logits, rng.integers(0, CLASSES, SIZE), rng.random(SIZE).astype(np.float32)


@given(seeds)
def test_accuracy_is_that_of_scikit_learn(seed):
    logits, labels, weights = draw(seed)
    ours = jax.jit(metrics.accuracy)(logits, labels, weights=weights)
    theirs = sklearn.metrics.accuracy_score(
        labels, logits.argmax(-1), sample_weight=weights
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@given(seeds, st.integers(1, CLASSES))
def test_top_k_accuracy_is_that_of_scikit_learn(seed, k):
    logits, labels, weights = draw(seed)
    ours = metrics.top_k_accuracy(logits, labels, k, weights=weights)
    if k == CLASSES:
        assert float(ours) == pytest.approx(1.0)
        return
    theirs = sklearn.metrics.top_k_accuracy_score(
        labels, logits, k=k, sample_weight=weights, labels=range(CLASSES)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_of_equal_logits_the_first_counts():
    equal = jnp.zeros((1, 4))
    for label, k, expected in ((0, 1, 1.0), (1, 1, 0.0), (1, 2, 1.0), (3, 3, 0.0)):
        labels = jnp.array([label])
        assert metrics.top_k_accuracy(equal, labels, k) == expected
    assert metrics.accuracy(equal, jnp.array([0])) == 1.0


@given(seeds)
def test_the_confusion_matrix_is_that_of_scikit_learn_and_adds_up(seed):
    logits, labels, weights = draw(seed)
    predictions = logits.argmax(-1)
    count = lambda rows: metrics.confusion_matrix(  # noqa: E731
        predictions[rows], labels[rows], CLASSES, weights=weights[rows]
    )
    theirs = sklearn.metrics.confusion_matrix(
        labels, predictions, labels=range(CLASSES), sample_weight=weights
    )
    np.testing.assert_allclose(count(slice(None)), theirs, rtol=1e-5, atol=1e-6)
    halves = count(slice(0, 13)) + count(slice(13, None))
    np.testing.assert_allclose(halves, theirs, rtol=1e-5, atol=1e-5)


@given(seeds, st.sampled_from([None, "macro", "micro", "weighted"]), st.booleans())
def test_precision_recall_and_f1_are_those_of_scikit_learn(seed, average, rare):
    logits, labels, _ = draw(seed)
    predictions = logits.argmax(-1)
    if rare:  # a class that neither occurs nor is predicted, and one never predicted
        labels, predictions = labels % 3, predictions % 2
    matrix = metrics.confusion_matrix(predictions, labels, CLASSES)
    theirs = sklearn.metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(CLASSES), average=average, zero_division=0
    )
    for ours, expected in zip(
        (metrics.precision, metrics.recall, metrics.f1), theirs, strict=False
    ):
        np.testing.assert_allclose(
            ours(matrix, average), expected, rtol=1e-5, atol=1e-6
        )


def calibration_by_hand(probabilities, labels, bins):
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    error = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            gap = right[inside].mean() - confidence[inside].mean()
            error += inside.mean() * abs(gap)
    return error


@given(seeds, st.integers(1, 20))
def test_calibration_error_is_the_formula_bin_by_bin(seed, bins):
    logits, labels, _ = draw(seed)
    probabilities = np.asarray(jax.nn.softmax(3 * logits), np.float32)
    ours = jax.jit(metrics.expected_calibration_error, static_argnums=2)(
        probabilities, labels, bins
    )
    expected = calibration_by_hand(probabilities, labels, bins)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not():
    sure = jnp.eye(3)
    assert metrics.expected_calibration_error(sure, jnp.arange(3)) == 0.0
    assert metrics.expected_calibration_error(sure, (jnp.arange(3) + 1) % 3) == 1.0


def test_weight_zero_is_as_if_it_were_not_there():
    logits, labels, _ = draw(0)
    weights = (np.arange(SIZE) < 10).astype(np.float32)
    probabilities = jax.nn.softmax(logits)
    for metric in (metrics.accuracy, metrics.expected_calibration_error):
        whole = metric(probabilities, labels, weights=weights)
        np.testing.assert_allclose(
            whole, metric(probabilities[:10], labels[:10]), rtol=1e-5
        )


def test_perplexity_and_bits_of_a_uniform_guess():
    assert metrics.perplexity(jnp.log(7.0)) == pytest.approx(7.0)
    nats = 100 * np.log(256)  # 100 tokens of one byte each
    assert metrics.bits_per_byte(nats, 100) == pytest.approx(8.0)


def test_a_label_out_of_range_makes_the_matrix_nan_unless_it_does_not_count():
    predictions, labels = jnp.array([0, 1]), jnp.array([0, 7])
    assert jnp.isnan(metrics.confusion_matrix(predictions, labels, 2)).all()
    spared = metrics.confusion_matrix(predictions, labels, 2, weights=jnp.array([1, 0]))
    assert spared.tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_is_nan_unless_it_does_not_count(label):
    logits, labels, _ = draw(1)
    probabilities = jax.nn.softmax(logits)
    wrong = jnp.asarray(labels).at[3].set(label)
    spare = jnp.ones(SIZE).at[3].set(0)
    for metric in (
        metrics.accuracy,
        metrics.expected_calibration_error,
        lambda *args, **weights: metrics.top_k_accuracy(*args, 2, **weights),
    ):
        assert jnp.isnan(metric(probabilities, wrong))
        spared = metric(probabilities, wrong, weights=spare)
        assert spared == metric(probabilities, labels, weights=spare)


def test_scores_that_are_nan_are_neither_right_nor_wrong():
    logits, labels = jnp.array([[jnp.nan, 1.0], [0.0, 1.0]]), jnp.array([0, 1])
    assert jnp.isnan(metrics.accuracy(logits, labels))
    assert jnp.isnan(metrics.top_k_accuracy(logits, labels, 1))
    counted = jnp.array([0.0, 1.0])
    probabilities = jnp.array([[jnp.nan, 1.0], [0.0, 1.0]])
    assert metrics.accuracy(logits, labels, weights=counted) == 1.0
    calibration = metrics.expected_calibration_error
    assert calibration(probabilities, labels, weights=counted) == 0.0


def test_calibration_of_logits_is_nan():
    logits = jnp.array([[2.0, -1.5], [0.1, 0.3]])
    assert jnp.isnan(metrics.expected_calibration_error(logits, jnp.array([0, 1])))


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\)"):
        metrics.accuracy(jnp.ones((4, 3)), jnp.ones((4, 1), int))
    with pytest.raises(ValueError, match="k: expected 1 to 3 classes, got 4"):
        metrics.top_k_accuracy(jnp.ones((4, 3)), jnp.zeros(4, int), 4)
    with pytest.raises(ValueError, match="average: expected"):
        metrics.f1(jnp.eye(2), "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights: expected shape"):
        metrics.confusion_matrix(
            jnp.zeros(3, int), jnp.zeros(3, int), 2, weights=jnp.ones(2)
        )
