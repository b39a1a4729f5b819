"""How long a step takes at least: the time of its slowest part at full speed."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

from jax.sharding import Mesh

from jaxdl.planning.chips import Chip
from jaxdl.shard.hlo import Collective

ASSUMPTIONS = (
    "every FLOP at the dense bfloat16 peak",
    "memory at its full bandwidth, each buffer read and written once by an operation",
    "an axis of the mesh is a ring over one link in each direction (a GPU: all of its "
    "NVLinks); an axis that leaves the slice or host, one network adapter",
    "not modelled: products that fill the hardware badly, kernels' own traffic, "
    "latency, stragglers, input, the host",
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each part of a step takes alone, at full speed.

    compute: of the hardware FLOPs on each device.
    memory: of the bytes to and from its memory.
    network: of collectives, by the axes they go over.
    """

    compute: float
    memory: float
    network: Mapping[str, float]

    @property
    def at_least(self) -> float:
        """Seconds if all parts went on at the same time."""
        return max(self.compute, self.memory, self.communication)

    @property
    def seconds(self) -> float:
        """Seconds if nothing hides communication."""
        return max(self.compute, self.memory) + self.communication

    @property
    def communication(self) -> float:
        """Seconds of all collectives, one after the other."""
        return sum(self.network.values())

    @property
    def limit(self) -> str:
        """The part that takes longest."""
        parts = {
            "compute": self.compute,
            "memory": self.memory,
            "network": self.communication,
        }
        return max(parts, key=lambda part: parts[part])


def roofline(
    chip: Chip,
    flops: float,
    traffic: float,
    collectives: Iterable[Collective],
    mesh: Mesh | None,
) -> Roofline:
    """The times of a step; see `ASSUMPTIONS`.

    flops: on each device; traffic: bytes to and from the memory of each.
    """
    far = leaving(mesh)
    network: dict[str, float] = {}
    for each in collectives:
        name = axes_name(each.axes)
        speed = chip.network if far.intersection(each.axes) else chip.link
        # Both directions of a ring carry half each; a switch takes all in one.
        ways = 2 if chip.torus and not far.intersection(each.axes) else 1
        network[name] = network.get(name, 0.0) + each.traffic / (speed * ways)
    return Roofline(flops / chip.peak, traffic / chip.bandwidth, network)


def axes_name(axes: tuple[str, ...]) -> str:
    """How axes are written in tables: `fsdp, tensor`."""
    return ", ".join(axes) or "?"


def leaving(mesh: Mesh | None) -> frozenset[str]:
    """The axes that lead out of a TPU slice, or out of a GPU's host."""
    if mesh is None:
        return frozenset()

    def place(device: Any) -> Any:
        gpu = device.platform in ("gpu", "cuda")
        return device.process_index if gpu else getattr(device, "slice_index", 0)

    found = set()
    for axis, name in enumerate(mesh.axis_names):
        lines = mesh.devices.swapaxes(axis, -1).reshape(-1, mesh.devices.shape[axis])
        if any(len({place(device) for device in line}) > 1 for line in lines):
            found.add(name)
    return frozenset(found)
