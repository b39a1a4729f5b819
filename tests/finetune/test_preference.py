import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import data, finetune, models
from jaxdl.finetune import LogProbs
from jaxdl.train import TrainState, make_step

torch = pytest.importorskip("torch")
functional = torch.nn.functional
rng = np.random.default_rng(0)
POLICY, REFERENCE = (
    LogProbs(*(jnp.asarray(rng.normal(-9, 3, 6), jnp.float32) for _ in range(2)))
    for _ in range(2)
)


def of_trl(policy, reference, beta, smoothing, kind):
    """`DPOTrainer.dpo_loss` of TRL: losses and the two rewards, in PyTorch."""
    policy, reference = (
        [torch.tensor(np.asarray(part)) for part in pair]
        for pair in (policy, reference)
    )
    logits = (policy[0] - policy[1]) - (reference[0] - reference[1])
    if kind == "sigmoid":
        losses = (
            -functional.logsigmoid(beta * logits) * (1 - smoothing)
            - functional.logsigmoid(-beta * logits) * smoothing
        )
    elif kind == "hinge":
        losses = torch.relu(1 - beta * logits)
    else:
        losses = (logits - 1 / (2 * beta)) ** 2
    chosen = beta * (policy[0] - reference[0])
    return losses, chosen, beta * (policy[1] - reference[1])


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize(
    "kind, smoothing", [("sigmoid", 0.0), ("sigmoid", 0.2), ("hinge", 0), ("ipo", 0)]
)
def test_dpo_is_trl_s(beta, kind, smoothing):
    expected, *rewards = of_trl(POLICY, REFERENCE, beta, smoothing, kind)
    losses = finetune.dpo_loss(
        POLICY, REFERENCE, beta, label_smoothing=smoothing, kind=kind
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    metrics = finetune.dpo_metrics(POLICY, REFERENCE, beta)
    for name, reward in zip(("chosen", "rejected"), rewards, strict=True):
        assert float(metrics[name]) == pytest.approx(float(reward.mean()), rel=1e-4)
    right = (rewards[0] > rewards[1]).float().mean()
    assert float(metrics["accuracy"]) == pytest.approx(float(right))


def test_dpo_is_the_formula_of_its_paper():
    ratio = (POLICY.chosen - REFERENCE.chosen) - (POLICY.rejected - REFERENCE.rejected)
    expected = -jnp.log(1 / (1 + jnp.exp(-0.3 * ratio)))
    losses = finetune.dpo_loss(POLICY, REFERENCE, 0.3)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-6)

    # Equation 7's gradient: beta sigmoid(r_rejected - r_chosen), and none of the
    # reference.
    def total(policy, reference):
        return finetune.dpo_loss(policy, reference, 0.3).sum()

    of_policy, of_reference = jax.grad(total, (0, 1))(POLICY, REFERENCE)
    weight = 0.3 * jax.nn.sigmoid(-0.3 * ratio)
    np.testing.assert_allclose(of_policy.chosen, -weight, rtol=1e-4)
    np.testing.assert_allclose(of_policy.rejected, weight, rtol=1e-4)
    assert not any(part.any() for part in of_reference)


def test_options_out_of_range_are_refused():
    for match, given in {
        "beta": {"beta": 0.0},
        "share in": {"label_smoothing": 0.5},
        "expected 0 with ipo": {"label_smoothing": 0.1, "kind": "ipo"},
        "kind: expected sigmoid": {"kind": "kto"},
    }.items():
        with pytest.raises(ValueError, match=match):
            finetune.dpo_loss(POLICY, REFERENCE, **given)
    short = LogProbs(POLICY.chosen[:2], POLICY.rejected)
    with pytest.raises(ValueError, match="of one shape"):
        finetune.dpo_loss(short, REFERENCE)


def test_a_log_probability_is_the_sum_over_the_answer():
    logits = rng.normal(size=(2, 5, 7)).astype(np.float32)
    targets = rng.integers(0, 7, (2, 5))
    weights = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]])
    each = functional.log_softmax(torch.tensor(logits), -1)
    each = each.gather(2, torch.tensor(targets)[..., None])[..., 0].numpy()
    expected = (each * weights).sum(-1)
    targets[weights == 0] = -100  # as others mark them
    found = finetune.sequence_log_probs(logits, targets, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    mean = finetune.sequence_log_probs(logits, targets, weights, mean=True)
    np.testing.assert_allclose(mean, expected / weights.sum(-1), rtol=1e-5)
    with pytest.raises(ValueError, match="weights: expected one for each target"):
        finetune.sequence_log_probs(logits, targets, weights[:1])


CONFIG = models.DecoderConfig(
    13, 16, dim=16, num_layers=2, num_heads=2, positions="rope", norm="rms",
    gated=True, hidden=24, bias=False, tie_embeddings=False,
)  # fmt: skip
TRIPLES = [([3, 4], [5, 2], [6, 7, 2]), ([4, 3, 8], [9, 2], [5, 2])]


def batch_of(seq_len=8):
    chosen = [finetune.example(prompt, better) for prompt, better, _ in TRIPLES]
    rejected = [finetune.example(prompt, worse) for prompt, _, worse in TRIPLES]
    return {
        "chosen": data.pad(chosen, seq_len),
        "rejected": data.pad(rejected, seq_len),
    }


def test_padding_and_joining_change_no_log_probability(key):
    model = models.Decoder(CONFIG)
    params = jax.tree.map(lambda leaf: 3.0 * leaf, model.init(key))
    batch = batch_of()
    run = jax.jit(lambda p, batch: finetune.pair_log_probs(model, p, batch))
    joined = run(params, batch)
    batch["rejected"] = {k: v[:, :6] for k, v in batch["rejected"].items()}
    apart = run(params, batch)
    np.testing.assert_allclose(jnp.stack(joined), jnp.stack(apart), rtol=1e-4)
    prompt, better, _ = TRIPLES[0]
    tokens = jnp.asarray([[*prompt, *better]])
    each = jax.nn.log_softmax(jax.jit(model)(params, tokens))[0, len(prompt) - 1 : -1]
    alone = sum(each[i, token] for i, token in enumerate(better))
    assert float(joined.chosen[0]) == pytest.approx(float(alone), rel=1e-4)


def test_lora_learns_which_answer_is_the_better(key):
    base = models.Decoder(CONFIG)
    model, params = finetune.lora(base, base.init(key), "**", key=key)
    batch = batch_of()
    bare, before = finetune.remove(model, params)
    reference = jax.jit(lambda p, b: finetune.pair_log_probs(bare, p, b))(before, batch)
    trained, frozen = finetune.split(params)
    optimizer = optax.adam(1e-2)
    state = TrainState.create(trained, optimizer, key=key, model_state=frozen)
    loss_fn = finetune.with_frozen(finetune.preference_loss(model, 0.5))
    step = make_step(loss_fn, optimizer)
    batch = {**batch, "reference": reference}
    state, first = step(state, batch)
    assert float(first["loss"]) == pytest.approx(np.log(2), rel=1e-4)
    for _ in range(30):
        state, metrics = step(state, batch)
    assert metrics["loss"] < 0.2 and metrics["accuracy"] == 1 and metrics["margin"] > 1
