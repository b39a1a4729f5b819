"""Vision transformers: ViT, DINOv2 and the image towers of CLIP and SigLIP."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from jaxdl.core import init as initializers
from jaxdl.core.keys import MISSING, OptionalKey, split
from jaxdl.core.module import Module, fill, part, scoped
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.core.tap_primitive import tap
from jaxdl.models.block import feed_forward, norm
from jaxdl.models.transformer import TransformerConfig, blocks
from jaxdl.nn.adaptive_pool import AttentionPool
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.image import PatchEmbedding
from jaxdl.nn.linear import Linear


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The sizes and choices of a vision transformer; the defaults are ViT-B/16's.

    image_size, patch: height and width. The model takes images of other sizes too.
    blocks: those of the transformer.
    class_token: a learned token before those of the patches.
    patch_bias: of the convolution that makes tokens of patches.
    embed_norm: a norm before the first block (CLIP).
    pool: what stands for the image: the class token, it beside the mean of the others
    ("class_mean", DINOv2), the mean of all, or a learned query ("attention", SigLIP).
    pooler: a layer on that, tanh(dense(x)), for `ViT.pooled`.
    num_classes: of a linear layer on that; the model then returns logits.
    registers: learned tokens between the class token and the patches, which stand for
    nothing (Darcet et al. 2023, arXiv:2309.16588).
    mask_token: what stands for patches that are hidden; see `ViT.hidden`.
    antialias: whether positions are smoothed where they are interpolated.

    Raises ValueError for a pool of another name, or one that needs the class token.
    """

    image_size: tuple[int, int] = (224, 224)
    patch: tuple[int, int] = (16, 16)
    in_features: int = 3
    blocks: TransformerConfig = TransformerConfig()
    class_token: bool = True
    patch_bias: bool = True
    embed_norm: bool = False
    pool: Literal["class", "class_mean", "mean", "attention"] = "class"
    pooler: bool = False
    num_classes: int | None = None
    registers: int = 0
    mask_token: bool = False
    antialias: bool = False

    def __post_init__(self):
        known = ("class", "class_mean", "mean", "attention")
        if self.pool not in known[0 if self.class_token else 2 :]:
            raise ValueError(
                f"ViTConfig.pool: expected one of {', '.join(known)}, the first two "
                f"with a class_token, got {self.pool!r}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """How many patches an image has, in height and width."""
        return _grid(self.image_size, self.patch)

    @property
    def first_patch(self) -> int:
        """How many tokens stand before those of the patches."""
        return int(self.class_token) + self.registers


class ProbeHead(Module):
    """A learned query reads the tokens: [batch, seq, dim] -> [batch, dim].

    x + mlp(norm(x)) of `nn.AttentionPool` (Zhai et al. 2023, arXiv:2303.15343).
    """

    pool: AttentionPool
    norm: Module
    mlp: Module

    def __call__(
        self, params, x: Float[Array, "batch seq dim"]
    ) -> Float[Array, "batch dim"]:
        x = self.pool(params["pool"], x)
        y = self.norm(params["norm"], x)
        return x + self.mlp(params["mlp"], y, key=None)  # type: ignore[call-arg]


class ViT(Module):
    """Reads images as patches: [batch, height, width, in] -> logits, or states.

    With num_classes the result is [batch, num_classes], else what the norm leaves of
    every token, [batch, tokens, dim], the class token first (Dosovitskiy et al. 2020,
    arXiv:2010.11929). For an image of another size than the configuration's the learned
    positions are interpolated, as DINOv2 does (Oquab et al. 2023, arXiv:2304.07193);
    what is left beside the last whole patch is cut off.

    Taps: `embed`, `blocks/resid_pre`, `blocks/resid_mid`, `blocks/resid_post`,
    `blocks/mlp/hidden`, those of `nn.Attention` under `blocks/attn`, `features`.
    """

    config: ViTConfig
    patches: Module = part(default=None)
    embed_norm: Module | None = part(default=None)
    drop: Module = part(default=None)
    blocks: Module = part(default=None)
    norm: Module = part(default=None)
    pool: Module | None = part(default=None)
    pooler: Module | None = part(default=None)
    head: Module | None = part(default=None)

    def __post_init__(self):
        config, inner = self.config, self.config.blocks
        fill(
            self,
            patches=PatchEmbedding(
                config.patch, config.in_features, inner.dim, config.patch_bias
            ),
            drop=Dropout(inner.dropout),
            blocks=blocks(inner),
            norm=norm(inner, inner.dim),
        )
        if config.embed_norm:
            fill(self, embed_norm=norm(inner, inner.dim))
        if config.pool == "attention":
            query = AttentionPool(inner.dim, inner.num_heads)
            own = norm(inner, inner.dim)
            fill(self, pool=ProbeHead(query, own, feed_forward(inner)))
        init = initializers.normal(0.02)
        if config.pooler:
            axes = ("embed", None)
            fill(self, pooler=Linear(self.features, inner.dim, True, axes, init))
        if config.num_classes is not None:
            classes, axes = config.num_classes, ("embed", "vocab")
            fill(self, head=Linear(self.features, classes, True, axes, init))

    @property
    def features(self) -> int:
        """How many features stand for an image."""
        return self.config.blocks.dim * (1 + (self.config.pool == "class_mean"))

    def spec(self):
        config, dim = self.config, self.config.blocks.dim
        init, axes = initializers.normal(0.02), (None, "embed")
        first, (rows, columns) = int(config.class_token), config.grid
        shape = (first + rows * columns, dim)
        spec = {"position": Param(shape, init, axes, role="embedding")}
        if config.class_token:
            spec["class_token"] = Param((dim,), init, ("embed",), role="embedding")
        if config.registers:
            shape = (config.registers, dim)
            spec["registers"] = Param(shape, init, axes, role="embedding")
        if config.mask_token:
            zeros = initializers.zeros
            spec["mask_token"] = Param((dim,), zeros, ("embed",), role="embedding")
        return {**spec, **super().spec()}

    def __call__(
        self,
        params,
        images: Float[Array, "batch height width in"],
        *,
        key: OptionalKey = MISSING,
    ) -> Any:
        x = self.hidden(params, images, key=key)
        if self.head is None:
            return x
        return self.head(params["head"], self._features(params, x))

    @scoped
    def hidden(
        self,
        params,
        images: Float[Array, "batch height width in"],
        *,
        masked: Bool[Array, "batch patches"] | None = None,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "batch tokens dim"]:
        """The states of all tokens, normalised: [batch, tokens, dim].

        `masked` is True where the mask token stands in for a patch, row by row.
        """
        config = self.config
        sides = ", ".join(f"at least {side}" for side in config.patch)
        wanted = f"[batch, {sides}, {config.in_features}]"
        expect(
            images.ndim == 4 and images.shape[-1] == config.in_features, wanted, images
        )
        rows, columns = grid = _grid(images.shape[1:3], config.patch)
        expect(rows > 0 and columns > 0, wanted, images)
        embed_key, blocks_key = split(key, 2)
        whole = images[:, : rows * config.patch[0], : columns * config.patch[1]]
        x = self._hide(params, self.patches(params["patches"], whole), masked)
        x = self._with_tokens(params, x, self._position(params["position"], grid))
        if self.embed_norm is not None:
            x = self.embed_norm(params["embed_norm"], x)
        x = self.drop(params["drop"], tap(x, "embed"), key=embed_key)
        x = self.blocks(params["blocks"], x, key=blocks_key)
        return self.norm(params["norm"], x)

    def _hide(self, params, x, masked):
        """The patches, the mask token in place of some."""
        if masked is None:
            return x
        expect(self.config.mask_token, "a model with a mask_token", self.config)
        fits = masked.shape == x.shape[:2] and masked.dtype == bool
        expect(fits, f"masked, bools {list(x.shape[:2])}", masked)
        return jnp.where(masked[..., None], params["mask_token"].astype(x.dtype), x)

    def _with_tokens(self, params, x, position):
        """The patches at their positions, after the class token and the registers."""
        position = position.astype(x.dtype)
        first = int(self.config.class_token)
        parts = [x + position[first:]]
        if self.config.registers:
            parts.insert(0, params["registers"].astype(x.dtype))
        if first:
            parts.insert(0, params["class_token"].astype(x.dtype) + position[:1])
        each = [
            jnp.broadcast_to(part, (x.shape[0], *part.shape[-2:])) for part in parts
        ]
        return jnp.concatenate(each, axis=1)

    @scoped
    def pooled(
        self, params, hidden: Float[Array, "batch tokens dim"]
    ) -> Float[Array, "batch features"]:
        """What stands for each image: [batch, tokens, dim] -> [batch, features]."""
        x = self._features(params, hidden)
        if self.pooler is None:
            return x
        return jnp.tanh(self.pooler(params["pooler"], x))

    def _features(self, params, hidden):
        match self.config.pool:
            case "class":
                x = hidden[:, 0]
            case "mean":
                x = hidden.mean(1)
            case "class_mean":
                both = [hidden[:, 0], hidden[:, self.config.first_patch :].mean(1)]
                x = jnp.concatenate(both, axis=-1)
            case _:
                x = self.pool(params["pool"], hidden)  # type: ignore[misc]
        return tap(x, "features")

    def _position(self, table: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """The learned positions of a grid of patches: [tokens, dim]."""
        if grid == self.config.grid:
            return table
        first = int(self.config.class_token)
        square = table[first:].reshape(*self.config.grid, -1)
        if self.config.antialias:
            shape = (*grid, table.shape[-1])
            square = jax.image.resize(square, shape, "cubic", antialias=True)
            return jnp.concatenate([table[:first], square.reshape(-1, shape[-1])])
        down, across = (
            jnp.asarray(_cubic(*sizes), table.dtype)
            for sizes in zip(grid, self.config.grid, strict=True)
        )
        square = jnp.einsum("hi,wj,ijd->hwd", down, across, square)
        resized = square.reshape(-1, table.shape[-1])
        return jnp.concatenate([table[:first], resized])


def _grid(size: tuple[int, ...], patch: tuple[int, int]) -> tuple[int, int]:
    return size[0] // patch[0], size[1] // patch[1]


def _cubic(new: int, old: int) -> np.ndarray:
    """The matrix [new, old] of PyTorch's bicubic interpolation along one side.

    Its kernel has a = -0.75 (Keys 1981 with another constant than `jax.image.resize`);
    beyond the border stands the border's value.
    """
    places = (np.arange(new) + 0.5) * old / new - 0.5
    near = np.floor(places).astype(int)[:, None] + np.arange(-1, 3)
    distance = np.abs(places[:, None] - near)
    a = -0.75
    inner = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    outer = a * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.where(distance <= 1, inner, outer)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], near.clip(0, old - 1)), weights)
    return matrix
