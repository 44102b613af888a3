"""The training engine.

- Steps in float32 equal a plain torch loop written here; the gradient's norm is really limited; accumulated batches
  step like one large batch; bfloat16 computes in half precision and keeps float32 weights.
- Four episodes are learned by heart: the loss falls below 0.002 within 80 steps.
- Learning rates follow the schedule; validation, the best checkpoint, curves and the report are written; what was saved
  answers like what was trained.
- Each with a message: an empty split, a loss that is not finite, a killed worker, windows that do not fit, a full disk
  (what was written before is whole, and the run goes on from it).
"""

import csv
import json
import os
import resource
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy
from robovlms_ros.training.engine import fit as engine
from robovlms_ros.training.engine import state
from robovlms_ros.training.engine.batches import TrainingError
from robovlms_ros.training.engine.fit import fit


def losses_of(policy, train, config, folder, validation=None):
    """The loss of every step."""
    seen = []
    fit(policy, train, validation, config, folder, lambda step, values: seen.append(values["loss"]))
    return seen


def plain_loop(policy, windows, config):
    """AdamW on Huber and binary cross entropy, in the engine's documented order of windows; the loss of every step."""
    training, seen = config.training, []
    policy.train()
    trained = list(policy.parameters())
    optimiser = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=training.weight_decay)
    for epoch in range(training.epochs):
        order = np.random.default_rng((training.seed, epoch)).permutation(len(windows))
        for i in range(0, len(order), training.batch_size):
            rows = [windows[int(k)] for k in order[i : i + training.batch_size]]
            process = policy.vlm.image_processor
            images = torch.stack([torch.stack([process(f) for f in r["images"]["static"]]) for r in rows])
            actions = torch.from_numpy(np.stack([r["actions"] for r in rows]))
            mask = torch.from_numpy(np.stack([r["mask"] for r in rows]))
            output = policy({"images": {"static": images}, **policy.tokenize([r["instruction"] for r in rows])})
            arm = functional.huber_loss(output.arm[mask], actions[mask][:, :-1])
            logits = output.gripper_logits.squeeze(-1)[mask]
            loss = arm + 0.01 * functional.binary_cross_entropy_with_logits(logits, actions[mask][:, -1])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, training.gradient_clip)
            optimiser.step()
            seen.append(float(loss.detach()))
    return seen


def test_steps_equal_a_plain_loop(make_training_config, make_windows, tmp_path):
    config = make_training_config(training={"epochs": 2, "gradient_clip": 0.2, "weight_decay": 0.1, "workers": 1})
    windows = make_windows(config, episodes=2, length=5)
    ours, theirs = build_policy(config, seed=1), build_policy(config, seed=1)
    seen = losses_of(ours, windows, config, tmp_path)
    assert len(seen) == 6 and seen == pytest.approx(plain_loop(theirs, windows, config), abs=1e-6)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if not name.endswith("k_proj.bias"):  # softmax cancels it: its gradient is rounding, which AdamW blows up
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_are_really_clipped(make_training_config, make_windows, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        gradients = [p.grad.flatten() for g in self.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    for name, clip in (("off", 0.0), ("on", 0.01)):
        config = make_training_config(training={"gradient_clip": clip, "max_steps": 2})
        losses_of(build_policy(config), make_windows(config), config, tmp_path / name)
    assert min(norms[:2]) > 0.02 and norms[2:] == pytest.approx([0.01, 0.01], rel=1e-3)
    reported = [float(row["gradient_norm"]) for row in rows_of(tmp_path / "on" / "curve.csv")]
    assert reported[0] == pytest.approx(norms[0], rel=1e-4)  # the norm before clipping


def test_accumulated_batches_step_like_one_large_batch(make_training_config, make_windows, tmp_path):
    policies = []
    for batch, accumulation in ((4, 1), (2, 2)):
        config = make_training_config(training={"batch_size": batch, "accumulation": accumulation, "epochs": 2})
        windows = make_windows(config, length=4)
        for item in windows.items:
            item["mask"][:] = True  # means of means are means where all counts are equal
        policies.append(build_policy(config, seed=3))
        seen = losses_of(policies[-1], windows, config, tmp_path / str(batch))
        assert len(seen) == 8
    for a, b in zip(*(p.parameters() for p in policies), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_bfloat16_computes_in_half_precision_and_keeps_float32_weights(make_training_config, make_windows, tmp_path):
    seen = []
    for name in ("float32", "bfloat16"):
        config = make_training_config(training={"precision": name, "max_steps": 3})
        policy = build_policy(config, seed=2)
        kinds = set()
        layer = policy.vlm.text_tower.layers[0].mlp.down_proj
        layer.register_forward_hook(lambda module, inputs, output, kinds=kinds: kinds.add(output.dtype))
        seen.append(losses_of(policy, make_windows(config), config, tmp_path / name))
        assert kinds == {getattr(torch, name)}
        assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert seen[0] != seen[1] and seen[0] == pytest.approx(seen[1], rel=0.1)


def test_four_episodes_are_learned_by_heart(make_training_config, make_windows, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.Engine, "_write", lambda self, place, tensors, values: place.mkdir())
    monkeypatch.setattr(engine.Engine, "save", lambda self: None)
    training = {"epochs": 40, "batch_size": 12, "warmup_ratio": 5.0, "schedule": "cosine",
                "arm_gripper_loss_ratio": 0.1}
    config = make_training_config(training=training)
    seen = losses_of(build_policy(config), make_windows(config, episodes=4), config, tmp_path)
    assert len(seen) == 80 and seen[0] > 0.1
    assert np.mean(seen[-5:]) < 0.002


def test_rates_follow_the_schedule(make_training_config, make_windows, tmp_path):
    training = {"epochs": 2, "warmup_ratio": 0.5, "schedule": "cosine", "minimum_rate": 0.1}
    config = make_training_config(training=training)
    fit(build_policy(config), make_windows(config, length=4), None, config, tmp_path)
    rates = [float(row["learning_rate"]) for row in rows_of(tmp_path / "curve.csv")]
    part = [0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * k / 6)) for k in range(6)]
    assert rates == pytest.approx([0.0, 0.5e-3, *(1e-3 * f for f in part)])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_leaves_checkpoints_curves_and_a_report(make_training_config, make_windows, tmp_path):
    config = make_training_config(training={"epochs": 3, "learning_rate": 3e-3})
    policy = build_policy(config)
    validation = make_windows(config, episodes=2, seed=5)
    files = {"statistics.json": "{}"}
    place = fit(policy, make_windows(config), validation, config, tmp_path, files=files)
    epochs = rows_of(tmp_path / "validation.csv")
    assert [row["step"] for row in epochs] == ["6", "12", "18"]
    assert {"loss", "gripper_accuracy", "translation", "rotation", "gripper_wrong"} <= set(epochs[0])
    best = min(epochs, key=lambda row: float(row["loss"]))
    record = json.loads((place / "training.json").read_text())
    assert record["step"] == int(best["step"]) and (place / "statistics.json").read_text() == "{}"
    assert json.loads((tmp_path / "last" / "training.json").read_text())["step"] == 18
    assert (tmp_path / "report.html").read_text().count("<svg") >= 4
    assert json.loads((tmp_path / "report.json").read_text())["best"]["step"] == int(best["step"])
    assert list((tmp_path / "tensorboard").glob("events*"))
    last = load_policy(tmp_path / "last")
    assert not last.is_random and last.config == config
    batch = {"images": {"static": torch.randn(1, 2, 3, 28, 28)}, **policy.tokenize(["lift the red cube"])}
    with torch.no_grad():
        assert torch.equal(policy.eval()(batch).arm, last(batch).arm)


def test_open_loop_error_is_in_metres(make_training_config, make_windows):
    """By hand: 0.3 off on the head's scale in x is 0.3 * 0.02 m; one of two grippers is wrong; masked steps do not
    count."""
    from robovlms_ros.training.engine.objective import open_loop_errors

    config = make_training_config()
    arm, gripper = torch.zeros(1, 2, 3, 6), torch.zeros(1, 2, 3)
    mask = torch.tensor([[[True] * 3, [True, True, False]]])
    newest = torch.zeros(1, 3, 7)
    newest[..., 0], newest[0, 0, -1] = 0.3, 1.0
    errors = open_loop_errors(config, newest, {"arm": arm, "gripper": gripper, "mask": mask})
    assert errors["translation"] == (pytest.approx(2 * 0.006), 2) and errors["rotation"] == (0.0, 2)
    assert errors["gripper_wrong"] == (1.0, 2)


def test_empty_split_is_refused(make_training_config, make_windows, tmp_path):
    config = make_training_config()
    full, empty = make_windows(config), make_windows(config, episodes=0)
    with pytest.raises(TrainingError, match="the training split holds no window"):
        fit(build_policy(config), empty, None, config, tmp_path)
    with pytest.raises(TrainingError, match=r"the validation split holds no window.*validation_fraction"):
        fit(build_policy(config), full, empty, config, tmp_path)


def test_windows_that_do_not_fit_are_refused(make_training_config, make_windows, tmp_path):
    config = make_training_config()
    windows = make_windows(make_training_config(model={"action_chunk_size": 5}))
    with pytest.raises(TrainingError, match=r"actions has shape \(2, 5, 7\): must be \(2, 3, 7\)"):
        fit(build_policy(config), windows, None, config, tmp_path)
    windows = make_windows(make_training_config(cameras=["wrist"]))
    with pytest.raises(TrainingError, match="no images of camera static; it has wrist"):
        fit(build_policy(config), windows, None, config, tmp_path)


def test_loss_that_is_not_finite_stops_the_run(make_training_config, make_windows, tmp_path):
    config = make_training_config()
    windows = make_windows(config)
    for item in windows.items:
        item["actions"][0, 0, 0] = np.nan
    policy = build_policy(config)
    before = [p.detach().clone() for p in policy.parameters()]
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        fit(policy, windows, None, config, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_killed_worker_is_told_and_the_run_goes_on(make_training_config, make_windows, tmp_path):
    config = make_training_config(training={"workers": 1, "save_every": 1})
    windows = make_windows(config)

    class Deadly(type(windows)):
        def __getitem__(self, index):
            if index == order[20]:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    order = np.random.default_rng((config.training.seed, 0)).permutation(len(windows))
    with pytest.raises(TrainingError, match=r"decodes images died.*training.workers \(now 1\).*last saved state"):
        fit(build_policy(config), Deadly(config), None, config, tmp_path)
    kept = state.load_state(tmp_path)[1].step
    assert 1 <= kept <= 4
    seen = losses_of(build_policy(config), windows, config, tmp_path)
    assert len(seen) == 6 - kept


def test_full_disk_is_told_and_loses_nothing(make_training_config, make_windows, tmp_path):
    """A limit on the size of files makes the real writes fail half-way, as a full disk does."""
    config = make_training_config(training={"epochs": 2})
    windows = make_windows(config)
    straight = losses_of(build_policy(config), windows, config, tmp_path / "straight")
    folder, seen = tmp_path / "run", []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(step, values):
        seen.append(values["loss"])
        if step == 9:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    try:
        with pytest.raises(TrainingError, match=r"cannot be written.*GiB free.*Nothing is lost"):
            fit(build_policy(config), windows, None, config, folder, fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(folder.glob("*.part")) and not list(folder.glob("*.old"))
    assert state.load_state(folder)[1].step == 6
    assert not load_policy(folder / "checkpoint").is_random
    again = losses_of(build_policy(config), windows, config, folder)
    assert seen[:6] + again == straight


def test_replacing_a_folder_is_all_or_nothing(tmp_path):
    def fill(text, fail=False):
        def write(place):
            place.mkdir()
            (place / "a").write_text(text)
            if fail:
                raise OSError(28, "No space left on device")
        return write

    target = tmp_path / "checkpoint"
    state.replace_folder(target, fill("one"))
    with pytest.raises(TrainingError, match="No space left"):
        state.replace_folder(target, fill("two", fail=True))
    assert (target / "a").read_text() == "one" and [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    os.replace(target, tmp_path / "checkpoint.old")  # cut off between the renames
    state.recover_folder(target)
    assert (target / "a").read_text() == "one"
    state.replace_folder(target, fill("three"))
    assert (target / "a").read_text() == "three" and [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
