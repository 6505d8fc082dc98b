"""Packaging: the five areas at the top level install as sub-packages of ``onellm``.

``find_packages("onellm")`` would follow the links inside ``onellm/`` and list everything twice, so
the packages are listed from the areas themselves.
"""

from pathlib import Path

from setuptools import setup

AREAS = ("tokenizers", "projection", "data", "train", "eval")
PARTS = ("eval.metrics", "eval.readers", "eval.scorers")  # packages inside the areas
ROOT = Path(__file__).parent

REQUIRED = [
    "torch>=2.6",
    "open_clip_torch>=2.24",
    "sentencepiece>=0.2",
    "einops>=0.7",
    "deepspeed>=0.15",
    "librosa>=0.10",
    "numpy>=1.26",
    "nibabel>=5",
    "trimesh>=4.6",
    "transformers>=4.56",
    "safetensors>=0.4",
    "pydantic>=2.6",
    "PyYAML>=6",
    "typer>=0.15",
    "rich>=13",
    "av>=14.2",
    "soundfile>=0.12",
    "scipy>=1.11",
    "soxr>=0.3",
    "pillow>=10",
    "matplotlib>=3.8",
    "webdataset>=0.2.96",
    "gguf>=0.10",
    "accelerate>=0.30",
]
EXTRAS = {
    "datasets": ["datasets>=2.19"],
    "lora": ["peft>=0.12"],
    "quant": ["torchao>=0.18"],
    "log": ["tensorboard>=2.14", "wandb>=0.16"],
    "java": ["pycocoevalcap>=1.2"],
    "dev": [
        "datasets>=2.19",
        "peft>=0.12",
        "torchao>=0.18",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.14",
        "mypy>=1.15",
        "types-PyYAML",
        "setuptools>=70",
        "wheel",
        "ninja",  # DeepSpeed compiles its CPU communication extension with it
    ],
}


def version() -> str:
    """Read the version without importing the package."""
    for line in (ROOT / "onellm" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("onellm/__init__.py has no __version__")


setup(
    name="onellm",
    version=version(),
    description="Language models that understand signals: eight modalities and your own",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["onellm", *(f"onellm.{name}" for name in (*AREAS, *PARTS))],
    package_dir={"onellm": "onellm"} | {f"onellm.{area}": area for area in AREAS},
    package_data={
        "onellm": ["py.typed", "presets/*.yaml"],
        "onellm.data": ["starter/*"],
        "onellm.train": ["configs/*.yaml", "hardware/*.yaml", "launchers/*.sh"],
        "onellm.eval": ["*.yaml", "*.html", "*.css", "tasks/*.yaml"],
    },
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["onellm = onellm.cli:main"],
        "lmms_eval.models": ["onellm = onellm.eval.lmms:manifests"],
    },
)
