"""A picture of a run."""

from pathlib import Path

from jaxdl.train.logs import History


def plot_history(history: History, path: str | Path) -> None:
    """Draws the curves of a run into a picture (.png, .svg, .pdf).

    One panel for the losses, one for each other number that was trained or evaluated;
    `eval/x` shares the panel of `x`. The speed of the run is left out. Needs matplotlib
    (`jaxdl[examples]`); touches no pyplot state.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'plot_history needs matplotlib: pip install "jaxdl[examples]"'
        ) from error

    panels = _panels(history)
    columns = min(len(panels), 2) or 1
    rows = -(-len(panels) // columns) or 1
    figure = Figure(figsize=(5.6 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        _draw(axis, title, {name: history.series(name) for name in names})
    for axis in axes[len(panels) :]:
        axis.remove()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _panels(history: History) -> dict[str, list[str]]:
    """Names by panel; the loss first, `eval/loss` beside `loss`."""
    panels: dict[str, list[str]] = {}
    names = [name for name in history.names() if not _is_speed(name)]
    for name in sorted(names, key=lambda name: name.split("/")[-1] != "loss"):
        panels.setdefault(name.removeprefix("eval/"), []).append(name)
    # A count of skipped steps that stayed zero says nothing.
    if not any(history.series("skipped")[1]):
        panels.pop("skipped", None)
    return panels


def _is_speed(name: str) -> bool:
    return name.endswith("_per_second") or name in ("goodput", "mfu", "weight")


def _draw(axis, title: str, curves: dict[str, tuple[list[int], list[float]]]) -> None:
    for name, (steps, values) in curves.items():
        evaluated = name.startswith("eval/")
        axis.plot(
            steps,
            values,
            label="eval" if evaluated else "train",
            color="C1" if evaluated else "C0",
            linewidth=1.8 if evaluated else 1.2,
            marker="o" if evaluated or len(steps) == 1 else None,
            markersize=3.5,
        )
    if _spans_decades(curves):
        axis.set_yscale("log")
    axis.set_title(title)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axis.legend(frameon=False)


def _spans_decades(curves: dict) -> bool:
    values = [v for _, series in curves.values() for v in series if v == v]
    return bool(values) and min(values) > 0 and max(values) > 50 * min(values)
