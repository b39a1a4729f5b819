"""Text and image towers that meet in one space, and each alone: CLIP and SigLIP."""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.keys import MISSING, OptionalKey, split
from jaxdl.core.module import Module, fill, part, scoped
from jaxdl.core.param import Param
from jaxdl.core.tap_primitive import tap
from jaxdl.models.encoder import Encoder, EncoderConfig
from jaxdl.models.vit import ViT, ViTConfig
from jaxdl.nn.linear import Linear


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """The two towers and how they meet.

    features: of the space that they share.
    text_pool: the state that stands for a text: of its first end_token ("end"), of the
    token with the highest number ("highest", CLIP's older files), or the last of the
    row, padding or not ("last", SigLIP).
    project_image: the image tower's features are projected too; otherwise they are as
    many as `features`.
    bias: of the text's projection, and one added to the logits (SigLIP).

    Raises ValueError for a text_pool of another name, or "end" without an end_token.
    """

    text: EncoderConfig
    image: ViTConfig
    features: int
    text_pool: Literal["end", "highest", "last"] = "end"
    end_token: int | None = None
    project_image: bool = True
    bias: bool = False

    def __post_init__(self):
        _check_pool("ContrastiveConfig.text_pool", self.text_pool, self.end_token)


class TextTower(Module):
    """A text as one vector: int [texts, seq] -> [texts, features], of any length.

    The state of one token, chosen as `ContrastiveConfig` says, and projected where
    there is a text_projection. `mask` [texts, seq] is False where a token is padding.
    `text.hidden` gives the states of all.

    Raises ValueError for a pool of another name, or "end" without an end_token.
    """

    text: Encoder
    pool: Literal["end", "highest", "last"] = "end"
    end_token: int | None = None
    text_projection: Linear | None = None

    def __post_init__(self):
        _check_pool("TextTower.pool", self.pool, self.end_token)

    def __call__(
        self,
        params,
        tokens: Int[Array, "texts seq"],
        *,
        mask: Bool[Array, "texts seq"] | None = None,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "texts features"]:
        states = self.text(params["text"], tokens, mask=mask, key=key)
        x = _standing(states, tokens, self.pool, self.end_token)
        return _projected(self.text_projection, params, "text_projection", x)


class ImageTower(Module):
    """An image as one vector: [images, height, width, in] -> [images, features].

    What `ViT.pooled` gives, projected where there is an image_projection.
    """

    image: ViT
    image_projection: Linear | None = None

    def __call__(
        self,
        params,
        images: Float[Array, "images height width in"],
        *,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "images features"]:
        hidden = self.image.hidden(params["image"], images, key=key)
        x = self.image.pooled(params["image"], hidden)
        return _projected(self.image_projection, params, "image_projection", x)


class Contrastive(Module):
    """Compares images and texts: int [texts, seq] and images -> logits [images, texts].

    Called `(params, tokens, images, mask=...)` with images [images, height, width,
    in_features] and a mask [texts, seq] that is False where a token is padding. The
    logits are cosines times exp(scale), for a softmax over either side (CLIP, Radford
    et al. 2021, arXiv:2103.00020), with a bias for a sigmoid of each (SigLIP, Zhai et
    al. 2023, arXiv:2303.15343).

    Taps: those of `Encoder` under `text` and of `ViT` under `image`, `logits`.
    """

    config: ContrastiveConfig
    text: Module = part(default=None)
    image: Module = part(default=None)
    text_projection: Module = part(default=None)
    image_projection: Module | None = part(default=None)

    def __post_init__(self):
        config = self.config
        text, image = Encoder(config.text), ViT(config.image)
        axes, init = ("embed", None), initializers.normal(0.02)
        dim, features = config.text.blocks.dim, config.features
        fill(
            self,
            text=text,
            image=image,
            text_projection=Linear(dim, features, config.bias, axes, init),
        )
        if config.project_image:
            project = Linear(image.features, features, False, axes, init)
            fill(self, image_projection=project)

    def spec(self):
        # A temperature of 0.07, as both papers start.
        init = initializers.constant(math.log(1 / 0.07))
        spec = {"logit_scale": Param((), init, (), role="scale")}
        if self.config.bias:
            low = initializers.constant(-10.0)
            spec["logit_bias"] = Param((), low, (), role="bias")
        return {**spec, **super().spec()}

    def __call__(
        self,
        params,
        tokens: Int[Array, "texts seq"],
        images: Float[Array, "images height width in"],
        *,
        mask: Bool[Array, "texts seq"] | None = None,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "images texts"]:
        text_key, image_key = split(key, 2)
        texts = self.encode_text(params, tokens, mask=mask, key=text_key)
        logits = self.encode_image(params, images, key=image_key) @ texts.T
        logits = logits * jnp.exp(params["logit_scale"])
        if self.config.bias:
            logits = logits + params["logit_bias"]
        return tap(logits, "logits")

    @scoped
    def encode_text(
        self,
        params,
        tokens: Int[Array, "texts seq"],
        *,
        mask: Bool[Array, "texts seq"] | None = None,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "texts features"]:
        """Texts as vectors of length 1: int [texts, seq] -> [texts, features]."""
        states = self.text(params["text"], tokens, mask=mask, key=key)
        pool, end = self.config.text_pool, self.config.end_token
        x = _standing(states, tokens, pool, end)
        return _unit(_projected(self.text_projection, params, "text_projection", x))

    @scoped
    def encode_image(
        self,
        params,
        images: Float[Array, "images height width in"],
        *,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "images features"]:
        """Images as vectors of length 1: [images, features]."""
        image: Any = self.image
        x = image.pooled(
            params["image"], image.hidden(params["image"], images, key=key)
        )
        return _unit(_projected(self.image_projection, params, "image_projection", x))


def _standing(states, tokens, pool: str, end_token: int | None) -> Array:
    """The states that stand for texts: [texts, seq, dim] -> [texts, dim]."""
    match pool:
        case "end":
            place = (tokens == end_token).argmax(-1)
        case "highest":
            place = tokens.argmax(-1)
        case _:
            place = jnp.full(tokens.shape[:1], tokens.shape[1] - 1)
    return jnp.take_along_axis(states, place[:, None, None], axis=1)[:, 0]


def _projected(projection: Any, params, name: str, x: Array) -> Array:
    return x if projection is None else projection(params[name], x)


def _check_pool(where: str, pool: str, end_token: int | None) -> None:
    known = pool in ("end", "highest", "last")
    if not known or (pool == "end" and end_token is None):
        raise ValueError(
            f"{where}: expected highest, last, or end with an end_token, got {pool!r}"
        )


def _unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
