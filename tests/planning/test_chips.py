from types import SimpleNamespace

import pytest

from jaxdl.planning.chips import CHIPS, chip_of, peak_flops


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_that_of_the_kind_or_unknown(kind, peak):
    assert peak_flops(SimpleNamespace(device_kind=kind)) == peak


def test_a_kind_that_differs_from_its_family_in_speed_is_not_its_chip():
    assert chip_of(SimpleNamespace(device_kind="TPU v5 lite")) is CHIPS["v5e"]
    assert chip_of(SimpleNamespace(device_kind="NVIDIA H100 PCIe")) is None
    assert chip_of(SimpleNamespace(device_kind="cpu")) is None
