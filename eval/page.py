"""The report's page: one HTML file without scripts, links to other files, or need of a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from onellm.eval import plots
from onellm.eval.curves import Phase
from onellm.eval.plots import percent
from onellm.eval.summary import NEAR, TINY, control_excess
from onellm.eval.wording import (
    READING,
    made_with,
    samples_note,
    second_scores,
    title,
    verdict,
)
from onellm.progress import duration

if TYPE_CHECKING:
    from PIL.Image import Image

Thumbnails = Mapping[tuple[str, str], "Image"]
_TEMPLATE = Path(__file__).parent / "page.html"


def style() -> str:
    """The style sheet of all our pages."""
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def build_page(
    report: Mapping[str, Any],
    curves: Sequence[Phase],
    routers: Mapping[str, plots.Table],
    thumbnails: Thumbnails,
) -> str:
    """Fill the template.

    Args:
        report: the report's numbers.
        curves: loss curves by phase.
        routers: router tables by modality.
        thumbnails: pictures by (modality, sample id).

    Returns:
        the page.
    """
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    modalities = report["modalities"]
    return template.substitute(
        style=style(),
        title=escape(title(report)),
        verdict=escape(verdict(report)),
        facts=_facts(report),
        tiles=_tiles(report),
        accuracy=plots.accuracy_chart(modalities),
        table=_table(modalities),
        reading=_reading(),
        samples_note=escape(samples_note(report)),
        samples="".join(_section(n, m, thumbnails) for n, m in modalities.items()),
        training=_training(curves, list(modalities)),
        router=_router(routers),
        time=plots.time_chart(report["seconds"]),
        total=duration(report["total_seconds"]),
        made_with=escape(made_with(report)),
    )


def _facts(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    items = [
        f"preset {report['preset']}",
        f"seed {report['seed']}",
        f"{machine['cores']} cores",
        duration(report["total_seconds"]),
    ]
    if report["commit"]:
        items.append(f"commit {report['commit']}")
    return "".join(f"<li>{escape(item)}</li>" for item in items)


def _tiles(report: Mapping[str, Any]) -> str:
    """Three or four numbers to begin with."""
    rows = [m for m in report["modalities"].values() if m["exact_match"] is not None]
    goals, tiles = report["goals"], []
    if rows:
        mean = sum(m["exact_match"] for m in rows) / len(rows)
        chance = sum(m["majority"] for m in rows) / len(rows)
        tiles.append((percent(mean), f"mean exact match; majority {percent(chance)}"))
        tiles.append((_of(goals, "above_majority", "of"), "20 points or more above majority"))
    if goals["with_reference"]:
        tiles.append(
            (_of(goals, "at_reference", "with_reference"), "reach the classical reference")
        )
    if goals["with_control"]:
        excess = control_excess(report["modalities"])
        at_most = sum(e <= NEAR + TINY for e in excess)
        near = f"within 6 on either side: {goals['control_near_majority']}"
        label = f"at most 6 points above majority with shuffled media ({near})"
        tiles.append((f"{at_most}<small>/{len(excess)}</small>", label))
    return "".join(f"<li><b>{value}</b>{escape(label)}</li>" for value, label in tiles)


def _of(goals: Mapping[str, Any], part: str, whole: str) -> str:
    return f"{goals[part]}<small>/{goals[whole]}</small>"


def _table(modalities: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, m in modalities.items():
        low, high = m["interval"] or (None, None)
        interval = f"{percent(low)} – {percent(high)}" if m["interval"] else "–"
        cells = [
            *(str(m["n"]), f"<b>{percent(m['exact_match'])}</b>", interval),
            *(percent(m["majority"]), percent(m["shuffled"]), percent(m["reference"])),
            *(_second(m), "–" if m["cider"] is None else f"{m['cider']:.2f}"),
        ]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>')
    heads = (
        *("modality", "questions", "exact match", "95 % interval", "majority", "shuffled media"),
        *("classical reference", "2nd question", "CIDEr, 0 to 10"),
    )
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _second(m: Mapping[str, Any]) -> str:
    """Accuracy on second questions, with the majority rate behind it."""
    return "<br>".join(f"{rate} <small>{of}</small>" for rate, of in second_scores(m)) or "–"


def _reading() -> str:
    return "".join(f"<dt>{escape(t)}</dt><dd>{escape(m)}.</dd>" for t, m in READING)


# -- sample answers -----------------------------------------------------------------------------


def _section(name: str, m: Mapping[str, Any], thumbnails: Thumbnails) -> str:
    cards = "".join(_card(row, thumbnails.get((name, row["id"]))) for row in m["samples"])
    score = "" if m["exact_match"] is None else f"<small>{percent(m['exact_match'])} right</small>"
    return (
        f'<section class="modality" id="{escape(plots.anchor(name))}">'
        f"<h3>{escape(name)}{score}</h3>"
        f'<div class="cards">{cards}</div>{_classes(m["per_class"])}</section>'
    )


def _card(row: Mapping[str, Any], picture: Image | None) -> str:
    image = '<div class="blank"></div>'
    if picture is not None:
        image = f'<img src="{data_uri(picture)}" alt="{escape(str(row["id"]))}" loading="lazy">'
    said = escape(row["answer"]) or "<em>nothing</em>"
    state, mark = ("right", "✓") if row["right"] else ("wrong", "✗")
    truth = "" if row["right"] else f'<p class="truth">{escape(row["reference"])}</p>'
    caption = ""
    if row["caption"] is not None:
        caption = (
            f'<p class="caption">“{escape(row["caption"])}”'
            f"<span>{escape(row['caption_reference'] or '')}</span></p>"
        )
    return (
        f'<article class="{state}">{image}{_question(row["question"])}'
        f'<p class="a"><i>{mark}</i>{said}</p>{truth}{caption}</article>'
    )


def _question(question: str) -> str:
    """The question itself; how it is to be answered shows when pointed at."""
    asked, mark, how = question.partition("?")
    title = f' title="{escape(question)}"' if how.strip() else ""
    return f'<p class="q"{title}>{escape(asked + mark)}</p>'


def data_uri(picture: Image) -> str:
    """A picture as text for an ``img``: PNG, or JPEG where that is smaller."""
    choices = []
    for kind, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": 85})):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, kind, **options)
        choices.append((buffer.getvalue(), kind.lower()))
    data, kind = min(choices, key=lambda choice: len(choice[0]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _classes(scores: Sequence[Mapping[str, Any]]) -> str:
    """How each true answer fared, folded away."""
    if not scores:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(s["answer"])}</th><td>{s["right"]} / {s["n"]}</td>'
        f'<td><i class="meter"><i style="width:{100 * s["right"] / s["n"]:.0f}%"></i></i></td>'
        f"<td>{s['said']}</td><td>{escape(s['mistaken_for'] or '–')}</td></tr>"
        for s in scores
    )
    heads = "".join(
        f'<th scope="col">{h}</th>'
        for h in ("true answer", "right", "", "times said", "most often mistaken for")
    )
    return (
        f"<details><summary>How often each of the {len(scores)} true answers was found, "
        "and what was said instead</summary><div class='scroll'><table>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


# -- training -----------------------------------------------------------------------------------


def _training(curves: Sequence[Phase], modalities: Sequence[str]) -> str:
    if not curves:
        return '<p class="note">No metrics were recorded.</p>'
    colours = {name: plots.colour(i) for i, name in enumerate(modalities)}
    charts = "".join(plots.loss_chart(phase, colours) for phase in curves)
    return f'{plots.legend(colours)}<div class="losses">{charts}</div>'


def _router(routers: Mapping[str, plots.Table]) -> str:
    if not routers:
        return '<p class="note">No router table was recorded.</p>'
    low, high = scale = plots.router_scale(routers)
    queries, experts = max((len(table), len(table[0])) for table in routers.values())
    panels = "".join(plots.router_panel(name, table, scale) for name, table in routers.items())
    return (
        f'<p class="note">Weights of the {experts} experts: a row each, with its mean behind it, '
        f"and a column for each of the {queries} modality tokens, from {low:.2f} (pale) to "
        f"{high:.2f} (full colour). The weights of a token sum to 1.</p>"
        f'<div class="routers">{panels}</div>'
    )
