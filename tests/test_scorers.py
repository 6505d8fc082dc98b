"""Scorers: official aggregates from records, the shapes they ask for, what they refuse."""

from __future__ import annotations

import subprocess
import sys

import pytest
from golden_values import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm.errors import BadInput, ConfigError
from onellm.eval.scorers import Score, describe, names, score, scorer


def record(key, answer, target, **more):
    return {"id": str(key), "answer": answer, "target": target, "meta": {}, "media": [], **more}


def test_every_scorer_says_what_it_takes_and_gives():
    assert {"vqa", "gqa", "captions", "mme", "mmbench", "seed", "multiple_choice"} <= set(names())
    for name in names():
        text = describe(name)
        assert "Metrics" in text or name == "objects", name
        assert "Target:" in text or name in ("objects", "mmvet", "object_judge"), name


def test_unknown_scorers_and_options_name_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown scorer 'gqaa'.*gqa"):
        score("gqaa", [record(1, "a", "a")])
    with pytest.raises(ConfigError, match=r"no option 'cleanup'.*clean_up"):
        score("gqa", [record(1, "a", "a")], cleanup="llava")
    with pytest.raises(ConfigError, match="no option 'name'"):
        score("vqa", [record(1, "a", ["a"] * 10)], name="vizwiz")


@pytest.mark.parametrize("name", ["vqa", "gqa", "captions", "msvd", "scenes", "multiple_choice"])
def test_no_answers_no_truth_and_no_text_are_errors(name):
    with pytest.raises(BadInput, match="found none"):
        score(name, [])
    with pytest.raises(BadInput, match="record 7"):
        score(name, [record(7, None, "a")])
    with pytest.raises(BadInput, match="record 7"):
        score(name, [record(7, "a", [], options=["a", "b"])])


def test_a_split_without_truth_says_where_it_is_scored():
    with pytest.raises(BadInput, match="export a submission"):
        score("vqa", [record(1, "red", [])])


def test_a_name_is_registered_once():
    with pytest.raises(ConfigError, match="'gqa' is already registered"):

        @scorer("gqa")
        def other(records):
            raise AssertionError


def test_vqa_scorers_have_the_official_accuracies():
    for theirs, name in (("vqa_official", "vqa"), ("vizwiz_rule", "vizwiz")):
        cases = [c for c in golden("vqa")["cases"] if theirs in c["expected"]]
        records = [
            record(c["name"], c["prediction"], c["answers"], meta={"answer_type": c.get("at", "")})
            for c in cases
        ]
        result = score(name, records)
        expected = [c["expected"][theirs] for c in cases]
        assert [100 * s for s in result.samples] == pytest.approx(expected, abs=1e-9)
        assert result.metrics["accuracy"] == pytest.approx(sum(expected) / len(cases), abs=1e-9)
        assert result.groups["answer_type"] == {"yes/no": pytest.approx(100.0)}
        low, high = result.intervals["accuracy"]
        assert low < result.metrics["accuracy"] < high


def test_textvqa_wants_ten_answers():
    with pytest.raises(BadInput, match=r"record 7: expected answers for textvqa; found .* not 9"):
        score("textvqa", [record(7, "red", ["red"] * 9)])


def test_gqa_binary_and_open_are_the_official_ones():
    data = golden("gqa")
    records = [
        record(i["questionId"], i["prediction"], i["answer"], meta={"structural": i["structural"]})
        for i in data["items"]
    ]
    for clean_up, theirs in (
        ("official", "official_raw_equality"),
        ("llava", "llava_postprocessed"),
        ("lmms", "lmms_eval_exact_match"),
    ):
        result = score("gqa", records, clean_up=clean_up)
        assert result.metrics == pytest.approx(data["expected"][theirs], abs=1e-9)
        assert result.primary == "accuracy"


def test_mme_has_the_official_totals_and_subtasks():
    data = golden("mme")
    records = [
        record(f"{task}/{n}", row[3], row[2], meta={"subtask": task}, media=[["x", row[0]]])
        for task, rows in data["results"]["rows"].items()
        for n, row in enumerate(rows)
    ]
    result = score("mme", records[::-1])  # pairs are found by their picture, not by order
    assert result.primary == "perception"
    for group, expected in data["expected"].items():
        assert result.metrics[group] == pytest.approx(expected.pop("total"), abs=1e-9)
        for task, value in expected.items():
            assert result.groups["subtask"][task] == pytest.approx(value, abs=1e-9)
        low, high = result.intervals[group]
        assert low < result.metrics[group] < high
    assert result.unparsed == sum(parsed is None for parsed in result.parsed) > 0
    with pytest.raises(BadInput, match="two questions per picture"):
        score("mme", records[1:])


def test_scienceqa_has_the_published_script_s_two_accuracies():
    data = golden("multiple_choice")["scienceqa"]
    records = [
        record(
            *(i["id"], i["prediction"] or "", "ABCDE"[i["answer_index"]]),
            options=["x"] * i["num_choices"],
            meta={"has_image": i["has_image"], "subject": "physics"},
        )
        for i in data["items"]
    ]
    result = score("scienceqa", records)
    assert result.metrics["accuracy"] == pytest.approx(data["aggregate"]["llava_acc"], abs=1e-9)
    assert result.metrics["image_accuracy"] == pytest.approx(25.0)
    assert result.groups["subject"]["physics"] == result.metrics["accuracy"]
    assert result.unparsed == sum(i["expected"]["llava_parsed"] == "FAILED" for i in data["items"])


def test_seed_by_letter_and_by_likelihood():
    data = golden("multiple_choice")["seedbench"]
    records = [
        record(
            *(q["question_id"], data["predictions"][q["question_id"]], q["answer"]),
            options=list("wxyz"),
            meta={"data_type": q["data_type"], "dimension": str(q["question_type_id"])},
        )
        for q in data["questions"]
    ]
    result = score("seed", records)
    assert result.metrics["accuracy"] == pytest.approx(60.0)
    assert [round(v, 2) for v in result.groups["data_type"].values()] == [57.14, 66.67]
    dimensions = {"1": 33.33, "2": 100.0, "3": 50.0, "10": 66.67}
    assert {k: round(v, 2) for k, v in result.groups["dimension"].items()} == dimensions
    assert result.metrics["dimension_mean"] == pytest.approx(sum(dimensions.values()) / 4, abs=0.01)

    chances = [{"sum": -9.0, "mean": -1.0}, {"sum": -2.0, "mean": -2.0}]
    asked = [record(1, "w", "A", options=["w", "x"], choice_logprobs=chances)]
    assert score("seed", asked).metrics["accuracy"] == 100.0
    assert score("seed", asked, reduction="sum").metrics["accuracy"] == 0.0
    assert "likelihood" in score("seed", asked).notes[0]
    with pytest.raises(BadInput, match="likelihoods of 3 options"):
        score("seed", [record(1, "w", "A", options=["w", "x", "y"], choice_logprobs=chances)])


def test_nextqa_has_the_official_parts_with_tp_counted_as_tn():
    data = golden("multiple_choice")["nextqa"]
    records = [
        record(
            *(f"{i['video']}_{i['qid']}", "ABCDE"[i["prediction"]], "ABCDE"[i["answer"]]),
            options=list("vwxyz"),
            meta={"type": i["type"]},
        )
        for i in data["items"]
        if i["prediction"] >= 0
    ]
    records += [
        record("none", "nothing of it", "ABCDE"[i["answer"]], options=list("vwxyz"), meta=i)
        for i in data["items"]
        if i["prediction"] < 0
    ]
    result = score("nextqa", records)
    found = {name: round(value, 2) for name, value in result.metrics.items()}
    assert found == {"accuracy": 71.43, "causal": 80.0, "temporal": 60.0, "descriptive": 75.0}
    assert {k: round(v, 2) for k, v in result.groups["type"].items()} == {
        **{"CW": 66.67, "CH": 100.0, "TN": 66.67, "TC": 50.0, "DC": 100.0, "DL": 100.0, "DO": 50.0}
    }
    assert result.unparsed == 1


def circular_records():
    for number, group in enumerate(golden("mmbench")["circular"]):
        for turn, one in enumerate(group["passes"]):
            yield record(
                *(f"{number}/{turn}", one["prediction"], one["answer"]),
                options=[one[letter] for letter in "ABCD" if one[letter]],
                meta={"group": number, "pass": turn, "category": group["name"]},
            )


def test_mmbench_is_circular_beside_vanilla():
    result, groups = score("mmbench", [*circular_records()]), golden("mmbench")["circular"]
    for metric, theirs in (
        ("circular", "circular_hit_exact_matching"),
        ("vanilla", "vanilla_hit_first_pass"),
    ):
        expected = [group["expected"][theirs] for group in groups]
        assert result.metrics[metric] == pytest.approx(100 * sum(expected) / len(expected))
    assert result.primary == "circular"
    assert result.groups["category"]["always_same_letter"] == 0.0
    assert result.groups["category, vanilla"]["always_same_letter"] == 100.0
    firsts = [r for r in circular_records() if r["meta"]["pass"] == 0]
    assert score("mmbench", firsts).primary == "vanilla"


def test_mmbench_without_one_of_the_passes_is_an_error():
    with pytest.raises(BadInput, match="question 0: expected 4 passes; found passes 0, 1, 3"):
        score("mmbench", [r for r in circular_records() if r["id"] != "0/2"])


def test_captions_have_the_official_numbers_times_100():
    corpus = golden("captions_main")["sets"]["main"]
    records = [
        record(i["id"], i["candidate"], i["references"], meta={"domain": f"d{n % 2}"})
        for n, i in enumerate(corpus["items"])
    ]
    result, expected = score("captions", records), corpus["expected"]
    named = {"cider": "CIDEr", "rouge_l": "ROUGE_L"} | {
        f"bleu_{n}": f"Bleu_{n}" for n in range(1, 5)
    }
    assert list(result.metrics) == ["cider", *(f"bleu_{n}" for n in range(1, 5)), "rouge_l"]
    for ours, theirs in named.items():
        assert result.metrics[ours] == pytest.approx(100 * expected["corpus"][theirs], abs=1e-7)
    each = [expected["per_item"][r["id"]]["CIDEr"] for r in records]
    assert result.samples == pytest.approx(each, abs=1e-9)
    low, high = result.intervals["cider"]
    assert low < result.metrics["cider"] < high
    # A subset alone has other document frequencies than as a part of the whole.
    alone, shared = result.groups["domain"], result.groups["domain, weights of all"]
    assert shared["d0"] == pytest.approx(100 * sum(each[::2]) / len(each[::2]))
    assert alone["d0"] == pytest.approx(score("captions", records[::2]).metrics["cider"])
    assert alone["d0"] != pytest.approx(shared["d0"])


def test_captions_say_which_tokens_and_what_is_left_out(monkeypatch):
    from onellm.eval.metrics import java

    monkeypatch.setattr(java, "missing", lambda metric="": "no program 'java' on the path")
    records = [record(1, "a dog", ["a dog"]), record(2, "I see a cat", "a cat in grass")]
    result = score("captions", records, metrics=["cider", "spider"], optional=["spider"])
    assert "Penn Treebank" in result.notes[0]
    assert result.notes[-1] == "spider is left out: no program 'java' on the path."
    objects = score("objects", records)
    assert objects.primary == "bleu_1"
    assert {"sentence_bleu_1", "rouge_l", "cider"} <= objects.metrics.keys()
    filtered = score("captions", records, avsd_filter=True)
    assert filtered.metrics["bleu_1"] != result.metrics["cider"]
    assert "one character" in " ".join(filtered.notes)
    with pytest.raises(ConfigError, match=r"no metric 'ciderr'.*cider"):
        score("captions", records, metrics=["ciderr"])
    with pytest.raises(ConfigError, match="no primary metric 'cidr'"):
        score("captions", records, primary="cidr")
    with pytest.raises(BadInput, match="record 1: expected one caption per item; found two"):
        score("captions", [records[0], records[0]])


def test_clotho_aqa_leaves_out_questions_without_a_majority():
    cases = golden("spec_cases")["clotho_aqa"]["cases"]
    records = [
        record(n, c["prediction"], c["answers"], meta={"kind": "binary" if n < 3 else "word"})
        for n, c in enumerate(cases)
    ]
    result = score("clotho_aqa", records)
    for name in ("majority", "any", "unanimous", "row"):
        values = [c["expected"][name] for c in cases if c["expected"][name] is not None]
        assert result.metrics[name] == pytest.approx(100 * sum(values) / len(values))
    assert result.samples == [c["expected"]["majority"] for c in cases]
    assert result.groups["questions"] == {"majority": 7.0, "unanimous": 3.0}
    assert result.groups["kind"]["binary"] == pytest.approx(200 / 3)
    assert (result.unparsed, result.empty) == (1, 1)


def test_music_avqa_has_cells_and_what_is_asked_about():
    data = golden("spec_cases")["music_avqa"]
    records = [
        record(n, c["prediction"], c["answer"], meta={"type": c["type"]})
        for n, c in enumerate(data["cases"])
    ]
    result = score("music_avqa", records)
    assert result.metrics["accuracy"] == pytest.approx(100 * data["expected"]["overall"])
    assert result.groups["type"]["Audio-Visual Temporal"] == 100.0
    assert result.groups["about"]["Audio"] == 100.0
    with pytest.raises(BadInput, match=r"expected meta\.type"):
        score("music_avqa", [record(1, "two", "two")])


def test_msvd_reports_containment_and_how_many_answers_were_empty():
    cases = golden("msvd_contains_rule")["cases"]
    records = [record(n, c["prediction"], c["answer"]) for n, c in enumerate(cases)]
    result = score("msvd", records)
    for metric, theirs in (("exact", "exact"), ("onellm_contains", "onellm_contains")):
        expected = 100 * sum(c[theirs] for c in cases) / len(cases)
        assert result.metrics[metric] == pytest.approx(expected)
    assert result.empty == 1


def test_scenes_have_a_class_mean_beside_the_accuracy():
    data = golden("spec_cases")["scene_classification"]
    cases = [c for c in data["cases"] if c["expected"]]
    records = [
        record(n, c["prediction"], c["expected"], options=data["classes"])
        for n, c in enumerate(cases)
    ]
    records += [record("x", "officer", "office", options=data["classes"])]
    result = score("scenes", records)
    assert result.metrics["accuracy"] == pytest.approx(100 * 6 / 7)
    assert result.metrics["class_mean"] == pytest.approx(sum(result.groups["class"].values()) / 5)
    assert result.groups["class"]["office"] == 50.0
    assert result.unparsed == 1
    assert score("scenes", records, metric="class_match").primary == "class_match"
    with pytest.raises(BadInput, match="a class among"):
        score("scenes", [record(1, "x", "attic", options=data["classes"])])


def test_graded_scores_and_string_matches_have_different_names():
    meta = {"capability": ["rec", "ocr"]}
    graded = [
        record(1, "a", "a<AND>b", meta=meta, grades=[0.5, 1.0]),
        record(2, "c", "c", meta={"capability": ["rec"]}, grades=[None, 0.0]),
    ]
    judged, matched = score("mmvet", graded), score("mmvet_string_match", graded)
    assert judged.metrics == {"mmvet": pytest.approx(37.5), "repeat_std": pytest.approx(12.5)}
    assert judged.groups["capability"] == pytest.approx({"rec": 37.5, "ocr": 75.0})
    assert judged.parsed == ["0.5 1.0", "0.0"]
    assert matched.metrics == {"mmvet_string_match": pytest.approx(75.0)}
    with pytest.raises(BadInput, match="Run the judge first"):
        score("mmvet", [record(1, "a", "a", meta=meta)])


def test_object_verdicts_leave_invalid_replies_out_as_pointllm_does():
    graded = [
        record(n, "a chair", ["a chair"], grades=[grade])
        for n, grade in enumerate((1.0, 0.0, None, 1.0))
    ]
    result = score("object_judge", graded)
    assert result.metrics == pytest.approx({"judged": 200 / 3, "judged_all": 50.0})
    assert result.unparsed == 1
    assert score("object_match", graded).metrics == {"object_match": 100.0}


def test_questions_on_one_picture_have_a_wider_interval():
    alone = [record(n, "a" if n % 4 < 2 else "b", "a", media=[["x", f"{n}"]]) for n in range(40)]
    shared = [{**r, "media": [["x", f"{n // 2}"]]} for n, r in enumerate(alone)]
    widths = []
    for records in (alone, shared):
        low, high = score("exact", records).intervals["accuracy"]
        widths.append(high - low)
    assert widths[1] > 1.2 * widths[0]


WHOLE = {
    "capability": ["rec"],
    "type": ["Audio", "Counting"],
    **{"group": 1, "pass": 0, "subtask": "count", "has_image": True},
}
TARGETS = {
    **{name: ["a dog"] * 10 for name in ("vqa", "vqa_always", "textvqa", "vizwiz")},
    **{"clotho_aqa": ["yes", "no", "yes"], "scenes": "x", "mme": "Yes"},
    **{name: ["a dog"] for name in ("captions", "objects", "object_match")},
    **dict.fromkeys(("multiple_choice", "scienceqa", "nextqa", "seed", "mmbench"), "A"),
}


@pytest.mark.parametrize("name", names())
@given(text=st.text(max_size=30))
@settings(max_examples=15, deadline=None)
def test_any_text_can_be_scored(name, text):
    record_ = record(1, text, TARGETS.get(name, "a dog"), options=["x", "y"], meta=WHOLE)
    records = [{**record_, "grades": [0.5], "media": [["m", "1"]]}]
    records += [{**records[0], "id": "2"}] if name == "mme" else []
    # Java would start anew, and read its tables, for every text.
    quick = {"metrics": ["bleu", "rouge_l", "cider", "sentence"]} if name == "objects" else {}
    result = score(name, records, **quick)
    assert len(result.samples) == len(result.parsed) == len(records)
    assert all(value == value for value in result.metrics.values())


def test_scores_are_whole_and_in_the_records_order():
    records = [record(n, "a", "a" if n % 2 else "b", meta={"kind": f"k{n % 3}"}) for n in range(9)]
    result = score("exact", records, groups=["kind", "missing"])
    assert isinstance(result, Score)
    assert result.samples == [float(n % 2) for n in range(9)]
    assert len(result.parsed) == 9
    assert list(result.groups) == ["kind"]
    assert next(iter(result.metrics)) == result.primary


@pytest.mark.parametrize("module", ["scorers", "score_file", "compare", "judge"])
def test_scoring_loads_neither_torch_nor_numpy(module):
    code = (
        f"import sys, onellm.eval.{module}; from onellm.eval.scorers import names; names();"
        "print(sorted({'torch', 'numpy', 'transformers', 'pydantic', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
