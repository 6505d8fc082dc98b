"""Properties of the whole model: gradients, mixing, batches, mixtures of modalities, decoding."""

from __future__ import annotations

import pytest
import tiny
import torch

from onellm.encoder import Encoder, EncoderConfig
from onellm.errors import CheckpointError, ConfigError
from onellm.generation import decode, load_signal, prepare
from onellm.model import OneLLM, OneLLMConfig
from onellm.registry import modality_classes
from onellm.sequence import TokenSeq
from onellm.splice import ANSWER, IGNORED, MEDIA, PAD, TEXT

EIGHT = tuple(tiny.MODALITIES)


@pytest.fixture(scope="module")
def model() -> OneLLM:
    return tiny.tiny_model()


def test_the_eight_modalities_are_there(model):
    assert set(model.modalities) == set(modality_classes()) == set(EIGHT)


@pytest.mark.parametrize("name", EIGHT)
def test_encode_gives_queries_in_the_llm_width(name, model):
    assert model.encode(name, tiny.signals(model, name, batch=3)).shape == (3, 4, 32)


@pytest.mark.parametrize("name", EIGHT)
def test_a_sample_does_not_depend_on_its_batch(name, model):
    x = tiny.signals(model, name, batch=4)
    with torch.no_grad():
        whole, alone = model.encode(name, x), model.encode(name, x[2:3])
    torch.testing.assert_close(whole[2:3], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["audio", "point", "imu", "fmri"])
def test_gradients_reach_the_tokenizer_through_the_frozen_encoder(name):
    model = tiny.tiny_model(name)
    model.encode(name, tiny.signals(model, name)).square().mean().backward()
    for parameter in model.tokenizers[name].parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert model.positions[name].grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())


def sequence(x_BND: torch.Tensor, mask: torch.Tensor | None = None) -> TokenSeq:
    mask = torch.ones(x_BND.shape[:2], dtype=torch.bool) if mask is None else mask
    return TokenSeq(x_BND, mask, (x_BND.shape[1],), "image")


def test_the_encoder_mixes_tokens_and_not_samples():
    torch.manual_seed(0)
    encoder = Encoder(tiny.ENCODER)
    x = torch.randn(3, 4, 32)
    edited = x.clone()
    edited[1, 2] += 1.0
    before, after = encoder(sequence(x)).x_BND, encoder(sequence(edited)).x_BND
    changed = (before - after).abs().amax(-1) > 1e-7
    assert changed[1].all(), "editing one token must reach every token of its sample"
    assert not changed[0].any() and not changed[2].any(), "and no other sample"


def test_padding_is_hidden_from_encoder_and_projector(model):
    x = torch.randn(2, 4, 32)
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    noisy = x.clone()
    noisy[1, 3] = 99.0
    real = torch.cat([torch.ones(2, 1, dtype=torch.bool), mask], 1)
    with torch.no_grad():
        a, b = (model.encoder(sequence(v, mask)) for v in (x, noisy))
        torch.testing.assert_close(a.x_BND[real], b.x_BND[real])
        torch.testing.assert_close(model.project(a), model.project(b))


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({"select": "cls"}, 1), ({"select": "patch"}, 4), ({"select_layer": -2}, 5)],
)
def test_what_the_encoder_hands_on_is_data(options, tokens):
    encoder = Encoder(tiny.ENCODER.model_copy(update=options))
    assert encoder(sequence(torch.randn(1, 4, 32))).x_BND.shape == (1, tokens, 32)


def test_a_size_that_does_not_fit_the_encoder_is_an_error():
    config = OneLLMConfig(
        encoder=tiny.ENCODER, projector=tiny.PROJECTOR, modalities={"image": {"size": 56}}
    )
    with pytest.raises(ConfigError, match="do not fit the encoder's 28-pixel"):
        OneLLM(config, tiny.build_llama(vocab=9, width=8, layers=1, heads=1, hidden=8))


def test_select_layer_out_of_range_is_an_error():
    with pytest.raises(ConfigError, match="select_layer"):
        Encoder(EncoderConfig(**{**tiny.ENCODER.model_dump(), "select_layer": 3}))


def test_mixed_batch_of_any_media_in_any_order(model):
    """Samples of different modalities, several media, and text alone, in one splice."""
    media = [["image", "audio"], [], ["imu"], ["audio", "image"]]
    named = [[(m, tiny.signals(model, m, 1)[0]) for m in names] for names in media]
    ids = [torch.tensor([0, 5, 6, 7]), torch.tensor([0, 8]), torch.tensor([0, 9, 9]), None]
    ids[3] = ids[0]
    labels = [torch.full_like(i, IGNORED) for i in ids]
    labels[1] = torch.tensor([IGNORED, 8])
    with torch.no_grad():
        soft = model.soften(named)
        pairs = [list(zip(n, s, strict=True)) for n, s in zip(media, soft, strict=True)]
        out = model.splice(ids, labels, pairs)
        alone = model.splice(ids[3:], None, pairs[3:])
    block = 6  # start tag, 4 queries, end tag
    assert out.attention_mask.sum(1).tolist() == [4 + 2 * block, 2, 3 + block, 4 + 2 * block]
    assert out.roles[0].tolist() == [TEXT] + [MEDIA] * 12 + [TEXT] * 3
    assert out.roles[1].tolist() == [TEXT, ANSWER] + [PAD] * 14
    assert out.item[3].tolist() == [-1] + [0] * 6 + [1] * 6 + [-1] * 3
    assert (out.labels != IGNORED).sum() == 1
    torch.testing.assert_close(out.embeds[3], alone.embeds[0])
    # order matters: audio then image is not image then audio
    torch.testing.assert_close(out.embeds[0, 1:7], out.embeds[3, 7:13])


def test_logits_do_not_depend_on_padding_side_or_neighbours(model):
    x = tiny.signals(model, "imu")
    ids = torch.tensor([[0, 5, 6, 7, 8], [0, 9, 3, 3, 3]])
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    with torch.no_grad():
        both = model(ids, media=[("imu", x)], attention_mask=mask)
        one = model(ids[1:, :2], media=[("imu", x[1:])])
    torch.testing.assert_close(both[1:, :2], one, atol=1e-5, rtol=0)


def prompts_of(model: OneLLM) -> tuple[list[str], list[list]]:
    prompts = ["What is this?", "Is the person walking? Answer yes or no.", "Say more.", "Why?"]
    media = [["image"], ["imu", "audio"], [], ["point"]]
    signal = [[(m, tiny.signals(model, m, 1, seed=3)[0]) for m in names] for names in media]
    return prompts, signal


def test_cached_decoding_equals_uncached(model):
    prompts, media = prompts_of(model)
    spliced = prepare(model, prompts, media)
    rows, tokens = [], []

    def greedy(logits_BV: torch.Tensor) -> torch.Tensor:
        rows.append(logits_BV)
        tokens.append(logits_BV.argmax(-1))
        return tokens[-1]

    steps = decode(model, spliced, greedy)
    for _ in range(6):
        next(steps)
    with torch.no_grad():
        said = model.llm.get_input_embeddings()(torch.stack(tokens[:-1], 1))
        mask = torch.cat([spliced.attention_mask, torch.ones(4, 5, dtype=torch.long)], 1)
        logits = model.llm(
            inputs_embeds=torch.cat([spliced.embeds, said], 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        ).logits[:, -6:]
    torch.testing.assert_close(torch.stack(rows, 1), logits, atol=1e-5, rtol=0)


def test_batch_n_decodes_what_batch_1_does(model):
    prompts, media = prompts_of(model)
    together = model.generate(prompts, media, max_new_tokens=12)
    alone = [model.generate(p, m, max_new_tokens=12) for p, m in zip(prompts, media, strict=True)]
    assert together == alone
    assert len(set(together)) > 1, "the media and prompts make a difference"


def test_sampling_has_a_stream_per_sample(model):
    settings = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9, "seed": 5}
    again = [model.generate(["Why?", "Why?"], **settings) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0][0] != again[0][1]


def test_integers_are_pixels_and_floats_a_signal(model):
    pixels = torch.arange(3 * 28 * 28, dtype=torch.uint8).reshape(3, 28, 28)
    read = model.modality("image").load(pixels)
    torch.testing.assert_close(load_signal(model, "image", pixels), read)
    assert load_signal(model, "image", read) is read


def test_media_of_a_batch_is_a_list_for_each_prompt(model):
    x = tiny.signals(model, "imu")[0]
    with pytest.raises(ConfigError, match=r"a list of \(modality, source\) lists"):
        model.generate(["Why?"], media=[("imu", x)])


def test_streaming_gives_the_same_answer(model):
    prompts, media = prompts_of(model)
    pieces = list(model.stream(prompts[1], media[1], max_new_tokens=16))
    assert "".join(pieces).strip() == model.generate(prompts[1], media[1], max_new_tokens=16)


def test_stop_strings_end_an_answer(model):
    whole = model.generate("What is this?", max_new_tokens=16)
    stop = whole[3:5]
    assert model.generate("What is this?", max_new_tokens=16, stop=[stop]) == whole[:3].strip()


def test_saved_models_come_back(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    again = OneLLM.from_pretrained(tmp_path / "m")
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    prompts, media = prompts_of(model)
    assert again.generate(prompts, media) == model.generate(prompts, media)


def test_a_damaged_model_folder_is_named(model, tmp_path):
    with pytest.raises(CheckpointError, match="expected a folder"):
        OneLLM.from_pretrained(tmp_path / "nothing")
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected safetensors"):
        OneLLM.from_pretrained(tmp_path)


def test_the_image_path_is_copied_to_experts_and_modalities():
    model = tiny.tiny_model("image", "audio", "imu")
    model.copy_path("image", ["audio"])
    projector = model.projector
    for parameter in projector.experts.parameters():
        assert torch.equal(parameter[0], parameter[2])
    assert torch.equal(projector.queries["image"], projector.queries["audio"])
    assert torch.equal(projector.proj_out["image"][0].weight, projector.proj_out["audio"][0].weight)
    assert torch.equal(model.tags["start"]["image"], model.tags["start"]["audio"])
    assert not torch.equal(projector.queries["image"], projector.queries["imu"])


def test_one_active_expert_is_the_first_alone():
    model = tiny.tiny_model("imu")
    x = tiny.signals(model, "imu")
    model.projector.active_experts = 1
    with torch.no_grad():
        before = model.encode("imu", x)
        for parameter in model.projector.experts.parameters():
            parameter[1:] += 1.0
        torch.testing.assert_close(model.encode("imu", x), before)
        model.projector.active_experts = 3
        assert not torch.allclose(model.encode("imu", x), before)


@pytest.mark.slow
def test_full_width_shapes_of_all_eight_modalities():
    """Width 1024 with one block, published input sizes and token counts (spec §1.2)."""
    from onellm.llm import build_llama

    counts = {
        "image": 257,
        "video": 257,
        "audio": 1213,
        "point": 1025,
        "depth": 257,
        "normal": 257,
        "imu": 392,
        "fmri": 9,
    }
    config = OneLLMConfig(
        encoder=EncoderConfig(layers=1),
        projector={"depth": 1},
        modalities={name: {} for name in counts},
    )
    model = OneLLM(config, build_llama(vocab=50, width=4096, layers=1, heads=32, hidden=64))
    for name, tokens in counts.items():
        x = model.modality(name).example()[None]
        with torch.no_grad():
            features = model.features(name, x)
            assert features.x_BND.shape == (1, tokens, 1024), name
            assert model.project(features).shape == (1, 30, 4096), name
    expert = sum(p.numel() for p in model.projector.experts[0].parameters()) // 3
    assert expert == 12_847_104  # per block and expert, spec §1.5
    assert model.tokenizers["fmri"].linear.weight.shape == (8192, 15724)


def test_gated_frames_tell_their_order_and_plain_ones_do_not():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 3, 28, 28)
    for reduce, same in (("mean", True), ("gated", False)):
        options = {**tiny.MODALITIES["video"], "frame_reduce": reduce}
        config = tiny.tiny_model("video").config.model_copy(
            update={"modalities": {"video": options}}
        )
        model = OneLLM(config, tiny.build_llama(vocab=9, width=8, layers=1, heads=1, hidden=8))
        with torch.no_grad():
            forth, back = model.encode("video", x), model.encode("video", x.flip(1))
        assert torch.allclose(forth, back, atol=1e-5) is same
