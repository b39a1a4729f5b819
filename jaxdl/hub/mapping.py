"""Published names <-> our paths: a table of rules, and what it means for one model.

A family's table is read in one glance:

    RULES = (
        Rule("model.embed_tokens.weight", "embed/embedding"),
        Rule("model.layers.{layer}.self_attn.q_proj.weight",
             "blocks/attn/q/kernel", transpose),
        Rule("model.layers.{layer}.mlp.experts.{expert}.w1.weight",
             "blocks/moe/gate/kernel", transpose),
        Rule("model.layers.{layer}.mlp.gate_up_proj.weight",
             ("blocks/mlp/gate/kernel", "blocks/mlp/up/kernel"), transpose),
        ...
    )

Rules whose paths a model does not have are left out, so one table serves models with
and without biases. A placeholder that only the published name has is a leading axis of
our array (`Repeat` stacks layers so); one that our path has too is a part of the path.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import math
import re
from typing import Any, NamedTuple

import numpy as np

from jaxdl.core import tree
from jaxdl.core.naming import join
from jaxdl.hub.files import HubError
from jaxdl.hub.reshaping import Shape, Slices, Transform, identity
from jaxdl.hub.tensors import Tensor

# For each layer: the path that stands for {layer} in ours, and the place in the stack
# there, None if it is not stacked. `nn.layers(model.blocks)` is one.
Layers = Sequence[tuple[str, int | None]]

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One published name, with placeholders, and the path or paths in our params.

    With several paths the published tensor holds them all, one after the other along
    its `axis`; each part goes through the transform by itself. `groups` says that they
    take turns: [a0, b0, a1, b1, ...] for two paths, in as many groups, as where the
    queries, keys and values of one head stand together; with -1 they turn one by one.

    >>> Rule("h.{layer}.attn.c_attn.weight", ("q", "k", "v"), axis=1).placeholders
    ('layer',)
    """

    published: str
    ours: str | tuple[str, ...]
    transform: Transform = identity
    axis: int = 0
    groups: int = 1

    def __post_init__(self):
        if isinstance(self.ours, list):
            object.__setattr__(self, "ours", tuple(self.ours))
        for path in self.paths:
            unknown = set(_PLACEHOLDER.findall(path)) - set(self.placeholders)
            if unknown:
                raise ValueError(
                    f"{path}: expected the placeholders of {self.published!r}, got "
                    f"{', '.join(sorted(unknown))}"
                )

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def placeholders(self) -> tuple[str, ...]:
        return tuple(_PLACEHOLDER.findall(self.published))


@dataclasses.dataclass(frozen=True)
class Piece:
    """One published tensor's part in one of our arrays: `array[index]`.

    shape: ours, without the stacked axes. start, size: of this part along the rule's
    axis of the published tensor, which is `total` long.
    """

    rule: Rule
    name: str
    path: str
    index: tuple[int, ...]
    shape: Shape
    start: int = 0
    size: int = 0
    total: int = 0

    @property
    def published_shape(self) -> Shape:
        """The shape of the whole published tensor."""
        shape = self.rule.transform.published_shape(self.shape)
        return self._with_axis(shape, self.total) if self._fused else shape

    def splits(self, slices: Slices) -> bool:
        """Whether a part of ours is read from a part of the published tensor."""
        alone = self.rule.groups in (1, -1)
        return alone and self.rule.transform.published_slices(slices) is not None

    def read(self, tensor: Tensor, slices: Slices) -> np.ndarray:
        """Our values at some slices, from as little of the published tensor as can."""
        transform = self.rule.transform
        part = transform.published_shape(self.shape)
        where = transform.published_slices(slices) if self.splits(slices) else None
        wanted = tuple(slice(0, n) for n in part) if where is None else where
        if self.rule.groups not in (1, -1):
            values = self._ungrouped(tensor.read(), part)
        elif self._fused:
            own = self._own(wanted[self.rule.axis])
            values = tensor.read(self._with_axis(wanted, own))
        else:
            values = tensor.read(wanted)
        ours = transform.forward(values, self.shape)
        return ours[slices] if where is None else ours

    @property
    def groups(self) -> int:
        """In how many groups the parts of the published tensor take turns."""
        return self.size if self.rule.groups < 0 else self.rule.groups

    @property
    def _fused(self) -> bool:
        return len(self.rule.paths) > 1

    def _own(self, part: slice) -> slice:
        """Where a stretch of this part is along the axis of the published tensor."""
        if self.rule.groups == 1:
            return slice(self.start + part.start, self.start + part.stop)
        turns, turn = self.total // self.size, self.start // self.size
        return slice(part.start * turns + turn, part.stop * turns, turns)

    def _with_axis(self, values: tuple, value: Any) -> tuple:
        at = self.rule.axis % len(values)
        return (*values[:at], value, *values[at + 1 :])

    def _ungrouped(self, whole: np.ndarray, part: Shape) -> np.ndarray:
        axis, groups = self.rule.axis % whole.ndim, self.groups
        turns = whole.reshape(*_grouped(whole.shape, axis, groups))
        start, stop = self.start // groups, (self.start + self.size) // groups
        own = (slice(None),) * (axis + 1) + (slice(start, stop),)
        return turns[own].reshape(part)


def join_parts(pieces: Sequence[Piece], ours: Sequence[np.ndarray]) -> np.ndarray:
    """The published tensor that these pieces are all the parts of."""
    rule = pieces[0].rule
    parts = [rule.transform.inverse(array) for array in ours]
    if len(parts) == 1:
        return parts[0]
    axis = rule.axis % parts[0].ndim
    groups = pieces[0].groups
    turns = [p.reshape(*_grouped(p.shape, axis, groups)) for p in parts]
    return np.concatenate(turns, axis + 1).reshape(pieces[0].published_shape)


def plan(
    rules: Sequence[Rule],
    abstract: Any,
    layers: Layers | Mapping[str, Layers] | None = None,
) -> list[Piece]:
    """What each published tensor is to a model's params, in the order of the rules.

    Raises HubError when a path of the model gets nothing, or one place two tensors.
    """
    if layers is None or not isinstance(layers, Mapping):
        layers = {} if layers is None else {"layer": layers}
    leaves = tree.flatten(abstract)
    pieces = [piece for rule in rules for piece in _pieces(rule, leaves, layers)]
    _check_whole(pieces, leaves)
    return pieces


class _Match(NamedTuple):
    """One way to fill a rule's placeholders in, by the first of its paths.

    words: what stands for a placeholder in our paths. numbers: in the published name.
    lead: the place in the stack that a table of layers gives.
    """

    words: dict[str, str]
    numbers: dict[str, int]
    lead: tuple[int, ...]
    shape: Shape


def _pieces(rule: Rule, leaves: dict, layers: Mapping[str, Layers]) -> Iterator[Piece]:
    for match in _matches(rule, leaves, layers):
        free = [p for p in dict.fromkeys(rule.placeholders) if p not in match.numbers]
        before, stacked = len(match.lead), len(match.lead) + len(free)
        if len(match.shape) < stacked:
            raise HubError(
                f"{rule.paths[0]}: {rule.published!r} stacks {stacked} axes, the model "
                f"has {list(match.shape)}"
            )
        for at in itertools.product(*map(range, match.shape[before:stacked])):
            name = rule.published.format(
                **match.numbers, **dict(zip(free, at, strict=True))
            )
            yield from _parts(rule, name, match, (*match.lead, *at), leaves)


def _matches(
    rule: Rule, leaves: dict, layers: Mapping[str, Layers]
) -> Iterator[_Match]:
    path = rule.paths[0]
    asked = [p for p in dict.fromkeys(_PLACEHOLDER.findall(path)) if p in layers]
    for rows in itertools.product(*(enumerate(layers[p]) for p in asked)):
        words = {p: row[0] for p, (_, row) in zip(asked, rows, strict=True)}
        numbers = {p: number for p, (number, _) in zip(asked, rows, strict=True)}
        lead = tuple(row[1] for _, row in rows if row[1] is not None)
        for leaf, found in _find(_fill_in(path, words), leaves):
            shape = leaves[leaf].shape
            found_words = {p: str(number) for p, number in found.items()}
            yield _Match(words | found_words, numbers | found, lead, shape)


def _fill_in(path: str, words: Mapping[str, str]) -> str:
    for name, word in words.items():
        path = path.replace(f"{{{name}}}", word)
    return join(*path.split("/"))


def _find(path: str, leaves: dict) -> Iterator[tuple[str, dict[str, int]]]:
    """The model's paths of a pattern, with the numbers in place of placeholders."""
    names = _PLACEHOLDER.findall(path)
    if not names:
        if path in leaves:
            yield path, {}
        return
    literal = re.split(r"\{\w+\}", path)
    pattern = re.compile(r"(\d+)".join(map(re.escape, literal)))
    for leaf in leaves:
        if match := pattern.fullmatch(leaf):
            yield leaf, dict(zip(names, map(int, match.groups()), strict=True))


def _parts(rule: Rule, name: str, match: _Match, index, leaves) -> Iterator[Piece]:
    """The pieces of one published tensor, one for each path of its rule."""
    paths = [_fill_in(path, match.words) for path in rule.paths]
    for path in paths:
        if path not in leaves:
            raise HubError(f"{name} holds {path} too, which the model does not have")
    shapes = [leaves[path].shape[len(index) :] for path in paths]
    sizes = [0]
    if len(paths) > 1:
        published = [rule.transform.published_shape(shape) for shape in shapes]
        sizes = [shape[rule.axis] for shape in published]
    if any(size % rule.groups for size in sizes):
        raise HubError(f"{name}: sizes {sizes} do not split into {rule.groups} groups")
    starts = itertools.accumulate(sizes, initial=0)
    for path, shape, start, size in zip(paths, shapes, starts, sizes, strict=False):
        yield Piece(rule, name, path, index, shape, start, size, sum(sizes))


def _check_whole(pieces: list[Piece], leaves: dict) -> None:
    problems = []
    filled: dict[str, dict[tuple, str]] = {path: {} for path in leaves}
    for piece in pieces:
        other = filled[piece.path].setdefault(piece.index, piece.name)
        if other != piece.name:
            place = f"{piece.path}{list(piece.index) or ''}"
            problems.append(f"{place}: two tensors for it, {other} and {piece.name}")
    for path, places in filled.items():
        stacked = len(next(iter(places), ()))
        expected = math.prod(leaves[path].shape[:stacked])
        if not places and math.prod(leaves[path].shape):
            problems.append(f"{path}: no rule says where it is published")
        elif places and len(places) != expected:
            problems.append(
                f"{path}: rules fill {len(places)} of its {expected} layers"
            )
    if problems:
        raise HubError("\n  ".join(["the rules do not fit the model:", *problems]))


def _grouped(shape: Shape, axis: int, groups: int) -> Shape:
    return (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
