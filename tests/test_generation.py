"""Decoding: caches, sampling, beams, streaming, conversations that are not run twice."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm.chat import Conversation
from onellm.errors import ConfigError
from onellm.generation import Decoding, answer, decode, prepare
from onellm.kvcache import KVPrefix, SizedLayer, new_cache
from onellm.model import OneLLM
from onellm.prompts import encode_example, encode_prompt
from onellm.sampling import nucleus, random_streams
from onellm.text import SentencePieceText
from onellm.writer import Detokenizer, Writer

SHARED = Path(__file__).parents[2] / "shared"
LLAMA = Path(os.environ.get("ONELLM_LLAMA2", SHARED / "llama2")) / "tokenizer.model"
TALK = (
    ("user", "What is this?"),
    ("assistant", "It is a chair, a table."),
    ("user", "Is the person walking?"),
    ("assistant", "The person is running."),
)


@pytest.fixture(scope="module")
def model() -> OneLLM:
    return tiny.tiny_model("image", "imu", "audio")


@pytest.fixture(scope="module")
def talker() -> OneLLM:
    """A model whose LLM has learned one conversation by heart."""
    model = tiny.tiny_model("imu", "image")
    ids, labels = encode_example(model.text, "plain", TALK)
    adam = torch.optim.Adam(model.llm.parameters(), lr=5e-3)
    for _ in range(120):
        adam.zero_grad()
        model.llm(input_ids=ids[None], labels=labels[None]).loss.backward()
        adam.step()
    assert model.generate("What is this?") == TALK[1][1]
    return model


class Ran:
    """Counts the positions that go through an LLM."""

    def __init__(self, llm: torch.nn.Module) -> None:
        self.positions: list[int] = []
        self._hook = llm.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, llm, args, kwargs) -> None:
        given = kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        self.positions.append(given.shape[1])

    def __enter__(self) -> Ran:
        return self

    def __exit__(self, *error) -> None:
        self._hook.remove()


def mixed(model: OneLLM) -> tuple[list[str], list[list]]:
    prompts = ["What is this?", "Is the person walking? Answer yes or no.", "Say more."]
    media = [["image"], ["imu", "audio"], []]
    return prompts, [[(m, tiny.signals(model, m, 1, seed=3)[0]) for m in ms] for ms in media]


# -- caches -------------------------------------------------------------------------------------


def test_a_sized_layer_holds_what_the_dynamic_one_does():
    from transformers.cache_utils import DynamicLayer

    ours, theirs = SizedLayer(4), DynamicLayer()
    for new in (3, 1, 1, 4, 1):  # beyond its capacity, too
        keys, values = torch.randn(2, 2, new, 8), torch.randn(2, 2, new, 8)
        for a, b in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(a, b)
    for layer in (ours, theirs):
        layer.crop(-4)
    keys = torch.randn(2, 2, 2, 8)
    assert torch.equal(ours.update(keys, keys)[0], theirs.update(keys, keys)[0])
    assert ours.get_seq_length() == theirs.get_seq_length() == 8


def test_the_cache_makes_room_once(model):
    prompts, media = mixed(model)
    spliced = prepare(model, prompts[:1], media[:1])
    cache = new_cache(model.llm, 40)
    model.llm(inputs_embeds=spliced.embeds, past_key_values=cache)
    buffer = cache.layers[0].keys.data_ptr()
    for _ in range(5):
        model.llm(input_ids=torch.tensor([[7]]), past_key_values=cache)
    assert all(layer.capacity == 40 for layer in cache.layers)
    assert cache.layers[0].keys.data_ptr() == buffer


def test_layers_with_a_window_stay_those_of_transformers():
    from transformers import AutoModelForCausalLM, Gemma2Config

    config = Gemma2Config(
        **{"vocab_size": 99, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4},
    )
    llm = AutoModelForCausalLM.from_config(config)
    assert not any(isinstance(layer, SizedLayer) for layer in new_cache(llm, 9).layers)
    prefix, embeds = KVPrefix(), torch.randn(6, 16)
    prefix.begin(llm, embeds, 9)
    prefix.ran(embeds)
    assert prefix.begin(llm, embeds, 9)[1] == 0, "a window cannot be taken back"


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 3)])
def test_a_compiled_step_with_a_static_cache_gives_the_same_tokens(rows, model, monkeypatch):
    """The graph is captured as on a GPU; only its translation to kernels is left out."""
    compiled, real = [], torch.compile

    def eager(call, **options):
        compiled.append(call)
        return real(call, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    monkeypatch.delattr(model.llm, "_compiled_call", raising=False)
    prompts, media = (part[rows] for part in mixed(model))
    plain = model.generate(prompts, media, max_new_tokens=9)
    for _ in range(2):  # the second time in the first one's cache
        assert model.generate(prompts, media, max_new_tokens=9, compile=True) == plain
    assert len(compiled) == 1
    del model.llm._compiled_call


def test_a_compiled_step_wants_to_know_how_many(model):
    spliced = prepare(model, ["Why?"], [[]])
    with pytest.raises(ConfigError, match="room"):
        next(decode(model, spliced, lambda logits: logits.argmax(-1), compiled=True))


def test_an_answer_ends_with_the_context(model):
    context = model.llm.config.max_position_embeddings
    spliced = prepare(model, ["Why?"], [[]])
    model.llm.config.max_position_embeddings = spliced.embeds.shape[1] + 3
    try:
        with Ran(model.llm) as ran:
            model.generate("Why?", max_new_tokens=50)
        assert sum(ran.positions) <= model.llm.config.max_position_embeddings
        with pytest.raises(ConfigError, match=r"prompt and media take \d+ positions"):
            model.generate("Why? " * 9)
    finally:
        model.llm.config.max_position_embeddings = context


# -- sampling and beams -------------------------------------------------------------------------


def test_a_seed_per_sample_gives_what_each_gets_alone(model):
    prompts, media = mixed(model)
    options = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9}
    together = model.generate(prompts, media, seed=[5, 6, 5], **options)
    alone = [
        model.generate(p, m, seed=s, **options)
        for p, m, s in zip(prompts, media, (5, 6, 5), strict=True)
    ]
    assert together == alone
    assert model.generate(prompts[0], media[0], seed=7, **options) != alone[0]
    with pytest.raises(ConfigError, match="2 seeds for 3 prompts"):
        model.generate(prompts, media, seed=[1, 2], **options)


def test_the_nucleus_has_the_share_it_should():
    share = torch.tensor([0.1, 0.5, 0.25, 0.15])
    logits = share.log().expand(4000, 4)
    streams = random_streams(0, 4000)
    drawn = nucleus(1.0, 1.0, streams)(logits).bincount(minlength=4) / 4000
    torch.testing.assert_close(drawn, share, atol=0.03, rtol=0)
    kept = nucleus(1.0, 0.6, streams)(logits).bincount(minlength=4) / 4000
    torch.testing.assert_close(kept, torch.tensor([0, 2 / 3, 1 / 3, 0]), atol=0.03, rtol=0)
    assert (nucleus(1.0, 1e-6, streams)(logits) == 1).all()
    cold = nucleus(0.01, 1.0, streams)(logits)
    assert (cold == 1).all()


def test_beams_find_the_likeliest_answer(model):
    """As many beams as tokens miss nothing: compared with trying every answer of two tokens."""
    spliced = prepare(model, ["What is this?"], [[]])
    vocabulary, end = model.llm.config.vocab_size, model.text.eos_id
    embed = model.llm.get_input_embeddings()
    with torch.no_grad():
        first_V = model.llm(inputs_embeds=spliced.embeds).logits[0, -1].log_softmax(-1)
        prompt = spliced.embeds.expand(vocabulary, -1, -1)
        every = torch.cat([prompt, embed(torch.arange(vocabulary))[:, None]], 1)
        second_VV = model.llm(inputs_embeds=every).logits[:, -1].log_softmax(-1)
    mean_VV = (first_V[:, None] + second_VV) / 2
    mean_VV[end] = -torch.inf
    assert first_V[end] < mean_VV.max(), "the best answer does not end at once"
    best = divmod(int(mean_VV.argmax()), vocabulary)
    said = model.generate("What is this?", max_new_tokens=2, beams=vocabulary)
    assert said == model.text.decode([i for i in best if i != end]).strip()


def test_beams_keep_batches_and_stop_strings(model):
    prompts, media = mixed(model)
    options = {"max_new_tokens": 8, "beams": 3}
    together = model.generate(prompts, media, **options)
    alone = [model.generate(p, m, **options) for p, m in zip(prompts, media, strict=True)]
    assert together == alone
    whole = together[0]
    stop = whole[2:4]
    assert stop not in model.generate(prompts[0], media[0], stop=[stop], **options)
    assert list(model.stream(prompts[0], media[0], **options)) == [whole]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"beams": 0},
        {"stop": ("",)},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"beams": 2, "temperature": 1.0},
        {"compile": True, "legacy_decode_offset": True},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError):
        Decoding(**wrong)


# -- text as it comes ---------------------------------------------------------------------------

TEXTS = st.text(alphabet="abc ?.,é€𝄞你\n{}#", max_size=40)


def tokenizers() -> list:
    return [tiny.tiny_text(), *([SentencePieceText(LLAMA)] if LLAMA.is_file() else [])]


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.lists(st.integers(3, 319), max_size=20))
def test_pieces_join_to_the_whole_text(said, noise):
    for text in tokenizers():
        for ids in (text.encode(said)[0], noise):  # noise has broken characters in it
            pieces = Detokenizer(text)
            joined = "".join([pieces.add(i) for i in ids]) + pieces.flush()
            assert joined == text.decode(ids)


def test_streaming_decodes_each_id_a_few_times():
    text = tiny.tiny_text()
    decoded, real = [], text.decode
    text.decode = lambda ids: decoded.append(len(ids)) or real(ids)
    ids = text.encode(" ".join(tiny.SENTENCES) * 20)[0]
    writer = Writer(text, {text.eos_id}, ("###",), len(ids))
    for token in ids:
        writer.add(token)
        writer.ready()
    assert writer.text() == real(ids).strip()
    assert sum(decoded) < 8 * len(ids)


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.lists(st.sampled_from(["#", "##", "b c", "é", ". "]), max_size=2))
def test_nothing_shown_is_taken_back(said, stops):
    text = tiny.tiny_text()
    writer = Writer(text, {text.eos_id}, tuple(stops), 1000)
    shown = ""
    for token in [*text.encode(said)[0], text.eos_id]:
        writer.add(token)
        assert writer.ready().startswith(shown)
        shown = writer.ready()
    cut = min((at for stop in stops if (at := said.find(stop)) >= 0), default=len(said))
    assert shown == writer.text() == said[:cut].strip()
    assert writer.done


def test_only_what_may_be_a_stop_string_is_held_back():
    text = tiny.tiny_text()
    writer = Writer(text, {text.eos_id}, ("###",), 100)
    shown = []
    for token in text.encode("ab##c")[0]:
        writer.add(token)
        shown.append(writer.ready())
    assert shown[:3] == ["a", "ab", "ab"] or "ab" in shown
    assert "ab#" not in shown and shown[-1] == "ab##c"


# -- conversations ------------------------------------------------------------------------------


def test_a_turn_runs_only_what_is_new(talker):
    medium = [("imu", tiny.signals(talker, "imu")[0])]
    conversation = Conversation(talker, max_new_tokens=20)
    with Ran(talker.llm) as ran:
        first = "".join(conversation.ask(TALK[0][1]))
    assert first == TALK[1][1]
    fed = sum(ran.positions)
    with Ran(talker.llm) as ran:
        second = "".join(conversation.ask(TALK[2][1]))
    assert second == talker.generate(TALK[:3], max_new_tokens=20) == TALK[3][1]
    whole = len(encode_prompt(talker.text, "plain", TALK[:3]))
    assert ran.positions[0] == whole - fed, "the prompt's new positions and no others"
    # A medium stands in front of everything said: nothing behind it holds any more.
    conversation.media += medium
    with Ran(talker.llm) as ran:
        third = "".join(conversation.ask("Say more."))
    turns = (*TALK, ("user", "Say more."))
    assert third == talker.generate(turns, medium, max_new_tokens=20)
    block = talker.projector.config.queries + 2
    assert ran.positions[0] == len(encode_prompt(talker.text, "plain", turns)) + block - 1


@pytest.mark.parametrize("prompt_format", ["plain", "published"])
def test_a_conversation_says_what_a_fresh_start_says(prompt_format):
    """With a random LLM, whose answers are often not the text that they decode to."""
    model = tiny.tiny_model("image", prompt_format=prompt_format, seed=2)
    media = [("image", tiny.signals(model, "image")[0])]
    prefix, turns = KVPrefix(), ()
    for question in ("What is this?", "Is it a lamp?", "Why?"):
        turns = (*turns, ("user", question))
        said = model.generate(turns, media, max_new_tokens=7, prefix=prefix)
        assert said == model.generate(turns, media, max_new_tokens=7)
        turns = (*turns, ("assistant", said))
    with Ran(model.llm) as ran:
        model.generate(turns[:-1], media, max_new_tokens=1, prefix=prefix)
    assert ran.positions == [1], "a question asked again is run from its last position on"


def test_an_interrupted_turn_leaves_a_sound_prefix(talker):
    conversation = Conversation(talker, max_new_tokens=20)
    stream = conversation.ask(TALK[0][1])
    next(stream)
    layer = talker.llm.model.layers[1]
    hook = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    hook.remove()
    assert "".join(conversation.ask(TALK[0][1])) == TALK[1][1]


def test_a_prefix_is_of_one_model_and_one_prompt(talker, model):
    prefix = KVPrefix()
    talker.generate(TALK[0][1], prefix=prefix)
    other = tiny.tiny_model("imu", seed=9)
    assert other.generate(TALK[0][1], prefix=prefix) == other.generate(TALK[0][1])
    with pytest.raises(ConfigError, match="one conversation"):
        talker.generate(["Why?"], prefix=prefix)


def test_legacy_decoding_leaves_a_prefix_alone(talker):
    medium = [("imu", tiny.signals(talker, "imu")[0])]
    legacy = Decoding(max_new_tokens=6, legacy_decode_offset=True)
    prefix = KVPrefix()
    said = [answer(talker, "Why?", medium, legacy, prefix) for _ in range(2)]
    assert said[0] == said[1] == answer(talker, "Why?", medium, legacy)


# -- what is computed once ----------------------------------------------------------------------


@pytest.fixture
def encoder_runs():
    """A fresh model and a list of the batch sizes its encoder is given."""
    model, runs = tiny.tiny_model("image", "imu"), []
    model.encoder.register_forward_hook(lambda m, args, out: runs.append(len(out.x_BND)))
    return model, runs


def test_a_medium_is_encoded_once(encoder_runs):
    model, runs = encoder_runs
    x = tiny.signals(model, "imu", 3)
    first = model.generate("What is this?", [("imu", x[0])])
    assert model.generate("What is this?", [("imu", x[0].clone())]) == first
    assert runs == [1]
    model.generate(["Why?"] * 3, [[("imu", x[0])], [("imu", x[1])], [("imu", x[1])]])
    assert runs == [1, 1], "only what is new, and that once"
    model.generate("Why?", [("imu", x[0] + 1e-6)])
    assert runs == [1, 1, 1], "other content is another medium"


def test_a_changed_weight_makes_encoded_media_stale(encoder_runs):
    model, runs = encoder_runs
    media = [("imu", tiny.signals(model, "imu")[0])]
    before = prepare(model, ["Why?"], [media]).embeds
    with torch.no_grad():
        model.projector.proj_out["imu"][0].weight.mul_(2)
    assert not torch.equal(before, prepare(model, ["Why?"], [media]).embeds)
    assert len(runs) == 2
    model.projector.active_experts = 1
    prepare(model, ["Why?"], [media])
    assert len(runs) == 3
    model.train()
    prepare(model, ["Why?"], [media])
    prepare(model, ["Why?"], [media])
    assert len(runs) == 5, "nothing is kept while training"


def test_encoded_media_are_bounded(encoder_runs):
    model, runs = encoder_runs
    x = tiny.signals(model, "imu", 3)
    one = model.encode("imu", x[:1]).nbytes
    runs.clear()
    model.encoded.max_bytes = 2 * one
    for index in (0, 1, 0, 2, 0):  # 2 pushes 1 out, which was not used for longest
        model.generate("Why?", [("imu", x[index])], max_new_tokens=1)
    assert len(runs) == 3 and model.encoded.bytes == 2 * one and len(model.encoded) == 2
    model.generate("Why?", [("imu", x[1])], max_new_tokens=1)
    assert len(runs) == 4
    model.encoded.max_bytes = 0
    model.generate("Why?", [("imu", x[2])], max_new_tokens=1)
    assert len(model.encoded) == 0 and model.encoded.bytes == 0


def test_a_router_is_folded_in_evaluation():
    model = tiny.tiny_model("imu")
    router, runs = model.projector.routers["imu"], []
    router.register_forward_hook(lambda *_: runs.append(1))
    x = tiny.signals(model, "imu")
    with torch.inference_mode():
        first = model.encode("imu", x)
    with torch.no_grad():
        torch.testing.assert_close(model.encode("imu", x), first)
        assert len(runs) == 1
        router.fc2.bias.add_(torch.tensor([3.0, 0.0, -3.0]))
        assert not torch.allclose(model.encode("imu", x), first)
        assert len(runs) == 2
        model.train()
        model.encode("imu", x)
        model.encode("imu", x)
        assert len(runs) == 4
        model.eval()
    model.encode("imu", x).sum().backward()
    assert router.fc2.weight.grad is not None, "gradients still reach it"


def test_embed_gives_a_vector_per_signal(model):
    x = tiny.signals(model, "imu", 3)
    vectors = model.embed("imu", x)
    assert vectors.shape == (3, 32) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    raw = model.embed("imu", x, normalize=False)
    with torch.no_grad():
        torch.testing.assert_close(raw, model.encode("imu", x).mean(1))
    pairs = itertools.combinations(range(3), 2)
    assert all(not torch.allclose(vectors[a], vectors[b]) for a, b in pairs)


def test_a_pair_alone_is_no_list_of_pairs():
    model = tiny.tiny_model("imu")
    with pytest.raises(ConfigError, match="list of \\(modality, source\\) pairs"):
        model.generate("What is it?", media=("imu", "walk.npy"))
    with pytest.raises(ConfigError, match="list of \\(modality, source\\) pairs"):
        next(model.stream("What is it?", media=("imu", "walk.npy")))
