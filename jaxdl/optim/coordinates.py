"""The coordinate check: do activations move alike at every width?"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdl.core.transforms import capture

PyTree = Any
Build = Callable[[int], tuple[Callable[[PyTree], jax.Array], PyTree, Any]]


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Root mean squares of activations over widths and steps, by the name of the tap.

    sizes: of the activations, [widths, steps + 1], before the first step and after all.
    changes: of their difference from what they were before the first step.
    """

    widths: tuple[int, ...]
    sizes: Mapping[str, np.ndarray]
    changes: Mapping[str, np.ndarray]

    def slopes(self, step: int = -1) -> dict[str, float]:
        """By which power of the width each tap's change grows; 0 is flat."""
        x = np.log(self.widths)
        return {
            name: float(np.polyfit(x, np.log(change[:, step]), 1)[0])
            for name, change in self.changes.items()
        }


def coordinate_check(
    build: Build,
    widths: Iterable[int] = (64, 128, 256, 512, 1024),
    steps: int = 4,
    taps: str | Iterable[str] = "**",
) -> Coordinates:
    """Trains models of several widths for a few steps and measures their activations.

    Where a parametrisation is right, every activation changes as much in a wide model
    as in a narrow one (Yang et al. 2022, arXiv:2203.03466, figure 5).

    build: `build(width) -> loss, params, optimizer` with `loss(params)` a scalar, of
      the same few examples each time.
    taps: patterns of `jd.tap`s; of layers in a scan all are one.

    >>> def build(width):
    ...     def loss(params):
    ...         return tap(params["w"].sum() / width, "mean") ** 2
    ...
    ...     return loss, {"w": jnp.ones(width)}, optax.sgd(0.1 * width)
    >>> from jaxdl.core.tap_primitive import tap
    >>> check = coordinate_check(build, widths=(4, 8), steps=1)
    >>> [round(float(change), 3) for change in check.changes["mean"][:, 1]]
    [0.2, 0.2]
    """
    widths = tuple(widths)
    patterns = (taps,) if isinstance(taps, str) else tuple(taps)
    runs = [_run(*build(width), steps, patterns) for width in widths]
    sizes, changes = (
        {name: np.stack([run[i][name] for run in runs]) for name in runs[0][i]}
        for i in range(2)
    )
    return Coordinates(widths, sizes, changes)


def plot_coordinates(checks: Mapping[str, Coordinates], path: str | Path) -> None:
    """Draws changes over widths into a picture: a panel for each check, by its title.

    A line for each tap, after the last step. Needs matplotlib (`jaxdl[examples]`).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'plot_coordinates needs matplotlib: pip install "jaxdl[examples]"'
        ) from error

    size = (4.6 * len(checks), 3.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(checks), squeeze=False, sharey=True)[0]
    for panel, (title, check) in zip(panels, checks.items(), strict=True):
        for name, change in check.changes.items():
            panel.plot(check.widths, change[:, -1], marker="o", ms=3.5, label=name)
        panel.set(title=title, xlabel="width", xscale="log", yscale="log")
        panel.set_xticks(check.widths, [str(width) for width in check.widths])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("change of activations")
    panels[-1].legend(frameon=False, fontsize="small")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _run(loss, params, optimizer, steps: int, patterns: tuple[str, ...]):
    """The sizes and the changes of the taps, by name, [steps + 1] each."""
    observed = capture(loss, *patterns)

    def floating(params):
        value, found = observed(params)
        kept = {n: x for n, x in found.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        return value, {name: x.astype(jnp.float32) for name, x in kept.items()}

    @jax.jit
    def run(params):
        _, before = floating(params)

        def step(carry, _):
            params, state = carry
            grads, now = jax.grad(floating, has_aux=True)(params)
            updates, state = optimizer.update(grads, state, params)
            moved = jax.tree.map(jnp.subtract, now, before)
            sizes = jax.tree.map(_root_mean_square, (now, moved))
            return (optax.apply_updates(params, updates), state), sizes

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, None, steps + 1)[1]

    return jax.tree.map(np.asarray, run(params))


def _root_mean_square(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))
