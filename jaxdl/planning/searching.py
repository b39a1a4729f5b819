"""Plans of several choices, compared."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from jaxdl.core.table import Shown, human_bytes
from jaxdl.planning.flops import Trips
from jaxdl.planning.measuring import measure
from jaxdl.planning.out_of_memory import OutOfMemory
from jaxdl.planning.report import Report
from jaxdl.planning.tables import in_seconds
from jaxdl.planning.targets import Target
from jaxdl.shard import mesh as mesh_on


@dataclasses.dataclass(frozen=True)
class Trial:
    """One choice: its report, or the error that it ended with."""

    choice: Mapping[str, Any]
    report: Report | None
    error: Exception | None = None

    @property
    def fits(self) -> bool:
        """Whether it compiled, and fits into the memory of each device."""
        return self.report is not None and self.report.fits

    @property
    def rank(self) -> tuple:
        """The smaller the better: what fits, then speed, then memory."""
        report = self.report
        if report is None:
            return (2, 0.0, 0)
        slow = 0.0
        if report.roofline is not None and report.roofline.seconds > 0:
            slow = -report.mfu(report.roofline.seconds)
        return (0 if report.fits else 1, slow, report.memory.total)

    @property
    def result(self) -> str:
        """What came of it, in a line."""
        if self.report is not None:
            return "fits" if self.report.fits else "does not fit"
        if isinstance(self.error, OutOfMemory) and self.error.needed:
            return f"does not fit: needs {human_bytes(self.error.needed)}"
        return f"{type(self.error).__name__}: {str(self.error).splitlines()[0]}"


@dataclasses.dataclass(frozen=True, repr=False)
class Search(Shown):
    """Trials, the best first; printed as a table."""

    target: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The best that fits. Raises ValueError where none does."""
        first = self.trials[0] if self.trials else None
        if first is None or not first.fits:
            raise ValueError(f"{self.target}: none of {len(self.trials)} choices fits")
        return first

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what was chosen, as it is written."""
        trials = [
            {
                "choice": {name: str(value) for name, value in trial.choice.items()},
                "result": trial.result,
                "report": trial.report.to_dict() if trial.report else None,
            }
            for trial in self.trials
        ]
        return {"target": self.target, "trials": trials}

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    def __rich__(self) -> Table:
        table = Table(title=self.target, box=box.SIMPLE, pad_edge=False)
        names = list(self.trials[0].choice) if self.trials else []
        for name in names:
            table.add_column(name, overflow="fold")
        for name in ("memory", "step", "MFU at most"):
            table.add_column(name, justify="right")
        table.add_column("")
        for trial in self.trials:
            chosen = (_written(trial.choice[name]) for name in names)
            table.add_row(*chosen, *_numbers(trial), trial.result)
        return table


def search(
    build: Callable[..., tuple],
    target: Target,
    choices: Mapping[str, Iterable[Any]],
    trips: Trips = None,
    options: Mapping[str, Any] | None = None,
    remember: str | Path | None = None,
) -> Search:
    """Tries every combination of choices; see `jd.plan.search`."""
    names, values = list(choices), [list(each) for each in choices.values()]
    trials = []
    for combination in itertools.product(*values):
        choice = dict(zip(names, combination, strict=True))
        try:
            step, args = build(**_built(choice, target))
            report = measure(step, tuple(args), target, trips, options, remember)
            trials.append(Trial(choice, report))
        except Exception as error:  # whatever it is, the others are still wanted
            trials.append(Trial(choice, None, error))
    return Search(target.name, tuple(sorted(trials, key=lambda trial: trial.rank)))


def _built(choice: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The choice with a mesh in place of its sizes."""
    if not isinstance(choice.get("mesh"), Mapping):
        return dict(choice)
    options = {"devices": target.devices, "allow_split_physical_axes": True}
    return {**choice, "mesh": mesh_on(**choice["mesh"], **options)}


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={size}" for name, size in value.items())
    return getattr(value, "__name__", None) or str(value)


def _numbers(trial: Trial) -> tuple[str, str, str]:
    report = trial.report
    if report is None:
        return "", "", ""
    memory = human_bytes(report.memory.total)
    if report.roofline is None or report.roofline.seconds == 0:
        return memory, "", ""
    low, high = report.roofline.at_least, report.roofline.seconds
    shares = f"{report.mfu(high):.0%} to {report.mfu(low):.0%}"
    return memory, in_seconds(high), shares
