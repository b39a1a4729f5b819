"""Params filled from published tensors: values, shardings, dtypes, memory, errors."""

import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import hub, nn
from jaxdl.hub import HubError, Rule, load_params, of_arrays, open_tensors, transpose
from tests.hub.published import write_gguf

RULES = (
    Rule("embed.weight", "embed/embedding"),
    Rule("h.{layer}.fc.weight", "blocks/0/kernel", transpose),
    Rule("h.{layer}.fc.bias", "blocks/0/bias"),
    Rule("head.weight", "head/kernel", transpose),
)


class Small(jd.Module):
    embed: nn.Embedding = nn.Embedding(16, 8)
    blocks: nn.Repeat = nn.Repeat(nn.Sequential([nn.Linear(8, 8), nn.Dropout(0.0)]), 4)
    head: nn.Linear = nn.Linear(8, 16, bias=False)

    def __call__(self, params, x):
        return x


MODEL = Small()


def published() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0).normal
    shapes = {"embed.weight": (16, 8), "head.weight": (16, 8)}
    for layer in range(4):
        shapes |= {f"h.{layer}.fc.weight": (8, 8), f"h.{layer}.fc.bias": (8,)}
    return {n: draw(size=s).astype(np.float32) for n, s in shapes.items()}


def test_every_tensor_is_in_its_place():
    tensors = published()
    params = load_params(of_arrays(tensors), RULES, jd.abstract(MODEL))
    jd.check_params(MODEL, params)
    assert params["blocks"]["1"] == {}
    np.testing.assert_array_equal(params["embed"]["embedding"], tensors["embed.weight"])
    for layer in range(4):
        kernel = params["blocks"]["0"]["kernel"][layer]
        np.testing.assert_array_equal(kernel, tensors[f"h.{layer}.fc.weight"].T)


def test_params_do_not_share_memory_with_the_file():
    tensors = published()
    params = load_params(of_arrays(tensors), RULES, jd.abstract(MODEL))
    before = np.array(params["embed"]["embedding"])
    tensors["embed.weight"][:] = 0
    np.testing.assert_array_equal(params["embed"]["embedding"], before)


def test_shards_have_the_values_of_the_whole_and_read_no_more():
    mesh = jax.make_mesh(
        (2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    specs = {
        "embed": {"embedding": ("b", "a")},
        "blocks": {"0": {"kernel": ("a", "b", None), "bias": ("b", "a")}, "1": {}},
        "head": {"kernel": (None, "b")},
    }
    shardings = jax.tree.map(
        lambda spec: jax.NamedSharding(mesh, jax.P(*spec)),
        specs,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    tensors = of_arrays(published())
    reads = []
    read = hub.Tensor.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            hub.Tensor,
            "read",
            lambda self, index: reads.append((self.name, index)) or read(self, index),
        )
        params = load_params(tensors, RULES, jd.abstract(MODEL), shardings=shardings)
    whole = load_params(tensors, RULES, jd.abstract(MODEL))
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    jax.tree.map(lambda p, s: p.sharding == s or pytest.fail(), params, shardings)
    sizes = {
        tuple(s.stop - s.start for s in index)
        for name, index in reads
        if "fc.w" in name
    }
    # kernel [layers, in, out] is split over layers and in; published it is [out, in].
    assert sizes == {(8, 2)}
    assert sum("fc.weight" in name for name, _ in reads) == 16  # 4 layers, 4 parts


def test_one_sharding_serves_all():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.NamedSharding(mesh, jax.P())
    params = load_params(
        of_arrays(published()), RULES, jd.abstract(MODEL), shardings=everywhere
    )
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float8_e4m3fn", "float64"])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float16])
def test_values_are_cast_to_the_dtype_asked_for(stored, dtype):
    stored = np.dtype(getattr(ml_dtypes, stored, stored))
    tensors = {name: array.astype(stored) for name, array in published().items()}
    params = load_params(of_arrays(tensors), RULES, jd.abstract(MODEL), dtype=dtype)
    wanted = np.dtype(dtype or np.float32)
    assert all(leaf.dtype == wanted for leaf in jax.tree.leaves(params))
    expected = tensors["embed.weight"].astype(np.float32).astype(wanted)
    np.testing.assert_array_equal(params["embed"]["embedding"], expected)


def test_whole_numbers_stay_whole():
    abstract = {"n": jax.ShapeDtypeStruct((), np.int32)}
    tensors = of_arrays({"n": np.array(7, np.int64)})
    params = load_params(tensors, [Rule("n", "n")], abstract, dtype=jnp.bfloat16)
    assert params["n"].dtype == np.int32 and params["n"] == 7


def test_quantised_tensors_are_decoded_into_place(tmp_path):
    values = write_gguf(tmp_path / "model.gguf")
    rules = [Rule(name, name, transpose) for name in values]
    leaf = jax.ShapeDtypeStruct((64, 3), np.float32)
    params = load_params(open_tensors(tmp_path), rules, dict.fromkeys(values, leaf))
    for name in values:
        np.testing.assert_array_equal(params[name], values[name].T)


def test_an_error_lists_everything_that_does_not_fit():
    tensors = published()
    del tensors["h.1.fc.weight"], tensors["h.2.fc.weight"], tensors["h.3.fc.weight"]
    tensors["embed.weight"] = tensors["embed.weight"][:9]
    tensors["h.0.fc.bias"] = np.arange(8)
    tensors |= {"h.0.rotary.inv_freq": np.ones(3), "other": np.ones(1)}
    with pytest.raises(HubError) as caught:
        load_params(
            of_arrays(tensors), RULES, jd.abstract(MODEL), ignore=["h.*.inv_freq"]
        )
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == [
        "missing: h.1.fc.weight ... h.3.fc.weight (3 names): for blocks/0/kernel",
        "wrong: embed.weight: expected [16, 8], got [9, 8]",
        "wrong: h.0.fc.bias: expected floating values, got int64",
        "unexpected: other",
    ]


@pytest.mark.parametrize("transform", [transpose, hub.identity, hub.Permute((1, 2, 0))])
def test_large_tensors_are_copied_whole(transform):
    ours = np.random.default_rng(0).normal(size=(50, 70, 41)).astype(np.float32)
    tensors = of_arrays(
        {"h.0": transform.inverse(ours), "h.1": transform.inverse(-ours)}
    )
    abstract = {"w": jax.ShapeDtypeStruct((2, *ours.shape), np.float32)}
    params = load_params(tensors, [Rule("h.{layer}", "w", transform)], abstract)
    np.testing.assert_array_equal(params["w"], [ours, -ours])


def test_bfloat16_becomes_float32_bit_for_bit():
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    abstract = {"w": jax.ShapeDtypeStruct((2**16,), np.float32)}
    params = load_params(of_arrays({"w": every}), [Rule("w", "w")], abstract)
    wanted = every.view(np.uint16).astype(np.uint32) << 16
    np.testing.assert_array_equal(np.asarray(params["w"]).view(np.uint32), wanted)


@pytest.mark.parametrize("have", ["model.", ""])
@pytest.mark.parametrize("want", ["model.", ""])
def test_a_prefix_may_be_there_or_not(have, want):
    tensors = of_arrays({have + "w": np.ones(2)})
    abstract = {"w": jax.ShapeDtypeStruct((2,), np.float32)}
    load_params(tensors, [Rule(want + "w", "w")], abstract, prefix="model.")


def test_a_stack_is_filled_without_a_second_copy_of_it():
    layers, size = 24, 256
    one = np.ones((size, size), np.float32)
    tensors = of_arrays({f"h.{i}": one for i in range(layers)})
    abstract = {"w": jax.ShapeDtypeStruct((layers, size, size), np.float32)}
    rules = [Rule("h.{layer}", "w", transpose)]
    load_params(tensors, rules, abstract)
    tracemalloc.start()
    load_params(tensors, rules, abstract)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (layers + 2) * one.nbytes


def test_state_is_loaded_with_params():
    model = nn.BatchNorm(3)
    rules = (
        Rule("weight", "params/scale"),
        Rule("bias", "params/bias"),
        Rule("running_mean", "state/mean"),
        Rule("running_var", "state/var"),
    )
    tensors = {rule.published: np.full(3, i) * 1.0 for i, rule in enumerate(rules)}
    both = {"params": jd.abstract(model), "state": jd.abstract_state(model)}
    loaded = load_params(of_arrays(tensors), rules, both)
    np.testing.assert_array_equal(loaded["state"]["mean"], np.full(3, 2.0))
