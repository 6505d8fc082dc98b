"""Files for official scorers and submission servers, made from a file of answers."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from onellm.errors import BadInput, ConfigError
from onellm.eval.answers import Record
from onellm.eval.scoring import with_steps
from onellm.eval.task import Task
from onellm.spelling import did_you_mean

Files = dict[str, bytes]
Writer = Callable[[Sequence[Record]], Files]
_WRITERS: dict[str, Writer] = {}


def export(task: Task, records: Sequence[Record], out: str | Path, format: str = "") -> list[Path]:
    """Write the answers to a task as its official tools read them.

    Args:
        task: which steps an answer takes first.
        records: its answers.
        out: folder, made if it is not there.
        format: a name of :func:`export_formats`; the first one of the task if left out.

    Returns:
        the files that were written.

    Raises:
        ConfigError: an unknown format, or a task without one.
        BadInput: answers that lack what the format needs.
    """
    name = format or next(iter(task.export), "")
    if name not in _WRITERS:
        known = task.export or export_formats()
        what = f"unknown format {name!r}" if name else f"task {task.name} has no official format"
        raise ConfigError(f"{what}.{did_you_mean(name, known)}")
    try:
        files = _WRITERS[name](with_steps(task, records))
    except (KeyError, TypeError, ValueError) as error:
        where, found = f"answers to {task.name}", f"none ({error!r})"
        expected = f"what the format {name} needs"
        raise BadInput(where, expected=expected, found=found) from error
    folder = Path(out)
    paths = [folder / file for file in files]
    for path, data in zip(paths, files.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return paths


def export_formats() -> list[str]:
    """Names of all formats."""
    return sorted(_WRITERS)


def _writer(write: Writer) -> Writer:
    _WRITERS[write.__name__.removeprefix("_")] = write
    return write


def _json(name: str, data: Any) -> Files:
    return {name: (json.dumps(data, ensure_ascii=False) + "\n").encode()}


@_writer
def _vqa(records: Sequence[Record]) -> Files:
    rows = [{"question_id": int(r["id"]), "answer": r["answer"]} for r in records]
    return _json("vqa_results.json", rows)


@_writer
def _vqa_normalised(records: Sequence[Record]) -> Files:
    """With the answers normalised as TextVQA does, which is what LLaVA uploads."""
    from onellm.eval.metrics.vqa import NORMALISERS

    clean = NORMALISERS["textvqa"]
    rows = [{"question_id": int(r["id"]), "answer": clean(r["answer"])} for r in records]
    return _json("vqa_results.json", rows)


@_writer
def _vizwiz(records: Sequence[Record]) -> Files:
    rows = [dict(image=r["id"], answer=r["answer"]) for r in records]
    return _json("vizwiz_results.json", rows)


@_writer
def _gqa(records: Sequence[Record]) -> Files:
    rows = [{"questionId": r["id"], "prediction": r["answer"]} for r in records]
    return _json("gqa_predictions.json", rows)


@_writer
def _coco_captions(records: Sequence[Record]) -> Files:
    rows = [{"image_id": r["meta"]["item"], "caption": r["answer"]} for r in records]
    return _json("captions_results.json", rows)


@_writer
def _scienceqa(records: Sequence[Record]) -> Files:
    """What LLaVA's script reads: a line per answer."""
    rows = (
        json.dumps({"question_id": r["id"], "prompt": r["prompt"], "text": r["answer"]})
        for r in records
    )
    return {"scienceqa_answers.jsonl": "".join(f"{row}\n" for row in rows).encode()}


@_writer
def _seed_bench(records: Sequence[Record]) -> Files:
    """What the leaderboard reads: a line per question with the letter or the likeliest option."""
    rows = []
    for r in records:
        said = r["answer"]
        if said in r.get("options", ()):
            said = "ABCD"[r["options"].index(said)]
        rows.append(json.dumps({"question_id": r["id"], "prediction": said}) + "\n")
    return {"seed_bench.jsonl": "".join(rows).encode()}


@_writer
def _nextqa(records: Sequence[Record]) -> Files:
    """What the official script reads: the right and the chosen option's number by id."""
    letters = "ABCDE"
    rows = {}
    for r in records:
        said = (r.get("parsed") or r["answer"])[:1].upper()
        number = letters.index(said) if said and said in letters else -1
        rows[r["id"]] = {"prediction": number, "answer": letters.index(r["target"])}
    return _json("nextqa_results.json", rows)


@_writer
def _mmvet(records: Sequence[Record]) -> Files:
    return _json("mmvet_results.json", {r["id"]: r["answer"] for r in records})


@_writer
def _pointllm(records: Sequence[Record]) -> Files:
    rows = [
        {"object_id": r["id"], "ground_truth": r["target"][0], "model_output": r["answer"]}
        for r in records
    ]
    return _json("pointllm_results.json", {"prompt": records[0]["prompt"], "results": rows})


@_writer
def _mme(records: Sequence[Record]) -> Files:
    """A text file per subtask; the two lines of an image stand side by side."""
    lines: dict[str, dict[str, list[str]]] = {}
    for r in records:
        meta = r["meta"]
        said = " ".join(r["answer"].split())
        line = "\t".join((meta["file"], meta["question"], r["target"], said))
        picture = r["id"].rpartition("/")[0]
        lines.setdefault(meta["subtask"], {}).setdefault(picture, []).append(line)
    return {
        f"{subtask}.txt": "".join(
            f"{line}\n" for pair in pictures.values() for line in pair
        ).encode()
        for subtask, pictures in lines.items()
    }


def _mmbench_rows(records: Sequence[Record]) -> list[list[str]]:
    head = "index question A B C D prediction category l2-category split"
    rows = [head.split()]
    for r in records:
        meta, options = r["meta"], [*r["options"], "", "", "", ""][:4]
        tail = [meta["category"], meta["ability"], meta["split"]]
        rows.append([str(meta["index"]), meta["question"], *options, r["answer"], *tail])
    return rows


@_writer
def _mmbench_tsv(records: Sequence[Record]) -> Files:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows(_mmbench_rows(records))
    return {"mmbench_results.tsv": buffer.getvalue().encode()}


@_writer
def _mmbench_xlsx(records: Sequence[Record]) -> Files:
    """The workbook that the server takes: one sheet of text cells."""
    return {"mmbench_results.xlsx": workbook(_mmbench_rows(records))}


_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_NS = "http://schemas.openxmlformats.org"
_REL = f"{_NS}/officeDocument/2006/relationships"
_KINDS = "application/vnd.openxmlformats-officedocument.spreadsheetml"


def workbook(rows: Sequence[Sequence[str]]) -> bytes:
    """An Office Open XML workbook of one sheet; numbers stay numbers in the first column.

    Args:
        rows: of text; the first one is the heading.
    """
    lines = []
    for number, row in enumerate(rows):
        cells = [
            f"<c><v>{cell}</v></c>"
            if column == 0 and number and cell.isdigit()
            else f'<c t="inlineStr"><is><t xml:space="preserve">{_legal(cell)}</t></is></c>'
            for column, cell in enumerate(row)
        ]
        lines.append(f"<row>{''.join(cells)}</row>")
    sheet = (
        f'<worksheet xmlns="{_NS}/spreadsheetml/2006/main">'
        f"<sheetData>{''.join(lines)}</sheetData></worksheet>"
    )
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{_NS}/package/2006/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_KINDS}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_KINDS}.worksheet+xml"/>'
        "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{_NS}/package/2006/relationships">'
        f'<Relationship Id="rId1" Type="{_REL}/officeDocument" Target="xl/workbook.xml"/>'
        "</Relationships>",
        "xl/workbook.xml": f'<workbook xmlns="{_NS}/spreadsheetml/2006/main" xmlns:r="{_REL}">'
        '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_NS}/package/2006/relationships">'
        f'<Relationship Id="rId1" Type="{_REL}/worksheet" Target="worksheets/sheet1.xml"/>'
        "</Relationships>",
        "xl/worksheets/sheet1.xml": sheet,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, _XML + text)
    return buffer.getvalue()


def _legal(text: str) -> str:
    """Text without the control characters that XML does not allow."""
    return escape("".join(c for c in text if c >= " " or c in "\t\n"))
