"""Holds a layer to PyTorch's: the same weights, the same values, the same gradients."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

Convert = Callable[[Mapping[str, Any]], Any]


def compare(
    ours: Callable,
    theirs: Callable,
    weights: Mapping[str, Any],
    convert: Convert,
    inputs: tuple[np.ndarray, ...],
    channels_last: bool = False,
    tolerance: float = 1e-5,
) -> None:
    """Raises AssertionError unless values and all gradients agree in float32.

    `ours(params, *inputs)` and `theirs(*inputs)` return arrays, or trees of them;
    `weights` are the tensors of `theirs` by name, all of which are drawn anew first.
    `convert` turns them into our params; being a renaming, it does the same to their
    gradients. With `channels_last` the first input and the results of `ours` have
    their features last, where PyTorch has them in dimension 1.
    """
    redraw(weights)
    floating = [np.issubdtype(x.dtype, np.floating) for x in inputs]
    tensors = [
        torch.tensor(x).requires_grad_(real)
        for x, real in zip(inputs, floating, strict=True)
    ]
    expected = theirs(*tensors)
    wanted = [_last(y) if channels_last else y for y in _leaves(expected)]
    rng = np.random.default_rng(1)
    pulls = [rng.normal(size=y.shape).astype(np.float32) for y in wanted]
    total = sum((y * torch.tensor(p)).sum() for y, p in zip(wanted, pulls, strict=True))
    trained = {n: w for n, w in weights.items() if w.requires_grad}
    real = [t for t in tensors if t.requires_grad]
    found = torch.autograd.grad(total, [*trained.values(), *real])
    named = dict(zip(trained, found, strict=False))
    input_grads = list(found[len(trained) :])

    params = convert(arrays(weights))
    grads = convert(arrays({**weights, **named}))
    given = list(inputs)
    if channels_last:
        given[0] = np.moveaxis(given[0], 1, -1)
        input_grads[0] = _last(input_grads[0])
    # jnp.asarray would compile a program for each shape.
    given = jax.device_put(given)

    def pulled(params, *reals):
        filled = list(given)
        for index, x in zip(np.flatnonzero(floating), reals, strict=True):
            filled[index] = x
        results = jax.tree.leaves(ours(params, *filled))
        both = zip(results, pulls, strict=True)
        return sum(jnp.sum(y * p) for y, p in both), results

    reals = [x for x, real in zip(given, floating, strict=True) if real]
    over = tuple(range(len(reals) + 1))
    own, results = jax.jit(jax.grad(pulled, over, has_aux=True))(params, *reals)
    _close(results, [array(y) for y in wanted], tolerance, "values")
    _close(own[0], grads, tolerance, "gradients of parameters")
    _close(list(own[1:]), list(map(array, input_grads)), tolerance, "of inputs")


def redraw(weights: Mapping[str, Any]) -> None:
    """Gives every weight numbers of its own: zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights.values():
            weight.uniform_(-0.7, 0.7, generator=generator)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers that depend on shape and seed, on no test before."""
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def arrays(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors as numpy arrays, by the same names."""
    return {name: array(weight) for name, weight in weights.items()}


def array(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy()


def weights_of(module: Any) -> dict[str, Any]:
    """A module's parameters by name (its buffers are not among them)."""
    return dict(module.named_parameters())


def linear(weights: Mapping[str, Any], name: str = "") -> dict[str, np.ndarray]:
    """Our Linear's params of a torch `Linear` of this name."""
    prefix = f"{name}." if name else ""
    found = {"kernel": weights[f"{prefix}weight"].T}
    if f"{prefix}bias" in weights:
        found["bias"] = weights[f"{prefix}bias"]
    return found


def conv(weights: Mapping[str, Any], name: str = "") -> dict[str, np.ndarray]:
    """Our Conv's params of a torch one: [out, in, *size] -> [*size, in, out]."""
    found = linear(weights, name)
    weight = weights[f"{name}.weight" if name else "weight"]
    return {**found, "kernel": np.moveaxis(weight, (0, 1), (-1, -2))}


def norm(weights: Mapping[str, Any], name: str = "") -> dict[str, np.ndarray]:
    """Our norm's params of a torch norm, which calls the scale its weight."""
    ours = {"scale": "weight", "bias": "bias"}
    named = {n: f"{name}.{theirs}" if name else theirs for n, theirs in ours.items()}
    return {n: weights[theirs] for n, theirs in named.items() if theirs in weights}


def _close(ours: Any, theirs: Any, tolerance: float, what: str) -> None:
    chex.assert_trees_all_close(
        ours, theirs, rtol=tolerance, atol=tolerance, custom_message=what
    )


def _last(y: Any) -> Any:
    return y.movedim(1, -1) if y.ndim > 2 else y


def _leaves(tree: Any) -> list:
    if isinstance(tree, tuple | list):
        return [leaf for item in tree for leaf in _leaves(item)]
    return [tree]
