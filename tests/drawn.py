"""Parameters for tests of what a model computes, not of how it starts."""

from typing import Any

import jax
import numpy as np

import jaxdl as jd


def drawn(module: jd.Module, scale: float = 0.3, seed: int = 0) -> Any:
    """Normal numbers in the declared shapes: zeros and ones would hide mistakes.

    Nothing is compiled, where `module.init` compiles a program for each shape.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return (scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.device_put(jax.tree.map(draw, jd.abstract(module)))
