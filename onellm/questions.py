"""Questions from the command line and from JSONL files, and their answers in batches.

A line of the file is an object with ``prompt`` (a text, or a list of [role, text] turns) and
``media`` (a list of [modality, file] pairs), either of which may be left out, and anything else,
which is copied to the answer's line. Files are relative to the folder of the JSONL file. Nothing
heavy is imported until a question is answered.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onellm.errors import BadInput, ConfigError

if TYPE_CHECKING:
    from onellm.model import OneLLM


@dataclass
class Question:
    """What is asked about which media.

    Args:
        prompt: a text, or turns; None asks the last medium's caption prompt.
        media: (modality, file) pairs in order.
        record: what the answer's line repeats.
    """

    prompt: Any = None
    media: list[tuple[str, str]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


def option_names(words: Sequence[str]) -> list[str]:
    """The names of all ``--<name>`` among arguments, whether files follow them or not.

    Args:
        words: arguments as typed.

    Raises:
        ConfigError: something like ``-x``, which is neither an option nor a prompt.
    """
    for word in words:
        if re.fullmatch(r"-[A-Za-z]\w*", word):
            raise ConfigError(f"unknown option {word}; --help lists those there are")
    return [word[2:].partition("=")[0] for word in words if _is_option(word)]


def _is_option(word: str) -> bool:
    """Whether it is ``--name`` or ``--name=…``; a prompt may begin with dashes, too."""
    return re.match(r"--[\w-]+(=|$)", word) is not None


def options_in_order(words: Sequence[str]) -> Iterator[tuple[str | None, str]]:
    """Pairs (modality, file) of ``--<modality> FILE`` options, and (None, word) of other words.

    Args:
        words: arguments as typed; ``--<modality>=FILE`` will do as well.

    Raises:
        ConfigError: an option without a file.
    """
    rest = iter(words)
    for word in rest:
        if not _is_option(word):
            yield None, word
            continue
        name, equals, path = word[2:].partition("=")
        file = path if equals else next(rest, "")
        if not file or _is_option(file):
            raise ConfigError(f"--{name} needs a file: --{name} FILE")
        yield name, file


def media_options(words: Sequence[str]) -> tuple[str | None, list[tuple[str, str]]]:
    """Sort out a prompt and ``--<modality> FILE`` options, in any order.

    Args:
        words: arguments as typed; ``--<modality>=FILE`` will do as well.

    Returns:
        the prompt, None if there is none; and (modality, file) pairs in order.

    Raises:
        ConfigError: an option without a file, or a second prompt.

    Example:
        >>> media_options(["--audio", "dog.wav", "What is it?"])
        ('What is it?', [('audio', 'dog.wav')])
    """
    prompt, media = None, []
    for name, word in options_in_order(words):
        if name is not None:
            media.append((name, word))
        elif prompt is None:
            prompt = word
        else:
            raise ConfigError(
                f"one prompt is asked at a time, found {prompt!r} and {word!r}; put it in quotes, "
                "and --MODALITY in front of a file"
            )
    return prompt, media


def typed_questions(words: Sequence[str], each: bool = False) -> list[Question]:
    """The question that was typed, or one for each of its files.

    Args:
        words: a prompt and ``--<modality> FILE`` options, in any order.
        each: ask about each file by itself.

    Raises:
        ConfigError: nothing to ask, or see :func:`media_options`.
    """
    prompt, media = media_options(words)
    if not media and (prompt is None or each):
        raise ConfigError("nothing to answer: give a prompt, or a file such as --image FILE")
    parts = [[pair] for pair in media] if each else [media]
    return [Question(prompt, p, {"prompt": prompt, "media": [list(m) for m in p]}) for p in parts]


def read_questions(file: str | Path) -> list[Question]:
    """Read a JSONL file of questions; see the head of this module.

    Args:
        file: its path, or ``-`` for standard input.

    Raises:
        BadInput: missing, or a line that is not a question; it names the line.
    """
    if str(file) == "-":
        folder, text = Path(), sys.stdin.read()
    else:
        folder = Path(file).parent
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            found = error.strerror if isinstance(error, OSError) else "text that is not UTF-8"
            raise BadInput(file, expected="a JSONL file of questions", found=str(found)) from error
    # split, not splitlines: a prompt may hold any of Unicode's line separators.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise BadInput(file, expected="a JSONL file of questions", found="no line in it")
    return [_question(f"{file}, line {number}", line, folder) for number, line in lines]


def _question(where: str, line: str, folder: Path) -> Question:
    expected = 'an object such as {"prompt": "What is it?", "media": [["image", "dog.jpg"]]}'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadInput(where, expected=expected, found=f"no JSON ({error})") from error
    if not isinstance(record, dict) or not record.keys() & {"prompt", "media"}:
        raise BadInput(where, expected=expected, found="neither prompt nor media")
    prompt, media = record.get("prompt"), record.get("media", [])
    if not (isinstance(media, list) and all(_strings(pair) for pair in media)):
        raise BadInput(where, expected=expected, found="media that are no [modality, file] pairs")
    if isinstance(prompt, list) and prompt and all(_strings(turn) for turn in prompt):
        prompt = tuple((role, said) for role, said in prompt)
    elif not (isinstance(prompt, str) or (prompt is None and media)):
        raise BadInput(where, expected=expected, found="a prompt that is neither text nor turns")
    return Question(prompt, [(name, _place(folder, path)) for name, path in media], record)


def _strings(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)


def _place(folder: Path, path: str) -> str:
    """A file relative to a folder; ``a.jpg+b.png`` is a pair of files."""
    return "+".join(str(folder / part) for part in path.split("+"))


def check_files(questions: Iterable[Question]) -> None:
    """See that all files are there, which takes no model.

    Args:
        questions: ``a.jpg+b.png`` is a pair of files; what has ``://`` in it is left to its reader.

    Raises:
        BadInput: one is not; it names the first.
    """
    for question in questions:
        for _, path in question.media:
            if "://" not in path and not _is_there(path):
                missing = next((p for p in path.split("+") if not Path(p).exists()), path)
                raise BadInput(missing, expected="a file", found="no such file")


def _is_there(path: str) -> bool:
    """Whether a file, or both of a pair, exist; a plus sign may be part of a name."""
    places = [place for place, letter in enumerate(path) if letter == "+"]
    pairs = ((path[:place], path[place + 1 :]) for place in places)
    try:
        return Path(path).exists() or any(all(Path(p).exists() for p in pair) for pair in pairs)
    except OSError:  # a name that no file system allows
        return False


def answer_questions(
    model: OneLLM,
    questions: Sequence[Question],
    *,
    batch_size: int = 8,
    seed: int = 0,
    skip_bad: bool = False,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Answer questions, as many at a time as a batch holds.

    Args:
        model: the model.
        questions: what to ask.
        batch_size: questions of one pass; it changes no answer.
        seed: of the sampling; question n is answered as under ``seed + n`` alone.
        skip_bad: write an ``error`` in place of an ``answer`` where a file cannot be read.
        **settings: see :meth:`onellm.OneLLM.generate`.

    Returns:
        for each question in order its record with an ``answer``.

    Raises:
        BadInput: a file that cannot be read, without ``skip_bad``.
    """
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        seeds = [seed + start + index for index in range(len(batch))]
        try:
            answers = _answers(model, batch, seeds, settings)
        except BadInput:
            if not skip_bad:
                raise
            yield from _one_by_one(model, batch, seeds, settings)
            continue
        for question, answer in zip(batch, answers, strict=True):
            yield {**question.record, "answer": answer}


def _answers(
    model: OneLLM, batch: Sequence[Question], seeds: Sequence[int], settings: dict[str, Any]
) -> list[str]:
    prompts = [prompt_of(model, question) for question in batch]
    media = [question.media for question in batch]
    return model.generate(prompts, media, seed=seeds, **settings)


def _one_by_one(
    model: OneLLM, batch: Sequence[Question], seeds: Sequence[int], settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    for question, seed in zip(batch, seeds, strict=True):
        try:
            (answer,) = _answers(model, [question], [seed], settings)
        except BadInput as error:
            yield {**question.record, "error": str(error)}
        else:
            yield {**question.record, "answer": answer}


def prompt_of(model: OneLLM, question: Question) -> Any:
    """A question's prompt; without one, the caption prompt of its last medium."""
    if question.prompt is None:
        return model.modality(question.media[-1][0]).caption_prompt
    return question.prompt


def write_lines(
    records: Iterable[dict[str, Any]], out: Path | None, show: Callable[[str], None]
) -> tuple[int, int]:
    """Write a JSON line per record as soon as it is there.

    Args:
        records: what :func:`answer_questions` yields.
        out: a file, whose folder is made if it is not there; or None to ``show`` the lines.
        show: takes a line without its end.

    Returns:
        how many, and how many of them have an ``error``.
    """
    written = bad = 0
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="\n") if out else nullcontext() as file:
        for record in records:
            line = json.dumps(record, ensure_ascii=False)
            if file is None:
                show(line)
            else:
                file.write(f"{line}\n")
                file.flush()
            written, bad = written + 1, bad + ("error" in record)
    return written, bad
