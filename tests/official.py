"""A few made-up records of every benchmark in its official format, with small made media."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

Writer = Callable[["Made"], None]
FIXTURES: dict[str, Writer] = {}


def fixture(*names: str) -> Callable[[Writer], Writer]:
    """Register what makes the data of some tasks."""

    def register(write: Writer) -> Writer:
        FIXTURES.update(dict.fromkeys(names, write))
        return write

    return register


class Made:
    """A data root that is being filled.

    Args:
        root: the folder; media are made once and copied.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._kinds = root, 0

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def text(self, name: str, text: str) -> None:
        self.path(name).write_text(text, encoding="utf-8")

    def json(self, name: str, data: Any) -> None:
        self.text(name, json.dumps(data))

    def table(self, name: str, rows: Iterable[Sequence[object]], delimiter: str = ",") -> None:
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=delimiter).writerows(rows)
        self.text(name, buffer.getvalue())

    def pictures(self, *names: str) -> None:
        for seed, name in enumerate(names):
            pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            path = self.path(name)
            Image.fromarray(pixels).save(path, "JPEG" if path.suffix != ".png" else "PNG")

    def videos(self, *names: str) -> None:
        for name in names:
            path = self.path(name)
            source = self.root / f".clip{path.suffix}"
            if not source.exists():
                write_video(source)
            shutil.copy(source, path)

    def sounds(self, *names: str) -> None:
        for seed, name in enumerate(names):
            wave = np.random.default_rng(seed).normal(0, 0.1, 8000).astype(np.float32)
            soundfile.write(self.path(name), wave, 16_000)

    def arrays(self, shape: tuple[int, ...], *names: str) -> None:
        for seed, name in enumerate(names):
            values = np.random.default_rng(seed).random(shape).astype(np.float32)
            np.save(self.path(name), values)


def write_video(path: Path, frames: int = 12) -> None:
    """Ten noisy frames a second."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(frames):
            picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def make(root: Path, *tasks: str) -> Path:
    """Write the data of some tasks, of all if none is named; returns the root."""
    made = Made(root)
    for write in {FIXTURES[name.partition("@")[0]] for name in tasks or FIXTURES}:
        write(made)
    return root


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(buffer, "JPEG")
    return buffer.getvalue()


# -- pictures -----------------------------------------------------------------------------------


@fixture("gqa")
def gqa(made: Made) -> None:
    def question(image: str, text: str, answer: str, structural: str, **more: Any) -> Any:
        types = {"structural": structural, "semantic": "attr", "detailed": "x"}
        rest = {"groups": {"global": "color", "local": "y"}, "fullAnswer": f"It is {answer}."}
        return {
            **{"imageId": image, "question": text, "answer": answer, "isBalanced": True},
            **{"types": types, **rest, "semantic": [], "entailed": [], "equivalent": [], **more},
        }

    made.json(
        "gqa/testdev_balanced_questions.json",
        {
            "0001": question("n12", "Is the mug red?", "yes", "verify"),
            "0002": question("n12", "What colour is the table?", "brown", "query"),
            "0003": question("n13", "Is the chair left or right?", "left", "choose"),
            "0004": question("n13", "Is it out of balance?", "no", "verify", isBalanced=False),
        },
    )
    made.pictures("gqa/images/n12.jpg", "gqa/images/n13.jpg")


def ten(answer: str, other: str = "") -> list[dict[str, Any]]:
    said = [answer] * 7 + [other or answer] * 3
    return [
        {"answer_id": i, "answer": a, "answer_confidence": "yes", "raw_answer": a}
        for i, a in enumerate(said, 1)
    ]


def vqa_files(made: Made, questions: str, annotations: str, kinds: tuple[str, str]) -> None:
    asked = [(7000, 7, "What colour is the mug?"), (8001, 8, "How many dogs are there?")]
    rows = [{"question_id": q, "image_id": i, "question": text} for q, i, text in asked]
    made.json(questions, {"questions": rows})
    truth = [(7000, 7, "red", "maroon", kinds[0], "other"), (8001, 8, "2", "", kinds[1], "number")]
    made.json(
        annotations,
        {
            "annotations": [
                {
                    **{"question_id": q, "image_id": i, "question_type": kind},
                    **{"answer_type": a_type, "multiple_choice_answer": a, "answers": ten(a, b)},
                }
                for q, i, a, b, kind, a_type in truth
            ]
        },
    )
    made.pictures(*(f"coco/val2014/COCO_val2014_{i:012d}.jpg" for i in (7, 8)))


@fixture("vqav2")
def vqav2(made: Made) -> None:
    vqa_files(
        made,
        "coco/v2_OpenEnded_mscoco_val2014_questions.json",
        "coco/v2_mscoco_val2014_annotations.json",
        ("what color is the", "how many"),
    )
    rows = [{"question_id": 1, "image_id": 9, "question": "Is this a test?"}]
    made.json("coco/v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": rows})
    made.pictures("coco/test2015/COCO_test2015_000000000009.jpg")


@fixture("okvqa")
def okvqa(made: Made) -> None:
    vqa_files(
        made,
        "okvqa/OpenEnded_mscoco_val2014_questions.json",
        "okvqa/mscoco_val2014_annotations.json",
        ("four", "seven"),
    )


@fixture("textvqa")
def textvqa(made: Made) -> None:
    rows = [
        {
            **{"question_id": 34602 + n, "image_id": f"003a{n}", "question": question},
            **{"answers": [answer] * 9 + ["other"], "image_classes": [], "set_name": "val"},
        }
        for n, (question, answer) in enumerate([("what is the brand?", "acme"), ("which?", "7")])
    ]
    made.json("textvqa/TextVQA_0.5.1_val.json", {"data": rows})
    words = [{"image_id": "003a0", "ocr_tokens": ["acme", "inc"]}, {"image_id": "003a1"}]
    made.json("textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", {"data": words})
    made.pictures("textvqa/train_images/003a0.jpg", "textvqa/train_images/003a1.jpg")


@fixture("scienceqa")
def scienceqa(made: Made) -> None:
    def problem(image: str | None, answer: int, hint: str = "") -> dict[str, Any]:
        return {
            **{"question": "Which is a gas?", "choices": ["rock", "air"], "answer": answer},
            **{"hint": hint, "image": image, "task": "closed choice", "grade": "grade4"},
            **{"subject": "natural science", "topic": "physics", "category": "Matter"},
            **{"skill": "s", "lecture": "", "solution": "", "split": "test"},
        }

    problems = {
        "11": problem("image.png", 1),
        "12": problem(None, 0, "Think of weight."),
        "13": problem("image.png", 0),
    }
    made.json("scienceqa/problems.json", {**problems, "14": problem(None, 0)})
    made.json("scienceqa/pid_splits.json", {"train": ["14"], "test": list(problems)})
    made.pictures(*(f"scienceqa/images/test/{key}/image.png" for key in ("11", "13")))


@fixture("vizwiz")
def vizwiz(made: Made) -> None:
    rows = [
        {
            **{"image": f"VizWiz_val_0000000{n}.jpg", "question": "What is this?"},
            **{"answers": [{"answer": a, "answer_confidence": "yes"} for a in answers]},
            **{"answer_type": kind, "answerable": int(kind != "unanswerable")},
        }
        for n, (answers, kind) in enumerate(
            [(["soup"] * 8 + ["can"] * 2, "other"), (["unanswerable"] * 10, "unanswerable")]
        )
    ]
    made.json("vizwiz/val.json", rows)
    made.json("vizwiz/test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What?"}])
    made.pictures(*(f"vizwiz/val/{row['image']}" for row in rows))
    made.pictures("vizwiz/test/VizWiz_test_00000000.jpg")


def coco_file(images: list[dict[str, Any]], captions: dict[Any, list[str]]) -> dict[str, Any]:
    pairs = [(key, text) for key, texts in captions.items() for text in texts]
    annotations = [
        {"id": n, "image_id": key, "caption": text} for n, (key, text) in enumerate(pairs)
    ]
    return {"info": {}, "images": images, "annotations": annotations}


CAPTIONS = (
    ["A red chair stands by the door.", "a chair near a door"],
    ["Two dogs play in the snow.", "dogs in snow"],
    ["A man cooks soup in a kitchen.", "somebody is cooking"],
)


@fixture("nocaps")
def nocaps(made: Made) -> None:
    domains = ("in-domain", "near-domain", "out-domain")
    images = [
        {"id": n, "open_images_id": f"a{n}", "file_name": f"a{n}.jpg", "domain": domain}
        for n, domain in enumerate(domains)
    ]
    texts = {n: list(CAPTIONS[n]) for n in range(3)}
    made.json("nocaps/nocaps_val_4500_captions.json", coco_file(images, texts))
    made.pictures(*(f"nocaps/val/a{n}.jpg" for n in range(3)))


def karpathy(names: Sequence[str], split: str, **more: Any) -> dict[str, Any]:
    images = [
        {
            **{"imgid": n, "filename": name, "split": split, "sentids": [n], **more},
            "sentences": [
                {"sentid": n, "imgid": n, "raw": raw, "tokens": raw.lower().strip(".").split()}
                for raw in CAPTIONS[n]
            ],
        }
        for n, name in enumerate(names)
    ]
    images.append({**images[0], "filename": "other.jpg", "split": "train"})
    return {"dataset": "x", "images": images}


@fixture("flickr30k")
def flickr30k(made: Made) -> None:
    names = ("1000.jpg", "1001.jpg", "1002.jpg")
    made.json("flickr30k/dataset_flickr30k.json", karpathy(names, "test"))
    made.pictures(*(f"flickr30k/flickr30k-images/{name}" for name in names))


@fixture("coco_caption")
def coco_caption(made: Made) -> None:
    names = [f"COCO_val2014_{n:012d}.jpg" for n in (101, 102, 103)]
    data = karpathy(names, "val", filepath="val2014")
    for image in data["images"]:
        image["cocoid"] = int(image["filename"][-7:-4]) if "COCO" in image["filename"] else 1
    made.json("coco/dataset_coco.json", data)
    made.pictures(*(f"coco/val2014/{name}" for name in names))


@fixture("mme")
def mme(made: Made) -> None:
    apart = ("images/", "questions_answers_YN/")
    for folder, inner in (("existence", ("", "")), ("landmark", apart)):
        for name in ("0001", "0002"):
            made.pictures(f"mme/{folder}/{inner[0]}{name}.jpg")
            asked = "in this picture? Please answer yes or no."
            lines = f"Is there a dog {asked}\tYes\nIs there a cat {asked}\tNo\n"
            made.text(f"mme/{folder}/{inner[1]}{name}.txt", lines)


@fixture("mmbench")
def mmbench(made: Made) -> None:
    picture = base64.b64encode(jpeg()).decode()
    head = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
    rows = []
    for index, image in ((241, picture), (242, "241")):
        options = ["red", "green", "blue"]
        for turn in range(3):
            rotated = options[turn:] + options[:turn]
            row = (index + turn * 1_000_000, "Which colour?", "nan" * 0, *rotated, "")
            last = image if turn == 0 else str(index)
            rows.append((*row, "ABC"[rotated.index("green")], "color", last))
    table = [(*head[:9], "l2-category", "source", "split", "image")]
    table += [(*row[:9], "perception", "made", "dev", row[9]) for row in rows]
    made.table("mmbench/mmbench_dev_20230712.tsv", table, "\t")


@fixture("mmvet")
def mmvet(made: Made) -> None:
    rows = {
        f"v1_{n}": {
            **{"imagename": f"v1_{n}.png", "question": "What is x?", "answer": answer},
            **{"imagesource": "made", "capability": capability},
        }
        for n, (answer, capability) in enumerate(
            [("-1<AND>-5", ["ocr", "math"]), ("red<OR>maroon", ["rec"])]
        )
    }
    made.json("mm-vet/mm-vet.json", rows)
    made.pictures(*(f"mm-vet/images/v1_{n}.png" for n in range(2)))


@fixture("seed_bench")
def seed_bench(made: Made) -> None:
    def question(key: str, kind: int, data_type: str, data: str, **more: Any) -> dict[str, Any]:
        choices = dict(zip("abcd", ("One", "Two", "Three", "Four"), strict=True))
        return {
            **{"question_id": key, "question_type_id": kind, "data_type": data_type},
            **{"data_id": data, "question": "How many mugs?", "answer": "A"},
            **{f"choice_{letter}": text for letter, text in choices.items()},
            **more,
        }

    made.json(
        "seed/SEED-Bench.json",
        {
            "questions": [
                question("101", 5, "image", "1454_25"),
                question("102", 5, "image", "1454_26"),
                question("v1", 11, "video", "P01/P01_01.mp4", segment=[0.2, 0.9]),
                question("v2", 10, "video", "1.webm.mp4"),
                # Breakfast's stretches are counted in frames, 15 a second.
                question("v3", 12, "video", "P06/cam01/P06_cereals.mp4", segment=[3, 12]),
            ],
            "question_type": {
                **{"Instances Counting": 5, "Action Recognition": 10, "Action Prediction": 11},
                "Procedure Understanding": 12,
            },
        },
    )
    made.pictures("seed/SEED-Bench-image/1454_25", "seed/SEED-Bench-image/1454_26")
    made.videos(
        *("seed/dimension10/1.webm.mp4", "seed/dimension11/P01/P01_01.mp4"),
        "seed/dimension12/P06/cam01/P06_cereals.mp4",
    )


# -- videos -------------------------------------------------------------------------------------


@fixture("nextqa")
def nextqa(made: Made) -> None:
    lines = (
        "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4",
        "1001,300,320,240,why did the boy run,2,4,CW,late,cold,dog,bored,game",
        '1001,300,320,240,"what did he do, then",0,5,TN,sat,ran,ate,hid,left',
        "1002,300,320,240,where is this,4,0,DL,sea,hill,shop,bus,park",
    )
    made.text("nextqa/val.csv", "\n".join(lines) + "\n")
    made.json("nextqa/map_vid_vidorID.json", {"1001": "0042/1001", "1002": "0042/1002"})
    made.videos("nextqa/NExTVideo/0042/1001.mp4", "nextqa/NExTVideo/0042/1002.mp4")


@fixture("how2qa")
def how2qa(made: Made) -> None:
    rows = [
        ("abc", "[61.5:70]", "on a bed", "in a car", "at sea", "Where is she?", "at home"),
        ("abd_0_60", "[0:1]", "a cat", "a car", "a cup", "What is cut?", "an onion"),
    ]
    made.table("how2qa/how2QA_val_release.csv", rows)
    line = {
        **{"qid": 1, "vid_name": "clip1", "ts": "0.1-0.9", "q": "Where is she?"},
        **{"a0": "at sea", "a1": "in a car", "a2": "at home", "a3": "on a bed", "answer_idx": 2},
    }
    made.text("how2qa/how2qa_val_release.jsonl", json.dumps(line) + "\n")
    made.json("how2qa/how2_vid_mapping.json", {"clip1": "abc_60_120"})
    made.videos("how2qa/abc_60_120.mp4", "how2qa/abd_0_60.mp4")


@fixture("msvd_qa")
def msvd_qa(made: Made) -> None:
    rows = [
        {"id": 35000, "video_id": 1451, "question": "what is a man doing?", "answer": "cook"},
        {"id": 35001, "video_id": 1451, "question": "who is cooking?", "answer": "man"},
        {"id": 35002, "video_id": 1452, "question": "what runs?", "answer": "dog"},
    ]
    made.json("MSVD/test_qa.json", rows)
    made.text("MSVD/youtube_mapping.txt", "-abcDEF12_34_0_10 vid1451\nxyz_1_2 vid1452\n")
    made.videos("MSVD/YouTubeClips/-abcDEF12_34_0_10.avi", "MSVD/YouTubeClips/xyz_1_2.avi")


@fixture("vatex")
def vatex(made: Made) -> None:
    rows = [
        {"videoID": f"abc_00001{n}_00002{n}", "enCap": list(CAPTIONS[n]), "chCap": []}
        for n in range(3)
    ]
    made.json("vatex/vatex_public_test_english_v1.1.json", rows)
    made.json("vatex/vatex_validation_v1.0.json", rows[:1])
    made.videos(*(f"vatex/{row['videoID']}.mp4" for row in rows))


# -- sound --------------------------------------------------------------------------------------


@fixture("clotho")
def clotho(made: Made) -> None:
    rows = [(f"rain {n}.wav", *CAPTIONS[n], *CAPTIONS[n], CAPTIONS[n][0]) for n in range(3)]
    head = ("file_name", *(f"caption_{n}" for n in range(1, 6)))
    made.table("clothov2/clotho_captions_evaluation.csv", [head, *rows])
    made.sounds(*(f"clothov2/evaluation/{row[0]}" for row in rows))


@fixture("clotho_aqa")
def clotho_aqa(made: Made) -> None:
    said = (
        [("rain.wav", "Is it raining?", a) for a in ("yes", "yes", "no")]
        + [("rain.wav", "What is falling?", a) for a in ("water", "rain", "rain")]
        + [("dog.wav", "Is a dog there?", a) for a in ("yes", "yes", "yes")]
    )
    head = ("file_name", "QuestionText", "answer", "confidence")
    made.table("clotho_aqa/clotho_aqa_test.csv", [head, *((*row, "yes") for row in said)])
    made.sounds("clotho_aqa/audio_files/rain.wav", "clotho_aqa/audio_files/dog.wav")


@fixture("audiocaps")
def audiocaps(made: Made) -> None:
    rows = [(10 * n + m, f"v{n}", 30, text) for n in range(3) for m, text in enumerate(CAPTIONS[n])]
    head = ("audiocap_id", "youtube_id", "start_time", "caption")
    made.table("audiocaps/test.csv", [head, *rows])
    made.sounds(*(f"audiocaps/test/v{n}_30.wav" for n in range(3)))


@fixture("music_avqa")
def music_avqa(made: Made) -> None:
    def question(key: int, video: str, kind: str, text: str, words: str, said: str) -> Any:
        return {
            **{"video_id": video, "question_id": key, "type": kind, "question_content": text},
            **{"templ_values": words, "question_deleted": 0, "anser": said},
        }

    rows = [
        question(
            *(1, "00000093", '["Audio", "Counting"]', "How many <Object> are heard?"),
            *('["violin"]', "two"),
        ),
        question(
            *(2, "00000093", '["Visual", "Location"]', "Where is the <LL> <Object>?"),
            *('["first", "drum"]', "left"),
        ),
        question(
            *(3, "00000094", '["Audio-Visual", "Existential"]', "Is this sound from it?"),
            *("[]", "yes"),
        ),
    ]
    made.json("music_avqa/avqa-test.json", rows)
    made.videos("music_avqa/00000093.mp4", "music_avqa/00000094.mp4")
    made.sounds("music_avqa/00000093.wav", "music_avqa/00000094.wav")


@fixture("valor32k")
def valor32k(made: Made) -> None:
    names = [f"x{n}_10_20" for n in range(3)]
    rows = [{"video_id": name, "desc": CAPTIONS[n][0]} for n, name in enumerate(names)]
    made.json("valor32k/desc_test.json", rows)
    images = [{"id": name, "file_name": f"{name}.mp4"} for name in names]
    texts = {name: [CAPTIONS[n][0]] for n, name in enumerate(names)}
    made.json("valor32k/test_ann_cococap.json", coco_file(images, texts))
    made.videos(*(f"valor32k/{name}.mp4" for name in names))
    made.sounds(*(f"valor32k/{name}.wav" for name in names))


@fixture("avsd")
def avsd(made: Made) -> None:
    names = ("7UPGT", "8ABCD")
    turns = [
        {"question": "is there a dog?", "answer": "no"},
        {"question": "what does he do?", "answer": "__UNDISCLOSED__"},
    ]
    dialogs = [
        {"image_id": name, "caption": "a man walks", "summary": "he walks", "dialog": turns}
        for name in names
    ]
    made.json("avsd/test_set4DSTC7-AVSD.json", {"type": "test", "dialogs": dialogs})
    # Named after the video and the turn; in another order than the dialogues.
    images = [{"id": n + 1, "name": f"{name}_2"} for n, name in enumerate(names)][::-1]
    texts = {n + 1: list(CAPTIONS[n]) for n in range(2)}
    made.json("avsd/test_set4DSTC7-AVSD_multiref.json", coco_file(images, texts))
    made.videos(*(f"charades/{name}.mp4" for name in names))
    made.sounds(*(f"charades/{name}.wav" for name in names))


# -- clouds, maps, sensors ----------------------------------------------------------------------


@fixture("objaverse_caption", "objaverse_classification")
def objaverse(made: Made) -> None:
    keys = ("a1b2", "c3d4", "e5f6")
    rows = [
        {
            "object_id": key,
            "conversations": [
                {"from": "human", "value": "What is it?"},
                {"from": "gpt", "value": CAPTIONS[n][0]},
            ],
        }
        for n, key in enumerate(keys)
    ]
    made.json("pointllm/PointLLM_brief_description_val_200_GT.json", rows)
    made.json("pointllm/pointllm_test.json", {k: CAPTIONS[n][0] for n, k in enumerate(keys)})
    made.arrays((64, 6), *(f"pointllm/8192_npy/{key}_8192.npy" for key in keys))


@fixture("modelnet40")
def modelnet40(made: Made) -> None:
    corners = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n"
    faces = "3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
    for name in ("airplane", "night_stand"):
        made.text(f"ModelNet40/{name}/test/{name}_0001.off", f"OFF\n4 4 6\n{corners}{faces}")


def scenes(made: Made, folder: str) -> None:
    lines = []
    for n, scene in enumerate(("kitchen", "bedroom", "home_office")):
        paths = {"rgb": f"rgb/{n}.jpg", "depth": f"depth/{n}.png", "normal": f"normal/{n}.png"}
        lines.append(json.dumps({"id": f"{n:04d}", **paths, "scene": scene}))
        made.pictures(*(f"{folder}/{path}" for path in paths.values()))
        Image.new("L", (40, 30), 90 + n).save(made.path(f"{folder}/{paths['depth']}"))
    made.text(f"{folder}/scenes.jsonl", "\n".join(lines) + "\n")


@fixture("nyuv2_depth", "nyuv2_normal")
def nyuv2(made: Made) -> None:
    scenes(made, "nyuv2")


@fixture("sunrgbd_depth", "sunrgbd_normal")
def sunrgbd(made: Made) -> None:
    scenes(made, "sunrgbd")


@fixture("ego4d_imu")
def ego4d(made: Made) -> None:
    images = [
        {
            **{"id": n, "file_name": "u.mp4", "video_uid": "u"},
            **{"window_start": 0.5 * n, "window_end": 0.5 * n + 1.0},
        }
        for n in range(3)
    ]
    texts = {n: ["picks up a cup"] for n in range(3)}
    made.json("ego4d/imu_2000_cococap.json", coco_file(images, texts))
    made.arrays((400, 6), "ego4d/imu/u.npy")
    np.save(made.path("ego4d/imu/u_timestamps.npy"), np.arange(400) * 5.0)


@fixture("nsd_fmri")
def nsd(made: Made) -> None:
    images = [{"id": n, "file_name": f"{n}.npy"} for n in range(3)]
    texts = {n: list(CAPTIONS[n]) for n in range(3)}
    made.json("nsd/fmri_eval_cococap.json", coco_file(images, texts))
    made.arrays((3, 60), *(f"nsd/{n}.npy" for n in range(3)))
