"""How a layout splits attention over the devices, and sequences for a balanced ring."""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from jaxdl.core import layout
from jaxdl.core.naming import expect
from jaxdl.nn.attend import Sight


class Splitting(NamedTuple):
    """The mesh axes that split each dimension of attention, and how many parts."""

    mesh: Any
    axes: frozenset[str]  # those that are free to be split by hand
    batch: tuple[str, ...]
    sequence: tuple[str, ...]
    heads: tuple[str, ...]
    kv_heads: tuple[str, ...]
    parts: int  # of the sequence
    local_kv_heads: int

    @property
    def queries(self) -> PartitionSpec:
        """Of [batch, query, heads, head_dim]."""
        return layout.spec_of((self.batch, self.sequence, self.heads))

    @property
    def keys(self) -> PartitionSpec:
        """Of [batch, key, kv_heads, head_dim]."""
        return layout.spec_of((self.batch, self.sequence, self.kv_heads))

    @property
    def rows(self) -> PartitionSpec:
        """Of [batch, seq]."""
        return layout.spec_of((self.batch, self.sequence))

    @property
    def varying(self) -> tuple[str, ...]:
        """The axes over which the queries differ."""
        return (*self.batch, *self.sequence, *self.heads)

    def manual(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        """The function of what one device has, as one of whole arrays."""
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self.axes),
        )


def splitting(
    q: Any, k: Any, sight: Sight, options: Mapping[str, Any]
) -> Splitting | None:
    """How the rules in force split attention; None if they leave the sequence whole.

    Raises ValueError for what cannot be computed in parts of the sequence.
    """
    mesh, free = layout.free_axes()
    now = layout.current()
    if mesh is None or now is None:
        return None
    asked = [a for a in now.mesh_axes("sequence", "activation") if a in free]
    devices = math.prod(mesh.shape[axis] for axis in asked)
    if devices == 1:
        return None

    def split(x, heads: str):
        placed = now.place(x.shape, ("batch", "sequence", heads, None), "activation")
        spec = (*placed.spec, *[None] * 4)
        return [tuple(a for a in layout.axes_of(part) if a in free) for part in spec]

    batch, sequence, heads = split(q, "heads")[:3]
    kv_heads = split(k, "kv_heads")[2]
    parts = math.prod(mesh.shape[axis] for axis in sequence)
    expect(parts == devices, f"a sequence that is a multiple of {devices} devices", q)
    _check(q, k, sight)
    same = kv_heads == heads or k.shape[2] == 1
    expect(same, f"kv_heads split as the {q.shape[2]} heads are, over {heads}", k)
    bias = options.get("score_bias")
    expect(bias is None, "no score_bias where the sequence is split", bias)
    local = k.shape[2] // math.prod(mesh.shape[axis] for axis in kv_heads)
    names = batch, sequence, heads, kv_heads
    return Splitting(mesh, frozenset(free), *names, parts, local)


def differing(tree: Any, spec: PartitionSpec, wanted: tuple[str, ...]) -> Any:
    """Arrays that are split by a spec as ones that may differ along all these axes."""
    split = {axis for part in spec for axis in layout.axes_of(part)}
    missing = tuple(axis for axis in wanted if axis not in split)
    if not missing:
        return tree
    return jax.tree.map(lambda x: jax.lax.pcast(x, missing, to="varying"), tree)


def zigzag_order(seq: int, parts: int) -> np.ndarray:
    """Which token stands at each place of a zigzag sequence, [seq].

    The sequence is cut into 2 parts chunks. Device i holds chunk i and, counted from
    the end, chunk i again: so under a causal mask all have the same work (Llama 3,
    arXiv:2407.21783, section 3.3.2; Brandon et al. 2023, arXiv:2311.09431).

    Raises ValueError unless 2 parts divide the sequence.

    >>> zigzag_order(8, 2)
    array([0, 1, 6, 7, 2, 3, 4, 5])
    """
    if parts < 1 or seq % (2 * parts):
        raise ValueError(
            f"zigzag: expected a sequence that is a multiple of 2 x {parts} parts, got "
            f"{seq}; pad it, and give padding negative positions"
        )
    chunks = np.arange(seq).reshape(2 * parts, -1)
    first, last = chunks[:parts], chunks[: parts - 1 : -1]
    return np.stack([first, last], 1).reshape(-1)


def to_zigzag(x: Any, parts: int, axis: int = 1) -> Any:
    """Puts tokens, or what belongs to them, in the order of `zigzag_order`."""
    return jnp.take(x, zigzag_order(x.shape[axis], parts), axis)


def from_zigzag(x: Any, parts: int, axis: int = 1) -> Any:
    """The reverse of `to_zigzag`."""
    return jnp.take(x, np.argsort(zigzag_order(x.shape[axis], parts)), axis)


def _check(q, k, sight: Sight) -> None:
    """Raises ValueError for what cannot be computed in parts of the sequence."""
    row = np.ndim(sight.queries) == 1 and np.shape(sight.queries) == np.shape(
        sight.keys
    )
    expect(
        row and q.shape[1] == k.shape[1],
        "queries and keys of one row, without cache or memory, where the sequence is "
        "split (generate with another implementation)",
        k,
    )
    mask = sight.mask
    expect(mask is None, "segment_ids, not a mask, where the sequence is split", mask)
