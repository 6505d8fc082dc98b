"""Fewer bits for the LLM's weights; the torchao parts are skipped where it is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from onellm.errors import ConfigError, MissingExtra
from onellm.model import OneLLM
from onellm.quantize import quantize_llm

ROOT = Path(__file__).parents[1]


def wide_model() -> OneLLM:
    """A tiny model whose LLM has layers wide enough for 4-bit kernels."""
    model = tiny.tiny_model("imu")
    torch.manual_seed(1)
    llm = tiny.build_llama(vocab=320, width=128, layers=2, heads=2, hidden=256)
    return OneLLM(model.config, llm, model.text).eval()


def bytes_of(llm: torch.nn.Module) -> int:
    """Size of the linear layers' weights, inner tensors of quantised ones counted."""
    total = 0
    for module in llm.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight
            names = getattr(weight, "tensor_data_names", None)
            inner = [getattr(weight, name) for name in names] if names else [weight]
            total += sum(tensor.numel() * tensor.element_size() for tensor in inner)
    return total


def test_without_torchao_the_extra_is_named(monkeypatch):
    model = tiny.tiny_model("imu")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingExtra, match=r"pip install 'onellm\[quant\]'"):
        quantize_llm(model, 8)


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(ConfigError, match="8 or 4 bits, not 3"):
        quantize_llm(tiny.tiny_model("imu"), 3)


@pytest.mark.parametrize(("bits", "error", "share"), [(8, 0.05, 0.3), (4, 0.35, 0.25)])
def test_fewer_bits_give_nearly_the_same_logits(bits, error, share):
    pytest.importorskip("torchao")
    model = wide_model()
    x = tiny.signals(model, "imu")
    ids = torch.tensor([[0, 5, 6, 7], [0, 9, 9, 3]])
    before = bytes_of(model.llm)
    with torch.no_grad():
        wanted, soft = model(ids, media=[("imu", x)]), model.encode("imu", x)
        quantize_llm(model, bits)
        found = model(ids, media=[("imu", x)]).float()
        torch.testing.assert_close(model.encode("imu", x), soft)
    assert (found - wanted).square().mean().sqrt() < error * wanted.std()
    assert not torch.equal(found, wanted)
    assert bytes_of(model.llm) < share * before
    prompts = ["What is this?", "Is the person walking?"]
    media = [[("imu", x[0])], []]
    alone = [model.generate(p, m, max_new_tokens=5) for p, m in zip(prompts, media, strict=True)]
    assert model.generate(prompts, media, max_new_tokens=5) == alone


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_is_not_saved(bits, tmp_path):
    pytest.importorskip("torchao")
    model = wide_model()
    quantize_llm(model, bits)
    with pytest.raises(ConfigError, match=r"llm\.model\.layers\..* has been quantised"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [8, 4])
def test_loading_with_fewer_bits_is_loading_and_then_quantising(bits, tmp_path):
    pytest.importorskip("torchao")
    model = wide_model()
    model.save_pretrained(tmp_path)
    quantize_llm(model, bits)
    loaded = OneLLM.from_pretrained(tmp_path, bits=bits)
    assert bytes_of(loaded.llm) == bytes_of(model.llm)
    assert loaded.llm.dtype == model.llm.dtype
    frequencies = loaded.llm.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32, "they are no weights, and rounding them moves words"
    x, ids = tiny.signals(model, "imu"), torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        found, wanted = (m(ids, media=[("imu", x[:1])]) for m in (loaded, model))
    torch.testing.assert_close(found, wanted)


def test_eight_bits_do_not_overflow_float16(tmp_path):
    pytest.importorskip("torchao")
    model = wide_model()
    with torch.no_grad():  # activations of some thousands, which real LLMs have (2,572 in SmolLM2)
        for block in model.llm.model.layers:
            block.mlp.up_proj.weight.mul_(3e4)
    model.save_pretrained(tmp_path)
    x, ids = tiny.signals(model, "imu"), torch.tensor([[0, 5, 6, 7]])
    loaded = OneLLM.from_pretrained(tmp_path, dtype=torch.float16, bits=8)
    with torch.no_grad():
        assert loaded(ids, media=[("imu", x[:1])]).isfinite().all()
    assert (loaded.dtype, loaded.llm.dtype) == (torch.float16, torch.bfloat16)


PEAK = """
import sys
from pathlib import Path
from onellm import weight_files
from onellm.model import OneLLM

def size(key):
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if key in l)
    return 1024 * int(line.split()[1])

weight_files.MAPPED_BYTES = 2**22  # pages of the file count until the mapping is given up
OneLLM.from_pretrained(sys.argv[1], bits=8)  # imports whatever there is to import
Path("/proc/self/clear_refs").write_text("5")  # the greatest size begins anew
before = size("VmRSS")
OneLLM.from_pretrained(sys.argv[2], bits=8)
print(size("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_llm_is_never_whole_in_memory(tmp_path):
    """Peak memory of a process of its own, against the size of the weights that it reads."""
    pytest.importorskip("torchao")
    model = wide_model()
    model.save_pretrained(tmp_path / "small")
    llm = tiny.build_llama(vocab=320, width=512, layers=16, heads=2, hidden=1536)
    OneLLM(model.config, llm, model.text).save_pretrained(tmp_path / "large")
    whole = sum(p.nbytes for p in llm.parameters())
    assert whole > 200e6
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "large")],
        **{"capture_output": True, "text": True, "cwd": ROOT},
        # Weights of 32 MiB and more are given back to the system at once; so are these, then.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, done.stderr
    # Measured: 0.33; loaded first and quantised then, 1.03.
    assert int(done.stdout) < 0.5 * whole
