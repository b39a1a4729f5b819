"""The examples, run as a user runs them; the small ones whole, the others shortened."""

from pathlib import Path
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import char_lm, digits, fashion_mnist, xor
from jaxdl import data, models

ROOT = Path(__file__).parents[2]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(name, *arguments):
    """Runs an example as a command; what it printed."""
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gradients_of_a_unit_are_those_of_calculus():
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.normal(size=2), jnp.float32) for _ in range(2))
    b, t = 0.3, 1.0

    def error(w, b):
        return (w @ x + b - t) ** 2

    dw, db = jax.grad(error, argnums=(0, 1))(w, b)
    y = w @ x + b
    np.testing.assert_allclose(dw, 2 * (y - t) * x, rtol=1e-6)
    np.testing.assert_allclose(db, 2 * (y - t), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "least"), [("squared error", 95), ("sigmoid cross-entropy", 95)]
)
def test_xor_is_learned_from_at_least_95_of_100_seeds(loss, least):
    network = models.mlp([2, 4, 1], jnp.tanh)
    sgd = xor.OPTIMIZERS["gradient descent"]
    assert int(xor.learned(network, xor.LOSSES[loss], sgd).sum()) >= least


def test_xor_is_never_learned_without_a_hidden_activation_or_with_two_sigmoids():
    sgd = xor.OPTIMIZERS["gradient descent"]
    linear = models.mlp([2, 4, 1], xor.ACTIVATIONS["none"])
    assert int(xor.learned(linear, xor.LOSSES["squared error"], sgd).sum()) == 0
    network = models.mlp([2, 4, 1], jnp.tanh)
    double = xor.LOSSES["the same, after a sigmoid"]
    assert int(xor.learned(network, double, sgd).sum()) == 0


@pytest.mark.slow
def test_xor_prints_its_table():
    printed = run("xor.py", "--seeds", "5", "--steps", "50")
    assert "right from how many of 5 seeds" in printed and "tanh" in printed


def test_digits_trains_a_little_and_draws(capsys):
    accuracy = digits.main(["--steps", "60"])
    assert accuracy > 0.8
    assert re.search(r"held-out accuracy \d+\.\d\d%", capsys.readouterr().out)
    assert Path("runs/digits.png").stat().st_size > 10_000


@pytest.mark.slow
def test_digits_reaches_98_5_percent_in_a_minute():
    printed = run("digits.py")
    match = re.search(r"accuracy ([\d.]+)%.*after (\d+) s", printed)
    assert match is not None
    assert float(match[1]) >= 98.5 and int(match[2]) < 60


def test_augmentation_moves_and_mirrors_and_follows_its_key(key):
    images = jax.random.uniform(key, (4, 28, 28, 1))
    moved = fashion_mnist.augment(images, key)
    assert moved.shape == images.shape
    assert jnp.array_equal(moved, fashion_mnist.augment(images, key))
    assert not jnp.array_equal(moved, fashion_mnist.augment(images, jax.random.key(1)))
    one = fashion_mnist.augment(images, key, pad=0)
    for image, result in zip(images, one, strict=True):
        mirrored = jnp.array_equal(result, image[:, ::-1])
        assert mirrored or jnp.array_equal(result, image)


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.exists(), reason="needs dataset-fashion-mnist")
def test_fashion_mnist_learns_something_from_few_images():
    accuracy = fashion_mnist.main(
        ["--epochs", "3", "--width", "4", "--examples", "2000"]
    )
    assert accuracy > 0.5


TINY = "--steps 8 --dim 32 --layers 1 --seq-len 16 --batch-size 2 --length 30".split()


def text_file():
    path = Path("text.txt")
    path.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return ["--text", str(path)]


def test_char_lm_writes_the_same_text_for_the_same_seed():
    first = char_lm.main([*TINY, *text_file()])
    assert len(first) == 30
    assert char_lm.main([*TINY, *text_file()]) == first
    assert char_lm.main([*TINY, *text_file(), "--seed", "1"]) != first


@pytest.mark.slow
def test_char_lm_learns_a_text(capsys):
    char_lm.main([*TINY, *text_file(), "--steps", "300", "--seq-len", "64"])
    match = re.search(r"([\d.]+) before, ([\d.]+) after", capsys.readouterr().out)
    assert match is not None
    assert float(match[2]) < 1.0 < float(match[1])


def test_sampling_sees_the_window_and_follows_its_key(key):
    config = models.DecoderConfig(
        7, 4, dim=8, num_layers=1, num_heads=2, positions="rope"
    )
    model = models.Decoder(config)
    params, prompt = model.init(key), jnp.array([[1, 2, 3, 4]])
    first = char_lm.sample(model, params, prompt, key, length=5, temperature=1.0)
    again = char_lm.sample(model, params, prompt, key, length=5, temperature=1.0)
    assert first.shape == (1, 5) and jnp.array_equal(first, again)
    greedy = char_lm.sample(model, params, prompt, key, length=1, temperature=1e-6)
    assert greedy[0, 0] == model(params, prompt, key=None)[0, -1].argmax()


def test_the_text_of_char_lm_is_there_without_a_download():
    assert data.Characters.of(data.text()).size < 256
