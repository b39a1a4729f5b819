"""What stands on top of published models, by the class that a file says it was."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxdl.hub.families.common import linear
from jaxdl.hub.files import HubError
from jaxdl.models.encoder import Classifier, MaskedHead
from jaxdl.models.transformer import TransformerConfig

OUT = linear("classifier", "classifier/out")


def published_as(config: Mapping[str, Any], *endings: str) -> bool:
    """Whether the file is of such a kind: `BertModel`, `BertForMaskedLM`."""
    return any(n.endswith(endings) for n in config.get("architectures") or ())


def is_bare(config: Mapping[str, Any]) -> bool:
    """Whether names lack the prefix: those of a model with nothing on top have none."""
    return published_as(config, "Model") and not published_as(config, "HeadModel")


def num_classes(config: Mapping[str, Any]) -> int:
    """How many classes a classifier knows; two where the file does not say."""
    labels = config.get("id2label")
    return len(labels) if labels else config.get("num_labels") or 2


def masked_head(
    config: Mapping[str, Any], inner: TransformerConfig, act: Any, **changes: Any
) -> MaskedHead | None:
    """What guesses masked tokens, where the file has it (BertForMaskedLM)."""
    if not published_as(config, "ForMaskedLM", "ForPreTraining"):
        return None
    if not config.get("tie_word_embeddings", True):
        raise HubError("tie_word_embeddings: expected a head that is tied, got False")
    vocab_size = config["vocab_size"]
    return MaskedHead(inner.dim, vocab_size, act, inner.epsilon, **changes)


def classifier(
    config: Mapping[str, Any], dim: int, activation: Any = jnp.tanh
) -> Classifier | None:
    """What scores classes, where the file has it (BertForSequenceClassification).

    activation: of the layer before, which only classifiers of whole texts have.
    """
    if published_as(config, "ForSequenceClassification"):
        return Classifier(dim, num_classes(config), activation=activation)
    if published_as(config, "ForTokenClassification"):
        return Classifier(dim, num_classes(config), pool=None, activation=None)
    return None
