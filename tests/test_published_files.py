"""Published checkpoints in every layout, strictly; conversion there and back, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published import (
    CLIP,
    PARAMS,
    published_model,
    published_state,
    write_params,
    write_parts,
    write_shards,
    write_whole,
)
from tiny import tiny_model
from typer.testing import CliRunner

from onellm import checkpoint, published_files, weight_files
from onellm.cli import app
from onellm.convert import from_published, to_published
from onellm.encoder import EncoderConfig
from onellm.errors import CheckpointError, ConfigError
from onellm.llm import build_llama
from onellm.model import OneLLM, OneLLMConfig
from onellm.published_keys import DROPPED, half_split, interleaved, places
from onellm.registry import modality_classes
from onellm.slots import Slots, empty_parameters

ROOT = Path(__file__).parents[1]
NAMES = ("image", "audio", "imu")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return published_state(*NAMES)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return published_model(*NAMES).state_dict()


def same(model: OneLLM, expected: dict[str, torch.Tensor], dtype=torch.float32) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == dtype, name
        assert torch.equal(found[name], tensor.to(dtype)), name


# -- layouts ------------------------------------------------------------------------------------


def test_one_file_with_params_beside_it(state, expected, tmp_path):
    same(OneLLM.from_official(write_whole(tmp_path, state), clip=CLIP), expected)


def test_ten_parts(state, expected, tmp_path):
    write_parts(tmp_path, state, 10)
    same(OneLLM.from_official(tmp_path, clip=CLIP), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_model_parallel_shards_are_merged(count, state, expected, tmp_path):
    write_shards(tmp_path, state, count)
    same(OneLLM.from_official(tmp_path, clip=CLIP), expected)


def test_files_are_unmapped_while_they_are_read(state, expected, tmp_path, monkeypatch):
    """With a window of one kilobyte every few weights come from a mapping of their own."""
    monkeypatch.setattr(published_files, "MAPPED_BYTES", 1024)
    write_shards(tmp_path, state, 2)
    same(OneLLM.from_official(tmp_path, clip=CLIP), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_kept_or_converted(dtype, state, expected, tmp_path):
    half = {key: value.to(dtype) for key, value in state.items()}
    file = write_whole(tmp_path, half)
    same(OneLLM.from_official(file, clip=CLIP), expected, dtype)
    rounded = {name: tensor.to(dtype) for name, tensor in expected.items()}
    same(OneLLM.from_official(file, clip=CLIP, dtype=torch.float32), rounded)


def test_a_tower_of_another_type_takes_that_of_the_llm(state, expected):
    mixed = {k: v.half() if k.startswith("llma.clip") else v for k, v in state.items()}
    model = OneLLM.from_official(mixed, PARAMS, CLIP)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_loaded_weights_are_not_tied_to_the_file(state, expected, tmp_path):
    file = write_whole(tmp_path, state)
    model = OneLLM.from_official(file, clip=CLIP)
    file.write_bytes(b"gone")
    same(model, expected)


def test_rotary_frequencies_stay_exact_in_sixteen_bits(state):
    model = OneLLM.from_official(state, PARAMS, CLIP, dtype=torch.bfloat16)
    inv_freq = model.llm.model.rotary_emb.inv_freq
    assert inv_freq.dtype == torch.float32
    torch.testing.assert_close(inv_freq, 10000.0 ** -(torch.arange(0, 16, 2) / 16))


def test_the_answer_is_that_of_the_model_that_was_saved(state):
    model, x = published_model(*NAMES), torch.rand(2, 6, 400)
    ids = torch.randint(3, 104, (2, 5))
    with torch.no_grad():
        want = model(ids, media=[("imu", x)])
        again = OneLLM.from_official(state, PARAMS, CLIP)
        torch.testing.assert_close(again(ids, media=[("imu", x)]), want)


def test_llama_tokenizer_beside_the_weights_is_used(state, tmp_path):
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("what is this? it is a chair, a table, a plant or a lamp.\n" * 50)
    file = write_whole(tmp_path, state)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=60,
        hard_vocab_limit=False,
    )
    model = OneLLM.from_official(file, clip=CLIP)
    assert model.text.decode(model.text.encode("a table")[0]) == "a table"
    from_published(file, tmp_path / "ours", clip=CLIP)
    assert (tmp_path / "ours" / "tokenizer" / "tokenizer.model").is_file()
    to_published(tmp_path / "ours", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.model").is_file()


def test_published_behaviour_is_there_by_name(tmp_path):
    state = published_state("point")
    model = OneLLM.from_official(state, PARAMS, CLIP)
    assert (model.config.prompt_format, model.modality("point").grouping) == ("published", "colour")
    model = OneLLM.from_official(state, PARAMS, CLIP, prompt_format="legacy")
    assert model.config.prompt_format == "legacy"
    assert modality_classes()["point"]().grouping == "xyz"


# -- the oldest files ---------------------------------------------------------------------------


def single(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As before there were experts: one projection under a modality's name."""
    old = {k: v for k, v in state.items() if not k.startswith("llma.resample_layers.")}
    for key, value in state.items():
        if key.startswith("llma.resample_layers.0."):
            old[key.replace("resample_layers.0", "resample_layers.image")] = value
    return old


def test_a_single_projection_becomes_every_expert(state, expected):
    model = OneLLM.from_official(single(state), PARAMS, CLIP)
    for name, tensor in model.state_dict().items():
        if name.startswith("projector.experts."):
            for expert in tensor:
                assert torch.equal(expert, expected[name][0]), name


def test_without_routers_equal_experts_are_weighed_alike(state):
    old = {k: v for k, v in single(state).items() if "routers." not in k}
    model = OneLLM.from_official(old, PARAMS, CLIP)
    table = model.projector.router_table("image")
    torch.testing.assert_close(table, torch.full((30, 3), 1 / 3))


# -- strictness ---------------------------------------------------------------------------------


def test_all_940_keys_of_the_published_model_are_accounted_for():
    """At full width, on the meta device: 934 with a place and 6 of the text tower."""
    options = {n: dict(c.published_options) for n, c in modality_classes().items()}
    published = {n: o for n, o in options.items() if modality_classes()[n].published_name}
    with empty_parameters():
        llm = build_llama(vocab=32000, width=4096, layers=32, heads=32, hidden=11008)
        model = OneLLM(OneLLMConfig(modalities=published), llm)
    table = list(places(model))
    keys = {place.official for place in table}
    assert len(table) == len(keys) == 934
    assert len(keys | (DROPPED - {"rope.freqs"})) == 940
    shapes = Slots(model).shapes
    assert {place.ours for place in table} == shapes.keys()
    parameters = sum(shape.numel() for shape in shapes.values())
    assert parameters + 38_595_841 == 7_597_224_217  # with the text tower, spec §1.7


def test_every_difference_is_in_one_message(state):
    broken = {k: v for k, v in state.items() if k != "llma.norm.weight"}
    broken["llma.extra"] = torch.ones(1)
    broken["llma.start_tag.imu"] = torch.ones(1, 1, 63)
    with pytest.raises(CheckpointError) as error:
        OneLLM.from_official(broken, PARAMS, CLIP)
    message = str(error.value)
    assert "1 missing: norm.weight" in message
    assert "1 unexpected: extra" in message
    assert "1 wrong shape: start_tag.imu: expected (64,), found (1, 1, 63)" in message


def test_an_incomplete_set_of_files_is_named(state, tmp_path):
    write_shards(tmp_path / "shards", state, 2)
    (tmp_path / "shards" / "consolidated.01-of-02.pth").unlink()
    with pytest.raises(CheckpointError, match=r"expected shards 00 to 01; found cons.*00-of-02"):
        OneLLM.from_official(tmp_path / "shards")
    write_parts(tmp_path / "parts", state, 3)
    (tmp_path / "parts" / "consolidated.00-of-01.s1.pth").unlink()
    with pytest.raises(CheckpointError, match=r"all of its parts.*found .*s0\.pth, .*s2\.pth"):
        OneLLM.from_official(tmp_path / "parts")
    last = tmp_path / "parts" / "consolidated.00-of-01.s2.pth"
    with pytest.raises(CheckpointError, match=r"found one of several files\. Give"):
        OneLLM.from_official(last)
    last.unlink()  # what cannot be seen in the names is seen in the keys
    with pytest.raises(CheckpointError, match="missing"):
        OneLLM.from_official(tmp_path / "parts", clip=CLIP)


def test_the_same_key_in_two_parts_is_named(state, tmp_path):
    write_parts(tmp_path, state, 2)
    twice = {key: state[key] for key in list(state)[:2]}
    torch.save(twice, tmp_path / "consolidated.00-of-01.s2.pth")
    with pytest.raises(CheckpointError, match=r"several files, .*s0\.pth and .*s2\.pth"):
        OneLLM.from_official(tmp_path)


def test_shards_that_differ_are_named(state, tmp_path):
    write_shards(tmp_path, state, 2)
    file = tmp_path / "consolidated.01-of-02.pth"
    shard = torch.load(file)
    del shard["llma.norm.weight"]
    torch.save(shard, file)
    with pytest.raises(CheckpointError, match=r"every key in each of 2.*norm\.weight"):
        OneLLM.from_official(tmp_path)


def test_unequal_slices_are_named(state, tmp_path):
    write_shards(tmp_path, state, 2)
    file = tmp_path / "consolidated.01-of-02.pth"
    shard = torch.load(file)
    shard["llma.output.weight"] = shard["llma.output.weight"][:-1].clone()
    torch.save(shard, file)
    with pytest.raises(CheckpointError, match=r"output\.weight merges to \(\d+, 64\); expected"):
        OneLLM.from_official(tmp_path, clip=CLIP)


def test_missing_or_damaged_params_are_named(state, tmp_path):
    file = write_whole(tmp_path, state)
    (tmp_path / "params.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"params\.json: expected JSON"):
        OneLLM.from_official(file)
    (tmp_path / "params.json").unlink()
    with pytest.raises(CheckpointError, match=r"params\.json: expected the model's sizes"):
        OneLLM.from_official(file)
    with pytest.raises(ConfigError, match="pass params"):
        OneLLM.from_official(state)


def test_code_in_a_file_is_not_run(state, tmp_path):
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    write_params(tmp_path)
    torch.save({**state, "llma.x": Attack()}, tmp_path / "consolidated.00-of-01.pth")
    with pytest.raises(CheckpointError, match="expected weights saved by torch"):
        OneLLM.from_official(tmp_path)
    assert not marker.exists()


def test_a_training_state_is_not_taken_for_weights(state, tmp_path):
    write_params(tmp_path)
    torch.save({"model": state, "iter": 3}, tmp_path / "consolidated.00-of-01.pth")
    with pytest.raises(CheckpointError, match="expected names and tensors; found 'model'"):
        OneLLM.from_official(tmp_path)


# -- conversion ---------------------------------------------------------------------------------


def test_rotary_order_there_and_back():
    weight = torch.rand(24, 5)
    assert torch.equal(interleaved(half_split(weight, 3), 3), weight)
    assert half_split(weight, 3)[:8, 0].tolist() == weight[[0, 2, 4, 6, 1, 3, 5, 7], 0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_published_to_ours_and_back_is_bit_exact(dtype, tmp_path):
    state = published_state(*NAMES, "point", "depth", dtype=dtype)
    file = write_whole(tmp_path / "a", state)
    there = from_published(file, tmp_path / "ours", clip=CLIP, shard_bytes=200_000)
    assert len(there.files) > 2
    assert there.dropped == sorted(DROPPED - {"rope.freqs"})
    back = to_published(tmp_path / "ours", tmp_path / "b", part_bytes=300_000)
    assert len(back.files) > 2
    again: dict[str, torch.Tensor] = {}
    for path, size in back.files:
        assert path.stat().st_size == size
        again |= torch.load(path, weights_only=True)
    dropped = {f"llma.{key}" for key in there.dropped}
    assert again.keys() == state.keys() - dropped
    for key, value in again.items():
        assert value.dtype == dtype, key
        assert torch.equal(value, state[key]), key
    from_published(tmp_path / "b", tmp_path / "c", clip=CLIP)
    first, second = (OneLLM.from_pretrained(tmp_path / n).state_dict() for n in ("ours", "c"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_converted_and_loaded_directly_are_the_same(state, expected, tmp_path):
    file = write_whole(tmp_path, state)
    from_published(file, tmp_path / "ours", clip=CLIP)
    model = OneLLM.from_pretrained(tmp_path / "ours")
    same(model, expected)
    assert model.config == OneLLM.from_official(file, clip=CLIP).config


def test_what_the_published_format_cannot_hold_is_refused(tmp_path):
    tiny_model("image").save_pretrained(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="a projector of 2 heads with a sigmoid gate"):
        to_published(tmp_path / "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_published_format_does_not_record_is_noted(tmp_path):
    published_model("imu").save_pretrained(tmp_path / "m")
    notes = to_published(tmp_path / "m", tmp_path / "out").notes
    assert any("encoder.heads" in note for note in notes)
    assert any("tokenizer.model" in note for note in notes)


def test_a_target_with_a_model_in_it_is_left_alone(state, tmp_path):
    file = write_whole(tmp_path, state)
    with pytest.raises(ConfigError, match="holds a model already"):
        from_published(file, tmp_path, clip=CLIP)


def test_convert_on_the_command_line(state, tmp_path):
    file = write_whole(tmp_path / "a", state)
    run = CliRunner().invoke
    ours, back = str(tmp_path / "ours"), str(tmp_path / "back")
    done = run(app, ["convert", str(file), ours, "--clip", "heads=4", "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.stderr
    assert "model.safetensors" in done.stdout
    assert "clip.token_embedding.weight" in done.stdout
    done = run(app, ["convert", ours, back, "--to", "published"])
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "back" / "params.json").read_text()) == PARAMS
    model = OneLLM.from_official(back, clip=CLIP)
    assert model.dtype == torch.bfloat16
    done = run(app, ["convert", ours, back, "--to", "published", "--clip", "heads=4"])
    assert "--clip describes a published checkpoint" in done.stderr
    done = run(app, ["convert", str(tmp_path / "none"), str(tmp_path / "x")])
    assert done.exit_code == 2
    assert "expected a .pth file or a folder of them" in done.stderr


# -- memory -------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from onellm import published_files, weight_files
from onellm.model import OneLLM

def kilobytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

published_files.MAPPED_BYTES = weight_files.MAPPED_BYTES = 2**22
load = OneLLM.from_official if sys.argv[1] == "published" else OneLLM.from_pretrained
load(sys.argv[2])  # a small one, so that all code is loaded
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = kilobytes("VmRSS")
model = load(sys.argv[3])
print((kilobytes("VmHWM") - before) * 1024)
print(sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
    """Half the model goes through a permutation or a stack, the rest through a plain copy."""
    model = published_model("imu")
    model.save_pretrained(tmp_path / "small-ours")
    to_published(tmp_path / "small-ours", tmp_path / "small")
    big = build_llama(vocab=1_000, width=1024, layers=6, heads=16, hidden=2816)
    encoder = EncoderConfig(width=64, layers=2, heads=1, output_dim=16)
    config = model.config.model_copy(update={"encoder": encoder})
    config = config.model_copy(
        update={"projector": config.projector.model_copy(update={"multiple_of": 256})}
    )
    OneLLM(config, big).bfloat16().save_pretrained(tmp_path / "big-ours")
    to_published(tmp_path / "big-ours", tmp_path / "big", part_bytes=10**9)
    (tmp_path / "small" / "params.json").write_text(json.dumps(PARAMS))
    for kind, suffix in (("published", ""), ("ours", "-ours")):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, kind]
            + [str(tmp_path / f"{size}{suffix}") for size in ("small", "big")],
            **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 200},
        )
        assert done.returncode == 0, done.stderr
        grown, weights = map(int, done.stdout.split())
        assert weights > 120e6
        assert grown < 1.2 * weights, (kind, grown / weights)


def test_writing_is_in_pieces_of_bounded_size(tmp_path):
    """Pieces are bounded, and a larger weight is a piece of its own."""
    model = tiny_model("imu")
    checkpoint.save_pretrained(model, tmp_path, shard_bytes=20_000)
    sizes = sorted(f.stat().st_size for f in tmp_path.glob("model-*.safetensors"))
    largest = max(p.nbytes for p in model.parameters())
    assert len(sizes) > 3
    assert sizes[-1] < max(20_000, largest) + 10_000
    assert not (tmp_path / weight_files.WEIGHTS).exists()
    checkpoint.save_pretrained(model, tmp_path)
    assert [f.name for f in tmp_path.glob("*.safetensors")] == [weight_files.WEIGHTS]
    assert not (tmp_path / weight_files.INDEX).exists()
