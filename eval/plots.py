"""The report's pictures: SVG and styled HTML whose colours follow the page's scheme.

Lines and cells are SVG stretched to the width there is; words are HTML, so that they stay readable
on a phone. Everything that comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from onellm.eval.curves import Phase, mean_weights, smooth
from onellm.progress import duration

SERIES = 8
"""Colours of series in the page's style sheet, ``--s0`` and on."""

Table = Sequence[Sequence[float]]


def percent(rate: float | None) -> str:
    """A rate as whole per cents, a dash for none."""
    return "–" if rate is None else f"{rate:.0%}".replace("%", "\N{NO-BREAK SPACE}%")


def points(difference: float) -> str:
    """A difference of rates in points, with its sign."""
    return f"{round(100 * difference):+d}".replace("-", "−")


def spaced(name: str) -> str:
    """A phase's name as words, so that long ones can be broken."""
    return name.replace("_", " ")


def colour(number: int) -> str:
    """CSS colour of a series."""
    return f"var(--s{number % SERIES})"


# -- accuracy -----------------------------------------------------------------------------------


def accuracy_chart(modalities: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per modality: exact match with its interval, and what it is to be compared with."""
    rows = [
        _accuracy_row(name, m) for name, m in modalities.items() if m["exact_match"] is not None
    ]
    ticks = "".join(f'<span style="left:{x}%">{x}</span>' for x in (0, 25, 50, 75, 100))
    return (
        f'<div class="acc">{"".join(rows)}'
        f'<div class="row axis"><span></span><div class="track">{ticks}</div><span></span></div>'
        "</div>"
    )


def _accuracy_row(name: str, m: Mapping[str, Any]) -> str:
    low, high = m["interval"]
    marks = [
        f'<i class="bar" style="width:{_at(m["exact_match"])}"></i>',
        f'<i class="whisker" style="left:{_at(low)};width:{_at(high - low)}"></i>',
        _mark("majority", "majority rate", m["majority"]),
        _mark("shuffled", "shuffled media", m["shuffled"]),
        _mark("reference", "classical reference", m["reference"]),
    ]
    title = f"{percent(m['exact_match'])}, 95 % interval {percent(low)} to {percent(high)}"
    return (
        f'<div class="row"><a class="name" href="#{escape(anchor(name))}">{escape(name)}'
        f"<small>{m['n']} questions</small></a>"
        f'<div class="track" title="{escape(title)}">{"".join(marks)}</div>'
        f'<span class="value">{percent(m["exact_match"])}'
        f"<small>{points(m['exact_match'] - m['majority'])} "
        '<span class="wide">points </span>over majority</small></span></div>'
    )


def _at(rate: float) -> str:
    return f"{100 * rate:.2f}%"


def _mark(kind: str, title: str, rate: float | None) -> str:
    if rate is None:
        return ""
    return f'<i class="{kind}" style="left:{_at(rate)}" title="{title} {percent(rate)}"></i>'


def anchor(name: str) -> str:
    """The id of a modality's section."""
    return "m-" + "".join(c if c.isalnum() else "-" for c in name)


# -- training -----------------------------------------------------------------------------------


def loss_chart(phase: Phase, colours: Mapping[str, str]) -> str:
    """Loss curves of a phase, one line per modality, means of stretches of steps.

    Args:
        phase: the curves.
        colours: CSS colours by modality; others are drawn in the text's colour.
    """
    curves = {name: smooth(curve) for name, curve in phase.shown.items() if curve}
    steps = [x for curve in curves.values() for x, _ in curve]
    losses = [y for curve in curves.values() for _, y in curve]
    left, right = min(steps), max(steps)
    bottom, top = min(0.0, *losses), max(losses)
    lines = []
    for name, curve in curves.items():
        path = " ".join(
            f"{_share(x, left, right):.2f},{100 - _share(y, bottom, top):.2f}" for x, y in curve
        )
        stroke = colours.get(name, "currentColor")
        title = f"{name}: {curve[0][1]:.2f} to {curve[-1][1]:.2f}"
        lines.append(
            f'<polyline points="{path}" style="stroke:{stroke}">'
            f"<title>{escape(title)}</title></polyline>"
        )
    grid = "".join(f'<line x1="0" x2="100" y1="{y}" y2="{y}"/>' for y in (25, 50, 75))
    last = phase.total[-1][0] if phase.total else right
    return (
        f'<figure class="loss"><figcaption>{escape(spaced(phase.name))}'
        f"<small>{last:,.0f} steps</small></figcaption>"
        f'<div class="plot"><span class="y top">{top:.3g}</span>'
        f'<span class="y bottom">{bottom:.3g}</span>'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="loss curves of {escape(phase.name)}">'
        f'<g class="grid">{grid}</g>{"".join(lines)}</svg></div></figure>'
    )


def _share(value: float, low: float, high: float) -> float:
    """Where a value lies between two others, in per cent."""
    return 100.0 * (value - low) / (high - low) if high > low else 50.0


def legend(colours: Mapping[str, str]) -> str:
    """Names with their colours."""
    items = (
        f'<li><i style="background:{stroke}"></i>{escape(name)}</li>'
        for name, stroke in colours.items()
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


# -- router -------------------------------------------------------------------------------------


def router_scale(tables: Mapping[str, Table]) -> tuple[float, float]:
    """Least and greatest weight that the heat maps show; at least 0.1 apart."""
    weights = [weight for table in tables.values() for row in table for weight in row]
    low, high = min(weights), max(weights)
    pad = max(0.0, 0.1 - (high - low)) / 2
    return low - pad, high + pad


def router_panel(name: str, table: Table, scale: tuple[float, float]) -> str:
    """One modality's router: the table as a heat map, and the mean weight of each expert.

    Args:
        name: of the modality.
        table: rows by query, columns by expert.
        scale: weights shown palest and darkest.
    """
    rows = []
    for e, mean in enumerate(mean_weights(table)):
        cells = "".join(
            f'<rect x="{q}" y="0" width="1.02" height="1" '
            f'style="opacity:{_share(row[e], *scale) / 100:.2f}"/>'
            for q, row in enumerate(table)
        )
        rows.append(
            f'<li><span>{e + 1}</span><svg viewBox="0 0 {len(table)} 1" '
            'preserveAspectRatio="none" role="img" '
            f'aria-label="weights of expert {e + 1} for {escape(name)}">{cells}</svg>'
            f"<b>{mean:.2f}</b></li>"
        )
    return (
        f'<figure class="router"><figcaption>{escape(name)}</figcaption>'
        f"<ul>{''.join(rows)}</ul></figure>"
    )


# -- time ---------------------------------------------------------------------------------------


def time_chart(seconds: Mapping[str, float]) -> str:
    """Wall time by phase, each with a bar and its share of the whole."""
    total = sum(seconds.values()) or 1.0
    items = "".join(
        f"<li><span>{escape(spaced(name))}</span>"
        f'<i class="meter"><i style="width:{100 * value / total:.1f}%"></i></i>'
        f"<b>{duration(value)}</b><small>{percent(value / total)}</small></li>"
        for name, value in seconds.items()
    )
    return f'<ul class="times">{items}</ul>'
