"""What we know of jaxprs: every fact about JAX's equations that may change is here.

The rest of jaxdl sees equations, their parameters' names, and what these say of them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
import dataclasses
import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxdl.core.tap_primitive import tap_p

INLINED = ("jit", "pjit", "closed_call", "core_call")
REMAT = ("checkpoint", "remat", "remat2")
SCAN = "scan"

_ELSEWHERE = {
    "while": "the body of a while loop, whose number of iterations is not known; tap "
    "the value before or after the loop, or use jax.lax.scan",
    "cond": "a branch of jax.lax.cond or switch, which may not run; tap the result of "
    "the cond, or compute both branches and choose with jnp.where",
    "shard_map": "a jax.shard_map, where each device holds a part; tap the arguments "
    "or results of the shard_map, or capture the function inside it",
    "custom_vjp_call": "a function with a custom derivative (jax.custom_vjp), which "
    "capturing would silently replace; tap its arguments or results",
    "custom_jvp_call": "a function with a custom derivative (jax.custom_jvp), which "
    "capturing would silently replace; tap its arguments or results",
}


@dataclasses.dataclass(frozen=True)
class TapInfo:
    """A tap in a jaxpr: the shape of what a capture gives, and why it cannot, if so."""

    shape: tuple[int, ...]
    dtype: Any
    obstacle: str | None


def find_taps(jaxpr: Jaxpr) -> dict[str, TapInfo]:
    """Every tap in a jaxpr and inside it, in program order; repeats as `name@1`."""
    found: dict[str, TapInfo] = {}
    seen: Counter[str] = Counter()
    for eqn, lengths, obstacle in _walk(jaxpr, (), None):
        aval = eqn.outvars[0].aval
        name = numbered(eqn.params["name"], seen)
        shape = front(aval.shape, eqn.params["batch_dims"])
        found[name] = TapInfo((*lengths, *shape), aval.dtype, obstacle)
    return found


def numbered(name: str, seen: Counter[str]) -> str:
    """The unique name of one more tap called `name`; counts it in `seen`."""
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}@{seen[name] - 1}"


def front(shape: tuple[int, ...], batch_dims: tuple[int, ...]) -> tuple[int, ...]:
    """A shape with the batch dimensions of vmap moved to the front."""
    rest = [size for i, size in enumerate(shape) if i not in batch_dims]
    return (*(shape[i] for i in batch_dims), *rest)


def sub_jaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs among an equation's parameters (a body, the branches of a cond)."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield item.jaxpr if isinstance(item, ClosedJaxpr) else item


def names_inside(eqn: JaxprEqn, seen: Counter[str]) -> list[str]:
    """The unique names of the taps an equation is or holds, given those `seen`."""
    counter = Counter(seen)
    return [numbered(name, counter) for name in _tap_names(eqn)]


def count(eqn: JaxprEqn, seen: Counter[str]) -> None:
    """Adds the taps that an equation is or holds to `seen`."""
    seen.update(_tap_names(eqn))


def closed(jaxpr: Any) -> ClosedJaxpr:
    """A jaxpr from an equation's parameters, with its constants."""
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, [])


def with_params(jaxpr: Jaxpr, change: Callable[[Any], Any]) -> Jaxpr:
    """The jaxpr with `change(value)` for every parameter, tuples' items one by one.

    Changes what is in the bodies of loops and calls too; `change` sees no jaxpr.
    """

    def changed(value: Any) -> Any:
        if isinstance(value, Jaxpr):
            return with_params(value, change)
        if isinstance(value, ClosedJaxpr):
            return ClosedJaxpr(with_params(value.jaxpr, change), value.consts)
        if type(value) in (tuple, list):
            return type(value)(changed(item) for item in value)
        return change(value)

    eqns = [
        eqn.replace(params={name: changed(v) for name, v in eqn.params.items()})
        for eqn in jaxpr.eqns
    ]
    return jaxpr.replace(eqns=eqns)


def scope(eqn: JaxprEqn) -> str:
    """Where an equation stands, within its jaxpr: the names of `jax.named_scope`."""
    return str(eqn.source_info.name_stack)


def is_recomputed(eqn: JaxprEqn) -> bool:
    """Whether `jax.checkpoint` computes it a second time, for the backward pass."""
    return "rematted_computation" in scope(eqn).split("/")


def repetitions(eqn: JaxprEqn) -> int:
    """How often the body of a scan runs, or on how many devices that of a shard_map."""
    if eqn.primitive.name == SCAN:
        return eqn.params["length"]
    if eqn.primitive.name == "shard_map":
        sizes = eqn.params["mesh"].shape
        return math.prod(sizes[axis] for axis in eqn.params["newly_manual_axes"])
    return 1


def loop_parts(eqn: JaxprEqn) -> tuple[int, int]:
    """The numbers of constants and of carries of a scan."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # jax 0.12
    return len(consts), len(carry)


def _walk(jaxpr: Jaxpr, lengths: tuple, obstacle: str | None) -> Iterator[tuple]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if eqn.primitive is tap_p:
            yield eqn, lengths, obstacle
        elif name == SCAN:
            for inner in sub_jaxprs(eqn):
                yield from _walk(inner, (*lengths, eqn.params["length"]), obstacle)
        elif name in INLINED or name in REMAT:
            for inner in sub_jaxprs(eqn):
                yield from _walk(inner, lengths, obstacle)
        else:
            for inner in sub_jaxprs(eqn):
                yield from _walk(inner, lengths, obstacle or _obstacle(name))


def _tap_names(eqn: JaxprEqn) -> list[str]:
    if eqn.primitive is tap_p:
        return [eqn.params["name"]]
    inner = (inner for jaxpr in sub_jaxprs(eqn) for inner in jaxpr.eqns)
    return [name for each in inner for name in _tap_names(each)]


def _obstacle(name: str) -> str:
    place = _ELSEWHERE.get(
        name,
        f"a {name}, which jaxdl does not know how to rebuild; tap "
        "its arguments or results",
    )
    return f"capture and patch cannot reach into {place}"
