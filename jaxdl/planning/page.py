"""A report as a page that needs nothing else: no script, no network."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from jaxdl.core.table import human_bytes
from jaxdl.planning import tables
from jaxdl.planning.roofline import ASSUMPTIONS

COLOURS = 6


def page(report: Any) -> str:
    """The text of the page; light or dark as the reader's system is."""
    template = Template(Path(__file__).with_suffix(".html").read_text("utf-8"))
    title, _, subtitle = tables.heading(report).partition(": ")
    return template.substitute(
        title=escape(f"Plan for {title}"),
        subtitle=escape(subtitle),
        tiles=_tiles(report),
        memory=_memory(report),
        timeline=_timeline(report),
        largest=_largest(report),
        collectives=_collectives(report),
        work=_table(("", ""), tables.work_rows(report)),
        notes=_notes(report),
    )


def _tiles(report: Any) -> str:
    tone = "good" if report.fits else "bad"
    known = report.memory.available is not None
    words = ("fits" if report.fits else "does not fit") if known else "memory"
    tiles = [(words, human_bytes(report.memory.total), tone if known else "")]
    rows = dict(tables.work_rows(report))
    for name in ("a step takes at least", "MFU at most", "model FLOPs"):
        if name in rows:
            tiles.append((name, rows[name].split(", by")[0], ""))
    sent = sum(row["traffic"] for row in report.by_axis())
    tiles.append(("sent by each device", human_bytes(sent), ""))
    return "".join(
        f'<section><span class="soft">{escape(name)}</span>'
        f'<b class="{tone}">{escape(value)}</b></section>'
        for name, value, tone in tiles
    )


def _memory(report: Any) -> str:
    rows = tables.memory_rows(report)
    whole = max(report.memory.available or 0, report.memory.total)
    start, parts, lines = 0.0, [], []
    for number, (name, size) in enumerate(rows):
        colour = f"var(--c{number % COLOURS})"
        width = 1000 * size / whole
        title = f"<title>{escape(name)}: {human_bytes(size)}</title>"
        parts.append(_rect(start, 0, width, 28, colour, title))
        start += width
        key = f'<span class="key" style="background:{colour}"></span>{escape(name)}'
        lines.append((key, human_bytes(size)))
    bar = (
        '<svg viewBox="0 0 1000 28" preserveAspectRatio="none" width="100%" '
        'height="28" role="img" aria-label="memory by use">'
        f"{_rect(0, 0, 1000, 28, 'var(--line)')}{''.join(parts)}</svg>"
    )
    tone = "good" if report.fits else "bad"
    return f'<p class="{tone}">{escape(tables.verdict(report))}</p>{bar}' + _table(
        ("", ""), lines, plain=False
    )


def _timeline(report: Any, columns: int = 480) -> str:
    """Bytes held at each instruction: temporaries, on arguments and results."""
    moments = report.liveness.moments
    if not moments:
        return '<p class="soft">The program holds no temporaries.</p>'
    bins = _binned(moments, columns)
    held = report.memory.laid_out + report.memory.outputs
    top = held + max(moment.nbytes for moment in bins)
    limit = report.memory.available
    shown = limit if limit and limit < 3 * top else None
    scale = 200 / max(top, shown or 0)
    width = 900 / len(bins)
    floor = 215.0
    parts = []
    for number, moment in enumerate(bins):
        height = moment.nbytes * scale
        words = f"{human_bytes(held + moment.nbytes)}: {moment.scope or moment.opcode}"
        y = floor - held * scale - height
        title = f"<title>{escape(words)}</title>"
        parts.append(
            _rect(80 + number * width, y, width + 0.3, height, "var(--c0)", title)
        )
    parts.append(_rect(80, floor - held * scale, 900, held * scale, "var(--held)"))
    parts += _axis(top, scale, floor)
    if shown:
        y = floor - shown * scale
        parts.append(
            f'<line x1="80" x2="980" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--bad)" '
            f'stroke-dasharray="4 3"/><text x="976" y="{y + 14:.1f}" '
            f'text-anchor="end">available: {human_bytes(shown)}</text>'
        )
    return (
        '<svg viewBox="0 0 1000 245" width="100%" role="img" '
        f'aria-label="memory over program order">{"".join(parts)}'
        '<text x="80" y="236">first instruction</text>'
        '<text x="980" y="236" text-anchor="end">last</text></svg>'
        '<p class="soft"><span class="key" style="background:var(--c0)"></span>'
        'temporaries, estimated <span class="key" style="background:var(--held);'
        'margin-left:1rem"></span>arguments and results. Bodies of loops are shown '
        "once; point at a column to see what runs.</p>"
    )


def _binned(moments: Sequence[Any], columns: int) -> list[Any]:
    """The fullest moment of each of so many equal stretches."""
    step = max(1, -(-len(moments) // columns))
    stretches = (moments[i : i + step] for i in range(0, len(moments), step))
    return [max(part, key=lambda moment: moment.nbytes) for part in stretches]


def _axis(top: float, scale: float, floor: float) -> Iterable[str]:
    for share in (0, 0.5, 1):
        y = floor - share * top * scale
        yield (
            f'<line x1="80" x2="980" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
            f'<text x="72" y="{y + 4:.1f}" text-anchor="end">'
            f"{human_bytes(share * top)}</text>"
        )


def _largest(report: Any) -> str:
    rows = [
        (
            f"<code>{escape(buffer.array)}</code>",
            escape(buffer.scope),
            f"<code>{escape('/'.join(buffer.source.split('/')[-2:]))}</code>",
            human_bytes(buffer.nbytes),
        )
        for buffer in report.largest[:15]
    ]
    return _table(("array", "in", "from", "bytes"), rows, plain=False)


def _collectives(report: Any) -> str:
    rows = report.by_axis()
    if not rows:
        return '<p class="soft">None: one device, or nothing is exchanged.</p>'
    most = max(row["traffic"] for row in rows) or 1
    axes = list(dict.fromkeys(row["axes"] for row in rows))
    cells = []
    for row in rows:
        colour = f"var(--c{axes.index(row['axes']) % COLOURS})"
        bar = (
            '<svg viewBox="0 0 100 8" preserveAspectRatio="none">'
            f"{_rect(0, 0, 100 * row['traffic'] / most, 8, colour)}</svg>"
        )
        key = f'<span class="key" style="background:{colour}"></span>'
        cells.append(
            (
                key + escape(row["axes"]), escape(row["kind"]), bar,
                human_bytes(row["traffic"]), human_bytes(row["bytes"]),
                f"{row['count']:,}",
            )
        )  # fmt: skip
    names = ("axes", "kind", "", "sent by each", "bytes", "runs")
    return _table(names, cells, plain=False)


def _notes(report: Any) -> str:
    lines = ASSUMPTIONS if report.roofline is not None else ()
    items = "".join(f"<li>{escape(line)}</li>" for line in (*lines, *report.notes))
    return f"<ul>{items}</ul>" if items else '<p class="soft">None.</p>'


_RIGHT = {"bytes", "sent by each", "runs"}


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], plain=True) -> str:
    """A table; the cells of one that is not plain are HTML already."""
    head = "".join(
        f'<th class="number">{name}</th>' if name in _RIGHT else f"<th>{name}</th>"
        for name in names
    )
    lines = []
    for row in rows:
        cells = [escape(cell) if plain else cell for cell in row]
        kinds = [
            "bar" if cell.startswith("<svg") else "number" if name in _RIGHT else ""
            for name, cell in zip(names, cells, strict=True)
        ]
        if len(names) == 2:
            kinds[1] = "number"
        lines.append(
            "<tr>"
            + "".join(
                f'<td class="{kind}">{cell}</td>' if kind else f"<td>{cell}</td>"
                for kind, cell in zip(kinds, cells, strict=True)
            )
            + "</tr>"
        )
    head = f"<thead><tr>{head}</tr></thead>" if any(names) else ""
    body = f"{head}<tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def _rect(x, y, width, height, colour: str, inside: str = "") -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" '
        f'fill="{colour}">{inside}</rect>'
    )
