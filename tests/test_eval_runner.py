"""Items, the runner and the summary, on a tiny random model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import signals, tiny_model

from onellm.data.sample import Sample
from onellm.errors import BadInput, ConfigError
from onellm.eval.answers import read_answers, to_line
from onellm.eval.items import Item, Medium
from onellm.eval.runner import encode_media, run
from onellm.eval.starter import CAPTION, CLOSED, SECOND, SHUFFLED, shuffled, starter_items
from onellm.eval.summary import MARGIN, goals, starter_references, summarize

ROOT = Path(__file__).parents[1]
LABELS = ("chair", "table", "lamp")
PROMPTS = {"image": "What do you see?", "imu": "Describe the motion."}


def make_samples(model, modality: str, count: int) -> list[Sample]:
    found = []
    for i, signal in enumerate(signals(model, modality, count)):
        label = LABELS[i % 3]
        qa = [{"question": "What is this?", "answer": label}]
        if i % 2:
            qa.append({"question": "Is this a lamp? Answer yes or no.", "answer": "no"})
        meta = {"text": f"a {label} number {i}", "label": label, "qa": qa}
        found.append(Sample(f"{modality}_{i}", ((modality, signal),), (), meta))
    return found


@pytest.fixture(scope="module")
def model():
    return tiny_model("image", "imu")


@pytest.fixture(scope="module")
def samples(model):
    return {"image": make_samples(model, "image", 7), "imu": make_samples(model, "imu", 4)}


@pytest.fixture(scope="module")
def items(samples):
    return starter_items(samples, PROMPTS, seed=3, control_items=8)


def test_items_cover_every_task(items, samples):
    image = [i for i in items if i.meta["modality"] == "image"]
    by_task = {t: [i for i in image if i.task == t] for t in {i.task for i in image}}
    assert {t: len(found) for t, found in by_task.items()} == {
        CLOSED: 7,
        SHUFFLED: 7,
        SECOND: 3,
        CAPTION: 7,
    }
    caption, closed = by_task[CAPTION][0], by_task[CLOSED][0]
    assert caption.prompt == PROMPTS["image"]
    assert caption.settings.max_new_tokens > closed.settings.max_new_tokens
    assert len({i.key() for i in items}) == len(items)
    assert len({(i.task, i.id) for i in items}) == len(items)


def test_the_control_shows_another_sample_and_asks_the_same(items):
    closed = {i.id: i for i in items if i.task == CLOSED}
    control = [i for i in items if i.task == SHUFFLED]
    for item in control:
        modality, sample = item.meta["modality"], item.meta["sample"]
        assert item.media[0].id != sample
        same = closed[f"{modality}/{sample}"]
        assert (item.prompt, item.target) == (same.prompt, same.target)
    # 4 samples are shuffled twice, 8 items, each time differently.
    imu = [(i.id, i.media[0].id) for i in control if i.meta["modality"] == "imu"]
    assert len(imu) == len(set(imu)) == 8


def test_derangements_are_seeded_and_differ_by_number(samples):
    ids = [s.id for s in samples["image"]]
    orders = [[s.id for s in shuffled(samples["image"], "x", n)] for n in range(6)]
    assert orders[0] == [s.id for s in shuffled(samples["image"], "x")]
    for order in orders:
        assert sorted(order) == sorted(ids)
        assert all(a != b for a, b in zip(order, ids, strict=True))
    for place in range(7):
        assert len({order[place] for order in orders}) == 6
    assert orders[0] != [s.id for s in shuffled(samples["image"], "y")]


def test_a_single_sample_has_no_control(samples):
    only = {"image": samples["image"][:1]}
    assert not [i for i in starter_items(only, PROMPTS) if i.task == SHUFFLED]


def test_mistakes_are_named(samples):
    with pytest.raises(ConfigError, match="Did you mean 'starter_closed'"):
        starter_items(samples, PROMPTS, tasks=["starter_closd"])
    twice = {"image": [samples["image"][0]] * 2}
    with pytest.raises(BadInput, match="unique ids"):
        starter_items(twice, PROMPTS)


@pytest.fixture(scope="module")
def answered(model, items, tmp_path_factory):
    path = tmp_path_factory.mktemp("eval") / "answers.jsonl"
    return path, run(model, items, path, batch_size=5)


def without_time(records):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def test_every_item_is_answered_in_order(answered, items):
    path, records = answered
    assert [r["key"] for r in records] == [i.key() for i in items]
    assert read_answers(path) == records
    assert all(r["seconds"] > 0 for r in records)


def test_batch_size_changes_nothing(model, items, answered, tmp_path):
    alone = run(model, items[:9], tmp_path / "a.jsonl", batch_size=1)
    assert without_time(alone) == without_time(answered[1][:9])


def test_answers_are_those_of_generate(model, items, answered):
    item, record = items[0], answered[1][0]
    media = [(m.modality, m.source) for m in item.media]
    said = model.generate(item.prompt, media, max_new_tokens=item.settings.max_new_tokens)
    assert said == record["answer"]


class Counting:
    """Counts what a run reports."""

    def __init__(self):
        self.began, self.count = (), 0

    def phase(self, name, total, done=0):
        self.began = (name, total, done)

    def advance(self, count=1):
        self.count += count

    def note(self, text):
        raise AssertionError(text)


def test_an_interrupted_run_goes_on(model, items, answered, tmp_path):
    path = tmp_path / "answers.jsonl"
    lines = [to_line(r) for r in answered[1]]
    stranger = {**answered[1][0], "key": "of another run"}
    path.write_text(to_line(stranger) + "".join(lines[:20]) + lines[20][:30])
    seen = Counting()
    records = run(model, items, path, batch_size=4, progress=seen)
    assert seen.began == ("evaluation", len(items), 20)
    assert seen.count == len(items) - 20
    assert without_time(records) == without_time(answered[1])
    assert records[:20] == answered[1][:20]  # times and all: they were not asked again
    assert read_answers(path) == records


def test_media_are_encoded_once(model, samples, monkeypatch):
    source = samples["image"][0].media[0][1]
    passes = []
    soften = type(model).soften
    monkeypatch.setattr(
        type(model), "soften", lambda self, m: (passes.append(len(m)), soften(self, m))[1]
    )
    media = [Medium("image", name, source) for name in "abcab"]
    soft = encode_media(model, media, batch_size=2)
    assert passes == [2, 1]
    assert set(soft) == {("image", "a"), ("image", "b"), ("image", "c")}
    torch.testing.assert_close(soft["image", "a"], soft["image", "b"])


def test_a_broken_medium_stops_the_run(model, tmp_path):
    item = Item("closed", "x", (Medium("image", "x", "gone.jpg"),), "What?", "chair")
    with pytest.raises(BadInput, match=r"gone\.jpg"):
        run(model, [item], tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match="there twice"):
        run(model, [item, item], tmp_path / "a.jsonl")


# -- answers file ------------------------------------------------------------------------------


def test_files_of_answers_are_checked(tmp_path, answered):
    path = tmp_path / "a.jsonl"
    with pytest.raises(BadInput, match="no such file"):
        read_answers(path)
    line = to_line(answered[1][0])
    for text, what in (
        ("{oops\n", "line 1"),
        ("{}\n", "without key"),
        (line * 2, "two of starter_closed"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=what):
            read_answers(path)
    path.write_text(to_line({**answered[1][0], "answer": "a\u2028b\x85c"}))
    assert read_answers(path)[0]["answer"] == "a\u2028b\x85c"


# -- summary -----------------------------------------------------------------------------------


def answers_file(path, rows):
    """rows: (task without starter_, modality, sample, answer, target)."""
    with path.open("w") as out:
        for n, (task, modality, key, answer, reference) in enumerate(rows):
            record = {
                **{"key": f"{n}", "task": f"starter_{task}", "id": f"{modality}/{key}"},
                **{"media": [[modality, key]], "prompt": "What?", "answer": answer},
                **{"target": reference, "meta": {"modality": modality, "sample": key}},
                **{"seconds": 0.5, "seed": 0},
            }
            out.write(to_line(record))
    return path


def test_the_summary_holds_the_promised_keys(tmp_path):
    rows = [("closed", "image", f"{i}", LABELS[i % 3], LABELS[i % 3]) for i in range(30)]
    rows += [("shuffled", "image", f"{i}", LABELS[i % 2], LABELS[i % 3]) for i in range(30)]
    rows += [("second", "image", f"{i}", "yes", "yes" if i % 2 else "no") for i in range(30)]
    rows += [("caption", "image", f"{i}", f"a thing {i}", f"a thing {i}") for i in range(30)]
    rows += [("closed", "touch", "0", "soft", "hard"), ("second", "touch", "0", "wool", "wool")]
    path = answers_file(tmp_path / "a.jsonl", rows)
    report = summarize(path, seconds={"train": 60.04, "eval": 5.0}, seed=7, preset="small")
    image, touch = report["modalities"]["image"], report["modalities"]["touch"]
    assert image["n"] == 30
    assert image["exact_match"] == 1.0
    assert image["majority"] == pytest.approx(1 / 3)
    assert image["reference"] == 0.63
    assert image["shuffled"] == pytest.approx(1 / 3)
    assert image["yes_no"] == 0.5
    assert image["cider"] > 5
    assert len(image["samples"]) == 10
    assert image["samples"][0]["caption"].startswith("a thing")
    assert all(s["right"] for s in image["samples"])
    assert touch["reference"] is touch["shuffled"] is touch["cider"] is None
    assert (touch["second"], touch["yes_no"]) == (1.0, None)
    assert report["seconds"] == {"train": 60.0, "eval": 5.0}
    assert report["total_seconds"] == 65.0
    assert (report["seed"], report["preset"]) == (7, "small")
    assert report["machine"]["cores"] >= 1
    assert report["goals"] == {
        **{"of": 2, "above_majority": 1, "with_control": 1, "control_near_majority": 1},
        **{"with_reference": 1, "at_reference": 1},
    }
    json.dumps(report)


def test_sample_answers_depend_on_the_seed_alone(tmp_path):
    rows = [("closed", "image", f"{i}", "a", "b") for i in range(40)]
    forth = answers_file(tmp_path / "a.jsonl", rows)
    back = answers_file(tmp_path / "b.jsonl", rows[::-1])

    def ids(path, seed):
        report = summarize(path, seconds={}, seed=seed, preset="", references={})
        return [s["id"] for s in report["modalities"]["image"]["samples"]]

    assert ids(forth, 1) == ids(back, 1) != ids(forth, 2)


def test_captions_alone_are_enough(tmp_path):
    path = answers_file(
        tmp_path / "a.jsonl",
        [("caption", "imu", "a", "a dog", "a dog"), ("caption", "imu", "b", "x", "a cat")],
    )
    row = summarize(path, seconds={}, seed=0, preset="")["modalities"]["imu"]
    assert row["exact_match"] is row["majority"] is None
    assert row["cider"] > 0
    assert goals({"imu": row})["of"] == 0


def test_goals_count_whole_points():
    row = {"exact_match": 0.7, "majority": 0.5, "shuffled": 0.56, "reference": 0.7}
    got = goals({"a": row})
    assert MARGIN == 0.2
    assert (got["above_majority"], got["control_near_majority"], got["at_reference"]) == (1, 1, 1)


def test_references_are_of_known_modalities():
    from onellm.registry import modality_classes

    assert set(starter_references()) == set(modality_classes())


def test_scoring_needs_no_torch():
    code = (
        "import sys, onellm.eval.summary, onellm.eval.report;"
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
