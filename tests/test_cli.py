"""The command line: instant help, verbs on a tiny model, one-line errors with exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image
from tiny import tiny_model
from typer.testing import CliRunner

from onellm.cli import app
from onellm.errors import ConfigError
from onellm.questions import media_options

ROOT = Path(__file__).parents[1]
VERBS = (
    *("quickstart", "train", "export", "plot", "data"),
    *("generate", "embed", "chat", "eval", "convert", "ls", "show", "doctor"),
)
NO_SUCH: Any = types.SimpleNamespace(headers={}, request=None)
runner = CliRunner()


def onellm(*words: str, stdin: str | None = None):
    """Run a verb in this process."""
    return runner.invoke(app, list(words), input=stdin)


def fails(*words: str) -> str:
    """Run a verb that must fail well; returns its one line."""
    done = onellm(*words)
    assert done.exit_code == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A saved tiny model, and one file for each of three modalities."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model("image", "depth", "imu").save_pretrained(folder / "model")
    Image.new("RGB", (40, 30), "teal").save(folder / "sea.jpg")
    Image.new("L", (40, 30), 90).save(folder / "map.png")
    np.save(folder / "walk.npy", np.zeros((100, 6), dtype=np.float32))
    (folder / "empty.jpg").touch()
    return folder


# -- help ---------------------------------------------------------------------------------------


def test_help_is_instant_and_imports_nothing_heavy():
    code = (
        "import sys, onellm.cli\n"
        "try: onellm.cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'pydantic', 'yaml', 'matplotlib'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    # 0.15 s on an idle machine; the generous bound is for a busy one.
    assert time.perf_counter() - began < 2.0
    assert "heavy: []" in done.stdout
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout


def test_python_m_onellm_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "onellm", "--version"],
        **{"capture_output": True, "text": True, "cwd": ROOT, "check": True},
    )
    assert done.stdout.startswith("onellm ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb):
    done = onellm(verb, "--help")
    assert done.exit_code == 0
    assert f"Examples:\n    onellm {verb}" in done.stdout
    assert "Args:" not in done.stdout


def test_a_mistyped_verb_or_option_is_a_usage_error():
    assert onellm("generat").exit_code == 2
    assert onellm("quickstart", "--sed", "3").exit_code == 2
    assert onellm("generate").exit_code == 2  # --model is required


# -- generate -----------------------------------------------------------------------------------


def test_media_options_keep_their_order_in_any_place():
    expected = ("What?", [("audio", "a.wav"), ("image", "b.jpg"), ("audio", "c.wav")])
    media = ["--audio", "a.wav", "--image=b.jpg", "--audio", "c.wav"]
    assert media_options(["What?", *media]) == expected
    assert media_options([*media[:2], "What?", *media[2:]]) == expected
    assert media_options([]) == (None, [])
    dashes = "-- Is this = a list? --"
    assert media_options(["--image", "a.jpg", dashes]) == (dashes, [("image", "a.jpg")])
    with pytest.raises(ConfigError, match="needs a file"):
        media_options(["What?", "--audio"])
    with pytest.raises(ConfigError, match="needs a file"):
        media_options(["--audio", "--image", "x.jpg"])
    with pytest.raises(ConfigError, match="put it in quotes"):
        media_options(["What", "is", "this?"])


def test_generate_answers_as_the_model_does(files):
    from onellm import OneLLM

    words = ["--image", str(files / "sea.jpg"), "--imu", str(files / "walk.npy")]
    done = onellm(
        *("generate", "--model", str(files / "model"), *words, "What is this?"),
        *("--max-new-tokens", "6"),
    )
    assert done.exit_code == 0, done.stderr
    model = OneLLM.from_pretrained(files / "model")
    media = [("image", files / "sea.jpg"), ("imu", files / "walk.npy")]
    assert done.stdout == model.generate("What is this?", media, max_new_tokens=6) + "\n"


def test_generate_takes_pairs_published_names_and_no_prompt(files):
    pair = f"{files / 'sea.jpg'}+{files / 'map.png'}"
    for words in (["--depth", pair], [f"--rgbd={pair}", "What?"]):
        done = onellm("generate", "--model", str(files / "model"), "--max-new-tokens", "3", *words)
        assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--image", "{empty.jpg}"], "an empty file"),
        (["What?", "--image", "gone.jpg"], "gone.jpg: expected"),
        (["--image", "{walk.npy}"], "a file of type '.npy'"),
        (["--imag", "{sea.jpg}"], "unknown option --imag. Did you mean --image?"),
        (["--max-token", "5", "What?"], "Did you mean --max-new-tokens?"),
        (["-t", "5", "What?"], "unknown option -t"),
        (["--audio", "x.wav"], "no modality 'audio'"),
        ([], "nothing to answer"),
        (["What?", "--device", "cudo"], "--device cudo"),
    ],
)
def test_generate_fails_in_one_line(files, words, what):
    named = [str(files / w[1:-1]) if w.startswith("{") else w for w in words]
    assert what in fails("generate", "--model", str(files / "model"), *named)


def test_a_mistake_is_answered_before_torch_is_imported(files):
    """What a misspelt word costs is a blink, not the loading of a model."""
    model = str(files / "model")
    mistakes = {
        "Did you mean --model?": ["generate", "--modle", model, "What?"],
        "Did you mean --image?": ["generate", "--model", model, "--imgae", "x.jpg"],
        "Did you mean --beams?": ["generate", "--model", model, "What?", "--beam"],
        "Did you mean --batch-size?": ["embed", "--model", model, "--batchsize=3", "-o", "x.npz"],
        "Did you mean 'bfloat16'?": ["generate", "--model", model, "--dtype", "bfloat", "What?"],
        "gone.jpg: expected a file": ["generate", "--model", model, "--image", "gone.jpg"],
        "gone.png: expected a file": ["embed", "--model", model, "--depth", "{sea}+gone.png"],
        "expected a folder with config.json": ["chat", "--model", "./nowhere"],
        "--model is missing": ["generate", "What?"],
    }
    sea = str(files / "sea.jpg")
    lines = [[w.replace("{sea}", sea) for w in words] for words in mistakes.values()]
    for words in lines:
        if words[0] == "embed" and "-o" not in words:
            words += ["-o", "x.npz"]
    code = (
        "import sys\nfrom onellm.cli import app\n"
        f"for words in {lines!r}:\n"
        "    try: app(words)\n"
        "    except SystemExit as stop: assert stop.code == 2, stop.code\n"
        "print('heavy:', sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "heavy: []\n"
    for expected, line in zip(mistakes, done.stderr.splitlines(), strict=True):
        assert expected in line, done.stderr


def test_a_missing_model_is_named(tmp_path):
    for verb in ("generate", "chat"):
        words = ["hello"] if verb == "generate" else []
        assert "expected a saved OneLLM model" in fails(verb, "--model", str(tmp_path), *words)
        line = fails(verb, "--model", "./nowhere", *words)
        assert "./nowhere" in line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("no route to host"), "the hub cannot be asked (no route to host)"),
        (RuntimeError("of another library"), "the hub cannot be asked (of another library)"),
        (RepositoryNotFoundError("404", response=NO_SUCH), "no such model on the hub"),
    ],
)
def test_the_hub_is_asked_once(monkeypatch, error, said):
    """A download would ask six times, for half a minute, and tell of each."""
    asked = []

    def metadata(address):
        asked.append(address)
        raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    line = fails("generate", "--model", "runs/mispelt", "hello")
    assert line == f"error: runs/mispelt: no such folder, and {said}"
    (address,) = asked
    assert address.endswith("/runs/mispelt/resolve/main/config.json")


# -- many files ---------------------------------------------------------------------------------


def test_generate_asks_about_each_file(files):
    from onellm import OneLLM

    (files / "other.png").write_bytes((files / "map.png").read_bytes())
    media = [("image", str(files / name)) for name in ("sea.jpg", "other.png")]
    words = [word for name, file in media for word in (f"--{name}", file)]
    done = onellm(
        *("generate", "--model", str(files / "model"), "--each", "What is this?", *words),
        *("--max-new-tokens", "5"),
    )
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    model = OneLLM.from_pretrained(files / "model")
    for line, pair in zip(lines, media, strict=True):
        assert line["media"] == [list(pair)]
        assert line["answer"] == model.generate("What is this?", [pair], max_new_tokens=5)


def test_generate_answers_a_file_of_questions(files, tmp_path):
    (tmp_path / "sea.jpg").write_bytes((files / "sea.jpg").read_bytes())
    (tmp_path / "map.png").write_bytes((files / "map.png").read_bytes())
    (tmp_path / "broken.jpg").touch()
    questions = [
        {"id": 7, "prompt": "What is this?", "media": [["image", "sea.jpg"]]},
        {"media": [["rgbd", "sea.jpg+map.png"]]},
        {"prompt": [["user", "Why?"], ["assistant", "Ah."], ["user", "Well?"]]},
        {"prompt": "And this?", "media": [["image", "broken.jpg"]]},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(q) for q in questions) + "\n")
    common = ["generate", "--model", str(files / "model"), "--jsonl", str(file)]
    common += ["--max-new-tokens", "4", "--temperature", "1"]
    assert "broken.jpg: expected" in fails(*common)
    outs = []
    for size in ("1", "3"):
        out = tmp_path / f"{size}.jsonl"
        done = onellm(*common, "--out", str(out), "--skip-bad", "--batch-size", size)
        assert done.exit_code == 0, done.stderr
        assert f"4 lines: {out}, 1 of them without an answer" in done.stderr
        outs.append([json.loads(line) for line in out.read_text().splitlines()])
    assert outs[0] == outs[1], "the batch size changes no answer"
    for record, question in zip(outs[0], questions, strict=True):
        assert {**record, **question} == record
    assert ["answer" in record for record in outs[0]] == [True, True, True, False]
    assert "an empty file" in outs[0][3]["error"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "line 2: expected an object"),
        ('{"question": "What?"}', "neither prompt nor media"),
        ('{"prompt": 3}', "neither text nor turns"),
        ('{"prompt": "What?", "media": [["image"]]}', "no [modality, file] pairs"),
        ('{"prompt": "What?", "media": [["imag", "x.jpg"]]}', "Did you mean 'image'?"),
    ],
)
def test_a_wrong_question_is_named(files, tmp_path, line, what):
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{{"prompt": "Why?"}}\n{line}\n')
    assert what in fails("generate", "--model", str(files / "model"), "--jsonl", str(file))


def test_questions_come_from_one_place(files, tmp_path):
    file = tmp_path / "gone.jsonl"
    generate = ("generate", "--model", str(files / "model"), "--jsonl", str(file))
    assert "gone.jsonl: expected a JSONL file" in fails(*generate)
    file.write_text('{"prompt": "Why?"}\n')
    assert "leave out prompt" in fails(*generate, "What?")
    file.write_text("\n")
    assert "no line in it" in fails(*generate)


def test_settings_that_cannot_be_are_told_before_the_model_is_read(files, monkeypatch):
    monkeypatch.setattr("onellm.cli_ask.load_model", lambda *_: pytest.fail("read all the same"))
    generate = ("generate", "--model", str(files / "model"), "What?")
    assert f"{files} is a folder" in fails(*generate, "--out", str(files))
    assert "leave out --temperature" in fails(*generate, "--beams", "2", "--temperature", "1")


def test_answers_go_into_a_new_folder(files, tmp_path):
    out = tmp_path / "new" / "answers.jsonl"
    words = ("What?", "--max-new-tokens", "2", "--out", str(out))
    assert onellm("generate", "--model", str(files / "model"), *words).exit_code == 0
    assert "answer" in json.loads(out.read_text())
    locked = files / "sea.jpg" / "answers.jsonl"
    line = fails("generate", "--model", str(files / "model"), "What?", "--out", str(locked))
    assert "Errno" not in line and "sea.jpg: " in line


def test_embed_writes_vectors(files, tmp_path):
    from onellm import OneLLM

    out = tmp_path / "vectors.npz"
    sea, walk = str(files / "sea.jpg"), str(files / "walk.npy")
    words = ["--image", sea, "--imu", walk, f"--image={files / 'map.png'}"]
    done = onellm("embed", "--model", str(files / "model"), *words, "-o", str(out))
    assert done.exit_code == 0, done.stderr
    assert "3 vectors of 32 numbers" in done.stdout
    held = np.load(out)
    assert held["modalities"].tolist() == ["image", "imu", "image"]
    assert held["files"].tolist()[:2] == [sea, walk]
    model = OneLLM.from_pretrained(files / "model")
    for row, (name, file) in enumerate([("image", sea), ("imu", walk)]):
        alone = model.embed(name, model.modality(name).load(file)[None])[0]
        np.testing.assert_allclose(held["vectors"][row], alone.numpy(), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["vectors.npz"]


def test_embed_guesses_only_what_is_certain(files, tmp_path):
    embed = ("embed", "--model", str(files / "model"), "-o", str(tmp_path / "v.npz"))
    line = fails(*embed, str(files / "sea.jpg"))
    assert "say --image" in line and "or --depth" in line
    (tmp_path / "notes.txt").write_text("note")
    assert "reads such a file" in fails(*embed, str(tmp_path / "notes.txt"))
    assert "gone.csv: expected a file; found no such file" in fails(*embed, "gone.csv")
    assert "no files" in fails(*embed)
    into_a_folder = ("embed", "--model", str(files / "model"), "-o", str(tmp_path))
    assert "name a .npz file" in fails(*into_a_folder, str(files / "walk.npy"))
    np.savetxt(tmp_path / "walk.csv", np.zeros((100, 6)), delimiter=",")
    done = onellm(*embed, str(tmp_path / "walk.csv"))
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--bits", "3"], "8 or 4"),
        (["--dtype", "float33"], "Did you mean 'float32'?"),
        (["--beams", "2", "--temperature", "1"], "beam search"),
    ],
)
def test_wrong_settings_are_named(files, words, what):
    assert what in fails("generate", "--model", str(files / "model"), "Why?", *words)


# -- chat ---------------------------------------------------------------------------------------


def test_chat_keeps_media_and_turns(files):
    script = "\n".join(
        [
            *("/help", f"/image '{files / 'sea.jpg'}'", "What is this?", "And now?", "/media"),
            *("/imu nothing.npy", "/imge x.jpg", "/image", "", "/reset", "/media", "/quit", "no"),
        ]
    )
    done = onellm("chat", "--model", str(files / "model"), "--max-new-tokens", "4", stdin=script)
    assert done.exit_code == 0, done.stderr
    out = done.stdout
    for expected in (
        *(
            "/image FILE",
            "/depth PICTURE+MAP",
            "image attached (1 in this conversation)",
            f"image  {files}",
        ),
        *("error: nothing.npy: expected", "Did you mean 'image'? Try /help.", "/image FILE"),
        "forgotten\nnone\n",
    ):
        assert expected in out


def test_a_conversation_is_what_generate_sees(files):
    from onellm.chat import Conversation, chat

    model = tiny_model("image", "imu")
    lines = iter(["What is this?", f"/image {files / 'sea.jpg'}", "And this?"])

    def read() -> str:
        for line in lines:
            return line
        raise EOFError

    shown: list[str] = []
    conversation = Conversation(model, max_new_tokens=5)
    chat(conversation, read, shown.append)
    first = model.generate("What is this?", max_new_tokens=5)
    turns = (("user", "What is this?"), ("assistant", first), ("user", "And this?"))
    second = model.generate(turns, [("image", files / "sea.jpg")], max_new_tokens=5)
    assert conversation.turns == [*turns, ("assistant", second)]
    assert "".join(shown) == f"{first}\nimage attached (1 in this conversation)\n{second}\n"
    conversation.reset()
    assert not conversation.turns and not conversation.media


def test_a_second_medium_says_where_it_stands(files):
    from onellm.chat import Conversation

    conversation = Conversation(tiny_model("image"))
    assert conversation.attach("image", str(files / "sea.jpg")).endswith("(1 in this conversation)")
    said = conversation.attach("image", str(files / "map.png"))
    assert "2 in this conversation, all in front of its first question" in said
    assert "/reset" in said


def test_ctrl_c_stops_an_answer_and_not_the_chat():
    from onellm.chat import Conversation, chat

    class Slow:
        def stream(self, *args, **settings):
            yield "once"
            raise KeyboardInterrupt

    lines = iter(["Tell me.", "/media"])
    shown: list[str] = []

    def read() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    conversation = Conversation(Slow())
    chat(conversation, read, shown.append)
    assert "".join(shown) == "once (stopped)\nnone\n"
    assert conversation.turns == []


# -- quickstart and train -----------------------------------------------------------------------


@pytest.fixture
def fake_quickstart(monkeypatch):
    module = types.ModuleType("onellm.quickstart")
    module.calls = []
    module.run = lambda *args: module.calls.append(args)
    monkeypatch.setitem(sys.modules, "onellm.quickstart", module)
    return module


def test_quickstart_passes_its_options_on(fake_quickstart, tmp_path):
    (tmp_path / "report.html").touch()
    done = onellm(
        *("quickstart", "--out", str(tmp_path), "--preset", "smoke", "--seed", "3"),
        *("--no-resume", "--starter", "shards"),
    )
    assert done.exit_code == 0, done.stderr
    (call,) = fake_quickstart.calls
    assert call[:5] == (tmp_path, Path("shards"), "smoke", 3, False)
    assert hasattr(call[5], "phase")
    assert "report.html" in done.stdout


def test_a_finished_quickstart_says_so(fake_quickstart, tmp_path):
    page = tmp_path / "report.html"
    fake_quickstart.run = lambda *args: page.touch()
    done = onellm("quickstart", "--out", str(tmp_path))
    assert "finished before" not in done.stdout
    fake_quickstart.run = lambda *args: None
    done = onellm("quickstart", "--out", str(tmp_path))
    for words in ("finished before", "--no-resume", f"report: {page}", f"model:  {tmp_path}"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted: the same command goes on"),
        (ConfigError("two\nlines"), 2, "error: two lines"),
        (PermissionError(13, "Permission denied", "/out"), 2, "error: /out: permission denied"),
    ],
)
def test_long_work_ends_politely(fake_quickstart, tmp_path, error, code, message):
    def stop(*args):
        raise error

    fake_quickstart.run = stop
    done = onellm("quickstart", "--out", str(tmp_path))
    assert done.exit_code == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_train_names_the_file_and_the_key(tmp_path):
    assert "gone.yaml" in fails("train", "gone.yaml")
    assert "Did you mean 'instruct'?" in fails("train", "instrukt")
    assert "Did you mean 'seed'?" in fails("train", "instruct", "sed=3")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    assert "not valid YAML" in fails("train", str(broken))
    out = fails("train", "instruct", f"model={tmp_path / 'nothing'}", f"out={tmp_path}")
    assert "nothing" in out


# -- ls, show, doctor ---------------------------------------------------------------------------


def test_ls_lists_what_there_is():
    from onellm.registry import modality_classes

    out = onellm("ls").stdout
    for name in (*modality_classes(), "align_image", "instruct", "onellm.tokenizers.audio"):
        assert name in out
    assert "align_image" not in onellm("ls", "modalities").stdout
    assert "Did you mean 'stages'?" in fails("ls", "stage")


def test_show_describes():
    audio = onellm("show", "audio").stdout
    for words in ("1212", ".flac", "128 x 1024 at the published size", "audio.py", "max_megabytes"):
        assert words in audio
    assert onellm("show", "rgbd").stdout.startswith("depth: ")
    stage = onellm("show", "instruct").stdout
    assert stage.startswith("# ") and "stage:" in stage
    assert "Did you mean 'audio'?" in fails("show", "audoi")
    assert "unknown name" in fails("show", "../presets/small")


def test_show_tells_how_a_pair_is_typed_and_what_options_mean():
    from onellm.catalogue import option_meanings
    from onellm.registry import modality_classes

    depth = onellm("show", "depth").stdout
    assert "--depth PICTURE+MAP, or --depth MAP" in depth
    assert "size = 224\n      S, side of the model's input in pixels" in depth
    assert "grouping = xyz  (the published weights: colour)" in onellm("show", "point").stdout
    for cls in modality_classes().values():
        assert option_meanings(cls).keys() == cls.model_fields.keys(), cls.name


def test_nothing_far_fetched_is_suggested():
    from onellm.spelling import nearest

    line = fails("show", "nosuch")
    assert "Did you mean" not in line and "onellm ls" in line
    assert nearest("vit-l-14", ["ViT-L-14", "ViT-B-16"]) == "ViT-L-14"
    assert nearest("modle", ["model", "beams"]) == "model"
    assert nearest("nosuch", ["nocaps"]) is None


def test_doctor_runs_a_tiny_model():
    done = onellm("doctor")
    assert done.exit_code == 0, done.stdout
    for words in ("Python", "transformers", "cores", "tiny model", "read "):
        assert words in done.stdout


def test_doctor_knows_the_torchvision_mismatch(monkeypatch):
    from onellm import doctor

    def broken(name, *args, **kwargs):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **kwargs)

    real = __import__
    monkeypatch.setattr("builtins.__import__", broken)
    (finding,) = doctor._torchvision()
    assert finding.state == "bad"
    assert "nms" in finding.found
    assert "same index" in finding.remedy


def test_doctor_says_what_is_missing(monkeypatch):
    from onellm import doctor

    monkeypatch.setattr(doctor, "_version", lambda p: None if p in ("av", "peft") else "1")
    lines = ['peft>=0.12; extra == "lora"', 'ruff>=0.14; extra == "dev"', "torch>=2.4"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    bad, ok = doctor._readers()
    assert (bad.state, bad.remedy) == ("bad", "pip install av")
    assert ok.state == "ok"
    (extra,) = doctor._extras()
    assert (extra.what, extra.remedy) == ("extra lora", "pip install 'onellm[lora]'")


def test_doctor_leaves_with_one_when_something_is_bad(monkeypatch):
    from onellm import doctor

    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Finding("bad", "x", "y", "z")]))
    done = onellm("doctor")
    assert done.exit_code == 1
    assert "BAD" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_errors_reach_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "onellm", "show", "nothing-like-it"],
        **{"capture_output": True, "text": True, "cwd": ROOT},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown name")
