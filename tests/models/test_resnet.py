import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import models, nn
from jaxdl.core import tree
from jaxdl.testing import check_module
from tests.drawn import drawn

tiny = models.ResNet(
    (1, 1), widths=(4, 8), num_classes=3, in_features=1, small_images=True
)
images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
tiny_bottleneck = models.ResNet(
    (1, 1), widths=(4, 8), bottleneck=True, num_classes=3, in_features=1
)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (models.resnet18(), 11_689_512),
        (models.resnet34(), 21_797_672),
        (models.resnet50(), 25_557_032),
    ],
)
def test_the_parameters_are_as_many_as_torchvision_has(model, count):
    assert jd.count(jd.abstract(model)) == count


def test_the_names_are_those_of_torchvision_renamed():
    paths = set(jd.paths(models.resnet18()))
    for theirs in (
        "conv1.weight",
        "bn1.weight",
        "layer1.0.conv1.weight",
        "layer1.1.bn2.bias",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.bias",
        "layer4.1.conv2.weight",
        "fc.weight",
        "fc.bias",
    ):
        *parents, leaf = theirs.split(".")
        norm = parents[-1].startswith("bn") or parents[-2:] == ["downsample", "1"]
        name = {"weight": "scale" if norm else "kernel"}.get(leaf, leaf)
        assert "/".join([*parents, name]) in paths
    assert not any("downsample" in path for path in paths if path.startswith("layer1"))
    assert "layer1/0/downsample/0/kernel" in jd.paths(models.resnet50())


def test_shapes_follow_the_paper():
    model = models.resnet50(num_classes=7)

    def forward(params, state, x):
        return model(params, x, state, train=False)[0]

    logits, values = jax.eval_shape(
        jd.capture(forward, "**/out"),
        jd.abstract(model),
        jd.abstract_state(model),
        jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32),
    )
    assert logits.shape == (2, 7)
    assert values["layer1/0/out"].shape == (2, 56, 56, 256)
    assert values["layer4/2/out"].shape == (2, 7, 7, 2048)


def by_hand(params, state, x, bottleneck):
    """The tiny networks in evaluation, from lax alone; bottlenecks and a large stem."""

    def conv(x, kernel, stride=1):
        pad = (kernel.shape[0] // 2,) * 2
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), (pad, pad), dimension_numbers=layout
        )

    def norm(x, p, s):
        return (x - s["mean"]) / jnp.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def block(x, p, s, strides):
        y = x
        for number, stride in enumerate(strides, start=1):
            y = jax.nn.relu(y) if number > 1 else y
            y = conv(y, p[f"conv{number}"]["kernel"], stride)
            y = norm(y, p[f"bn{number}"], s[f"bn{number}"])
        if "downsample" in p:
            kernel, scale = p["downsample"]["0"]["kernel"], p["downsample"]["1"]
            x = norm(conv(x, kernel, max(strides)), scale, s["downsample"]["1"])
        return jax.nn.relu(x + y)

    x = conv(x, params["conv1"]["kernel"], 2 if bottleneck else 1)
    x = jax.nn.relu(norm(x, params["bn1"], state["bn1"]))
    if bottleneck:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = ((size - 1) // 2 for size in x.shape[1:3])
        windows = [
            x[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2]
            for i in range(3)
            for j in range(3)
        ]
        x = jnp.stack(windows).max(0)
    for stage, stride in (("layer1", 1), ("layer2", 2)):
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        x = block(x, params[stage]["0"], state[stage]["0"], strides)
    return x.mean((1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]


@pytest.mark.parametrize("model", [tiny, tiny_bottleneck], ids=["small", "bottleneck"])
def test_it_is_the_network_written_out_with_every_parameter_perturbed(model):
    rng = np.random.default_rng(0)
    x = jax.random.normal(jax.random.key(2), (2, 15, 12, 1))

    def perturbed(leaf):
        noise = 0.3 * np.abs(rng.normal(size=leaf.shape))
        return np.asarray(leaf) + noise.astype(np.float32)

    params = jax.tree.map(perturbed, drawn(model))
    state = jax.tree.map(perturbed, model.init_state())
    run = jax.jit(functools.partial(model, train=False))
    ours, same = run(params, x, state)
    theirs = jax.jit(by_hand, static_argnums=3)(params, state, x, model.bottleneck)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_equal(state, same)


def test_training_moves_every_running_statistic():
    state = tiny.init_state()
    _, new = jax.jit(functools.partial(tiny, train=True))(drawn(tiny), images, state)
    for path, leaf in tree.flatten(new).items():
        assert not np.array_equal(leaf, tree.flatten(state)[path]), path


def test_zero_init_starts_each_block_as_its_shortcut():
    block = models.ResNet((1,), (4,), in_features=1, small_images=True, zero_init=True)
    params, state = jax.jit(block.init)(jax.random.key(0)), block.init_state()

    @jax.jit
    def run(params):
        forward = jd.capture(functools.partial(block, train=False), "layer1/0/out")
        _, values = forward(params, images, state)
        x = block.conv1(params["conv1"], images)
        x, _ = nn.BatchNorm(4)(params["bn1"], x, state["bn1"], train=False)
        return values["layer1/0/out"], jax.nn.relu(x)

    np.testing.assert_allclose(*run(params), rtol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_it_keeps_the_contract(train):
    check_module(tiny, images, train=train, tolerance=1e-4)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="depths of one to four stages"):
        models.ResNet((1, 1, 1), widths=(4, 8))
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, 1\]"):
        tiny(drawn(tiny), images[0], tiny.init_state(), train=False)
