"""docs/add_a_backbone.md, followed to the letter.

- the adapter on the page has at most 30 lines of code;
- the package built from the page installs, is found by its entry point, and its policy predicts, saves and loads;
- its last hidden states equal transformers' own forward pass.
"""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "add_a_backbone.md"
RUN = '''
import torch
torch.set_num_threads(1)
from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy, save_policy
from robovlms_ros.core.registry import names

assert "internvl" in names("backbone")
config = config_from_mapping({
    "model": {"backbone": "internvl", "history_length": 2, "action_head": "lstm"},
    "action_head": {"hidden_size": 16, "num_layers": 1},
    "vlm": {"size": "tiny", "settings": {"image_token_id": 20}},
    "cameras": ["static", "wrist"],
})
policy = build_policy(config, seed=1)
vlm = policy.vlm
text = policy.tokenize(["go"])
images = {name: torch.randn(2, 3, 28, 28) for name in config.cameras}
batch = {"images": {k: v[None] for k, v in images.items()}, **text}
with torch.no_grad():
    vlm.action_token.copy_(vlm.word_embedding.weight[30])
    output = policy(batch)
    again = load_policy(save_policy(policy, FOLDER))
    assert torch.equal(again(batch).arm, output.arm)
    one = {k: v[:1] for k, v in images.items()}
    visual = vlm.encode_frames(one)
    sequence = vlm.build_sequence(visual, **{"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]})
    ours = vlm.run_text_tower(sequence).last_hidden_state
    ids = torch.full(sequence.kinds.shape, 20)
    ids[sequence.kinds != seq.IMAGE] = torch.cat((text["input_ids"], torch.tensor([[30]])), dim=1).flatten()
    pixels = torch.cat((one["wrist"], one["static"]))
    theirs = vlm.backbone.model(input_ids=ids, pixel_values=pixels).last_hidden_state
    assert (ours - theirs).abs().max() < 1e-5
print("it runs", tuple(output.arm.shape))
'''


def blocks() -> dict[str, str]:
    """File name -> content of the page's fenced blocks that name a file."""
    return {m[2]: m[3] for m in re.finditer(r"^```(\w+) (\S+)\n(.*?)^```", PAGE.read_text(), re.M | re.S)}


def test_the_page(tmp_path: Path) -> None:
    files = blocks()
    assert set(files) == {"robovlms_internvl.py", "pyproject.toml"}
    code = [line for line in files["robovlms_internvl.py"].splitlines() if line.strip()]
    assert len(code) <= 30
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_text(content)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(source)], check=True)
    run = RUN.replace("FOLDER", repr(str(tmp_path / "saved")))
    path = f"import sys; sys.path[:0] = [{str(site)!r}, {str(PAGE.parents[1])!r}]\n"
    result = subprocess.run([sys.executable, "-c", path + run], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "it runs (1, 2, 10, 6)" in result.stdout
