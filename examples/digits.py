"""A convolutional network on handwritten digits, in under a minute on a laptop.

    python examples/digits.py

The data is real: the 1,797 digits of scikit-learn, 8 by 8 pixels, by 13 writers. A
fifth, with the same share of each digit, is held out and never trained on. Each step
moves its images by up to a pixel, on the device, by a key of its own.
"""

import argparse
from pathlib import Path
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdl as jd
from jaxdl import data, losses, metrics, models
from jaxdl.train import TrainState, fit, make_step

PICTURE = Path("runs/digits.png")

model = models.cnn((8, 8, 1), num_classes=10, widths=(32, 64), dropout=0.3)


def shifted(images: jax.Array, key: jax.Array) -> jax.Array:
    """Moves each image by up to one pixel: [batch, 8, 8, 1]."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 3)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)


def loss_fn(params, batch, *, key):
    shift_key, dropout_key = jax.random.split(key)
    logits = model(params, shifted(batch["image"], shift_key), key=dropout_key)
    return losses.cross_entropy(logits, batch["label"], label_smoothing=0.1)


def train(seed: int, steps: int):
    """Trains on four fifths: `(probabilities of the rest, the rest, history)`."""
    digits = data.digits()
    training, testing = data.split(digits, 1 / 5, seed, stratify=digits["label"])
    predict = jax.jit(lambda params: model(params, testing["image"], key=None))

    def evaluate(state):
        logits = predict(state.ema)
        return {
            "loss": losses.cross_entropy(logits, testing["label"]),
            "accuracy": metrics.accuracy(logits, testing["label"]),
        }

    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = model.init(init_key)
    state = TrainState.create(params, optimizer, key=run_key, ema=True)
    state, history = fit(
        state,
        make_step(loss_fn, optimizer, ema_decay=0.98),
        data.Batches(training, batch_size=128, seed=seed),
        steps=steps,
        evaluate=evaluate,
        eval_every=50,
    )
    probabilities = jax.nn.softmax(predict(state.ema))
    return np.asarray(probabilities), testing, history


def draw(history, testing, probabilities, path: Path) -> None:
    """Draws the curves, and the held-out digits that the network is least sure of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    grid = figure.add_gridspec(6, 8)
    loss = figure.add_subplot(grid[:3, :4])
    accuracy = figure.add_subplot(grid[3:, :4], sharex=loss)
    hits = probabilities.argmax(-1) == testing["label"]
    figure.suptitle(
        f"{hits.mean():.2%} of {hits.size} held-out digits are right. "
        "Beside: the 12 it is least sure of, each with its label and the guess"
    )
    loss.plot(*history.series("loss"), label="training (moved, smoothed, dropout)")
    loss.plot(*history.series("eval/loss"), label="held out", marker="o")
    loss.set(ylabel="cross-entropy (nats)", yscale="log")
    loss.legend(frameon=False)
    accuracy.plot(*history.series("eval/accuracy"), color="C1", marker="o")
    accuracy.set(ylabel="held-out accuracy", xlabel="step")
    accuracy.set_ylim(top=1.002)

    truth = np.take_along_axis(probabilities, testing["label"][:, None], 1)[:, 0]
    for place, row in enumerate(truth.argsort()[:12]):
        down, right = 2 * (place // 4), 4 + place % 4
        axis = figure.add_subplot(grid[down : down + 2, right])
        label, guess = testing["label"][row], probabilities[row].argmax()
        axis.imshow(testing["image"][row, :, :, 0], cmap="gray_r")
        axis.set_title(
            f"{label}: {guess} with {probabilities[row, guess]:.0%}",
            color="black" if guess == label else "crimson",
            fontsize=9,
        )
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)

    start = time.perf_counter()
    print(f"{jd.count(jd.abstract(model)):,} parameters; {given.steps} steps")
    probabilities, testing, history = train(given.seed, given.steps)
    draw(history, testing, probabilities, PICTURE)

    hits = probabilities.argmax(-1) == testing["label"]
    print(
        f"held-out accuracy {hits.mean():.2%}, {(~hits).sum()} of {hits.size} digits "
        f"wrong, after {time.perf_counter() - start:.0f} s; picture: {PICTURE}"
    )
    return float(hits.mean())


if __name__ == "__main__":
    main()
