import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from jaxdl.planning.chips import CHIPS
from jaxdl.planning.roofline import leaving, roofline
from jaxdl.shard.hlo import Collective

V5E = CHIPS["v5e"]


def mesh(place, shape=(2, 4), names=("data", "tensor"), platform="tpu"):
    devices = np.empty(shape, object)
    for index in np.ndindex(*shape):
        devices[index] = SimpleNamespace(
            platform=platform, slice_index=place(index), process_index=place(index)
        )
    return SimpleNamespace(devices=devices, axis_names=names)


def collective(axes, kind="all-gather", group=4, nbytes=1e9):
    return Collective(kind, axes, group, 2, int(nbytes), "", "")


ONE_SLICE = mesh(lambda index: 0)


def test_each_part_takes_its_work_over_its_speed():
    times = roofline(V5E, 197e12, 819e9 / 2, [], ONE_SLICE)
    assert times.compute == pytest.approx(1)
    assert times.memory == pytest.approx(0.5)
    assert times.limit == "compute" and times.at_least == times.seconds == 1


def test_a_ring_sends_both_ways_and_another_slice_is_far():
    times = roofline(V5E, 0, 0, [collective(("tensor",))], ONE_SLICE)
    assert times.network == {"tensor": pytest.approx(2e9 * 3 / 4 / (2 * V5E.link))}
    two = mesh(lambda index: index[0])
    times = roofline(V5E, 0, 0, [collective(("data",), group=2)], two)
    assert times.network == {"data": pytest.approx(2e9 / 2 / V5E.network)}


def test_collectives_of_an_axis_add_up_and_hide_nothing():
    both = [collective(("tensor",)), collective(("tensor",), "all-reduce")]
    times = roofline(V5E, V5E.peak, 0, both, ONE_SLICE)
    alone = roofline(V5E, V5E.peak, 0, both[:1], ONE_SLICE)
    assert times.communication == pytest.approx(3 * alone.communication)
    assert times.seconds == pytest.approx(1 + times.communication)


def test_a_gpu_leaves_its_host_and_a_tpu_its_slice():
    assert leaving(mesh(lambda index: index[0])) == {"data"}
    assert leaving(mesh(lambda index: index[1] // 2, platform="cuda")) == {"tensor"}
    assert leaving(ONE_SLICE) == leaving(None) == frozenset()


def test_a_switch_takes_all_links_at_once():
    h100 = dataclasses.replace(CHIPS["h100"], link=1e9)
    times = roofline(h100, 0, 0, [collective(("tensor",))], ONE_SLICE)
    assert times.communication == pytest.approx(1.5)
