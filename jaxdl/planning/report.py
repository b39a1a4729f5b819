"""What planning finds out, as one value: numbers, a table, JSON, a page."""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Group

from jaxdl.core.table import Shown
from jaxdl.planning import page, tables
from jaxdl.planning.chips import Chip
from jaxdl.planning.flops import Flops
from jaxdl.planning.liveness import Buffer, Liveness, Moment
from jaxdl.planning.roofline import ASSUMPTIONS, Roofline, axes_name
from jaxdl.shard.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    arguments: by argument and the first name in it, `state/params`.
    laid_out: all arguments as the compiler lays them out, padding included.
    outputs: results that do not take the place of a donated argument.
    temporaries: what the program needs beside these while it runs.
    code: the program itself.
    peak: arguments and what is held beside them at the fullest moment, as the compiler
      says; None where it does not.
    available: what programs may use; None where it is not known.
    """

    arguments: Mapping[str, int]
    laid_out: int
    outputs: int
    temporaries: int
    code: int
    peak: int | None
    available: float | None

    @property
    def total(self) -> int:
        """All of it."""
        return self.laid_out + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, repr=False)
class Report(Shown):
    """A plan: print it, or read `to_json()`, or open what `to_html(path)` wrote.

    target, devices, mesh: what it is compiled for.
    chip: what is known of each device; None of a CPU, and then neither is `roofline`.
    memory: bytes on each device.
    flops: of all devices together, of the traced program.
    traffic: bytes that a step moves to and from each device's memory.
    collectives: every one, of the compiled program.
    liveness: what is held when: an estimate, as the compiler keeps its own to itself.
    roofline: how long a step takes at least.
    seconds: that tracing, lowering and compiling took here.
    notes: what is amiss, in words.
    """

    target: str
    devices: int
    mesh: Mapping[str, int]
    chip: Chip | None
    memory: Memory
    flops: Flops
    traffic: int
    collectives: tuple[Collective, ...]
    liveness: Liveness
    roofline: Roofline | None
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it fits into the memory of each device; True where none is known."""
        available = self.memory.available
        return available is None or self.memory.total <= available

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: hardware FLOPs for each byte of memory traffic."""
        return self.flops.hardware / self.devices / max(self.traffic, 1)

    @property
    def largest(self) -> tuple[Buffer, ...]:
        """The temporaries at the fullest moment, the largest first."""
        return self.liveness.largest

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation of a step of that many seconds.

        Raises ValueError where the chip's peak is not known.
        """
        if self.chip is None:
            raise ValueError(f"{self.target}: its peak FLOP/s are not known")
        return self.flops.model / (self.devices * self.chip.peak * seconds)

    def by_axis(self) -> list[dict[str, Any]]:
        """Collectives summed by axes and kind: the most bytes first.

        `count` runs of `bytes` in all, for which each device sends `traffic`.
        """
        sums: dict[tuple[str, str], dict[str, Any]] = {}
        for each in self.collectives:
            key = (axes_name(each.axes), each.kind)
            row = {"axes": key[0], "kind": key[1], "count": 0, "bytes": 0, "traffic": 0}
            row = sums.setdefault(key, row)
            row["count"] += each.count
            row["bytes"] += each.total
            row["traffic"] += round(each.traffic)
        return sorted(sums.values(), key=lambda row: -row["bytes"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` reads them."""
        plain = {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "liveness"
        }
        plain["memory"] |= {"total": self.memory.total, "fits": self.fits}
        plain["intensity"] = self.intensity
        plain["by_axis"] = self.by_axis()
        plain["largest"] = _plain(self.largest)
        plain["timeline"] = _plain(self.liveness.moments)
        if self.roofline is not None:
            times = {"at_least": self.roofline.at_least, "step": self.roofline.seconds}
            plain["roofline"] |= times | {"assumptions": list(ASSUMPTIONS)}
            plain["mfu"] = {name: self.mfu(s) for name, s in times.items() if s > 0}
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Report":
        """The report that `to_dict` wrote."""
        own = {
            f.name: plain[f.name] for f in dataclasses.fields(cls) if f.name in plain
        }
        moments = tuple(Moment(**moment) for moment in plain["timeline"])
        largest = tuple(Buffer(**buffer) for buffer in plain["largest"])
        own |= {
            "chip": _made(Chip, plain["chip"]),
            "memory": _made(Memory, plain["memory"]),
            "flops": _made(Flops, plain["flops"]),
            "collectives": tuple(_made(Collective, c) for c in plain["collectives"]),
            "liveness": Liveness(moments, largest),
            "roofline": _made(Roofline, plain["roofline"]),
            "notes": tuple(plain["notes"]),
        }
        return cls(**own)

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_html(self, path: str | Path) -> Path:
        """Writes a page that needs nothing else, and returns where it is."""
        path = Path(path)
        path.write_text(page.page(self), encoding="utf-8")
        return path

    def show(self) -> None:
        """Prints the tables, in colour where the terminal has it."""
        from rich import print as rich_print

        rich_print(self)

    def __rich__(self) -> Group:
        return tables.tables(self)


def _made(kind: type, plain: Mapping[str, Any] | None) -> Any:
    """A dataclass from those of the values that are its fields; None of None."""
    if plain is None:
        return None
    own = {field.name: plain[field.name] for field in dataclasses.fields(kind)}
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in own.items()})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
