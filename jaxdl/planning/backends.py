"""which_backend: the kernels that a program uses on a platform, and why no faster."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn
from rich.table import Table

from jaxdl.core import jaxprs
from jaxdl.core.mark_primitive import Choice, mark_p
from jaxdl.core.table import Shown
from jaxdl.shard.hlo_text import scope_of


@dataclasses.dataclass(frozen=True)
class Use:
    """One operation, or one that a loop runs over several layers.

    kind: "attention", "experts" or "loss".
    path: of its module; "" for a function that stands alone.
    kernel: what computes it on the platform.
    reason: why a faster kernel was not taken, or "".
    """

    kind: str
    path: str
    kernel: str
    reason: str = ""


@dataclasses.dataclass(frozen=True, repr=False)
class Backends(Shown):
    """The kernels of a program on one platform; a rich table when it is shown."""

    platform: str
    uses: tuple[Use, ...]

    def __rich__(self) -> Table:
        table = Table(title=f"Kernels on {self.platform}")
        for name in ("kind", "path", "kernel", "reason"):
            table.add_column(name, overflow="fold")
        for use in self.uses:
            table.add_row(use.kind, use.path, use.kernel, use.reason)
        return table

    def kernels(self, kind: str) -> set[str]:
        """The kernels that compute the operations of one kind."""
        return {use.kernel for use in self.uses if use.kind == kind}


def which_backend(
    function: Callable,
    *args: Any,
    platform: str | None = None,
    require: str | Mapping[str, str] | None = None,
) -> Backends:
    """Says which kernel each attention, mixture of experts and loss uses.

    args: of the function, arrays or anything with a shape and a dtype in their place;
      nothing is computed.
    platform: "cpu", "tpu", "cuda" (or "gpu") or "rocm"; JAX's default backend if None.
    require: the kernel that every attention must use, or kernels by kind.

    It sees what jaxdl computes, and `jax.lax.ragged_dot` in any function. What another
    library computes by plain products is not told from other arithmetic.

    Raises ValueError if an operation uses another kernel than required, or if there is
    no operation of that kind.
    """
    platform = platform or jax.default_backend()
    platform = "cuda" if platform == "gpu" else platform
    uses = _uses(jax.make_jaxpr(function)(*args).jaxpr, platform)
    found = Backends(platform, tuple(dict.fromkeys(uses)))
    if require is not None:
        _require(found, {"attention": require} if isinstance(require, str) else require)
    return found


def _require(found: Backends, wanted: Mapping[str, str]) -> None:
    for kind, kernel in wanted.items():
        uses = [use for use in found.uses if use.kind == kind]
        if not uses:
            raise ValueError(
                f"require: no {kind} in the program, so none by {kernel!r}"
            )
        for use in uses:
            if use.kernel != kernel:
                raise ValueError(
                    f"{use.path or kind}: expected the kernel {kernel!r} on "
                    f"{found.platform}, got {use.kernel!r} ({use.reason or 'chosen'})"
                )


def _uses(jaxpr: Jaxpr, platform: str, scope: str = "") -> Iterator[Use]:
    """What a jaxpr uses, in program order; the backward pass repeats the forward."""
    for eqn in jaxpr.eqns:
        inner = "/".join(filter(None, (scope, jaxprs.scope(eqn))))
        if eqn.primitive is mark_p:
            yield _marked(eqn, platform)
        elif eqn.primitive.name == "ragged_dot_general":
            path = scope_of(f"{inner}/")
            yield Use("experts", path, *_ragged_kernel(eqn, platform))
        for each in jaxprs.sub_jaxprs(eqn):
            yield from _uses(each, platform, inner)


def _marked(eqn: JaxprEqn, platform: str) -> Use:
    choices: dict[str, Choice] = {each.platform: each for each in eqn.params["choices"]}
    chosen = choices.get(platform, choices[""])
    return Use(eqn.params["kind"], eqn.params["path"], chosen.kernel, chosen.reason)


def _ragged_kernel(eqn: JaxprEqn, platform: str) -> tuple[str, str]:
    """What JAX makes of a ragged product: asked of JAX, for it differs by version."""
    avals: list[Any] = [each.aval for each in eqn.invars]
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in avals]
    product = jax.jit(lambda *args: eqn.primitive.bind(*args, **eqn.params))
    text = product.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    if "ragged_dot" in text:
        return "ragged_dot", ""
    return "dense", f"JAX has no ragged product for {platform}: all experts, all rows"
