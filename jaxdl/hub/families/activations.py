"""Activations by their published names."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdl.hub.files import HubError


def exact_gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x, without approximation."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), as in CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": exact_gelu,
    "gelu_fast": jax.nn.gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_python": exact_gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function of a published name; HubError for one that is not known."""
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise HubError(f"activation: expected one of {known}, got {name!r}")
    return ACTIVATIONS[name]
