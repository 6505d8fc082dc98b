"""Grades from a language model, as a step of their own on a finished file of answers.

Every prompt, every reply and what it cost is written down; the scorers of
:mod:`onellm.eval.scorers.judged` read the grades from that file. Nothing is asked twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from onellm.errors import BadInput
from onellm.eval.rubrics import Rubric

Job = tuple[str, Mapping[str, Any], int]
"""Key, record and number of the repeat."""


@dataclass(frozen=True)
class Reply:
    """What a judge says.

    Args:
        text: its reply.
        prompt_tokens: what the question cost.
        completion_tokens: what the reply cost.
        retries: how often it was sent again before there was one.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0


class Judge(Protocol):
    """Anything that answers a prompt: :class:`onellm.eval.endpoint.Endpoint`, a local model."""

    @property
    def id(self) -> str:
        """What it is known by in records: the model's name and where it runs."""

    def ask(self, prompt: str, temperature: float, max_tokens: int) -> Reply:
        """Reply to a prompt."""


@dataclass(frozen=True)
class LocalJudge:
    """A function as a judge.

    Args:
        id: what it is known by.
        reply: (prompt, temperature, greatest number of new tokens) → text.

    Example:
        >>> LocalJudge("mine", lambda prompt, temperature, tokens: model.generate(prompt))
    """

    id: str
    reply: Callable[[str, float, int], str]

    def ask(self, prompt: str, temperature: float, max_tokens: int) -> Reply:
        """Call the function."""
        return Reply(self.reply(prompt, temperature, max_tokens))


@dataclass(frozen=True)
class Cost:
    """What judging came to.

    Args:
        judge: who judged.
        rubric: by what rule.
        prompt_hash: of the rubric's words and settings.
        records: how many answers.
        repeats: how often each.
        asked: prompts sent for them, tries included.
        retries: how often one was sent again because the judge was busy.
        ungraded: how often no try gave a grade.
        prompt_tokens: of all prompts, where the judge says so.
        completion_tokens: of all replies.
        agreement: share of answers with the same grade in every repeat; None for one repeat.
        spread: mean difference between two grades of an answer; None for one repeat.
    """

    judge: str
    rubric: str
    prompt_hash: str
    records: int
    repeats: int
    asked: int
    retries: int
    ungraded: int
    prompt_tokens: int
    completion_tokens: int
    agreement: float | None = field(default=None)
    spread: float | None = field(default=None)


def judge_answers(
    records: Sequence[Mapping[str, Any]],
    judge: Judge,
    rubric: Rubric,
    out: str | Path,
    *,
    repeats: int = 1,
    workers: int = 1,
) -> Cost:
    """Have answers graded; what the file already has is not asked again.

    Args:
        records: answers, of one task.
        judge: who grades.
        rubric: how it is asked and read.
        out: JSONL of replies, one line per answer and repeat, appended as they come.
        repeats: grades per answer.
        workers: how many answers are judged at a time.

    Raises:
        BadInput: no answers, the judge cannot be asked, or a damaged file of replies.
    """
    file = Path(out)
    if not records:
        raise BadInput(file, expected="answers to grade", found="none")
    file.parent.mkdir(parents=True, exist_ok=True)
    known = {line["key"]: line for line in (read_replies(file) if file.is_file() else [])}
    wanted: list[Job] = [
        (_key(record, judge.id, rubric, repeat), record, repeat)
        for repeat in range(repeats)
        for record in records
    ]
    missing = [job for job in wanted if job[0] not in known]
    with (
        file.open("a", encoding="utf-8", newline="\n") as stream,
        ThreadPoolExecutor(workers) as pool,
    ):
        for line in pool.map(lambda job: _grade(job, judge, rubric), missing):
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            known[line["key"]] = line
    return _cost([known[key] for key, _, _ in wanted], len(records), repeats)


def _key(record: Mapping[str, Any], judge: str, rubric: Rubric, repeat: int) -> str:
    parts = [judge, rubric.hash, repeat, record.get("task"), record["id"], rubric.fill(record)]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


def _grade(job: Job, judge: Judge, rubric: Rubric) -> dict[str, Any]:
    """Ask until a reply can be read, at most as often as the rubric says."""
    key, record, repeat = job
    prompt, tries, grade = rubric.fill(record), [], None
    began = time.perf_counter()
    for number in range(rubric.tries):
        asked = prompt if number == 0 else prompt + rubric.insist
        temperature = rubric.temperature + number * rubric.warmer
        reply = judge.ask(asked, temperature, rubric.max_tokens)
        tries.append({"temperature": temperature, **asdict(reply)})
        grade = rubric.read(reply.text)
        if grade is not None:
            break
    return {
        **{"key": key, "task": record.get("task"), "id": record["id"], "repeat": repeat},
        **{"judge": judge.id, "rubric": rubric.name, "prompt_hash": rubric.hash},
        **{"answer": record["answer"], "prompt": prompt, "tries": tries, "grade": grade},
        "seconds": round(time.perf_counter() - began, 3),
    }


def _cost(lines: Sequence[Mapping[str, Any]], records: int, repeats: int) -> Cost:
    tries = [one for line in lines for one in line["tries"]]
    grades: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        grades[line["id"]].append(line["grade"] or 0.0)
    agreement = spread = None
    if repeats > 1:
        agreement = fmean(len(set(each)) == 1 for each in grades.values())
        spread = fmean(
            abs(a - b) for each in grades.values() for n, a in enumerate(each) for b in each[:n]
        )
    first = lines[0]
    return Cost(
        judge=first["judge"],
        rubric=first["rubric"],
        prompt_hash=first["prompt_hash"],
        records=records,
        repeats=repeats,
        asked=len(tries),
        retries=sum(one.get("retries", 0) for one in tries),
        ungraded=sum(line["grade"] is None for line in lines),
        prompt_tokens=sum(one["prompt_tokens"] for one in tries),
        completion_tokens=sum(one["completion_tokens"] for one in tries),
        agreement=agreement,
        spread=spread,
    )


def read_replies(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of replies; a last line that a crash cut off is asked again.

    Raises:
        BadInput: no such file, or a line that is no reply.
    """
    file = Path(path)
    if not file.is_file():
        raise BadInput(file, expected="a judge's file of replies", found="no such file")
    whole = file.read_bytes()
    if cut := len(whole) - (whole.rfind(b"\n") + 1):
        whole = whole[:-cut]
        file.write_bytes(whole)  # or the next line would be appended to half of one
    lines = []
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            reply = json.loads(line)
            lines.append({**reply, "key": reply["key"], "grade": reply["grade"]})
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{file}, line {number}", expected="a reply", found=str(error)
            ) from error
    return lines


def with_grades(records: Sequence[Mapping[str, Any]], replies: str | Path) -> list[dict[str, Any]]:
    """Records with a judge's ``grades``, one per repeat, and who gave them.

    Args:
        records: answers.
        replies: the file that :func:`judge_answers` wrote.

    Raises:
        BadInput: an answer that was not judged, or was another one when it was; several judges or
            rubrics in the file.
    """
    grades: dict[tuple[Any, Any], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    lines = read_replies(replies)
    judges = {(line["judge"], line["prompt_hash"]) for line in lines}
    if len(judges) > 1:
        found = ", ".join(f"{name} ({prompt})" for name, prompt in sorted(judges))
        raise BadInput(replies, expected="one judge and one prompt", found=found)
    for line in lines:
        grades[line["task"], line["id"]][line["repeat"]] = line
    graded = []
    for record in records:
        own = grades.get((record.get("task"), record["id"]), {})
        if not own or any(line["answer"] != record["answer"] for line in own.values()):
            found = "none" if not own else "grades of another answer"
            hint = "Run the judge again; it asks for what is missing."
            where = f"{replies}, record {record['id']}"
            raise BadInput(where, expected="a judge's grades", found=found, hint=hint)
        by = f"{own[min(own)]['judge']}, prompt {own[min(own)]['prompt_hash']}"
        grades_of = [own[n]["grade"] for n in sorted(own)]
        graded.append({**record, "grades": grades_of, "graded_by": by})
    return graded
