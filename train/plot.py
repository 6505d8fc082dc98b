"""Pictures of training runs: a PNG, and one HTML page that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from onellm.train.curves import Curve, Panel, panels, read_runs
from onellm.weight_files import put, write_text

COLOURS = ("#2f6fde", "#e07b39", "#2a9d6f", "#c2407a", "#8a63d2", "#b59f1c", "#4aa8c9", "#8b6b5a")
DASHES = ("", "6 3", "2 3", "9 3 2 3")
WIDTH, HEIGHT = 420.0, 230.0
LEFT, RIGHT, BOTTOM, TOP = 48.0, 16.0, 26.0, 8.0


def plot_runs(folders: Iterable[str | Path], out: str | Path) -> list[Path]:
    """Draw runs over each other.

    Args:
        folders: of runs, or ``metrics.jsonl`` files.
        out: folder for ``training.png`` and ``training.html``.

    Returns:
        the files.

    Raises:
        BadInput: a folder without metrics.
    """
    runs = read_runs(folders)
    made, target = panels(runs), Path(out)
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / "training.html", page(list(runs), made))
    temporary = target / ".training.png"
    draw(made, temporary)
    put(temporary, target / "training.png")
    return [target / "training.png", target / "training.html"]


def draw(made: Sequence[Panel], file: Path, columns: int = 3) -> None:
    """Draw panels into a PNG.

    Args:
        made: what to draw.
        file: to write.
        columns: panels beside each other.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    rows = math.ceil(len(made) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(made):
        axes = figure.add_subplot(rows, columns, number + 1)
        for curve in panel.curves:
            xs, ys = zip(*curve.points, strict=True)
            dash = DASHES[curve.run % len(DASHES)]
            style = (0, tuple(float(d) / 2 for d in dash.split())) if dash else "-"
            marker = "o" if len(xs) == 1 else None
            colour = COLOURS[curve.colour % len(COLOURS)]
            axes.plot(xs, ys, color=colour, ls=style, lw=1.5, label=curve.name, marker=marker, ms=3)
        axes.set_title(panel.title, fontsize=10, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        if panel.share:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if len(panel.curves) > 1:
            axes.legend(fontsize=7, framealpha=0.75, edgecolor="none")
        if number >= len(made) - columns:
            axes.set_xlabel("step", fontsize=8)
    figure.savefig(str(file), dpi=110, format="png")


# -- page ---------------------------------------------------------------------------------------


def page(names: Sequence[str], made: Sequence[Panel]) -> str:
    """The HTML page.

    Args:
        names: of the runs.
        made: what to draw.
    """
    heads = {"loss": "Loss", "rate": "Learning rate, speed, gradient", "router": "Router"}
    sections = "".join(
        f"<h2>{title}</h2><div class=grid>{''.join(map(figure_of, own))}</div>"
        for kind, title in heads.items()
        if (own := [panel for panel in made if panel.kind == kind])
    )
    title = escape(", ".join(names))
    dashes = " Each run has its own dashes." if len(names) > 1 else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style><main><h1>{title}</h1>"
        f"<p>Over optimiser steps.{dashes}</p>{sections}</main></html>"
    )


STYLE = """
:root{color-scheme:light dark;--line:#8884}
body{margin:0;font:14px/1.45 system-ui,sans-serif}
main{max-width:1340px;margin:0 auto;padding:20px}
h1{font-size:20px;overflow-wrap:anywhere}h2{font-size:15px;margin:26px 0 8px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:18px}
figure{margin:0;min-width:0}figcaption{font-weight:600}
svg{width:100%;height:auto;display:block}
svg text{font-size:11px;fill:currentColor;opacity:.75}
svg .grid-line{stroke:var(--line)}
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}
ul{list-style:none;margin:2px 0;padding:0;display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12px}
li svg{display:inline-block;width:22px;height:8px;vertical-align:middle;margin-right:4px}
"""


def figure_of(panel: Panel) -> str:
    """One panel as SVG with its legend."""
    points = [point for curve in panel.curves for point in curve.points]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    bottom, top = min(y for _, y in points), max(y for _, y in points)
    if panel.share:
        bottom, top = 0.0, max(top, 0.05)
    if top == bottom:
        bottom, top = bottom - abs(bottom) / 2, top + (abs(top) / 2 or 1.0)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - bottom) / (top - bottom)
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + (1 - up) * (HEIGHT - TOP - BOTTOM)

    marks = [_mark(place(left, y)[1], y) for y in ticks(bottom, top)]
    marks += [
        f'<text x="{place(x, bottom)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{short(x)}</text>"
        for x in ticks(left, right)
    ]
    lines = [_polyline(curve, [place(x, y) for x, y in curve.points]) for curve in panel.curves]
    title = escape(panel.title)
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role=img aria-label="{title}">'
        f"{''.join(marks)}{''.join(lines)}</svg>{_legend(panel.curves)}</figure>"
    )


def _mark(y: float, value: float) -> str:
    return (
        f'<line class=grid-line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>'
    )


def _style(curve: Curve) -> str:
    colour, dash = COLOURS[curve.colour % len(COLOURS)], DASHES[curve.run % len(DASHES)]
    return f'stroke="{colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _polyline(curve: Curve, places: Sequence[tuple[float, float]]) -> str:
    if len(places) == 1:
        x, y = places[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{COLOURS[curve.colour % 8]}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    first, last = curve.points[0][1], curve.points[-1][1]
    title = escape(f"{curve.name}: {short(first)} to {short(last)}")
    return f'<polyline points="{path}" {_style(curve)}><title>{title}</title></polyline>'


def _legend(curves: Sequence[Curve]) -> str:
    if len(curves) < 2:
        return ""
    items = (
        f'<li><svg viewBox="0 0 22 8"><polyline points="0,4 22,4" {_style(curve)}/></svg>'
        f"{escape(curve.name)}</li>"
        for curve in curves
    )
    return f"<ul>{''.join(items)}</ul>"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between two others.

    Example:
        >>> ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        return [low]
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.8)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{n * step:.10g}") for n in range(first, last + 1)]


def short(value: float) -> str:
    """A number in few characters.

    Example:
        >>> short(12500.0), short(1500.0), short(0.00002), short(0.25)
        ('12.5k', '1500', '2e-05', '0.25')
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e3:  # as many digits as it has
        return f"{value / 1e3:.4g}k" if abs(value) >= 1e4 else f"{value:.0f}"
    return f"{value:.3g}"
