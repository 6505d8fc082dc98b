"""Prompt formats and labels, id for id, against the published ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm.errors import ConfigError
from onellm.prompts import encode_example, encode_prompt, get_format, render
from onellm.splice import IGNORED
from onellm.text import SentencePieceText

SHARED = Path(__file__).parents[2] / "shared"
PARITY = Path(os.environ.get("ONELLM_PARITY", SHARED / "parity"))
LLAMA = Path(os.environ.get("ONELLM_LLAMA2", SHARED / "llama2")) / "tokenizer.model"

needs_llama = pytest.mark.skipif(
    not (LLAMA.is_file() and (PARITY / "prompts.json").is_file()),
    reason=f"no LLaMA-2 tokenizer at {LLAMA}, or no prompts in {PARITY}",
)


def conversations() -> list[dict]:
    file = PARITY / "prompts.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def turns_of(case: dict) -> list[tuple[str, str]]:
    return [turn for q, a in case["turns"] for turn in (("user", q), ("assistant", a))]


@needs_llama
@pytest.mark.parametrize("case", conversations(), ids=lambda c: c["turns"][0][0][:20])
def test_published_ids_and_labels(case):
    text = SentencePieceText(LLAMA)
    assert render(turns_of(case), get_format("published"))[0] == case["training_text"]
    ids, labels = encode_example(text, "published", turns_of(case))
    assert ids.tolist() == case["training_ids"]
    assert labels.tolist() == case["label_ids"]


@needs_llama
@pytest.mark.parametrize("case", conversations(), ids=lambda c: c["turns"][0][0][:20])
def test_legacy_inference_ids(case):
    if "legacy_inference_ids" not in case:
        pytest.skip("no legacy prompt in this fixture")
    ids = encode_prompt(SentencePieceText(LLAMA), "legacy", turns_of(case)[:1])
    assert ids.tolist() == case["legacy_inference_ids"]


@needs_llama
def test_a_sentencepiece_model_is_saved_where_it_was_read(tmp_path):
    SentencePieceText(LLAMA).save(tmp_path)
    again = SentencePieceText(tmp_path / "tokenizer.model")
    again.save(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == LLAMA.read_bytes()


@pytest.fixture(scope="module")
def text():
    return tiny.tiny_text()


WORDS = st.text(alphabet="abc ?.é{}", min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_what_is_learned_is_the_answers(turns):
    text = tiny.tiny_text()
    said = [t for q, a in turns for t in (("user", q), ("assistant", a))]
    ids, labels = encode_example(text, "plain", said)
    assert text.decode(ids[labels != IGNORED].tolist()) == "".join(a for _, a in turns)
    assert (labels == text.eos_id).sum() == len(turns)
    assert labels[0] == IGNORED


def test_a_caption_is_learned_whole(text):
    for name in ("plain", "published"):
        ids, labels = encode_example(text, name, [("assistant", "a chair")])
        assert ids[0] == text.bos_id and ids[-1] == text.eos_id
        assert torch.equal(labels[1:], ids[1:]) and labels[0] == IGNORED


@pytest.mark.parametrize("name", ["plain", "published"])
def test_a_prompt_is_the_beginning_of_its_example(name, text):
    question = ("user", "What is this?")
    prompt = encode_prompt(text, name, [question])
    ids, labels = encode_example(text, name, [question, ("assistant", "a chair")])
    first = int((labels != IGNORED).nonzero()[0])
    assert ids[: len(prompt)].tolist() == prompt.tolist()
    assert len(prompt) == first


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TURNS = [("user", "What is this?"), ("assistant", "A chair."), ("user", "And?"), ("assistant", "é")]


def test_the_llms_own_chat_template():
    text = tiny.tiny_text()
    text.hf.chat_template = CHATML
    ids, labels = encode_example(text, "chat", TURNS)
    assert ids[0] == text.bos_id
    said = "<|user|>What is this?</s>\n<|assistant|>A chair.</s>\n"
    said += "<|user|>And?</s>\n<|assistant|>é</s>\n"
    assert ids[1:].tolist() == text.encode(said)[0]
    learned = text.hf.decode(ids[labels != IGNORED])
    assert learned == "A chair.</s>\né</s>\n"
    assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])
    prompt = encode_prompt(text, "chat", TURNS[:3])
    whole = encode_example(text, "chat", TURNS)[0]
    assert whole[: len(prompt)].tolist() == prompt.tolist()
    text.hf.chat_template = "<s>" + CHATML
    assert encode_prompt(text, "chat", TURNS[:3]).tolist() == prompt.tolist(), "one BOS, not two"
    assert torch.equal(encode_example(text, "chat", TURNS)[1], labels)


def test_a_template_that_will_not_do_is_named():
    text = tiny.tiny_text()
    with pytest.raises(ConfigError, match=r"no chat template; .*: plain, published, legacy"):
        encode_prompt(text, "chat", TURNS[:1])
    text.hf.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(ConfigError, match="refuses these turns: only one turn"):
        encode_prompt(text, "chat", TURNS[:1])
    text.hf.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(ConfigError, match="rewrites earlier turns"):
        encode_example(text, "chat", TURNS)


def test_the_llms_own_ends_of_turn_end_an_answer():
    model = tiny.tiny_model("imu", prompt_format="chat")
    model.text.hf.chat_template = CHATML
    whole = model.generate("What is this?", max_new_tokens=8)
    prompt = encode_prompt(model.text, "chat", [("user", "What is this?")])
    with torch.no_grad():
        first = int(model.llm(prompt[None]).logits[0, -1].argmax())
    model.llm.generation_config.eos_token_id = [first, 2]
    assert whole and model.generate("What is this?", max_new_tokens=8) == ""


def test_errors_are_clear(text):
    with pytest.raises(ConfigError, match="Did you mean 'published'"):
        get_format("publshed")
    with pytest.raises(ConfigError, match="unknown role 'robot'"):
        encode_example(text, "published", [("robot", "hi")])
    with pytest.raises(ConfigError, match="must be the user's"):
        encode_prompt(text, "plain", [("assistant", "hi")])
