"""Scoring files and comparing runs: nothing missing, nothing double, nothing guessed."""

from __future__ import annotations

import json

import pytest
from golden_values import golden

from onellm.errors import BadInput
from onellm.eval.compare import as_table, compare
from onellm.eval.score_file import read_records, score_file, scored_records
from onellm.eval.scorers import score


def line(key, answer="a", target="a", **more):
    return {"id": str(key), "task": "t", "answer": answer, "target": target, "meta": {}, **more}


def write(path, records, end="\n"):
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records) + end, "utf-8")
    return path


def test_a_file_is_scored_whole(tmp_path):
    records = [line(n, "a" if n < 3 else "b\u2028c") for n in range(4)]
    file = write(tmp_path / "t.jsonl", records)
    result = score_file(file, "exact", {}, [str(n) for n in range(4)])
    assert result.metrics["accuracy"] == 75.0
    assert result.samples == [1.0, 1.0, 1.0, 0.0]
    # The same without the last line's end, which an editor may drop.
    assert score_file(write(file, records, end=""), "exact").metrics["accuracy"] == 75.0
    scored = scored_records(records, result)
    assert [r["score"] for r in scored] == result.samples
    assert scored[0]["parsed"] == "a"


def test_missing_double_and_foreign_ids_are_errors_that_name_some(tmp_path):
    file = write(tmp_path / "t.jsonl", [line(n) for n in range(3)])
    with pytest.raises(BadInput, match="all 10 questions; found none to 3, 4, 5, 6, 7 and 2 more"):
        score_file(file, "exact", {}, [str(n) for n in range(10)])
    with pytest.raises(BadInput, match="found 2"):
        score_file(file, "exact", {}, ["0", "1"])
    write(file, [line(0), line(1), line(0)])
    with pytest.raises(BadInput, match="several of 0"):
        score_file(file, "exact")


def test_damaged_files_name_the_line(tmp_path):
    file = tmp_path / "t.jsonl"
    with pytest.raises(BadInput, match="no such file"):
        score_file(file, "exact")
    file.write_text('{"id": "1", "answer": "a"}\n{"id": "2", "ans')
    with pytest.raises(BadInput, match="line 2: expected JSON"):
        score_file(file, "exact")
    file.write_text('{"id": "1"}\n')
    with pytest.raises(BadInput, match="line 1: expected an object with id and answer"):
        score_file(file, "exact")
    file.write_text("\n")
    with pytest.raises(BadInput, match="found none"):
        score_file(file, "exact")


def test_one_task_of_several_and_steps_before_the_scorer(tmp_path):
    records = [line(1, "a ### b"), {**line(1, "x", "y"), "task": "u"}]
    file = write(tmp_path / "t.jsonl", records)

    def cut(text):
        return text.split("###")[0]

    assert len(read_records(file)) == 2
    assert score_file(file, "exact", task="t").metrics["accuracy"] == 0.0
    assert score_file(file, "exact", task="t", post=cut).metrics["accuracy"] == 100.0
    assert score_file(file, "exact", task="u", post=cut).metrics["accuracy"] == 0.0


def run_of(scores, **more):
    return [line(n, f"answer {s}", score=s, **more) for n, s in enumerate(scores)]


def test_compare_is_the_recorded_paired_test(tmp_path):
    data = golden("stats")
    a = write(tmp_path / "a.jsonl", run_of(data["scores"]))
    b = write(tmp_path / "b.jsonl", run_of(data["baseline"])[::-1])  # order is free
    (found,) = compare(a, b)
    expected = data["expected"]["paired_ttest"]
    assert found.task == "t"
    assert found.test.difference == pytest.approx(expected["mean_diff"])
    assert found.test.interval == pytest.approx((expected["ci_lower"], expected["ci_upper"]))
    assert found.test.p == pytest.approx(expected["p_value"])
    assert found.first - found.second == pytest.approx(100 * expected["mean_diff"])
    differ = [
        n for n, (x, y) in enumerate(zip(data["scores"], data["baseline"], strict=True)) if x != y
    ]
    assert {d.id for d in found.differences} == {str(n) for n in differ}
    assert found.differences[0].answers[0].startswith("answer ")
    assert as_table([found]).splitlines()[2].startswith("| t | 12 | 58.33 | 50.00 | +8.33 (-24.38")


def test_compare_clusters_questions_that_share_media():
    first, second = [1, 1, 0, 0, 1, 1, 1, 1] * 4, [0, 0, 0, 0, 1, 1, 1, 1] * 4
    media = [[["x", str(n // 2)]] for n in range(len(first))]
    runs = [
        [{**r, "media": m} for r, m in zip(run_of(s), media, strict=True)] for s in (first, second)
    ]
    (alone,), (clustered,) = compare(run_of(first), run_of(second)), compare(*runs)
    assert clustered.test.difference == alone.test.difference
    assert clustered.test.error > 1.2 * alone.test.error


def test_compare_goes_task_by_task_and_leaves_out_what_has_no_score():
    a = [*run_of([1, 0, None]), {**line("x", score=0.5), "task": "u"}]
    b = [*run_of([1, 1, None]), {**line("x", score=0.5), "task": "u"}]
    first, second = compare(a, b)
    assert (first.task, first.test.n, first.test.worse) == ("t", 2, 1)
    assert (second.task, second.test.p, second.differences) == ("u", 1.0, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[:2], "found none to 2"),
        (
            lambda r: [{k: v for k, v in x.items() if k != "score"} for x in r],
            "Score the file first",
        ),
        (lambda r: [{**x, "target": "other"} for x in r], "one truth in both"),
        (lambda r: [{**x, "task": "u"} for x in r], "only in one: t, u"),
        (lambda r: [{**x, "score": None} for x in r], "two scores"),
        (lambda r: [], "expected answers"),
    ],
)
def test_compare_refuses_runs_that_are_not_of_the_same_questions(change, message):
    run = run_of([1, 0, 1])
    with pytest.raises(BadInput, match=message):
        compare(run, change(run))


def test_compare_needs_scores_of_single_answers():
    with pytest.raises(BadInput, match="whole corpus"):
        compare(run_of([None, None]), run_of([None, None]))


def test_scores_of_a_scorer_can_be_compared():
    records = [line(n, "a" if n % 2 else "b") for n in range(8)]
    worse = [{**r, "answer": "c"} for r in records]
    runs = [scored_records(run, score("exact", run)) for run in (records, worse)]
    (found,) = compare(*runs)
    assert (found.first, found.second, found.test.better) == (50.0, 0.0, 4)
