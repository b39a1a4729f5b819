"""Tiny checkpoints made by `transformers`, and ours held to them.

A file of families has a table `CASES` and a function `check(case)`, which holds ours to
theirs and returns the largest differences: its tests and `tools.parity` run the same.
"""

import atexit
from collections.abc import Mapping
import json
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import hub

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# What is tiny is done before another thread has woken.
torch.set_num_threads(1)
BATCH, SEQ = 2, 11
# A small decoder, and what a mixture of experts adds to it.
SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
# Wide enough that one kind of gelu, or one epsilon, is told from another.
WIDE = 0.3
FOLDERS = tempfile.TemporaryDirectory(prefix="tiny-checkpoints-")
atexit.register(FOLDERS.cleanup)
PUBLISHED: dict[str, "Published"] = {}


class Case(NamedTuple):
    """A checkpoint: its class in `transformers`, and its configuration.

    sizes are those of several cases, changes what sets this one apart; says are words
    for what is not seen in changes. spread is that of the weights.
    """

    kind: str
    sizes: Mapping[str, Any]
    changes: Mapping[str, Any] = {}
    says: str = ""
    spread: float = WIDE


class Published(NamedTuple):
    """A checkpoint in a folder, as theirs and as ours."""

    folder: Path
    theirs: Any
    ours: hub.Pretrained


class Difference(NamedTuple):
    """The largest: of what a model returns, and of what leaves its layers."""

    result: float
    states: float


def published(case: Case) -> Published:
    """The checkpoint of a case, made once."""
    if repr(case) not in PUBLISHED:
        folder = Path(FOLDERS.name) / str(len(PUBLISHED))
        theirs = make(folder, case)
        PUBLISHED[repr(case)] = Published(folder, theirs, hub.load(folder))
    return PUBLISHED[repr(case)]


def make(folder, case: Case):
    """Writes the checkpoint of a case; theirs."""
    kind = getattr(transformers, case.kind)
    config = kind.config_class(**{**case.sizes, **case.changes})
    return checkpoint(folder, kind, config, spread=case.spread)


def checkpoint(folder, model_class, config, seed=0, spread=0.08):
    """A seeded model of a configuration, every weight off its initial value.

    spread: how far the matrices are, as a standard deviation.
    """
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    with torch.no_grad():
        for _, weight in model.named_parameters():
            # Norms and biases start at ones and zeros, which hide what they do.
            scale = 0.3 if weight.ndim == 1 else spread
            weight += scale * torch.randn(weight.shape)
        for name, buffer in model.named_buffers():
            if "running" in name:  # statistics of batches: 0 and 1 at first
                buffer += torch.rand(buffer.shape)
    model.save_pretrained(folder)
    return model


def tokens(vocab_size, shape=(BATCH, SEQ), seed=0):
    return np.random.default_rng(seed).integers(3, vocab_size, shape)


def pictures(height=15, width=15):
    """Two images for ours, and as torch has them: channels first."""
    images = np.random.default_rng(3).normal(size=(2, height, width, 3))
    images = images.astype(np.float32)
    return jnp.asarray(images), torch.tensor(images.transpose(0, 3, 1, 2))


def compare(ours, theirs, tolerance=1e-4):
    """The largest difference; AssertionError if it is above the tolerance."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    return float(np.abs(ours - theirs).max())


def compare_states(ours, theirs, real=..., last_is_normed=False):
    """`compare` of what leaves each layer, where `real`; theirs begin with what enters.

    last_is_normed: theirs of the last layer has gone through a norm, and is left out.
    """
    assert len(ours) == len(theirs) - 1
    pairs = list(zip(ours, theirs[1:], strict=True))
    pairs = pairs[:-1] if last_is_normed else pairs
    return max(compare(mine[real], other.numpy()[real]) for mine, other in pairs)


def states_of(model, params, x, stack="blocks", function=None, **given):
    """What a model (or its method) returns, and what leaves each layer of a stack."""
    names = f"{stack}/**/resid_post"
    function = function or model
    run = jax.jit(lambda p, x, given: jd.capture(function, names)(p, x, **given))
    result, values = run(params, x, given)
    for name in stack.split("/"):
        model = getattr(model, name)
    places = jd.nn.layers(model)
    paths = [f"{stack}/{path}/resid_post".replace("//", "/") for path, _ in places]
    stacked = {name: np.asarray(value) for name, value in values.items()}
    states = [stacked[p][n] for p, (_, n) in zip(paths, places, strict=True)]
    return np.asarray(result), states


def check_round_trip(case: Case, folder):
    """What is saved in a folder has the names, dtypes and bytes of what was read."""
    round_trip(published(case).folder, folder)


def round_trip(folder, again):
    """What is saved has the same bytes, and `transformers` reads the same model."""
    opened = hub.load(folder)
    hub.save(again, opened.model, opened.params, opened.config, state=opened.state)
    before, after = hub.open_tensors(folder), hub.open_tensors(again)
    counts = {name for name in before if name.endswith("num_batches_tracked")}
    assert set(before) - counts == set(after)
    for name in after:
        tensor = before[name]
        assert tensor.dtype == after[name].dtype
        np.testing.assert_array_equal(tensor.read(), after[name].read())
    assert json.loads((again / "config.json").read_text()) == opened.config
