"""Learning from preferences: of two answers to a prompt, which one is the better."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from jaxdl.losses import token_cross_entropy
from jaxdl.nn.routing import keywords


def sequence_log_probs(
    logits: Float[Array, "*batch seq vocab"],
    targets: Int[Array, "*batch seq"],
    weights: Real[Array, "*batch seq"],
    *,
    mean: bool = False,
) -> Float[Array, "*batch"]:
    """Log-probability of each sequence: [..., seq, vocab] -> float32 [...].

    The sum over its targets, each by its weight: 1 in the answer, 0 in the prompt and
    the padding. `mean` divides by the sum of the weights. A target of weight 0 does not
    count, whatever it is.
    """
    if jnp.shape(weights) != jnp.shape(targets):
        raise ValueError(
            f"weights: expected one for each target, {jnp.shape(targets)}, got "
            f"{jnp.shape(weights)}"
        )
    weights = jnp.asarray(weights, jnp.float32)
    each = -token_cross_entropy(logits, jnp.where(weights == 0, 0, targets))
    total = jnp.sum(jnp.where(weights == 0, 0.0, each * weights), -1)
    return total / jnp.maximum(weights.sum(-1), 1e-9) if mean else total


class LogProbs(NamedTuple):
    """Log-probabilities [batch] of the better and the worse answer of each pair."""

    chosen: jax.Array
    rejected: jax.Array


def dpo_loss(
    policy: LogProbs,
    reference: LogProbs,
    beta: float = 0.1,
    *,
    label_smoothing: float = 0.0,
    kind: Literal["sigmoid", "ipo", "hinge"] = "sigmoid",
) -> Float[Array, " batch"]:
    """Direct preference optimisation: the loss of each pair, [batch].

    -log sigmoid(beta h), where h is how much more the policy prefers the better answer
    than the reference does, in nats (Rafailov et al. 2023, arXiv:2305.18290, equation
    7). `label_smoothing` is the share of pairs believed to be the wrong way round
    (Mitchell 2023, "cDPO"). "ipo" is (h - 1 / (2 beta))**2 (Azar et al. 2023,
    arXiv:2310.12036), of log-probabilities that are means; "hinge" is max(0, 1 - beta
    h) (Zhao et al. 2023, arXiv:2305.10425). The reference has no gradient.

    >>> even = LogProbs(jnp.array([-3.0]), jnp.array([-5.0]))
    >>> print(dpo_loss(even, even)[0])  # ln 2
    0.6931472
    """
    if not beta > 0:
        raise ValueError(f"beta: expected a number above 0, got {beta}")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing: expected a share in [0, 0.5), got {label_smoothing}"
        )
    if label_smoothing and kind != "sigmoid":
        raise ValueError(f"label_smoothing: expected 0 with {kind}")
    margin = jnp.subtract(*_rewards(policy, reference, 1.0))
    if kind == "sigmoid":
        right = -jax.nn.log_sigmoid(beta * margin)
        wrong = -jax.nn.log_sigmoid(-beta * margin)
        return (1 - label_smoothing) * right + label_smoothing * wrong
    if kind == "ipo":
        return jnp.square(margin - 1 / (2 * beta))
    if kind == "hinge":
        return jax.nn.relu(1 - beta * margin)
    raise ValueError(f"kind: expected sigmoid, ipo or hinge, got {kind!r}")


def dpo_metrics(
    policy: LogProbs, reference: LogProbs, beta: float = 0.1
) -> dict[str, jax.Array]:
    """Mean rewards, beta log(policy / reference), and how often they are right.

    Scalars: chosen, rejected, their margin, and accuracy, the share of pairs in which
    the better answer has the greater reward.
    """
    chosen, rejected = _rewards(policy, reference, beta)
    return {
        "chosen": chosen.mean(),
        "rejected": rejected.mean(),
        "margin": (chosen - rejected).mean(),
        "accuracy": (chosen > rejected).mean(),
    }


def pair_log_probs(
    model: Any, params: Any, batch: Any, *, mean: bool = False, **given: Any
) -> LogProbs:
    """The log-probabilities that a model gives both answers of each pair.

    `batch` has `chosen` and `rejected`, each what `data.pad` makes of examples: inputs,
    targets, weights and positions [batch, seq]. Both go through the model in one call
    where their shapes agree. Keywords are handed on to the model.
    """
    both = [batch["chosen"], batch["rejected"]]
    if jnp.shape(both[0]["inputs"]) == jnp.shape(both[1]["inputs"]):
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *both)
        whole = _log_probs(model, params, joined, mean, given)
        return LogProbs(*jnp.split(whole, 2))
    return LogProbs(*(_log_probs(model, params, part, mean, given) for part in both))


def preference_loss(model: Any, beta: float = 0.1, **options: Any) -> Callable:
    """The DPO loss of pairs for `make_step`; options are those of `dpo_loss`.

    A batch is that of `pair_log_probs` with `reference`, its `LogProbs` under the
    model that training starts from: with adapters that is `finetune.remove(model,
    params)`, asked once before training.
    """
    mean = options.get("kind") == "ipo"

    def loss_fn(params, batch, key):
        given = {"key": key} if "key" in keywords(model) else {}
        policy = pair_log_probs(model, params, batch, mean=mean, **given)
        reference = LogProbs(*batch["reference"])
        losses = dpo_loss(policy, reference, beta, **options)
        metrics = dpo_metrics(policy, reference, beta)
        weight = jnp.float32(losses.size)
        return losses.mean(), {"weight": weight, "metrics": metrics}

    return loss_fn


def _rewards(policy: LogProbs, reference: LogProbs, beta: float):
    reference = jax.lax.stop_gradient(LogProbs(*reference))
    shapes = {jnp.shape(part) for part in (*policy, *reference)}
    if len(shapes) != 1:
        raise ValueError(f"expected log-probabilities of one shape, got {shapes}")
    chosen = beta * (policy[0] - reference.chosen)
    return chosen, beta * (policy[1] - reference.rejected)


def _log_probs(model, params, part, mean: bool, given) -> jax.Array:
    positions = part["positions"]
    logits = model(params, part["inputs"], positions=positions, **given)
    return sequence_log_probs(logits, part["targets"], part["weights"], mean=mean)
