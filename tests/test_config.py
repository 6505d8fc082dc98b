"""Configuration errors name the key and offer the nearest spelling."""

from __future__ import annotations

import pytest

from onellm.config import apply_overrides, load_config, parse, read_yaml
from onellm.errors import ConfigError
from onellm.model import OneLLMConfig
from onellm.registry import get_modality, register_modality


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"encodr": {}}, r"unknown key 'encodr'\. Did you mean 'encoder'"),
        ({"encoder": {"widht": 3}}, r"unknown key 'encoder\.widht'\. Did you mean 'width'"),
        ({"projector": {"queries": "many"}}, r"projector\.queries: .*found 'many'"),
    ],
)
def test_faults_are_named(data, message):
    with pytest.raises(ConfigError, match=message):
        parse(OneLLMConfig, data, where="here.yaml")


def test_overrides():
    data = {"optim": {"lr": 1e-4, "betas": [0.9, 0.95]}, "seed": 1}
    changed = apply_overrides(data, ["optim.lr=2e-4", "seed=7", "new.deep=[1, 2]"])
    assert changed["optim"] == {"lr": 2e-4, "betas": [0.9, 0.95]}
    assert changed["seed"] == 7 and changed["new"] == {"deep": [1, 2]}
    assert data["seed"] == 1
    with pytest.raises(ConfigError, match=r"expected key\.path=value"):
        apply_overrides(data, ["seed"])
    with pytest.raises(ConfigError, match="is not a section"):
        apply_overrides(data, ["seed.x=1"])
    with pytest.raises(ConfigError, match=r"'seed=\[1': not valid YAML"):
        apply_overrides(data, ["seed=[1"])


def test_files(tmp_path):
    with pytest.raises(ConfigError, match="expected a YAML file; found no such file"):
        read_yaml(tmp_path / "nothing.yaml")
    file = tmp_path / "c.yaml"
    file.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="expected a mapping"):
        read_yaml(file)
    file.write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(file)
    file.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(file)
    file.write_text("encoder: {width: 64}")
    assert load_config(OneLLMConfig, file, ["encoder.layers=2"]).encoder.layers == 2


def test_modality_names():
    assert get_modality("rgbd").name == "depth"
    with pytest.raises(ConfigError, match="Did you mean 'audio'"):
        get_modality("audoi")
    with pytest.raises(ConfigError, match=r"unknown key 'sise'\. Did you mean 'size'"):
        get_modality("image", sise=3)


def test_a_second_modality_of_a_name_is_an_error():
    from onellm.modality import Modality

    with pytest.raises(ConfigError, match="already registered by"):

        @register_modality
        class Image(Modality):
            name, suffixes, caption_prompt = "image", (".x",), "?"

    with pytest.raises(ConfigError, match="lacks suffixes, caption_prompt"):

        @register_modality
        class Nameless(Modality):
            name = "nameless"
