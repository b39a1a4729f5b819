"""The promises of conftest.py, which every other test relies on."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="asked for an accelerator")
def test_there_are_eight_devices():
    assert jax.device_count() == 8


def test_the_compilation_cache_is_inside_the_repository():
    root = Path(__file__).parents[1]
    assert (
        Path(jax.config.values["jax_compilation_cache_dir"]) == root / ".cache" / "jax"
    )


traces = []


@jax.jit
def traced(x):
    traces.append(x.shape)
    return jnp.sin(x) + 1


def optimisation_is_off() -> bool:
    return jax.config.read("jax_disable_most_optimizations")


def test_optimisation_is_off_by_default():
    traced(1.0)
    assert optimisation_is_off()


def test_the_optimized_fixture_turns_it_on_and_forgets_compiled_functions(optimized):
    before = len(traces)
    traced(1.0)
    assert not optimisation_is_off()
    assert len(traces) == before + 1


def test_optimisation_is_off_again_after_the_fixture():
    assert optimisation_is_off()
