"""Models under lmms-eval: content types always, the toolkit itself where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model

from onellm.errors import BadInput
from onellm.eval.likelihood import choice_logprobs
from onellm.eval.lmms import content_types, medium_of
from onellm.generation import soft_tokens

ROOT = Path(__file__).parents[1]
ENTRY_POINT = "onellm = onellm.eval.lmms:manifests"


def test_content_types_become_modalities():
    types = content_types()
    picture = Image.new("RGB", (8, 8))
    assert medium_of(picture, types) == ("image", picture)
    assert medium_of("a/b.mp4", types) == ("video", "a/b.mp4")
    assert medium_of("a/b.png", types) == ("image", "a/b.png")
    name, source = medium_of({"array": np.zeros(8), "sampling_rate": 8000}, types)
    assert (name, source["rate_hz"]) == ("audio", 8000)
    for visual in (3, {"array": 1}, "cloud.ply"):
        with pytest.raises(BadInput, match="content types"):
            medium_of(visual, types)


def test_the_entry_point_is_declared():
    assert f'"lmms_eval.models": ["{ENTRY_POINT}"]' in (ROOT / "setup.py").read_text()


TASK = """\
task: made_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, token: false}}
test_split: test
output_type: {output}
doc_to_visual: !function made.visual
doc_to_text: !function made.text
doc_to_target: answer
{rest}
metadata: {{version: 0}}
"""
GENERATE = """\
generation_kwargs: {max_new_tokens: 5, temperature: 0, do_sample: false}
process_results: !function made.results
metric_list: [{metric: said, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """\
doc_to_choice: ["chair", "lamp"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """\
from PIL import Image
def visual(doc): return [Image.open(doc["file"]).convert("RGB")]
def text(doc, lmms_eval_specific_kwargs=None): return doc["question"]
def results(doc, found): return {"said": float(found[0] == doc["expected"])}
"""
RUN = """\
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
manager = TaskManager(include_path=sys.argv[1], include_defaults=False)
out = simple_evaluate(model="onellm", model_args=f"pretrained={sys.argv[2]}", batch_size=2,
    tasks=["made_generate", "made_choose"], task_manager=manager, device="cpu", log_samples=True)
if out is not None:  # the first process has the scores of all
    print("RESULT " + json.dumps({"asked": {k: len(v) for k, v in out["samples"].items()}}
        | {k: {m: v for m, v in r.items() if "," in m} for k, r in out["results"].items()},
        default=str))
"""


def means(chances: list[dict[str, float]]) -> list[float]:
    return [chance["mean"] for chance in chances]


@pytest.mark.timeout(900)  # the toolkit alone imports for half a minute
@pytest.mark.skipif(not find_spec("lmms_eval"), reason="lmms-eval is not installed")
@pytest.mark.parametrize("world", [1, 2])
def test_a_made_up_task_runs_under_the_toolkit(tmp_path, world):
    """The tasks score whether answers are ``generate``'s own, and options our likeliest."""
    model = tiny_model("image")
    model.save_pretrained(tmp_path / "model")
    rows = []
    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        file = tmp_path / f"{n}.png"
        Image.fromarray(pixels).save(file)
        question = "What is this?" + " Say." * n
        said = model.generate(question, [("image", file)], max_new_tokens=5)
        soft = soft_tokens(model, [[("image", file)]])
        (chances,) = choice_logprobs(model, [question], soft, [["chair", "lamp"]])
        first, second = means(chances)
        best = "chair" if first > second else "lamp"
        row = {"file": str(file), "question": question, "expected": said, "answer": best}
        rows.append(json.dumps(row))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "made.py").write_text(FUNCTIONS)
    for kind, output, rest in (
        ("generate", "generate_until", GENERATE),
        ("choose", "multiple_choice", CHOOSE),
    ):
        text = TASK.format(kind=kind, output=output, file=folder / "rows.jsonl", rest=rest)
        (folder / f"made_{kind}.yaml").write_text(text)
    # What an installed package has: the toolkit finds the model by it.
    info = tmp_path / "found" / "onellm_here-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onellm-here\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[lmms_eval.models]\n{ENTRY_POINT}\n")
    path = os.pathsep.join([str(ROOT), str(info.parent)])
    script = tmp_path / "run.py"
    script.write_text(RUN)
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    done = subprocess.run(
        [sys.executable, *(start if world > 1 else ()), script, folder, tmp_path / "model"],
        env=os.environ
        | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
        | {"ACCELERATE_USE_CPU": "true"},  # as accelerate launch --cpu says it
        capture_output=True,
        text=True,
        timeout=800,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    assert result["asked"] == {"made_generate": 3, "made_choose": 3}, "no padding among them"
    assert result["made_generate"]["said,none"] == 1.0
    assert result["made_choose"]["acc,none"] == 1.0
