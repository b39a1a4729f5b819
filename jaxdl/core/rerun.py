"""Runs a jaxpr again with some of its tapped values captured or changed."""

from collections import Counter
from collections.abc import Iterator
import dataclasses
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
import jax.numpy as jnp

from jaxdl.core import jaxprs
from jaxdl.core.tap_primitive import tap_p

Captured = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Request:
    """The names to capture, and the edits by (name, order)."""

    names: frozenset[str]
    edits: dict[tuple[str, int], Any]

    def edits_of(self, name: str) -> list[Any]:
        """The edits of one tap, in order."""
        return [self.edits[key] for key in sorted(self.edits) if key[0] == name]

    def touches(self, names: list[str]) -> bool:
        """Whether any of these taps is to be captured or changed."""
        edited = {name for name, _ in self.edits}
        return any(name in self.names or name in edited for name in names)


def rerun(jaxpr: ClosedJaxpr, args: list, request: Request) -> tuple[list, Captured]:
    """Evaluates a closed jaxpr on flat arguments: its outputs and what was captured."""
    captured: Captured = {}
    outs = _run(jaxpr.jaxpr, jaxpr.consts, args, request, Counter(), captured)
    return outs, captured


def _run(
    jaxpr: Jaxpr, consts, args, request: Request, seen: Counter, captured: Captured
) -> list:
    """Evaluates a jaxpr, adding to `captured`; `seen` counts the taps so far."""
    variables = [*jaxpr.constvars, *jaxpr.invars]
    env: dict[Any, Any] = dict(zip(variables, [*consts, *args], strict=True))
    last_use = _last_uses(jaxpr)
    group: list[JaxprEqn] = []

    def run_group(end: int) -> None:
        if group:
            piece = _piece(jaxpr, group, lambda var: last_use.get(var, -1) >= end)
            outs = jaxpr_as_fun(ClosedJaxpr(piece, []))(*(env[v] for v in piece.invars))
            env.update(zip(piece.outvars, outs, strict=True))
            group.clear()

    for index, eqn in enumerate(jaxpr.eqns):
        if request.touches(jaxprs.names_inside(eqn, seen)):
            run_group(index)
            values = [_read(env, atom) for atom in eqn.invars]
            outs = _run_eqn(eqn, values, request, seen, captured)
            env.update(zip(eqn.outvars, outs, strict=True))
        else:
            group.append(eqn)
        jaxprs.count(eqn, seen)
    run_group(len(jaxpr.eqns))
    return [_read(env, atom) for atom in jaxpr.outvars]


def _run_eqn(eqn: JaxprEqn, values: list, request, seen, captured) -> list:
    """Evaluates an equation that is, or holds, a tap of the request."""
    name = eqn.primitive.name
    if eqn.primitive is tap_p:
        return [_run_tap(eqn, values[0], request, seen, captured)]
    if name == jaxprs.SCAN:
        return _run_scan(eqn, values, request, seen, captured)
    if name in jaxprs.REMAT:
        return _run_remat(eqn, values, request, seen, captured)
    return _run_inlined(eqn, values, request, seen, captured)


def _run_tap(eqn: JaxprEqn, value, request: Request, seen, captured):
    (name,) = jaxprs.names_inside(eqn, seen)
    dims = eqn.params["batch_dims"]
    lead = tuple(range(len(dims)))
    shown = jnp.moveaxis(value, dims, lead)
    for edit in request.edits_of(name):
        shown = edit.apply(name, shown)
    if name in request.names:
        captured[name] = shown
    # The tap stays, so that captures and patches nest.
    return tap_p.bind(jnp.moveaxis(shown, lead, dims), **eqn.params)


def _run_scan(eqn: JaxprEqn, values: list, request: Request, seen, captured) -> list:
    body, length = jaxprs.closed(eqn.params["jaxpr"]), eqn.params["length"]
    num_consts, num_carry = jaxprs.loop_parts(eqn)
    consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]
    xs = values[num_consts + num_carry :]
    inside = jaxprs.names_inside(eqn, seen)
    entered = {
        key: edit.enter(key[0], length)
        for key, edit in request.edits.items()
        if key[0] in inside
    }
    slices = {key: part for key, (part, _) in entered.items()}

    def step(carry, inputs):
        x, parts = inputs
        edits = {key: entered[key][1](part) for key, part in parts.items()}
        inner = Request(request.names, edits)
        found: Captured = {}
        args = [*consts, *carry, *x]
        outs = _run(body.jaxpr, body.consts, args, inner, Counter(seen), found)
        return outs[:num_carry], (outs[num_carry:], found)

    carry, (ys, found) = jax.lax.scan(
        step,
        carry,
        (xs, slices),
        length=length,
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    captured.update(found)
    return [*carry, *ys]


def _run_remat(eqn: JaxprEqn, values: list, request: Request, seen, captured) -> list:
    body = jaxprs.closed(eqn.params["jaxpr"])

    def run(*args):
        found: Captured = {}
        outs = _run(body.jaxpr, body.consts, args, request, Counter(seen), found)
        return outs, found

    policy, prevent_cse = eqn.params["policy"], eqn.params["prevent_cse"]
    outs, found = jax.checkpoint(run, policy=policy, prevent_cse=prevent_cse)(*values)
    captured.update(found)
    return outs


def _run_inlined(eqn: JaxprEqn, values: list, request: Request, seen, captured) -> list:
    """Runs the body of a jit in place; the shardings it asked for still hold."""
    values = _constrain(values, eqn.params.get("in_shardings"))
    body = jaxprs.closed(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
    outs = _run(body.jaxpr, body.consts, values, request, Counter(seen), captured)
    return _constrain(outs, eqn.params.get("out_shardings"))


def _constrain(values: list, shardings) -> list:
    """Holds values to the shardings a jit was given; most have none."""
    if shardings is None:
        return values
    return [
        jax.lax.with_sharding_constraint(value, sharding)
        if isinstance(sharding, jax.sharding.Sharding)
        else value
        for value, sharding in zip(values, shardings, strict=True)
    ]


def _piece(jaxpr: Jaxpr, eqns: list[JaxprEqn], is_needed) -> Jaxpr:
    """The jaxpr of some consecutive equations, returning what is needed after them."""
    made = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
    used = dict.fromkeys(atom for eqn in eqns for atom in _vars(eqn.invars))
    invars = [var for var in used if var not in made]
    outvars = [var for var in made if is_needed(var)]
    return jaxpr.replace(eqns=list(eqns), constvars=[], invars=invars, outvars=outvars)


def _last_uses(jaxpr: Jaxpr) -> dict[Var, int]:
    """The index of the last equation that reads each variable, outputs included."""
    last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in _vars(eqn.invars)}
    return last | dict.fromkeys(_vars(jaxpr.outvars), len(jaxpr.eqns))


def _vars(atoms) -> Iterator[Var]:
    return (atom for atom in atoms if not isinstance(atom, Literal))


def _read(env: dict, atom: Any) -> Any:
    return atom.val if isinstance(atom, Literal) else env[atom]
