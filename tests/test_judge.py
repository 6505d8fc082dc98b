"""Judges: every prompt and reply recorded, nothing asked twice, a real HTTP server in between."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from golden_values import golden

from onellm.errors import BadInput, ConfigError
from onellm.eval.endpoint import KEY_VARIABLE, Endpoint
from onellm.eval.judge import LocalJudge, judge_answers, read_replies, with_grades
from onellm.eval.rubrics import RUBRICS, load_rubric
from onellm.eval.score_file import score_file
from onellm.eval.scorers import score


def record(key, answer="a cup", target="a cup", **meta):
    meta = {"question": f"What is {key}?", "capability": ["rec"], **meta}
    return {"id": key, "task": "mmvet", "answer": answer, "target": target, "meta": meta}


@contextmanager
def server(replies):
    """A chat endpoint that gives the replies in turn: a text, a status, or bytes as they are."""
    seen, turns = [], iter(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append({"path": self.path, "headers": dict(self.headers), **json.loads(body)})
            reply = next(turns)
            status, content = (reply, b"busy") if isinstance(reply, int) else (200, reply)
            if isinstance(content, str):
                usage = {"prompt_tokens": 100, "completion_tokens": 2}
                message = {"choices": [{"message": {"content": content}}], "usage": usage}
                content = json.dumps(message).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/v1", seen
        finally:
            http.shutdown()


def test_an_endpoint_grades_and_everything_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    out, waits = tmp_path / "replies.jsonl", []
    records = [record("1"), record("2", "a dog")]
    with server(["1.0", 503, "no idea", "0.2"]) as (url, seen):
        judge = Endpoint(url, "grader-1", sleep=waits.append)
        cost = judge_answers(records, judge, RUBRICS["mmvet"], out)
    assert (cost.records, cost.asked, cost.ungraded) == (2, 3, 0)
    assert (cost.prompt_tokens, cost.completion_tokens) == (300, 6)
    assert cost.judge == f"grader-1 at {url}"
    assert waits == [1.0]  # after the busy reply
    assert cost.retries == 1
    assert seen[0]["path"] == "/v1/chat/completions"
    assert seen[0]["headers"]["Authorization"] == "Bearer secret"
    assert [s["temperature"] for s in seen] == [0.0, 0.0, 0.0, 0.5]
    assert seen[3]["messages"][0]["content"].startswith(seen[2]["messages"][0]["content"])
    assert "What is 2? | a cup | a dog |" in seen[2]["messages"][0]["content"]
    first, second = read_replies(out)
    assert [one["text"] for one in second["tries"]] == ["no idea", "0.2"]
    assert (first["grade"], second["grade"]) == (1.0, 0.2)
    assert first["prompt_hash"] == RUBRICS["mmvet"].hash
    assert "secret" not in out.read_text()
    assert score("mmvet", with_grades(records, out)).metrics["mmvet"] == pytest.approx(60.0)


def test_nothing_is_asked_twice_and_a_cut_line_is_asked_again(tmp_path):
    out, asked = tmp_path / "replies.jsonl", []

    def reply(prompt, temperature, max_tokens):
        asked.append(prompt)
        return "0.5"

    judge, records = LocalJudge("local", reply), [record(str(n)) for n in range(3)]
    judge_answers(records[:2], judge, RUBRICS["mmvet"], out)
    out.write_bytes(out.read_bytes()[:-20])  # a crash in the middle of a line
    cost = judge_answers(records, judge, RUBRICS["mmvet"], out, workers=2)
    assert len(asked) == 4
    assert cost.records == 3
    assert len(read_replies(out)) == 3
    changed = [{**records[0], "answer": "a plate"}, *records[1:]]
    with pytest.raises(
        BadInput, match="record 0: expected a judge's grades; found grades of another"
    ):
        with_grades(changed, out)
    judge_answers(changed, judge, RUBRICS["mmvet"], out)
    assert len(asked) == 5
    assert [r["grades"] for r in with_grades(changed, out)] == [[0.5]] * 3


def test_repeats_have_an_agreement_and_a_spread(tmp_path):
    out, replies = tmp_path / "replies.jsonl", iter(["1", "0.2", "1", "0.6"])
    judge = LocalJudge("local", lambda *_: next(replies))
    records = [record("1"), record("2")]
    cost = judge_answers(records, judge, RUBRICS["mmvet"], out, repeats=2)
    assert (cost.agreement, cost.spread) == (0.5, pytest.approx(0.2))
    result = score("mmvet", with_grades(records, out))
    assert result.metrics["mmvet"] == pytest.approx(70.0)
    assert result.metrics["repeat_std"] == pytest.approx(10.0)
    assert judge_answers(records, judge, RUBRICS["mmvet"], out, repeats=1).agreement is None


def test_mmvet_tries_are_those_of_the_official_evaluator(tmp_path):
    items = golden("mmvet")["items"]
    replies = iter([reply for item in items for reply in item["judge_outputs"][:5]])
    judge = LocalJudge("recorded", lambda *_: next(replies))
    records = [{**record(i["id"]), "meta": {"capability": i["capability"]}} for i in items]
    cost = judge_answers(records, judge, RUBRICS["mmvet"], tmp_path / "replies.jsonl")
    graded = with_grades(records, tmp_path / "replies.jsonl")
    assert [r["grades"][0] or 0.0 for r in graded] == [i["expected_score"] for i in items]
    assert cost.ungraded == 1
    expected = golden("mmvet")["expected_per_capability"]
    result = score("mmvet", graded)
    assert round(result.metrics["mmvet"], 1) == expected["total"]
    assert result.unparsed == 1


def test_objects_are_judged_true_or_false_once(tmp_path):
    out, replies = tmp_path / "replies.jsonl", iter(["T: both are cups", "False", "maybe"])
    judge = LocalJudge("local", lambda *_: next(replies))
    records = [record(str(n), target=["a cup"]) for n in range(3)]
    cost = judge_answers(records, judge, RUBRICS["objects"], out)
    assert (cost.asked, cost.ungraded) == (3, 1)
    assert score("object_judge", with_grades(records, out)).metrics["judged"] == pytest.approx(50.0)


def test_a_graded_file_is_scored_in_one_call(tmp_path):
    answers, out = tmp_path / "answers.jsonl", tmp_path / "replies.jsonl"
    records = [record("1"), record("2")]
    answers.write_text("".join(json.dumps(r) + "\n" for r in records))
    judge_answers(records, LocalJudge("local", lambda *_: "0.9"), RUBRICS["mmvet"], out)
    assert score_file(answers, "mmvet", grades=out).metrics["mmvet"] == pytest.approx(90.0)
    with pytest.raises(BadInput, match="Run the judge"):
        score_file(answers, "mmvet")


def test_two_judges_in_one_file_are_an_error(tmp_path):
    out, records = tmp_path / "replies.jsonl", [record("1")]
    for name in ("one", "two"):
        judge_answers(records, LocalJudge(name, lambda *_: "1"), RUBRICS["mmvet"], out)
    with pytest.raises(BadInput, match=r"one judge and one prompt; found one .*, two "):
        with_grades(records, out)


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([401], "status 401: busy"),
        ([503, 503, 503], "status 503"),
        ([b"<html>"], "a chat completion; found <html>"),
        ([b'{"choices": []}'], "a chat completion"),
    ],
)
def test_an_endpoint_that_fails_says_how(tmp_path, replies, message):
    with server(replies) as (url, seen):
        judge = Endpoint(url, "m", retries=2, sleep=lambda seconds: None)
        with pytest.raises(BadInput, match=message):
            judge_answers([record("1")], judge, RUBRICS["mmvet"], tmp_path / "replies.jsonl")
        assert len(seen) == len(replies)


def test_an_endpoint_that_is_not_there_is_tried_again():
    waits = []
    judge = Endpoint("http://127.0.0.1:9", "m", retries=3, wait=2.0, sleep=waits.append)
    with pytest.raises(BadInput, match="expected a reply"):
        judge.ask("x", 0.0, 3)
    assert waits == [2.0, 4.0, 8.0]
    with pytest.raises(ConfigError, match="starts with http"):
        Endpoint("file:///etc/hosts", "m")


def test_prompts_come_from_files_and_are_filled_in_once(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text('{"q": "{question}", "t": "{truth}", "a": "{answer}"}')
    rubric = load_rubric("mmvet", file)
    filled = rubric.fill(record("1", "{truth} {0}", "x<AND>y"))
    assert filled == '{"q": "What is 1?", "t": "x <AND> y", "a": "{truth} {0}"}'
    assert rubric.hash != RUBRICS["mmvet"].hash
    file.write_text("{truth}")
    with pytest.raises(BadInput, match=r"a prompt with \{answer\}"):
        load_rubric("mmvet", file)
    with pytest.raises(ConfigError, match=r"'mmvett'.*mmvet"):
        load_rubric("mmvett")
