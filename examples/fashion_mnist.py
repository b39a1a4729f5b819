"""A residual network with BatchNorm on all of Fashion-MNIST.

    python examples/fashion_mnist.py

The data is real: 60,000 images to learn from and 10,000 that are never seen, from
Debian's package dataset-fashion-mnist or from a folder given with --data. The images of
each step are moved and mirrored on the device, inside the compiled step, by the step's
own key. The network is small, for two CPU cores: 92.0 % with seed 0 after some 40 CPU
minutes. A GPU has time for more: --width 64 --depth 2 --epochs 30.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import optax

import jaxdl as jd
from jaxdl import data, losses, metrics, models
from jaxdl.train import TrainState, fit, make_step


def normalise(images: jax.Array) -> jax.Array:
    """uint8 -> float32 of mean 0 and variance 1 over the training images."""
    return (images.astype(jnp.float32) / 255 - 0.2860) / 0.3530


def augment(images: jax.Array, key: jax.Array, pad: int = 2) -> jax.Array:
    """Moves each image by up to `pad` pixels and mirrors half: [batch, h, w, 1]."""
    shift_key, flip_key = jax.random.split(key)
    border = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    padded = jnp.pad(images, border)
    shifts = jax.random.randint(shift_key, (len(images), 2), 0, 2 * pad + 1)

    def crop(image, shift):
        return jax.lax.dynamic_slice(image, (*shift, 0), images.shape[1:])

    flips = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
    moved = jax.vmap(crop)(padded, shifts)
    return jnp.where(flips, moved[:, :, ::-1], moved)


def train(
    epochs: int,
    width: int,
    depth: int,
    batch_size: int,
    seed: int,
    examples: int | None = None,
    path: str | None = None,
) -> float:
    """Trains on the training images; returns the accuracy on the test images."""
    training, testing = (
        {name: array[:examples] for name, array in part.items()}
        for part in data.fashion_mnist(path)
    )
    batches = data.Batches(training, batch_size, seed)
    test_batches = data.Batches(testing, min(1000, len(testing["label"])))
    steps = epochs * batches.steps_per_epoch

    model = models.ResNet(
        depths=(depth,) * 3,
        # At full resolution features are dear, further down they are cheap.
        widths=(width, 4 * width, 8 * width),
        num_classes=10,
        in_features=1,
        small_images=True,
    )
    optimizer = optax.chain(
        optax.add_decayed_weights(5e-4, mask=jd.mask(model, "weight")),
        optax.sgd(
            optax.cosine_onecycle_schedule(steps, peak_value=0.1),
            momentum=0.9,
            nesterov=True,
        ),
    )

    def loss_fn(params, batch, *, key, state):
        images = normalise(augment(batch["image"], key))
        logits, state = model(params, images, state, train=True)
        loss = losses.cross_entropy(logits, batch["label"], label_smoothing=0.1)
        accuracy = metrics.accuracy(logits, batch["label"])
        return loss, {"state": state, "metrics": {"accuracy": accuracy}}

    @jax.jit
    def count_hits(params, state, batch, weights):
        logits, _ = model(params, normalise(batch["image"]), state, train=False)
        return jnp.sum(weights * (logits.argmax(-1) == batch["label"]))

    def evaluate(state):
        hits = [
            count_hits(state.params, state.model_state, *batch)
            for batch in test_batches.epoch()
        ]
        return {"accuracy": sum(hits) / test_batches.size}

    init_key, run_key = jax.random.split(jax.random.key(seed))
    state = TrainState.create(
        model.init(init_key),
        optimizer,
        key=run_key,
        model_state=model.init_state(),
    )
    print(f"ResNet with {jd.count(state.params):,} parameters, {steps:,} steps")
    state, history = fit(
        state,
        make_step(loss_fn, optimizer),
        batches,
        steps=steps,
        evaluate=evaluate,
        eval_every=batches.steps_per_epoch,
        plot="runs/fashion_mnist.png",
    )
    return history.series("eval/accuracy")[1][-1]


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--width", type=int, default=16, help="features of the stem")
    parser.add_argument("--depth", type=int, default=1, help="blocks in each stage")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, help="use only the first of the images")
    parser.add_argument("--data", help="folder of the four IDX files")
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    accuracy = train(
        given.epochs, given.width, given.depth, given.batch_size, given.seed,
        given.examples, given.data,
    )  # fmt: skip
    minutes = (time.perf_counter() - start) / 60
    print(f"test accuracy {accuracy:.2%} after {minutes:.1f} minutes")
    print("curves: runs/fashion_mnist.png")
    return accuracy


if __name__ == "__main__":
    main()
