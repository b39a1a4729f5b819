from typing import Any

import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn


class Layer(jd.Module):
    """A layer with a field of every kind of number."""

    size: jd.Size
    axis: int = -1
    window: jd.Size | None = None
    sizes: tuple[jd.Size, ...] = ()
    either: jd.Size | tuple[jd.Size, ...] = 1
    pair: tuple[int, str] = (0, "x")
    anything: Any = None

    def __post_init__(self):
        jd.fill(self, window=12 // self.size)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"size": np.int64(3)},
        {"axis": 0, "window": 4},
        {"sizes": [1, 2], "either": (3, 4)},
        {"pair": (-1, "y"), "anything": 2.5},
    ],
)
def test_whole_numbers_pass(given):
    layer = Layer(**{"size": 3, **given})
    assert layer == Layer(**{"size": 3, **given})


@pytest.mark.parametrize(
    "given, error, words",
    [
        ({"size": 0}, ValueError, "Layer.size: expected a whole number above 0, got 0"),
        (
            {"size": 2.0},
            TypeError,
            "Layer.size: expected a whole number above 0",
        ),
        ({"size": None}, TypeError, "Layer.size: expected a whole number above 0"),
        ({"axis": 0.5}, TypeError, "Layer.axis: expected a whole number, got 0.5"),
        ({"window": -3}, ValueError, "Layer.window: .* above 0 or None, got -3"),
        ({"sizes": (2, 0)}, ValueError, "Layer.sizes: expected a tuple of a whole"),
        ({"sizes": 3}, TypeError, "Layer.sizes: expected a tuple of a whole number"),
        ({"either": (1.5,)}, TypeError, "Layer.either: .* or a tuple of a whole"),
        ({"pair": (0.5, "x")}, TypeError, "Layer.pair: expected a tuple, got"),
    ],
)
def test_a_number_that_does_not_fit_is_refused_by_name(given, error, words):
    with pytest.raises(error, match=words):
        Layer(**{"size": 3, **given})


def test_arrays_are_refused_as_arrays():
    with pytest.raises(TypeError, match=r"arrays belong in spec\(\)"):
        nn.Linear(np.ones(3), 3)


def test_a_module_made_from_a_module_keeps_what_its_parent_fills():
    class Further(Layer):
        extra: int = 0

    assert Further(4).window == 3
    with pytest.raises(ValueError, match="Further.size"):
        Further(0)


def test_annotations_that_cannot_be_resolved_are_left_alone():
    class Loose(jd.Module):
        size: "Nowhere"  # noqa: F821  # pyright: ignore

    assert Loose(2.5).size == 2.5


def test_a_declared_shape_has_whole_numbers():
    with pytest.raises(TypeError, match=r"whole numbers as sizes, got shape \(2.5,\)"):
        jd.Param((2.5,))
