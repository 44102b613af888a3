"""YAML and JSON files: numbers as a person writes them, each by its own parser, bounded, errors with the file."""

import ast
import os
from pathlib import Path

import pytest

import robovlms_ros
from robovlms_ros.checkpoints.weights import CheckpointError, read_tensors
from robovlms_ros.config.policy import load_config
from robovlms_ros.core import caps
from robovlms_ros.core.schema import ConfigError, read_mapping
from robovlms_ros.core.structured_text import from_yaml
from robovlms_ros.models.backbones.hf_config import check_sizes
from robovlms_ros.models.backbones.spec import BackboneError


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("number", ["2e-5", "1E3", "1e-4", "-3E+2", "1.5e6", ".5", "1_000.5"])
def test_numbers_of_a_json_and_of_a_yaml_are_numbers(tmp_path, number):
    assert read_mapping(written(tmp_path, "a.yaml", f"rate: {number}\n"))["rate"] == float(number)
    if number[0] != "." and "_" not in number:
        assert read_mapping(written(tmp_path, "a.json", f'{{"rate": {number}}}'))["rate"] == float(number)


@pytest.mark.parametrize(("text", "value"), [("1e", "1e"), ("e5", "e5"), ("1.2.3", "1.2.3"), ("12", 12), ("-7", -7)])
def test_other_words_stay_what_they_are(text, value):
    assert from_yaml(f"a: {text}") == {"a": value}


BAD = {
    "bomb": "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "deep": "[" * 500 + "]" * 500,
    "itself": "a: &a [*a]\n",
    "control": "a: \x00b\n",
    "tag": "a: !!python/object/apply:os.system ['true']\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_hostile_yaml_is_refused_with_the_file_and_a_short_text(tmp_path, kind):
    path = written(tmp_path, "hostile.yaml", BAD[kind])
    with pytest.raises(ConfigError, match=r"hostile\.yaml: not valid YAML or JSON") as caught:
        read_mapping(path)
    assert len(str(caught.value)) < 1000


def test_a_file_that_is_none_or_too_large_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="must be a regular file"):
        read_mapping(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="must be a regular file"):
        read_mapping("/dev/zero")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(caps.MAX_CONFIG_BYTES + 1)
    with pytest.raises(ConfigError, match="MAX_CONFIG_BYTES"):
        read_mapping(tmp_path / "large.yaml")


def test_a_base_that_names_itself_is_refused(tmp_path):
    path = written(tmp_path, "loop.yaml", "base: loop.yaml\n")
    with pytest.raises(ConfigError, match="MAX_CONFIG_BASES"):
        load_config(path)


def test_json_constants_that_are_no_numbers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="NaN is no JSON number"):
        read_mapping(written(tmp_path, "a.json", '{"rate": NaN}'))


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "sub/one.safetensors"])
def test_a_shard_outside_the_folder_is_refused(tmp_path, name):
    index = written(tmp_path, "model.safetensors.index.json", f'{{"weight_map": {{"a": "{name}"}}}}')
    with pytest.raises(CheckpointError, match="names of files in the index's own"):
        read_tensors(index)


def test_sizes_that_no_model_has_are_refused():
    check_sizes({"num_hidden_layers": 80, "vocab_size": 257216, "text_config": {"hidden_size": 8192}}, "config.json")
    with pytest.raises(BackboneError, match=r"num_hidden_layers = 10000000: at most 1000 is accepted \(MAX_LAYERS\)"):
        check_sizes({"text_config": {"num_hidden_layers": 10_000_000}}, "config.json")
    with pytest.raises(BackboneError, match="MAX_WIDTH"):
        check_sizes({"hidden_size": 10**12}, "config.json")


def test_yaml_is_read_in_one_place():
    root = Path(robovlms_ros.__path__[0])
    found = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if called and node.func.attr in ("safe_load", "load_all", "full_load", "unsafe_load"):
                found.append(str(path.relative_to(root)))
    assert not found
