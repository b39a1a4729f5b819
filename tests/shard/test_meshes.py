"""Meshes: all axes in one order, the rest filled in, slices on a slower network."""

import dataclasses

import jax
from jax.experimental import topologies
from jax.sharding import AxisType
import numpy as np
import pytest

import jaxdl as jd
from jaxdl.core.layout import MESH_AXES


@dataclasses.dataclass(frozen=True)
class Device:
    """What `mesh_utils` asks of a device."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "none"


TWO_SLICES = [Device(i, i // 4) for i in range(8)]


def test_a_mesh_has_every_axis_whatever_is_given():
    mesh = jd.mesh(tensor=2, fsdp=-1)
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == {a: 1 for a in MESH_AXES} | {"fsdp": 4, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_a_mesh_of_one_device():
    mesh = jd.mesh(data=-1, devices=jax.devices()[:1])
    assert mesh.size == 1


def test_neighbours_are_along_the_last_axes():
    ids = np.vectorize(lambda d: d.id)(jd.mesh(fsdp=4, tensor=2).devices)
    assert ids.reshape(4, 2).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "sizes for 8 devices, got data=3"),
        ({}, "sizes for 8 devices, got none"),
        ({"data": 4}, "give -1 for the axis that takes what is left"),
        ({"data": -1, "fsdp": -1}, "one -1 at most, got data and fsdp"),
        ({"data": 3, "fsdp": -1}, "sizes for 8 devices"),
        ({"data": 0}, "data from 1, or -1, got 0"),
        ({"data": 2.0}, "data from 1, or -1, got 2.0"),
        ({"data": 8, "slices": {"rows": 2}}, "slices: 'rows'"),
        ({"data": 8, "slices": 2}, "expected 1, as devices have, got 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        jd.mesh(**sizes)


def slices(mesh):
    """The slice of each device, in the mesh's order."""
    return np.vectorize(lambda d: d.slice_index)(mesh.devices).reshape(-1).tolist()


def test_slices_are_cut_from_data_unless_said_otherwise():
    mesh = jd.mesh(data=2, fsdp=4, devices=TWO_SLICES)
    assert slices(mesh) == [0] * 4 + [1] * 4
    assert mesh.shape["data"] == 2
    mesh = jd.mesh(fsdp=8, devices=TWO_SLICES, slices={"fsdp": 2})
    assert slices(mesh) == [0] * 4 + [1] * 4


def test_slices_between_axes_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="a divisor of data=1, got 2"):
        jd.mesh(fsdp=8, devices=TWO_SLICES)
    with pytest.raises(ValueError, match="expected 2, as devices have, got 4"):
        jd.mesh(data=8, devices=TWO_SLICES, slices=4)


@pytest.mark.slow
def test_devices_of_a_described_pod_make_a_mesh_and_its_slices(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    pod = topologies.get_topology_desc("v5e:4x4", platform="tpu", num_slices=2)
    with pytest.raises(NotImplementedError):
        jd.mesh(data=2, fsdp=2, tensor=8, devices=pod.devices)
    mesh = jd.mesh(
        data=2, fsdp=2, tensor=8, devices=pod.devices, allow_split_physical_axes=True
    )
    assert slices(mesh) == [0] * 16 + [1] * 16
    report = jd.shard.explain(
        jd.nn.Linear(64, 64, axes=("embed", "mlp")), mesh, jd.shard.FSDP_TENSOR
    )
    assert {row.path: row.copies for row in report.rows} == {"bias": 4, "kernel": 2}
