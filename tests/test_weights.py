"""Saved models, whole, divided, by reference and in parts; models out of ready parts."""

from __future__ import annotations

import json
import os

import open_clip
import pytest
import tiny
import torch
from published import PARAMS, published_model, write_params

from onellm import weight_files
from onellm.additions import load_additions
from onellm.clip_tower import load_encoder, load_tower
from onellm.errors import CheckpointError, ConfigError
from onellm.llm import build_llama, load_llm
from onellm.model import OneLLM
from onellm.published_files import split_axis
from onellm.published_keys import OursAsPublished, llm_places
from onellm.sequence import TokenSeq
from onellm.slots import Slots, empty_parameters, fill, weights_of
from onellm.train.finish import record_stage
from onellm.weight_files import divide


@pytest.fixture(scope="module")
def model() -> OneLLM:
    return tiny.tiny_model("image", "imu", "point")


@pytest.fixture(scope="module")
def llm_folder(model, tmp_path_factory):
    """The model's LLM by itself, as somebody else would have published it."""
    folder = tmp_path_factory.mktemp("llm")
    model.llm.save_pretrained(folder)
    model.text.hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_file(model, tmp_path_factory):
    """The model's vision tower within a whole CLIP, which open_clip knows under a name."""
    folder = tmp_path_factory.mktemp("clip")
    described = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "patch_size": 14},
        "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    }
    described["vision_cfg"]["head_width"] = 16
    (folder / "tiny-tower.json").write_text(json.dumps(described))
    described["quick_gelu"] = True
    (folder / "tiny-tower-quickgelu.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder)
    clip = open_clip.create_model("tiny-tower-quickgelu")
    clip.visual.load_state_dict(model.encoder.visual.state_dict())
    torch.save(clip.state_dict(), folder / "clip.pt")
    return folder / "clip.pt"


def same(first: OneLLM, second: OneLLM) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# -- empty models -------------------------------------------------------------------------------


def test_empty_models_have_shapes_only_and_are_filled_in_place():
    torch.manual_seed(0)
    full = build_llama(vocab=50, width=16, layers=1, heads=2, hidden=24)
    with empty_parameters():
        empty = build_llama(vocab=50, width=16, layers=1, heads=2, hidden=24)
    assert all(p.is_meta for p in empty.parameters())
    assert not any(b.is_meta for b in empty.buffers())
    fill(Slots(empty), weights_of(full))
    ids = torch.arange(6)[None]
    assert torch.equal(empty(ids).logits, full(ids).logits)
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_tied_and_frozen_weights_stay_so():
    with empty_parameters():
        net = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
        net["b"].weight = net["a"].weight
        net["a"].bias.requires_grad_(False)
    slots = Slots(net)
    assert slots.tied == {"b.weight": "a.weight"}
    for name, shape in slots.shapes.items():
        slots.put(name, torch.ones(shape))
    assert net["a"].weight is net["b"].weight
    assert not net["a"].bias.requires_grad
    assert net["b"].bias.requires_grad


def test_division_into_pieces():
    assert divide({"a": 2, "b": 2, "c": 3}, 4) == [["a", "b"], ["c"]]
    assert divide({"a": 9, "b": 1}, 4) == [["a"], ["b"]]
    assert divide({}, 4) == [[]]


# -- whole models -------------------------------------------------------------------------------


def test_pieces_come_back_and_a_lost_one_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "MAPPED_BYTES", 1000)
    model.save_pretrained(tmp_path, shard_bytes=50_000)
    same(OneLLM.from_pretrained(tmp_path), model)
    lost = sorted(tmp_path.glob("model-*-of-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name}: expected safetensors"):
        OneLLM.from_pretrained(tmp_path)
    (tmp_path / weight_files.INDEX).write_text("[]")
    with pytest.raises(CheckpointError, match="expected a weight_map"):
        OneLLM.from_pretrained(tmp_path)


def test_a_saved_type_is_kept_and_answers(tmp_path):
    half = tiny.tiny_model("imu").bfloat16()
    half.save_pretrained(tmp_path)
    again = OneLLM.from_pretrained(tmp_path)
    same(again, half)
    x = tiny.signals(again, "imu")[0]
    assert isinstance(again.generate("What?", [("imu", x)], max_new_tokens=3), str)
    assert OneLLM.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_llms_with_tied_weights_and_buffers_of_their_own(kind, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1},
        "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64},
    }
    described = AutoConfig.for_model(
        kind, vocab_size=320, tie_word_embeddings=True, **sizes[kind], num_attention_heads=2
    )
    base = tiny.tiny_model("imu")
    model = OneLLM(base.config, AutoModelForCausalLM.from_config(described), base.text).eval()
    model.save_pretrained(tmp_path)
    again = OneLLM.from_pretrained(tmp_path)
    same(again, model)
    assert again.llm.get_input_embeddings().weight is again.llm.get_output_embeddings().weight
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids), model(ids))


def test_files_of_the_first_format_are_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    plain = json.loads(config.read_text())
    for key in ("dtype", "history", "references"):
        del plain[key]
    config.write_text(json.dumps(plain | {"format_version": 1}))
    same(OneLLM.from_pretrained(tmp_path), model)
    config.write_text(json.dumps(plain | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99 is newer"):
        OneLLM.from_pretrained(tmp_path)


def test_what_does_not_fit_is_listed(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    plain = json.loads(config.read_text())
    del plain["model"]["modalities"]["imu"]
    plain["model"]["projector"]["multiple_of"] = 64
    config.write_text(json.dumps(plain))
    with pytest.raises(CheckpointError) as error:
        OneLLM.from_pretrained(tmp_path)
    message = str(error.value)
    assert "unexpected: positions.imu" in message
    assert (
        "wrong shape: projector.experts.0.w1 (expected (3, 128, 32), found (3, 96, 32))" in message
    )


def test_finished_stages_are_recorded_once_each(tmp_path):
    model = tiny.tiny_model("imu")
    record_stage(model, "align", ["tags.end.imu", "positions.imu"])
    record_stage(model, "instruct", ["llm.lm_head.weight"])
    record_stage(model, "align", ["positions.imu"])
    model.save_pretrained(tmp_path)
    again = OneLLM.from_pretrained(tmp_path)
    assert again.history == [
        {"stage": "instruct", "trained": ["llm.lm_head.weight"]},
        {"stage": "align", "trained": ["positions.imu"]},
    ]
    assert "| instruct | 1 | llm |" in (tmp_path / "README.md").read_text()


def test_the_card_says_what_is_known(model, tmp_path, llm_folder):
    model.save_pretrained(tmp_path, llm_id=str(llm_folder))
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: onellm\n")
    assert "takes image, imu and point" in card
    assert "| imu | .npy, .csv | 6 × 40 |" in card
    assert f"- llm: `{llm_folder}`" in card


def test_pushing_uploads_a_whole_folder(model, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))

        def upload_folder(self, repo_id, folder_path):
            same(OneLLM.from_pretrained(folder_path), model)
            calls.append((repo_id, "uploaded"))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model.push_to_hub("me/mine", private=True)
    assert calls == [
        ("me/mine", {"private": True, "exist_ok": True}),
        ("me/mine", "uploaded"),
    ]


# -- by reference -------------------------------------------------------------------------------


def test_llm_and_tower_can_be_left_out(model, llm_folder, clip_file, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(
        tmp_path / "own", llm_id=str(llm_folder), encoder_id=f"tiny-tower-quickgelu/{clip_file}"
    )
    whole, own = (
        (tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "own")
    )
    left_out = (*model.llm.parameters(), *model.encoder.parameters())
    assert whole - own > sum(p.nbytes for p in left_out)
    same(OneLLM.from_pretrained(tmp_path / "own"), model)
    half = OneLLM.from_pretrained(tmp_path / "own", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_other_weights_under_the_same_id_are_found_out(model, clip_file, tmp_path):
    model.llm.save_pretrained(tmp_path / "llm")
    model.text.hf.save_pretrained(tmp_path / "llm")
    model.save_pretrained(tmp_path / "m", llm_id=str(tmp_path / "llm"))
    other = tiny.tiny_model("imu").llm
    with torch.no_grad():
        other.load_state_dict(model.llm.state_dict())
        other.model.layers[1].mlp.up_proj.weight *= 1.001
    other.save_pretrained(tmp_path / "llm")
    with pytest.raises(CheckpointError, match=r"the LLM .*not the weights .*layers\.1\.mlp\.up"):
        OneLLM.from_pretrained(tmp_path / "m")


def test_trained_weights_are_not_left_out(tmp_path):
    model = tiny.tiny_model("imu")
    record_stage(model, "instruct", ["llm.lm_head.weight"])
    with pytest.raises(ConfigError, match="the LLM was trained in stage 'instruct'"):
        model.save_pretrained(tmp_path, llm_id="somebody/llm")


# -- additions ----------------------------------------------------------------------------------


def test_a_new_modality_alone_goes_onto_the_base(tmp_path):
    grown = tiny.tiny_model("image", "imu")
    base = tiny.tiny_model("image", seed=1)
    for part in ("encoder", "llm"):
        getattr(base, part).load_state_dict(getattr(grown, part).state_dict())
    base.projector.experts.load_state_dict(grown.projector.experts.state_dict())
    record_stage(grown, "align_imu", ["tokenizers.imu.conv.weight"])
    grown.save_additions(tmp_path, ["imu"])
    size = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert size < 0.2 * sum(p.nbytes for p in grown.parameters())
    model = base.with_additions(tmp_path)
    assert list(model.modalities) == ["image", "imu"]
    assert list(base.modalities) == ["image"]
    assert model.history == grown.history
    x = tiny.signals(grown, "imu")
    picture = tiny.signals(grown, "image")
    with torch.no_grad():
        assert torch.equal(model.encode("imu", x), grown.encode("imu", x))
        assert torch.equal(model.encode("image", picture), base.encode("image", picture))
    assert model.llm is base.llm
    shared = model.projector.experts[0].wq.data_ptr()
    assert shared == base.projector.experts[0].wq.data_ptr()


def test_additions_know_their_base(tmp_path):
    grown, base = tiny.tiny_model("image", "imu"), tiny.tiny_model("image", seed=1)
    grown.save_additions(tmp_path, ["imu"])
    with pytest.raises(CheckpointError, match="the base model: not the weights"):
        base.with_additions(tmp_path)
    assert "imu" in base.with_additions(tmp_path, strict=False).modalities
    narrow = published_model("image")
    with pytest.raises(CheckpointError, match=r"additions\.safetensors: does not fit the base"):
        narrow.with_additions(tmp_path, strict=False)


def test_a_modality_that_is_there_already_is_replaced(tmp_path):
    model, other = tiny.tiny_model("image", "imu"), tiny.tiny_model("image", "imu", seed=1)
    other.save_additions(tmp_path, ["imu"])
    merged = load_additions(model, tmp_path, strict=False)
    assert torch.equal(merged.tags["end"]["imu"], other.tags["end"]["imu"])
    assert torch.equal(merged.tags["end"]["image"], model.tags["end"]["image"])


def test_a_lora_alone_goes_onto_the_base(tmp_path):
    peft = pytest.importorskip("peft")
    ids = torch.arange(2, 8)[None]
    model = tiny.tiny_model("imu")
    plain = model(ids)
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model.llm = peft.get_peft_model(model.llm, settings)
    model.eval()
    with pytest.raises(ConfigError, match="carries a LoRA"):
        model.save_pretrained(tmp_path / "m")
    model.save_additions(tmp_path / "lora", lora=True)
    again = tiny.tiny_model("imu").with_additions(tmp_path / "lora")
    assert torch.equal(again(ids), model(ids))
    assert not torch.allclose(again(ids), plain)
    model.llm = model.llm.merge_and_unload()
    model.save_pretrained(tmp_path / "m")
    torch.testing.assert_close(OneLLM.from_pretrained(tmp_path / "m")(ids), again(ids))


def test_additions_that_are_none_are_named(model, tmp_path):
    with pytest.raises(ConfigError, match="nothing to save"):
        model.save_additions(tmp_path)
    with pytest.raises(ConfigError, match="no modality 'smell'"):
        model.save_additions(tmp_path, ["smell"])
    with pytest.raises(ConfigError, match="carries no LoRA"):
        model.save_additions(tmp_path, lora=True)
    with pytest.raises(CheckpointError, match=r"found no additions\.json"):
        model.with_additions(tmp_path)


# -- ready parts --------------------------------------------------------------------------------


def llama(kv_heads: int = 4, **options):
    torch.manual_seed(0)
    return build_llama(
        vocab=104, width=64, layers=2, heads=4, hidden=176, kv_heads=kv_heads, **options
    ).eval()


def write_meta(llm, folder, kv_heads: int, shards: int, by_words: bool = False, **params) -> None:
    """As Meta publishes a LLaMA: no prefix, an extra table, slices by process."""
    write_params(folder)
    sizes = PARAMS | {"n_kv_heads": kv_heads} | params
    (folder / "params.json").write_text(json.dumps(sizes))
    weights = OursAsPublished(list(llm_places(2, 4, kv_heads)), weights_of(llm))
    state = {key: weights.read(key) for key in weights.shapes} | {"rope.freqs": torch.ones(8)}
    for n in range(shards):
        shard = {}
        for key, value in state.items():
            axis = 0 if by_words and key.startswith("tok") else split_axis(key)
            part = value if axis is None else value.chunk(shards, axis)[n]
            shard[key] = part.clone()
        torch.save(shard, folder / f"consolidated.{n:02d}.pth")


@pytest.fixture
def sentencepiece_model(tmp_path):
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("what is this? it is a chair.\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        **{"input": str(corpus), "model_prefix": str(tmp_path / "tokenizer")},
        **{"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2},
    )
    return tmp_path / "tokenizer.model"


@pytest.mark.parametrize(
    ("kv_heads", "shards", "by_words"), [(4, 1, False), (4, 2, False), (2, 2, True)]
)
def test_llama_as_meta_publishes_it(kv_heads, shards, by_words, sentencepiece_model, tmp_path):
    llm = llama(kv_heads)
    write_meta(llm, tmp_path, kv_heads, shards, by_words)
    again, text = load_llm(tmp_path)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(again(ids).logits, llm(ids).logits)
    assert text.decode(text.encode("a chair")[0]) == "a chair"


def test_meta_files_that_cannot_be_read_right_are_refused(sentencepiece_model, tmp_path):
    write_meta(llama(), tmp_path, 4, 1, use_scaled_rope=True)
    with pytest.raises(ConfigError, match="take the Hugging Face version"):
        load_llm(tmp_path)
    write_meta(llama(), tmp_path, 4, 1, n_layers=3)
    with pytest.raises(CheckpointError, match=r"do not fit params\.json: 9 missing: layers\.2"):
        load_llm(tmp_path)
    sentencepiece_model.write_text("no model")
    with pytest.raises(CheckpointError, match="expected a sentencepiece model"):
        load_llm(tmp_path)


@pytest.mark.parametrize("quick", [True, False])
def test_a_tower_of_open_clip_computes_what_it_computes_there(quick, clip_file):
    """Its own forward, all tokens behind the last LayerNorm, with the activation of the name."""
    name = "tiny-tower-quickgelu" if quick else "tiny-tower"
    clip = open_clip.create_model(name, pretrained=str(clip_file)).eval()
    clip.visual.output_tokens = True
    encoder = load_encoder(f"{name}/{clip_file}", select="patch")
    picture = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        _, want = clip.visual(picture)
        tokens = encoder.patch_tokenizer(picture)
        found = encoder(TokenSeq(tokens, torch.ones(2, 4, dtype=torch.bool), (4,), "x"))
    torch.testing.assert_close(found.x_BND, want, rtol=1e-4, atol=1e-5)
    assert encoder.config.quick_gelu is quick


def test_the_activation_follows_openai_weights(monkeypatch, clip_file):
    """ViT-L-14 is described with the exact GELU, and its OpenAI weights with QuickGELU."""
    asked = {}

    def create_model(name, pretrained, force_quick_gelu):
        asked.update(name=name, tag=pretrained, quick=force_quick_gelu)
        return open_clip.factory.create_model("tiny-tower")

    described = open_clip.get_model_config("tiny-tower")
    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: described)
    tower = load_tower("ViT-L-14/openai")
    assert asked == {"name": "ViT-L-14", "tag": "openai", "quick": True}
    assert tower.config.quick_gelu
    assert not load_tower("ViT-L-14/laion2b_s32b_b82k").config.quick_gelu


def test_towers_that_are_none_of_ours_are_refused(clip_file, tmp_path):
    with pytest.raises(ConfigError, match=r"no model of open_clip\..*Did you mean 'ViT-L-14'"):
        load_tower("ViTL-14/openai")
    with pytest.raises(ConfigError, match=r"no weights 'opneai'.*Did you mean 'openai'"):
        load_tower("ViT-L-14/opneai")
    with pytest.raises(ConfigError, match="expected MODEL/TAG"):
        load_tower("ViT-L-14")
    for name in ("RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP"):
        with pytest.raises(ConfigError, match="expected a plain vision transformer"):
            load_tower(f"{name}/{clip_file}")
    torch.save({"visual.conv1.weight": torch.ones(1)}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"the weights do not fit the tower: .* missing"):
        load_tower(f"tiny-tower/{tmp_path / 'odd.pt'}")


def test_a_model_out_of_ready_parts_answers(llm_folder, clip_file, model):
    built = OneLLM.from_parts(
        *(llm_folder, f"tiny-tower-quickgelu/{clip_file}"),
        **{"modalities": {"image": {}, "imu": {"steps": 40}}, "projector": tiny.PROJECTOR},
    )
    assert built.modality("image").size == 28
    visual = built.encoder.visual
    assert torch.equal(visual.conv1.weight, model.encoder.visual.conv1.weight)
    ids = torch.arange(5)[None]
    assert torch.equal(built(ids), model(ids))
    x = tiny.signals(built, "image")[0]
    assert isinstance(built.generate("What?", [("image", x)], max_new_tokens=3), str)


def test_parts_take_modalities_by_name(llm_folder, clip_file):
    built = OneLLM.from_parts(
        llm_folder,
        f"tiny-tower-quickgelu/{clip_file}",
        modalities=["imu", "image"],
        projector=tiny.PROJECTOR,
    )
    assert list(built.modalities) == ["imu", "image"]
    with pytest.raises(ConfigError, match=r"'tactil'"):
        OneLLM.from_parts(llm_folder, f"tiny-tower-quickgelu/{clip_file}", modalities=["tactil"])


@pytest.mark.skipif(os.name == "nt", reason="permissions of another kind")
def test_weights_can_be_read_by_those_who_can_read_the_rest(tmp_path):
    tiny.tiny_model("imu").save_pretrained(tmp_path)
    modes = {file.name: file.stat().st_mode for file in tmp_path.iterdir() if file.is_file()}
    assert modes["model.safetensors"] == modes["config.json"]
