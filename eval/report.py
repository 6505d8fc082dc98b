"""The report's three files: ``report.json``, ``report.md`` and one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onellm.eval.curves import last_routers, mean_weights, phases, training_facts
from onellm.eval.page import build_page
from onellm.eval.plots import percent
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


def write_report(
    out: str | Path,
    summary: Mapping[str, Any],
    metrics: Iterable[Mapping[str, Any]] = (),
    thumbnails: Mapping[tuple[str, str], Image] | None = None,
) -> Path:
    """Write all three files.

    Args:
        out: folder, made if it is not there.
        summary: what :func:`onellm.eval.summary.summarize` returned.
        metrics: lines of ``metrics.jsonl``, each with a ``phase``.
        thumbnails: pictures of the sample answers' media by (modality, sample id); a missing one
            leaves its place empty.

    Returns:
        the path of ``report.html``.
    """
    records = list(metrics)
    curves, routers = phases(records), last_routers(records)
    report = {
        **summary,
        "training": training_facts(curves),
        "router": {
            name: [round(weight, 4) for weight in mean_weights(table)]
            for name, table in routers.items()
        },
    }
    return write_texts(
        out,
        {
            "report.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
            "report.md": markdown(report),
            "report.html": build_page(report, curves, routers, thumbnails or {}),
        },
    )


def write_texts(out: str | Path, texts: Mapping[str, str]) -> Path:
    """Write a report's files, each under a temporary name first.

    Args:
        out: folder, made if it is not there.
        texts: by file name.

    Returns:
        the path of the last one.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
    return folder / name


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown, without pictures.

    Args:
        report: the summary, with or without ``training`` and ``router``.
    """
    parts = [f"# {title(report)}", verdict(report), _results(report)]
    parts += ["\n".join(f"* **{term}**: {meaning}." for term, meaning in READING)]
    parts += ["## Time", table(("phase", "time"), _time_rows(report))]
    if report.get("training"):
        rows = [
            (name, f"{f['steps']}", f"{f['first_loss']:.3f}", f"{f['last_loss']:.3f}")
            for name, f in report["training"].items()
        ]
        parts += ["## Training", table(("phase", "steps", "loss at first", "at last"), rows)]
    if report.get("router"):
        experts = range(1, 1 + max(len(w) for w in report["router"].values()))
        rows = [(m, *(f"{x:.3f}" for x in w)) for m, w in report["router"].items()]
        heads = ("modality", *(f"expert {e}" for e in experts))
        parts += ["## Router, mean weight per expert", table(heads, rows)]
    parts += [f"## Sample answers\n\n{samples_note(report)}", *_samples(report)]
    commit = f", commit {report['commit']}" if report["commit"] else ""
    run = f"Preset {report['preset']}, seed {report['seed']}{commit}."
    parts += [f"## Made with\n\n{plain_cell(f'{run} {made_with(report)}.')}"]
    return "\n\n".join(parts) + "\n"


def _results(report: Mapping[str, Any]) -> str:
    heads = (
        *("modality", "questions", "exact match", "95 % interval", "majority", "shuffled media"),
        *("classical reference", "2nd question", "CIDEr, 0 to 10"),
    )
    rows = []
    for name, m in report["modalities"].items():
        interval = " to ".join(percent(x) for x in m["interval"]) if m["interval"] else "–"
        rates = (m[key] for key in ("majority", "shuffled", "reference"))
        second = ", ".join(f"{rate} {of}" for rate, of in second_scores(m)) or "–"
        cider = "–" if m["cider"] is None else f"{m['cider']:.2f}"
        first = (name, str(m["n"]), percent(m["exact_match"]), interval)
        rows.append((*first, *map(percent, rates), second, cider))
    return table(heads, rows)


def _time_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = [(name, duration(value)) for name, value in report["seconds"].items()]
    return [*rows, ("total", duration(report["total_seconds"]))]


def _samples(report: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, m in report["modalities"].items():
        rows = [
            (
                "✓" if row["right"] else "✗",
                *(row["question"], row["answer"], row["reference"]),
                *(row["caption"] or "", row["caption_reference"] or ""),
            )
            for row in m["samples"]
        ]
        heads = ("", "question", "answer", "truth", "caption", "true caption")
        parts.append(f"### {plain_cell(name)}\n\n{table(heads, rows)}")
    return parts


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its cells made safe."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(plain_cell(cell) for cell in line) + " |" for line in lines)


def plain_cell(text: str) -> str:
    """Text on one line that can neither leave a table's cell nor become markup."""
    text = " ".join(text.split())
    for character in "\\|`*_[]<>":
        text = text.replace(character, f"\\{character}")
    return text.replace("\\<", "&lt;").replace("\\>", "&gt;")
