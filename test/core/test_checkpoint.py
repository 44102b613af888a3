"""Checkpoints: what loads, and what is refused with a message a user can act on.

- our folder reads back bit for bit, runs in half precision; full-size random weights are made in theirs; tied tensors
  are stored once; the caller's random state is kept;
- the published layout loads with `state_dict` or `model_state_dict`, `module.` and `model.` prefixes, fp16 and bf16,
  key names of transformers 4.37 and 4.44, safetensors and shards; a continuous policy's lm_head may be there or not;
- where a model ties embedding and output matrix, a file may name either; elsewhere one is missing;
- refused: truncated file, pickle with code, wrong head, wrong hidden size, NaN in half precision,
  JSON missing a key, JSON for another backbone, nothing there, two values for one parameter;
- loading holds one copy of the weights: peak memory of a process below 1.2 x the file.
"""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robovlms_ros.checkpoints.checkpoint import build_policy, convert, load_policy, save_policy
from robovlms_ros.checkpoints.weights import CheckpointError
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.models.backbones.meta_parameters import parameters_on_meta
from robovlms_ros.models.vla_policy import VLAPolicy

MakeConfig = Callable[..., PolicyConfig]


def batch_of(policy: VLAPolicy) -> dict[str, Any]:
    size = policy.vlm.image_size
    images = torch.randn(1, 3, 3, size, size, generator=torch.Generator().manual_seed(1))
    return {"images": {name: images for name in policy.config.cameras}, **policy.tokenize(["lift the red cube"])}


@pytest.fixture
def saved(make_config: MakeConfig, tmp_path: Path) -> tuple[VLAPolicy, Path]:
    policy = build_policy(make_config("kosmos"), seed=4)
    return policy, save_policy(policy, tmp_path / "policy")


@pytest.mark.parametrize("name", ["paligemma", "kosmos", "flamingo", "qwen"])
@torch.no_grad()
def test_reads_back(make_config: MakeConfig, tmp_path: Path, name: str) -> None:
    state = torch.random.get_rng_state()
    policy = build_policy(make_config(name), seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    again = load_policy(save_policy(policy, tmp_path / name))
    assert again.config == policy.config and again.identity.startswith(f"{name}@")
    assert not again.is_random and policy.is_random
    assert torch.equal(policy(batch_of(policy)).arm, again(batch_of(again)).arm)
    assert not any(parameter.is_meta for parameter in [*again.parameters(), *again.buffers()])
    other = build_policy(make_config(name), seed=5)
    assert not torch.equal(policy(batch_of(policy)).arm, other(batch_of(other)).arm)


@pytest.mark.parametrize("name", ["paligemma", "kosmos", "flamingo", "llava", "qwen", "smolvlm"])
@torch.no_grad()
def test_runs_in_half_precision(make_config: MakeConfig, tmp_path: Path, name: str) -> None:
    config = make_config(name, proprioception={"names": ["gripper"]})
    policy = build_policy(config, seed=4)
    half = load_policy(save_policy(policy, tmp_path), dtype=torch.bfloat16)
    batch = {**batch_of(policy), "proprioception": torch.rand(1, 3, 1)}
    output = half(batch)
    assert output.arm.dtype == torch.bfloat16
    assert (output.arm.float() - policy(batch).arm).abs().max() < 2e-2


def test_random_weights_in_their_own_precision(make_config: MakeConfig) -> None:
    config = make_config("smolvlm", vlm={"precision": "bfloat16"})
    assert build_policy(config).dtype == torch.float32
    shape = {"num_hidden_layers": 1, "vocab_size": 600}
    settings = {"text_config": shape, "vision_config": {"num_hidden_layers": 1}}
    full = {"size": "full", "precision": "bfloat16", "vocabulary": [], "settings": settings}
    assert build_policy(make_config("smolvlm", vlm=full)).dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32


def test_tied_tensors_once(make_config: MakeConfig, tmp_path: Path) -> None:
    head = {"type": "discrete", "action_space": "discrete", "n_bin": 8, "num_layers": None}
    config = make_config("kosmos", action_head=head, vlm={"vocabulary": [f"w{i}" for i in range(60)]})
    policy = build_policy(config)
    folder = save_policy(policy, tmp_path)
    assert "vlm.backbone.text_model.lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load_policy(folder).vlm.backbone.text_model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def published(policy: VLAPolicy) -> dict[str, torch.Tensor]:
    """The policy's weights under RoboVLMs' names."""
    renamed = {}
    names = (("vlm.backbone.", "backbone."), ("vlm.action_token", "action_token"), ("head.", "act_head."))
    for key, tensor in policy.state_dict().items():
        for ours, theirs in names:
            if key.startswith(ours):
                renamed[theirs + key[len(ours) :]] = tensor.clone()
    return renamed


def run_json(policy: VLAPolicy, vlm: str) -> dict[str, Any]:
    config = policy.config
    return {
        "robovlm_name": {"kosmos": "RoboKosMos", "paligemma": "RoboPaligemma"}[config.model.backbone],
        "window_size": config.model.history_length,
        "fwd_pred_next_n": config.model.action_chunk_size,
        "image_size": 28,
        "use_hand_rgb": False,
        "act_head": {"type": "LSTMDecoder", "hidden_size": 16, "num_layers": 1, "action_dim": 7},
        "vlm": {"pretrained_model_name_or_path": vlm},
        "train_dataset": {"type": "DiskCalvinDataset"},
    }


def write_published(policy: VLAPolicy, folder: Path, tensors: dict[str, torch.Tensor], wrap: Any = None) -> Path:
    """A .pt with its JSON, and the VLM's folder beside it."""
    folder.mkdir(exist_ok=True)
    vlm = folder / "vlm"
    vlm.mkdir(exist_ok=True)
    (vlm / "config.json").write_text(json.dumps(policy.vlm.hf_config.to_dict(), default=str))
    policy.prompt.tokenizer.save_pretrained(vlm)  # type: ignore[union-attr]
    (folder / "run.json").write_text(json.dumps(run_json(policy, "somewhere/vlm")))
    torch.save(wrap(tensors) if wrap else {"state_dict": tensors}, folder / "run.pt")
    return folder / "run.pt"


LAYOUTS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "lightning": lambda t: {"state_dict": {f"model.{k}": v for k, v in t.items()}, "epoch": 4, "global_step": 9},
    "module": lambda t: {"state_dict": {f"module.model.{k}": v for k, v in t.items()}},
    "bare": lambda t: {"model_state_dict": t},
    "tensors-alone": lambda t: t,
    "half": lambda t: {"state_dict": {f"model.{k}": v.half() for k, v in t.items()}},
    "brain": lambda t: {"state_dict": {f"model.{k}": v.bfloat16() for k, v in t.items()}},
    "tables": lambda t: {"state_dict": {**t, "backbone.vision_model.model.embeddings.position_ids": torch.arange(5)}},
    "lm_head": lambda t: {"state_dict": {**t, "backbone.text_model.lm_head.weight": torch.zeros(9, 64)}},
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@torch.no_grad()
def test_published_layouts(saved: tuple[VLAPolicy, Path], tmp_path: Path, layout: str) -> None:
    policy, _ = saved
    loaded = load_policy(write_published(policy, tmp_path / "pub", published(policy), LAYOUTS[layout]))
    tolerance = {"half": 1e-3, "brain": 1e-2}.get(layout, 1e-6)  # a published run computes with eager attention
    assert (loaded(batch_of(loaded)).arm - policy(batch_of(policy)).arm).abs().max() <= tolerance
    assert loaded.dtype == torch.float32 and loaded.identity.startswith("run@")


@torch.no_grad()
def test_older_transformers_names(make_config: MakeConfig, tmp_path: Path) -> None:
    policy = build_policy(make_config("paligemma"), seed=4)
    old = {}
    for key, tensor in published(policy).items():
        key = key.replace("backbone.model.language_model.", "backbone.language_model.model.")
        key = key.replace("backbone.model.vision_tower.", "backbone.vision_tower.vision_model.")
        old[f"model.{key.replace('backbone.model.', 'backbone.')}"] = tensor
    assert any("language_model.model.layers" in key for key in old)
    loaded = load_policy(write_published(policy, tmp_path, old))
    assert torch.equal(loaded(batch_of(loaded)).arm, policy(batch_of(policy)).arm)


@torch.no_grad()
def test_shards_and_conversion(saved: tuple[VLAPolicy, Path], tmp_path: Path) -> None:
    policy, folder = saved
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({k: tensors[k] for k in part}, folder / f"part{i}.safetensors")
    table = {k: f"part{i % 2}.safetensors" for i, k in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    (folder / "model.safetensors").unlink()
    loaded = load_policy(folder)
    assert torch.equal(loaded(batch_of(loaded)).arm, policy(batch_of(policy)).arm)
    (folder / "part1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shards are missing: part1.safetensors"):
        load_policy(folder)

    half = write_published(policy, tmp_path / "pub", published(policy), LAYOUTS["half"])
    converted = convert(half, tmp_path / "ours")
    dtypes = {t.dtype for t in load_file(converted / "model.safetensors").values()}
    assert dtypes == {torch.float16}
    source, result = load_policy(half), load_policy(converted)
    assert torch.equal(source(batch_of(source)).arm, result(batch_of(result)).arm)
    with pytest.raises(CheckpointError, match="holds files already"):
        convert(half, tmp_path / "ours")


def test_truncated(saved: tuple[VLAPolicy, Path], tmp_path: Path) -> None:
    policy, folder = saved
    file = write_published(policy, tmp_path / "pub", published(policy))
    for path, target in ((folder / "model.safetensors", folder), (file, file)):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CheckpointError, match=r"cannot be read.*truncated.*fetch it again"):
            load_policy(target)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code in a checkpoint was run",))


def test_pickle_with_code(saved: tuple[VLAPolicy, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, _ = saved
    file = write_published(policy, tmp_path / "pub", published(policy), lambda t: {"state_dict": t, "hook": Evil()})
    with pytest.raises(CheckpointError, match=r"never run"):
        load_policy(file)
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"never run|cannot be read"):
        load_policy(file)
    assert "was run" not in capsys.readouterr().out


def change_json(file: Path, **changes: Any) -> None:
    path = file.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("wrong head", CheckpointError, r"missing: head\.mlp.*unexpected: model\.act_head\.rnn"),
        ("wrong hidden size", CheckpointError, r"wrong shape: .*\(64, 64\) in the file, \(128, 64\) in the policy"),
        ("another backbone", Exception, r"backbone 'paligemma' runs model_type paligemma; .*'kosmos-2'"),
        ("missing key", ConfigError, r"'act_head' is missing"),
        ("nan", CheckpointError, r"1 not finite: model\.action_token"),
        ("lost", CheckpointError, r"1 missing: vlm\.action_token"),
        ("twice", CheckpointError, r"same parameter with different values"),
        ("no json", CheckpointError, r"no configuration beside it \(looked for run\.json"),
        ("no tensors", CheckpointError, r"holds no state dict"),
    ],
)
def test_faults(
    saved: tuple[VLAPolicy, Path], tmp_path: Path, fault: str, error: type[Exception], message: str
) -> None:
    policy, _ = saved
    tensors = {f"model.{k}": v.half() for k, v in published(policy).items()}
    if fault == "nan":
        tensors["model.action_token"][3] = float("nan")
    if fault == "lost":
        del tensors["model.action_token"]
    if fault == "twice":
        tensors["action_token"] = tensors["model.action_token"] + 1
    wrap = (lambda t: {"state_dict": {"epoch": 3}}) if fault == "no tensors" else None
    file = write_published(policy, tmp_path / "pub", tensors, wrap)
    if fault == "wrong head":
        change_json(file, act_head={"type": "FCDecoder", "hidden_size": 16})
    if fault == "wrong hidden size":
        change_json(file, act_head={"type": "LSTMDecoder", "hidden_size": 32, "num_layers": 1})
    if fault == "another backbone":
        change_json(file, robovlm_name="RoboPaligemma")
    if fault == "missing key":
        change_json(file, act_head=None)
    if fault == "no json":
        file.with_suffix(".json").unlink()
    with pytest.raises(error, match=message):
        load_policy(file)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_policy(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="it has no weights"):
        load_policy(tmp_path)


MEASURE = """
import resource, sys
import torch
torch.set_num_threads(1)
import safetensors.torch
from robovlms_ros.checkpoints.checkpoint import load_policy
import robovlms_ros.models.backbones.paligemma, transformers.models.paligemma.modeling_paligemma
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
before = peak()
policy = load_policy(sys.argv[1], require_tokenizer=False)
print((peak() - before) / float(sys.argv[2]), policy.dtype)
"""


def test_memory_of_loading(make_config: MakeConfig, tmp_path: Path) -> None:
    text = {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 6, "vocab_size": 8192}
    config = make_config("paligemma", vlm={"precision": "bfloat16", "settings": {"text_config": text}})
    with parameters_on_meta():
        policy = VLAPolicy(config)
    for module in policy.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.zeros(parameter.shape, dtype=torch.bfloat16))
    folder = save_policy(policy, tmp_path)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 3e8
    command = [sys.executable, "-c", MEASURE, str(folder), str(size)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    ratio, dtype = result.stdout.split()[-2:]
    assert float(ratio) < 1.2 and dtype == "torch.bfloat16"


@pytest.mark.parametrize(("backbone", "tied"), [("paligemma", True), ("llava", False)])
def test_a_file_with_the_output_matrix_alone(
    make_config: MakeConfig, tmp_path: Path, backbone: str, tied: bool
) -> None:
    folder = save_policy(build_policy(make_config(backbone), seed=1), tmp_path / backbone)
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if key.endswith("embed_tokens.weight"))
    embedding = tensors.pop(name)
    save_file({**tensors, "vlm.backbone.lm_head.weight": embedding}, folder / "model.safetensors")
    if not tied:
        with pytest.raises(CheckpointError, match="1 missing: .*embed_tokens.weight"):
            load_policy(folder)
        return
    assert torch.equal(load_policy(folder).vlm.word_embedding.weight, embedding)
