"""Ours beside PEFT's on a tiny Llama: the same adapters give the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import finetune, hub, losses, nn
from jaxdl.core import tree

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

# PEFT asks transformers for what the next version renames.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

# PEFT's names, and ours.
TARGETS = {
    "self_attn.q_proj": "attn/q",
    "self_attn.v_proj": "attn/v",
    "self_attn.o_proj": "attn/out",
    "mlp.down_proj": "mlp/down",
}
LAYERS, RANK, ALPHA = 2, 3, 6
IDS = np.random.default_rng(0).integers(3, 50, (2, 9))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_attention_heads=4,
        num_hidden_layers=LAYERS, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return folder


def adapted(folder, use_dora):
    """PEFT's model, every adapter off its initial value."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    names = [name.rpartition(".")[2] for name in TARGETS]
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=names, use_dora=use_dora
    )
    theirs = peft.get_peft_model(model, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora" in name:
                weight += 0.2 * torch.randn(weight.shape)
    return theirs


def ours_of(named, theirs):
    """PEFT's tensors, by ours' paths: stacked, matrices transposed."""
    kinds = {"lora_A": "a", "lora_B": "b", "lora_magnitude_vector": "magnitude"}
    found = {}
    for target, path in TARGETS.items():
        for kind, name in kinds.items():
            suffix = ".default.weight"
            start = f"base_model.model.model.layers.{{}}.{target}.{kind}{suffix}"
            if start.format(0) in named:
                layers = [named[start.format(i)] for i in range(LAYERS)]
                found[f"blocks/{path}/lora/{name}"] = jnp.asarray(
                    np.stack([np.asarray(layer).T for layer in layers])
                )
    return found


@pytest.mark.parametrize("use_dora", [False, True])
def test_logits_gradients_and_merged_weights_are_peft_s(base, use_dora, key):
    theirs = adapted(base, use_dora)
    named = {n: w for n, w in theirs.named_parameters() if w.requires_grad}
    opened = hub.load(base)
    patterns = [f"blocks/{path}" for path in TARGETS.values()]
    adapt = finetune.dora if use_dora else finetune.lora
    model, params = adapt(opened.model, opened.params, patterns, RANK, ALPHA, key=key)
    trained, frozen = finetune.split(params)
    values = ours_of({n: w.detach() for n, w in named.items()}, theirs)
    assert {p: v.shape for p, v in values.items()} == {
        p: v.shape for p, v in tree.flatten(trained).items()
    }
    trained = tree.unflatten(values)

    def loss_fn(trained):
        logits = model(finetune.join(trained, frozen), jnp.asarray(IDS))
        loss = losses.cross_entropy(logits[:, :-1], jnp.asarray(IDS[:, 1:]))
        return loss, logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(trained)
    expected = theirs(torch.tensor(IDS), labels=torch.tensor(IDS))
    expected.loss.backward()
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(logits, expected.logits.detach(), **close)
    np.testing.assert_allclose(loss, expected.loss.detach(), **close)
    of_theirs = ours_of({n: w.grad for n, w in named.items()}, theirs)
    for path, grad in tree.flatten(grads).items():
        assert np.abs(grad).max() > 1e-3
        np.testing.assert_allclose(grad, of_theirs[path], rtol=1e-3, atol=1e-5)

    merged = theirs.merge_and_unload()
    plain, whole = finetune.merge(model, finetune.join(trained, frozen))
    assert plain == opened.model
    weights = dict(merged.named_parameters())
    for target, path in TARGETS.items():
        for index in range(LAYERS):
            weight = weights[f"model.layers.{index}.{target}.weight"]
            kernel = tree.flatten(whole)[f"blocks/{path}/kernel"][index]
            np.testing.assert_allclose(kernel, weight.detach().T, rtol=1e-4, atol=1e-5)


def test_initial_magnitudes_are_peft_s(base, key):
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=RANK, target_modules=["q_proj"], use_dora=True)
    named = dict(peft.get_peft_model(model, config).named_parameters())
    opened = hub.load(base)
    _, params = finetune.dora(opened.model, opened.params, "**/attn/q", RANK, key=key)
    ours = params["blocks"]["attn"]["q"]["lora"]["magnitude"]
    path = "base_model.model.model.layers.{}.self_attn.q_proj.lora_magnitude_vector"
    for index in range(LAYERS):
        magnitude = named[path.format(index) + ".default.weight"].detach()
        np.testing.assert_allclose(ours[index], magnitude, rtol=1e-5)


class Seeing(torch.nn.Module):
    """A table and a convolution, whose layers PEFT can adapt."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(7, 6)
        self.conv = torch.nn.Conv2d(6, 5, (3, 2), 2, 1)

    def forward(self, tokens):
        return self.conv(self.embed(tokens).permute(0, 3, 1, 2))


@pytest.mark.parametrize("use_dora", [False, True])
def test_tables_and_convolutions_are_peft_s(use_dora, key):
    torch.manual_seed(0)
    plain = Seeing()
    weights = {n: jnp.asarray(w.detach().numpy()) for n, w in plain.named_parameters()}
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["embed", "conv"], use_dora=use_dora
    )
    theirs = peft.get_peft_model(plain, config).eval()
    named = {n: w for n, w in theirs.named_parameters() if w.requires_grad}
    with torch.no_grad():
        for weight in named.values():
            weight += 0.2 * torch.randn(weight.shape)

    layers = [nn.Embedding(7, 6), nn.Conv(6, 5, (3, 2), 2, 1)]
    params = {
        "0": {"embedding": weights["embed.weight"]},
        "1": {
            "kernel": weights["conv.weight"].transpose(2, 3, 1, 0),
            "bias": weights["conv.bias"],
        },
    }
    adapt = finetune.dora if use_dora else finetune.lora
    model, params = adapt(nn.Sequential(layers), params, "*", RANK, ALPHA, key=key)
    trained, frozen = finetune.split(params)
    shapes = {p: v.shape for p, v in tree.flatten(trained).items()}

    def ours_of(values):
        """By our paths: a table's adapters are transposed, kernels channels last."""
        found = {}
        for name, value in values.items():
            value = jnp.asarray(value.detach().numpy())
            place = "0" if ".embed." in name else "1"
            kind = next(k for k in ("_A", "_B", "magnitude") if k in name)
            own = {"_A": "a", "_B": "b"}.get(kind, kind)
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            path = f"{place}/lora/{own}"
            found[path] = value.reshape(shapes[path])
        return found

    trained = tree.unflatten(ours_of(named))
    tokens = np.random.default_rng(0).integers(0, 7, (2, 6, 5))

    def loss_fn(trained):
        y = model(finetune.join(trained, frozen), jnp.asarray(tokens))
        return jnp.sum(jnp.sin(y)), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(trained)
    expected = theirs(torch.tensor(tokens))
    torch.sin(expected).sum().backward()
    expected = expected.detach().permute(0, 2, 3, 1)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    of_theirs = ours_of({n: w.grad for n, w in named.items()})
    for path, grad in tree.flatten(grads).items():
        assert np.abs(grad).max() > 1e-3
        np.testing.assert_allclose(grad, of_theirs[path], rtol=1e-3, atol=1e-3)
    merged = dict(theirs.merge_and_unload().named_parameters())
    _, whole = finetune.merge(model, finetune.join(trained, frozen))
    kernel = merged["conv.weight"].detach().permute(2, 3, 1, 0)
    np.testing.assert_allclose(whole["1"]["kernel"], kernel, rtol=1e-4, atol=1e-5)
    table = merged["embed.weight"].detach()
    np.testing.assert_allclose(whole["0"]["embedding"], table, rtol=1e-4, atol=1e-5)
