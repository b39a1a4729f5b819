"""A training job for the tests to kill: `python job.py DIRECTORY STEPS [SECONDS]`.

A tiny network with dropout on data that follows from the step. It logs every step,
saves every third, and writes its final params to DIRECTORY/final.npz.
"""

from pathlib import Path
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdl.core import tree
from jaxdl.train import Checkpoints, JsonLines, TrainState, fit, make_step

OPTIMIZER = optax.adam(1e-2)


def initial() -> TrainState:
    key = jax.random.key(0)
    up, down = jax.random.split(key)
    params = {
        "up": jax.random.normal(up, (4, 64)),
        "down": jax.random.normal(down, (64, 3)),
    }
    return TrainState.create(params, OPTIMIZER, key=key, ema=True)


def loss_fn(params, batch, key):
    hidden = jnp.tanh(batch["x"] @ params["up"])
    kept = jax.random.bernoulli(key, 0.5, hidden.shape)
    return jnp.mean((hidden * kept @ params["down"] - batch["y"]) ** 2)


def batch(step: int) -> dict:
    random = np.random.default_rng(step)
    return {
        "x": random.normal(size=(8, 4)).astype(np.float32),
        "y": random.normal(size=(8, 3)).astype(np.float32),
    }


def main(directory: Path, steps: int, seconds: float = 0.0, size: int = 0) -> None:
    """Trains; `seconds` slow each step down, `size` floats make a checkpoint larger."""
    state = initial()
    if size:
        # Noise, because a checkpoint is compressed.
        noise = np.random.default_rng(0).normal(size=size).astype(np.float32)
        state = state.replace(model_state=jnp.asarray(noise))

    def slow_batch(step: int) -> dict:
        time.sleep(seconds)
        return batch(step)

    def loss(params, batch, key, state=None):
        return loss_fn(params, batch, key), {} if state is None else {"state": state}

    state, _ = fit(
        state,
        make_step(loss, OPTIMIZER, ema_decay=0.9),
        slow_batch,
        steps=steps,
        checkpoints=Checkpoints(directory / "checkpoints", every=3),
        logs=[JsonLines(directory.parent / f"{directory.name}.jsonl")],
        log_every=1,
        progress=False,
    )
    leaves = tree.flatten({"params": state.params, "ema": state.ema})
    np.savez(directory / "final.npz", **leaves)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        *map(float, sys.argv[3:4]),
        *map(int, sys.argv[4:5]),
    )
