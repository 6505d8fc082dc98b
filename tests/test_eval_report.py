"""The report's files: complete, self-contained, and safe whatever the data say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from onellm.eval.curves import last_routers, mean_weights, phases, smooth, training_facts
from onellm.eval.page import data_uri
from onellm.eval.plots import loss_chart, percent, points, router_scale
from onellm.eval.report import markdown, write_report
from onellm.eval.summary import goals
from onellm.eval.wording import better_seconds, second_scores, title, verdict

EVIL = "<script>alert('x')</script> & \"q\" | `code` $title"
TABLE = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]


def numbers(**changes):
    """A modality's numbers as the summary gives them."""
    sample = {
        **{"id": "a", "question": f"What? {EVIL}", "answer": EVIL, "reference": "chair"},
        **{"right": False, "caption": EVIL, "caption_reference": "a chair"},
    }
    blank = {**sample, "id": "b", "answer": "", "caption": None, "caption_reference": None}
    row = {"answer": EVIL, "n": 4, "right": 1, "said": 2, "mistaken_for": EVIL}
    return {
        **{"n": 150, "exact_match": 0.6, "interval": [0.52, 0.68], "majority": 0.13},
        **{"majority_answer": "chair", "off_list": 0.1, "per_class": [row], "reference": 0.63},
        **{"shuffled": 0.1, "shuffled_n": 150, "cider": 1.234, "captions": 150, "yes_no": 0.8},
        **{"yes_no_n": 9, "yes_no_majority": 0.5, "second": None, "second_n": 0},
        **{"second_majority": None, "seconds_per_answer": 0.1, "samples": [sample, blank]},
        **changes,
    }


NOTHING = dict.fromkeys(
    (
        *("exact_match", "interval", "majority", "majority_answer", "off_list", "reference"),
        *("shuffled", "cider", "yes_no", "yes_no_majority"),
    )
)


@pytest.fixture
def summary():
    return {
        "modalities": {
            "image": numbers(),
            f"touch {EVIL}": numbers(n=0, samples=[], per_class=[], **NOTHING),
        },
        "goals": {
            **{"of": 1, "above_majority": 1, "with_control": 1, "control_near_majority": 1},
            **{"with_reference": 1, "at_reference": 0},
        },
        **{"seconds": {"warmup": 61.0, f"evaluation {EVIL}": 4000.0}, "total_seconds": 4061.0},
        **{"seed": 3, "preset": f"small {EVIL}", "commit": None, "versions": {"torch": "2"}},
        "machine": {"system": "L", "processor": EVIL, "cores": 2, "memory_gb": None},
    }


@pytest.fixture
def metrics():
    records = [
        {
            **{"phase": "warm_up", "step": s, "loss": 3.0 / s, "losses": {"image": 3.0 / s}},
            **({"router": {"image": TABLE}} if s == 50 else {}),
        }
        for s in range(1, 101)
    ]
    return [*records, {"phase": EVIL, "step": 1, "loss": 1.0}]


class Checker(HTMLParser):
    """Collects tags, and complains when they do not nest."""

    VOID = ("meta", "img", "br", "line", "rect")

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path, summary, metrics):
    thumbnails = {("image", "a"): Image.new("RGB", (20, 10), "red")}
    path = write_report(tmp_path / "new" / "folder", summary, metrics, thumbnails)
    assert path.name == "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == [
        *("report.html", "report.json", "report.md"),
    ]
    return path


def test_the_page_is_one_well_formed_file(page):
    checker = Checker()
    text = page.read_text(encoding="utf-8")
    checker.feed(text)
    assert not checker.open
    tags = {tag for tag, _ in checker.tags}
    assert not tags & {"script", "link", "iframe", "object", "form"}
    for _, attributes in checker.tags:
        for key in ("src", "href"):
            if key in attributes:
                assert attributes[key].startswith(("data:image/", "#"))
        assert not [key for key in attributes if key.startswith("on")]
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text


def test_data_are_escaped_and_shown(page):
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10
    assert "$title" in text  # the data's, left as it is
    for expected in (
        "60\u00a0%",
        '+47 <span class="wide">points </span>over majority',
        "warm up",
        "1 h 06 min",
        "nothing</em>",
    ):
        assert expected in text
    # One thumbnail, one empty place.
    assert text.count("<img") == 1
    assert text.count('class="blank"') == 1


def test_the_page_follows_scheme_and_width(page):
    text = page.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert "@media (max-width" in text


def test_json_holds_summary_training_and_router(page, summary):
    report = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    assert {k: report[k] for k in summary} == summary
    assert report["training"]["warm_up"]["steps"] == 100
    assert report["training"]["warm_up"]["first_loss"] > report["training"]["warm_up"]["last_loss"]
    assert report["router"]["image"] == [0.3, 0.45, 0.25]


def test_markdown_keeps_its_tables(page):
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    for expected in ("| image | 150 | 60", "1.23", "## Router", "seed 3"):
        assert expected in text


def test_a_report_without_training_or_pictures(tmp_path, summary):
    text = write_report(tmp_path, summary).read_text(encoding="utf-8")
    assert "No metrics were recorded" in text
    assert "No router table" in text
    assert "## Training" not in markdown(summary)


def goal(*modalities, **changes):
    none = dict.fromkeys(("of", "above_majority", "with_control", "control_near_majority"), 0)
    return {
        "goals": {**none, "with_reference": 0, "at_reference": 0, **changes},
        "modalities": dict(enumerate(modalities)),
    }


def test_the_verdict_says_what_the_numbers_say():
    assert verdict(goal()) == "No closed-set question was asked."
    some = verdict(goal(of=8, above_majority=7, with_reference=8, at_reference=0))
    assert some.startswith("Seven of eight modalities answer")
    assert some.endswith("none of eight reach the classical reference.")
    one = verdict(goal(of=8, above_majority=1, with_reference=8, at_reference=1))
    assert one.startswith("One of eight modalities answers")
    assert "one of eight reaches" in one
    every = verdict(goal(of=8, above_majority=8))
    assert every.startswith("All eight modalities")
    assert "classical" not in every
    assert title({"modalities": dict.fromkeys("abc")}).startswith("Three kinds")


def test_a_control_below_the_majority_rate_is_no_fault():
    silent = {"yes_no": None}
    rates = [(0.30, 0.20), (0.26, 0.20), (0.02, 0.20)]  # 10 above, 6 above, 18 below
    modalities = [numbers(shuffled=s, majority=m, **silent) for s, m in rates]
    found = goals(dict(enumerate(modalities)))
    assert (found["with_control"], found["control_near_majority"]) == (3, 1)
    text = verdict({"goals": found, "modalities": dict(enumerate(modalities))})
    assert "at most 6 points more often than that rate for two of three" in text
    assert "within 6 points of it on either side for one of three." in text


def test_second_questions_at_chance_are_not_hidden():
    clear, chance = (numbers(yes_no=rate, yes_no_n=100, shuffled=None) for rate in (0.7, 0.55))
    assert better_seconds({"a": clear, "b": chance}) == (1, 2)
    text = verdict(goal(clear, chance, of=2, above_majority=2))
    assert "Second questions" in text and text.endswith("for one of two.")
    assert second_scores(numbers(second=0.13, second_majority=0.2)) == [
        ("80\u00a0%", "yes/no (maj. 50\u00a0%)"),
        ("13\u00a0%", "open (maj. 20\u00a0%)"),
    ]


# -- curves -------------------------------------------------------------------------------------


def test_phases_keep_order_and_leave_out_what_is_no_number():
    records = [
        {"phase": "b", "step": 1, "loss": 2.0, "losses": {"x": 1.0}},
        {"phase": "a", "step": 1, "loss": float("nan")},
        {"phase": "b", "step": 2, "loss": float("inf"), "losses": {"x": 3.0, "y": None}},
        {"loss": 4},
    ]
    b, rest = phases(records)
    assert (b.name, b.total, b.curves["x"]) == ("b", [(1.0, 2.0)], [(1.0, 1.0), (2.0, 3.0)])
    assert (rest.name, rest.shown) == ("training", {"loss": [(0.0, 4.0)]})
    assert training_facts([b]) == {"b": {"steps": 1, "first_loss": 2.0, "last_loss": 2.0}}


def test_smoothing_averages_stretches():
    curve = [(float(i), float(i)) for i in range(10)]
    assert smooth(curve, 5) == [(x, x) for x in (0.5, 2.5, 4.5, 6.5, 8.5)]
    assert smooth(curve, 10) == curve
    assert smooth([], 5) == []


def test_a_chart_of_one_point_or_a_flat_line_is_drawn():
    for curve in ([(1.0, 0.0)], [(1.0, 2.0), (2.0, 2.0)]):
        (phase,) = phases([{"phase": "p", "step": s, "loss": y} for s, y in curve])
        assert "polyline" in loss_chart(phase, {})


def test_the_last_router_of_each_modality_counts():
    records = [
        {"router": {"a": [[1.0]], "b": TABLE}},  # one active expert: nothing to route
        {"router": {"b": TABLE[::-1]}},
        {"loss": 1.0},
    ]
    assert last_routers(records) == {"b": TABLE[::-1]}
    assert mean_weights(TABLE) == pytest.approx([0.3, 0.45, 0.25])
    low, high = router_scale({"a": [[0.33, 0.34, 0.33]]})
    assert high - low == pytest.approx(0.1)


def test_numbers_in_words():
    assert (percent(0.125), percent(None)) == ("12\u00a0%", "–")
    assert (points(0.2), points(-0.031)) == ("+20", "−3")


def test_pictures_become_text_the_smaller_way():
    flat = data_uri(Image.new("RGB", (100, 100), "white"))
    noisy = data_uri(Image.effect_noise((120, 120), 80).convert("RGB"))
    assert flat.startswith("data:image/png;base64,")
    assert noisy.startswith("data:image/jpeg;base64,")
