"""A text tower and an image tower that meet in one space: CLIP and SigLIP."""

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
        named = self.text_pool in ("end", "highest", "last")
        if not named or (self.text_pool == "end" and self.end_token is None):
            raise ValueError(
                "ContrastiveConfig.text_pool: expected highest, last, or end with an "
                f"end_token, got {self.text_pool!r}"
            )


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
        match self.config.text_pool:
            case "end":
                place = (tokens == self.config.end_token).argmax(-1)
            case "highest":
                place = tokens.argmax(-1)
            case _:
                place = jnp.full(tokens.shape[:1], tokens.shape[1] - 1)
        x = jnp.take_along_axis(states, place[:, None, None], axis=1)[:, 0]
        return _unit(self.text_projection(params["text_projection"], x))

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
        if self.image_projection is not None:
            x = self.image_projection(params["image_projection"], x)
        return _unit(x)


def _unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
