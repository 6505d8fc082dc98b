"""Likelihoods of options: the shared pass against one full pass per option."""

from __future__ import annotations

import pytest
import torch
from tiny import signals, tiny_model

from onellm.errors import ConfigError
from onellm.eval.likelihood import choice_logprobs, encode_choice
from onellm.generation import turns_of
from onellm.prompts import encode_example

PROMPTS = ["What is this?", "Which instrument is playing? Say so.", "Is it red?"]
OPTIONS = [
    ["a chair", "a table or a lamp", "plant"],
    ["piano", "a violin and a flute"],
    ["yes", "no", "Yes, it is.", "a"],
]


@pytest.fixture(scope="module", params=["plain", "published"])
def model(request):
    return tiny_model("image", "imu", prompt_format=request.param)


@pytest.fixture(scope="module")
def soft(model):
    image = model.soften([[("image", x)] for x in signals(model, "image", 3)])
    imu = model.soften([[("imu", x)] for x in signals(model, "imu", 3)])
    # One medium, two media, none.
    return [
        [("image", image[0][0])],
        [("imu", imu[1][0]), ("image", image[1][0])],
        [],
    ]


@torch.no_grad()
def unshared(model, prompt, media, option):
    """Log-probabilities of an option's tokens, from the whole sequence in one pass."""
    ids, begin, end = encode_choice(
        model.text, model.config.prompt_format, turns_of(prompt), option
    )
    spliced = model.splice([torch.tensor(ids)], None, [media])
    out = model.llm(inputs_embeds=spliced.embeds, position_ids=spliced.position_ids)
    logprobs_TV = out.logits[0].log_softmax(-1)
    extra = spliced.embeds.shape[1] - len(ids)
    return [float(logprobs_TV[extra + i - 1, ids[i]]) for i in range(begin, end)]


def test_sharing_the_prefix_changes_nothing(model, soft):
    shared = choice_logprobs(model, PROMPTS, soft, OPTIONS)
    for prompt, media, options, found in zip(PROMPTS, soft, OPTIONS, shared, strict=True):
        assert len(found) == len(options)
        for option, chance in zip(options, found, strict=True):
            each = unshared(model, prompt, media, option)
            assert chance["sum"] == pytest.approx(sum(each), abs=1e-5)
            assert chance["mean"] == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_a_batch_is_its_samples_one_by_one(model, soft):
    together = choice_logprobs(model, PROMPTS, soft, OPTIONS)
    for number in range(3):
        one = slice(number, number + 1)
        (alone,) = choice_logprobs(model, PROMPTS[one], soft[one], OPTIONS[one])
        for a, b in zip(alone, together[number], strict=True):
            assert a["sum"] == pytest.approx(b["sum"], abs=1e-5)


def test_what_is_scored_is_the_option_and_nothing_else(model):
    name, text = model.config.prompt_format, model.text
    turns = turns_of("What is this?")
    for option in ("a chair", "lamp"):
        ids, begin, end = encode_choice(text, name, turns, option)
        assert text.decode(ids[begin:end]).strip() == option
        assert end == len(ids)
        # The same ids as in training, where the end of the answer follows.
        trained, labels = encode_example(text, name, [*turns, ("assistant", option)])
        assert trained[:end].tolist() == ids
        assert (labels[begin:end] != -100).all()


def test_an_option_of_no_tokens_cannot_be_ranked(model, soft):
    with pytest.raises(ConfigError, match="no token"):
        choice_logprobs(model, PROMPTS[:1], soft[:1], [["a", ""]])


def test_a_prompt_beyond_the_context_is_refused(model, soft, monkeypatch):
    monkeypatch.setattr(model.llm.config, "max_position_embeddings", 12)
    with pytest.raises(ConfigError, match="the LLM has 12"):
        choice_logprobs(model, PROMPTS[:1], soft[:1], OPTIONS[:1])
