"""The page of the report on benchmarks: one HTML file without scripts or links to other files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from onellm.eval.benchmark_words import (
    best_rival,
    comparison_of,
    headline_words,
    is_whole,
    ours,
    partial_words,
    reading,
    run_words,
    truth_words,
)
from onellm.eval.page import data_uri, style
from onellm.eval.plots import anchor, percent
from onellm.eval.show_scores import headline, number
from onellm.eval.task import OURS
from onellm.eval.wording import made_with, samples_note

if TYPE_CHECKING:
    from PIL.Image import Image

Row = Mapping[str, Any]
Pictures = Mapping[tuple[str, str], "Sequence[Image]"]
_TEMPLATE = Path(__file__).parent / "benchmark_page.html"
GROUPS_SHOWN = 40
"""Members of a breakdown that are listed."""


def build_benchmark_page(report: Mapping[str, Any], pictures: Pictures) -> str:
    """Fill the template.

    Args:
        report: what ``report.json`` holds.
        pictures: of the sample answers' media, by (task, id).

    Returns:
        the page.
    """
    rows = report["tasks"]
    warning, note = partial_words(rows), samples_note(report)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        style=style(),
        published="\n".join(_published_marks(rows)),
        title=escape(headline_words(rows)),
        lead=escape(comparison_of(rows)),
        facts=f"<li>{escape(run_words(report))}</li>",
        warning=f'<p class="note warn">{escape(warning)}</p>' if warning else "",
        charts="".join(_charts(rows)),
        table=f'<div class="scroll results">{_table(rows)}</div>',
        reading="".join(f"<dt>{escape(t)}</dt><dd>{escape(m)}.</dd>" for t, m in reading()),
        samples_note=escape(f"Sample answers: {note[:1].lower()}{note[1:]}"),
        sections="".join(_section(row, pictures) for row in rows),
        made_with=escape(made_with(report)),
    )


# -- the chart ------------------------------------------------------------------------------------


def _published_marks(rows: Sequence[Row]) -> Iterator[str]:
    """The legend of those marks of published numbers that are in the chart."""
    models = [
        (model, model in row["published"]["trained"])
        for row in rows
        for model in row["published"]["scores"]
    ]
    there = {
        "paper": (OURS + " in the paper", any(model == OURS for model, _ in models)),
        "rival": ("rivals", any(model != OURS and not trained for model, trained in models)),
        "rival trained": ("rivals trained on the benchmark", any(t for _, t in models)),
    }
    for kind, (words, shown) in there.items():
        if shown:
            yield f'<li><i class="key"><i class="{kind}"></i></i>{escape(words)}</li>'


def _charts(rows: Sequence[Row]) -> Iterator[str]:
    for group in dict.fromkeys(row["group"] for row in rows):
        bars = "".join(_bar(row) for row in rows if row["group"] == group)
        if bars:
            yield f'<p class="group">{escape(group)}</p><div class="acc">{bars}</div>'


def _bar(row: Row) -> str:
    metric, mine = headline(row), ours(row)
    if metric is None or mine is None:
        return ""
    published = row["published"]
    printed = {m: v[metric] for m, v in published["scores"].items() if metric in v}
    low, high = row["intervals"].get(metric) or (mine, mine)
    top = max(mine, high, *printed.values()) if printed else max(mine, high)
    top = 100.0 if top <= 100 else 1.04 * top
    marks = [f'<i class="bar" style="width:{_at(mine, top)}"></i>']
    marks += [
        _mark(model, value, top, trained=model in published["trained"])
        for model, value in printed.items()
    ]
    low, high = max(0.0, low), min(top, high)  # a normal interval can leave the scale
    marks.append(
        f'<i class="whisker" style="left:{_at(low, top)};width:{_at(high - low, top)}"></i>'
    )
    paper = printed.get(OURS)
    beside = f"<small>{_signed(mine - paper)} to the paper</small>" if paper is not None else ""
    if not is_whole(row):
        beside = "<small>of a part</small>"
    label = escape(published["metric"].get(metric, metric))
    return (
        f'<div class="row"><a class="name" href="#{escape(anchor(row["task"]))}">'
        f"{escape(row['title'])}<small>{label}, {row['n']:,} questions</small></a>"
        f'<div class="track">{"".join(marks)}</div>'
        f'<span class="value">{number(mine)}{beside}</span></div>'
    )


def _at(value: float, top: float) -> str:
    return f"{100 * max(0.0, value) / top:.2f}%"


def _mark(model: str, value: float, top: float, *, trained: bool) -> str:
    kind = "paper" if model == OURS else "rival trained" if trained else "rival"
    title = escape(f"{model} {number(value)}")
    return f'<i class="{kind}" style="left:{_at(value, top)}" title="{title}"></i>'


def _signed(difference: float) -> str:
    return f"{difference:+.1f}".replace("-", "−")


# -- tables ---------------------------------------------------------------------------------------


def _table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        metric = headline(row)
        head = f"{escape(row['title'])}<small>{escape(row['split'])}</small>"
        asked = f"{row['n']:,}"
        if not is_whole(row) and row["size"]:
            asked += f"<small>of {row['size']:,}</small>"
        if metric is None:
            cells = [asked, "by a server", *["–"] * 6]
        else:
            low_high, rival = row["intervals"].get(metric), best_rival(row, metric)
            cells = [
                *(asked, escape(row["published"]["metric"].get(metric, metric))),
                f"<b>{number(row['metrics'][metric])}</b>",
                f"{number(low_high[0])} – {number(low_high[1])}" if low_high else "–",
                number(row["published"]["scores"].get(OURS, {}).get(metric)),
                f"{number(rival[1])}<small>{escape(rival[0])}</small>" if rival else "–",
                *(percent(row["unparsed"]), percent(row["empty"])),
            ]
        lines.append((head, cells))
    heads = (
        *("benchmark", "n", "metric", "score", "95 % interval", f"{OURS} (paper)"),
        *("best rival", "unparsed", "empty"),
    )
    return _html_table(heads, lines)


def _html_table(heads: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table; heads are text, cells are HTML."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


# -- one task -------------------------------------------------------------------------------------


def _section(row: Row, pictures: Pictures) -> str:
    tables = [_metrics(row), _published(row)]
    cards = "".join(_card(row, sample, pictures) for sample in row["samples"])
    notes = [*row["notes"], row["published"]["note"]]
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes if note)
    return (
        f'<section class="modality" id="{escape(anchor(row["task"]))}">'
        f"<h3>{escape(row['title'])}<small>{escape(row['task'])}</small></h3>"
        f'<div class="split">{"".join(tables)}</div>'
        f"{said}{''.join(_breakdowns(row))}"
        f'<div class="cards">{cards}</div></section>'
    )


def _metrics(row: Row) -> str:
    lines = []
    for name, value in row["metrics"].items():
        low_high = row["intervals"].get(name)
        interval = f"{number(low_high[0])} – {number(low_high[1])}" if low_high else "–"
        lines.append((escape(name), [f"<b>{number(value)}</b>", interval]))
    if not lines:
        return "<p class='note'>Scored by a server.</p>"
    return f'<div class="scroll">{_html_table(("metric", "score", "95 %"), lines)}</div>'


def _published(row: Row) -> str:
    published = row["published"]
    if not published["scores"]:
        return ""
    names = list(published["metric"])
    lines = []
    for model, scores in published["scores"].items():
        label = escape(model) + (" <small>trained</small>" if model in published["trained"] else "")
        lines.append((label, [number(scores.get(name)) for name in names]))
    heads = (f"published, {published['table']}", *(published["metric"][name] for name in names))
    return f'<div class="scroll">{_html_table(heads, lines)}</div>'


def _breakdowns(row: Row) -> Iterator[str]:
    """A folded table per group: its members and their numbers."""
    for group, members in row["groups"].items():
        top = max([100.0, *members.values()])
        lines = [
            (escape(member), [number(value), _meter(value / top)])
            for member, value in list(members.items())[:GROUPS_SHOWN]
        ]
        more = len(members) - len(lines)
        rest = f"<p class='note'>and {more} more in report.json</p>" if more else ""
        name = group.replace("_", " ")
        body = _html_table((name, row["primary"] or "score", ""), lines)
        yield (
            f"<details><summary>By {escape(name)} ({len(members)})</summary>"
            f"<div class='scroll'>{body}</div>{rest}</details>"
        )


def _meter(share: float) -> str:
    return f'<i class="meter"><i style="width:{100 * max(0.0, share):.0f}%"></i></i>'


def _card(row: Row, sample: Mapping[str, Any], pictures: Pictures) -> str:
    shown = pictures.get((row["task"], sample["id"]), ())
    images = "".join(
        f'<img src="{data_uri(picture)}" alt="{escape(str(sample["id"]))}" loading="lazy">'
        for picture in shown
    )
    image = f'<div class="strip">{images}</div>' if images else '<div class="blank"></div>'
    said = escape(sample["answer"]) or "<em>nothing</em>"
    state, mark = _state(sample["score"], row)
    read = sample["parsed"]
    different = isinstance(read, str) and read != sample["answer"]
    parsed = f'<p class="q">read as {escape(read)}</p>' if different else ""
    expected = escape(truth_words(sample["target"]))
    truth = "" if state == "right" else f'<p class="truth">{expected}</p>'
    question, _, rest = sample["prompt"].partition("\n")
    title = f' title="{escape(sample["prompt"])}"' if rest else ""
    return (
        f'<article class="{state}">{image}<p class="q"{title}>{escape(question)}</p>'
        f'<p class="a"><i>{mark}</i>{said}</p>{parsed}{truth}</article>'
    )


def _state(score: Any, row: Row) -> tuple[str, str]:
    """Right, wrong, or somewhere between, and the mark for it."""
    if score is None:
        return "part", ""
    if row["hit_or_miss"]:
        return ("right", "✓") if score else ("wrong", "✗")
    return "part", f"<small>{float(score):.2f}</small>"
