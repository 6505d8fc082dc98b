"""Evaluation: questions per second of the runner, and of a loop that asks one at a time.

Several questions about each picture, as in most benchmarks. The rivals are the same model's
``generate`` in a loop, once as the published scripts do (each question encodes its picture anew),
once with soft tokens kept; and, for options that are ranked by likelihood, a pass per option. All
are timed in turns in one process, and their answers are compared. The last line is JSON.

Shape legend: T positions, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import machine, seconds_of
from sizes import DTYPES, build, parser_of

from onellm.eval.items import Item, Medium
from onellm.eval.likelihood import choice_logprobs, encode_choice
from onellm.eval.runner import encode_media, run
from onellm.eval.task import AnswerSettings
from onellm.generation import turns_of
from onellm.model import OneLLM

EXAMPLES = """examples:
  python benchmarks/eval_runner.py --size tiny
  python benchmarks/eval_runner.py --size small --pictures 16 --batches 4 16
  python benchmarks/eval_runner.py --size 7b --device cuda --dtype bfloat16 --batches 16 64
"""


class Bytes:
    """A text tokenizer of bytes, for models with random weights."""

    bos_id, eos_id, pad_id = 256, 257, 257

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and spans; the text is ASCII here."""
        ids = list(text.encode("ascii"))
        return ids, [(i, i + 1) for i in range(len(ids))]

    def decode(self, ids: Sequence[int]) -> str:
        """Printable text of any ids, a character each."""
        return "".join(chr(33 + i % 90) for i in ids)

    def save(self, folder: Path) -> None:
        """Nothing to write."""


def main() -> None:
    options = arguments()
    device = torch.device(options.device)
    model = build(options.size, device, DTYPES[options.dtype])
    model.text = Bytes()
    asked = questions(model, options)
    names = ("size", "dtype", "pictures", "questions", "new_tokens")
    result: dict[str, Any] = {
        "benchmark": "eval_runner",
        **{name: getattr(options, name) for name in names},
        **machine(device),
    }
    with tempfile.TemporaryDirectory() as folder:
        result["generate"] = answering(model, asked, options, Path(folder))
    result["likelihood"] = ranking(model, asked, options)
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLES)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--questions", type=int, default=4, help="about each picture")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[16], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def questions(model: OneLLM, options: argparse.Namespace) -> list[Item]:
    """Questions of different lengths with four options each, about random pictures."""
    name = next(iter(model.modalities))
    rng, settings = np.random.default_rng(0), AnswerSettings(max_new_tokens=options.new_tokens)
    items = []
    for picture in range(options.pictures):
        pixels = rng.integers(0, 256, (256, 320, 3), dtype=np.uint8)
        medium = Medium(name, str(picture), pixels)
        for number in range(options.questions):
            prompt = f"Question {number}: " + "what is it? " * (1 + (picture + number) % 4)
            choices = ("a chair", "a lamp on a table", "nothing", "two dogs")
            key = f"{picture}/{number}"
            items.append(Item("made", key, (medium,), prompt, "", {}, choices, settings))
    return items


def answering(
    model: OneLLM, asked: list[Item], options: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """Rates of written answers at each batch size."""
    number = count()
    rows = []
    for batch in options.batches:

        def ours(size: int = batch) -> list[str]:
            file = folder / f"{next(number)}.jsonl"  # an empty one: what is answered is not asked
            return [record["answer"] for record in run(model, asked, file, size)]

        runs = {"runner": ours, "loop": lambda: loop(model, asked, 0)}
        runs["loop_kept"] = lambda: loop(model, asked, 128 * 2**20)
        answers = {name: job() for name, job in runs.items()}
        row = rates(seconds_of(runs, model.device, options.rounds), len(asked), batch)
        same = [a == b for a, b in zip(answers["runner"], answers["loop"], strict=True)]
        row["same_answers_as_loop"] = round(sum(same) / len(same), 4)
        rows.append(row)
        print(row)
    return rows


def loop(model: OneLLM, asked: list[Item], kept_bytes: int) -> list[str]:
    """Ask one question at a time."""
    model.encoded.clear()
    model.encoded.max_bytes = kept_bytes
    return [
        model.generate(
            item.prompt,
            [(medium.modality, medium.open()) for medium in item.media],
            max_new_tokens=item.settings.max_new_tokens,
        )
        for item in asked
    ]


def rates(taken: dict[str, float], questions: int, batch: int) -> dict[str, Any]:
    first = next(iter(taken))
    return {
        "batch": batch,
        "questions_per_s": {name: round(questions / s, 2) for name, s in taken.items()},
        "ratio": {name: round(s / taken[first], 2) for name, s in taken.items() if name != first},
    }


def ranking(model: OneLLM, asked: list[Item], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rates of options ranked by likelihood: a shared prefix against a pass per option."""
    with torch.inference_mode():
        soft = encode_media(model, [m for item in asked for m in item.media])
    media = [[(m.modality, soft[m.modality, m.id]) for m in item.media] for item in asked]
    rows = []
    for batch in options.batches:

        def shared(size: int = batch) -> list[list[dict[str, float]]]:
            found = []
            for start in range(0, len(asked), size):
                part = slice(start, start + size)
                prompts = [item.prompt for item in asked[part]]
                choices = [item.options for item in asked[part]]
                found += choice_logprobs(model, prompts, media[part], choices)
            return found

        runs = {"shared": shared, "pass_per_option": lambda: one_by_one(model, asked, media)}
        sums = [c["sum"] for each in shared() for c in each]
        apart = [s for each in one_by_one(model, asked, media) for s in each]
        row = rates(seconds_of(runs, model.device, options.rounds), len(asked), batch)
        row["largest_difference"] = max(abs(a - b) for a, b in zip(sums, apart, strict=True))
        rows.append(row)
        print(row)
    return rows


@torch.inference_mode()
def one_by_one(model: OneLLM, asked: list[Item], media: list[Any]) -> list[list[float]]:
    """Sums of log-probabilities, the whole sequence of every option in a pass of its own."""
    sums = []
    for item, soft in zip(asked, media, strict=True):
        row = []
        for option in item.options:
            ids, begin, end = encode_choice(
                model.text, model.config.prompt_format, turns_of(item.prompt), option
            )
            spliced = model.splice([torch.tensor(ids)], None, [soft])
            logits_TV = model.llm(inputs_embeds=spliced.embeds, use_cache=False).logits[0]
            extra = spliced.embeds.shape[1] - len(ids)
            places = torch.arange(begin + extra - 1, end + extra - 1)
            logprobs_TV = logits_TV[places].float().log_softmax(-1)
            wanted = torch.tensor(ids[begin:end], device=logprobs_TV.device)
            row.append(float(logprobs_TV.gather(1, wanted[:, None]).sum()))
        sums.append(row)
    return sums


if __name__ == "__main__":
    main()
