"""A small GPT that learns to write, character by character.

    python examples/char_lm.py
    python examples/char_lm.py --text some_book.txt --steps 2000

The text is Python's own language reference, which every Python carries, or a file of
yours; its last tenth is held out. Everything follows from the seed: the same command
gives the same characters on the same machine.
"""

import argparse
import math

import jax
import jax.numpy as jnp
import optax

import jaxdl as jd
from jaxdl import data, losses, models
from jaxdl.train import TrainState, fit, make_step


def sample(model: models.Decoder, params, prompt, key, length: int, temperature: float):
    """Continues a prompt, in one compiled loop: int [batch, seq] -> [batch, length].

    Each new token sees as many tokens before it as the prompt has.
    """

    @jax.jit
    def loop(params, window, key):
        def step(window, key):
            logits = model(params, window)[:, -1]
            token = jax.random.categorical(key, logits / temperature)
            return jnp.append(window[:, 1:], token[:, None], axis=1), token

        return jax.lax.scan(step, window, jax.random.split(key, length))[1].T

    return loop(params, prompt, key)


def build(vocab_size: int, given: argparse.Namespace) -> models.Decoder:
    return models.Decoder(
        models.DecoderConfig(
            vocab_size=vocab_size,
            seq_len=given.seq_len,
            dim=given.dim,
            num_layers=given.layers,
            num_heads=max(1, given.dim // 32),
            positions="rope",
            norm="rms",
            gated=True,
            activation=jax.nn.silu,
            hidden=given.dim * 8 // 3,
            bias=False,
        )
    )


def train(model: models.Decoder, training, heldout, given: argparse.Namespace):
    """Trains the model; returns the state and the held-out bits for each character."""

    def loss_fn(params, batch):
        logits = model(params, batch["inputs"])
        return losses.cross_entropy(logits, batch["targets"])

    @jax.jit
    def heldout_loss(params, batch, weights):
        logits = model(params, batch["inputs"])
        loss = losses.cross_entropy(logits, batch["targets"], weights=weights)
        return loss * weights.sum(), weights.sum()

    def bits(params) -> float:
        pairs = [heldout_loss(params, *batch) for batch in heldout.epoch()]
        total, count = map(sum, zip(*pairs, strict=True))
        return float(total / count) / math.log(2)

    optimizer = optax.adamw(
        optax.warmup_cosine_decay_schedule(
            0.0, 3e-3, given.steps // 10, given.steps, 3e-4
        ),
        b2=0.99,
        weight_decay=0.1,
        mask=jd.mask(model, ("weight", "embedding")),
    )
    init_key, run_key = jax.random.split(jax.random.key(given.seed))
    params = model.init(init_key)
    before = bits(params)
    characters = training.batch_size * training.seq_len
    state, _ = fit(
        TrainState.create(params, optimizer, key=run_key),
        make_step(loss_fn, optimizer, clip_norm=1.0),
        training,
        steps=given.steps,
        evaluate=lambda state: {"bits": bits(state.params)},
        eval_every=max(1, given.steps // 5),
        items={"characters": characters},
        plot="runs/char_lm.png",
    )
    return state, before, bits(state.params)


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", help="a UTF-8 text file to learn from")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=600, help="of the sample")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)

    text = data.text(given.text)
    characters = data.Characters.of(text)
    tokens = characters.encode(text)
    cut = len(tokens) * 9 // 10
    training = data.TextWindows(
        tokens[:cut], given.seq_len, given.batch_size, given.seed
    )
    heldout = data.TextWindows(tokens[cut:], given.seq_len, given.batch_size)
    model = build(characters.size, given)
    print(
        f"{len(text):,} characters, {characters.size} of them different; "
        f"{jd.count(jd.abstract(model)):,} parameters"
    )

    state, before, after = train(model, training, heldout, given)
    print(f"held-out bits per character: {before:.3f} before, {after:.3f} after")

    prompt = tokens[cut : cut + given.seq_len]
    key = jax.random.key(given.seed)
    written = sample(
        model, state.params, prompt[None], key, given.length, given.temperature
    )
    continuation = characters.decode(written[0])
    print(f"\n{characters.decode(prompt)}[...]{continuation}")
    return continuation


if __name__ == "__main__":
    main()
