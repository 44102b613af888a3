"""Cloning of the tabletop tasks: a shard holds each goal's label, the followed one first, a glimpse
is one frame of a scene, and frames keep what the running policy computes of it; features of windows
with sentences of their own equal the policy's; every goal is said in its own words; what is
computed stays on the windows' device, bfloat16 hardly changes it and compilation not at all; a step
lowers the loss, with and without the simulator's ground truth; the shipped plan is runnable and
small enough; a killed run goes on where it was, another one from its checkpoint; what is most often
confused stands beside each other, under cameras that stand loose now and then.
"""

import json
from dataclasses import replace
from functools import partial
from threading import Event

import numpy as np
import pytest
import torch
import yaml

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy
from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import RobotState
from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.inference.proprioception import state_vector
from robovlms_ros.sim.rollout import ExpertSession, build_loop
from robovlms_ros.sim.tasks.base import TRAINING_SEEDS
from robovlms_ros.sim.tasks.domain_randomization import SceneAppearance
from robovlms_ros.sim.tasks.expert import ExpertPolicy
from robovlms_ros.sim.tasks.language import goals, instructions
from robovlms_ros.sim.tasks.objects import PLATES, THINGS, shape_of
from robovlms_ros.sim.training import pipeline
from robovlms_ros.sim.training.demonstrations import GLIMPSE, LOOSE, Recording, record_shard
from robovlms_ros.sim.training.objectives import SENTENCES, TaskObjective
from robovlms_ros.sim.training.pipeline import build_trainer, shards_of_stages, train
from robovlms_ros.sim.training.plans import Recipe, TrainingStage, load_plan
from robovlms_ros.sim.training.recording import glimpse_jobs, record, record_job
from robovlms_ros.sim.training.shards import DatasetError, DemonstrationSet, ShardFrames, find_shards
from robovlms_ros.sim.world import SimWorld
from robovlms_ros.training.engine.shared_prefix import features_under_instructions
from robovlms_ros.training.engine.stages import StageTrainer
from robovlms_ros.training.engine.trainable import initialise

pytestmark = pytest.mark.sim

GOALS = goals()


def test_shard_holds_every_goals_label(folder):
    images = np.load(folder / "0" / "images.npy")
    with np.load(folder / "0" / "frames.npz") as data:
        frames = {name: data[name] for name in data.files}
    assert len(images) == len(frames["goals"]) > 40 and images.any(axis=(1, 2, 3, 4)).all()
    assert np.isfinite(frames["labels"]).all() and np.isfinite(frames["yaws"]).all()
    for i in (0, len(images) // 2, len(images) - 1):
        places = zip((*THINGS, *PLATES), (*frames["things"][i], *frames["plates"][i]), strict=True)
        there = {name for name, place in places if not np.isnan(place).any()}
        assert all({GOALS[n].thing, GOALS[n].place or GOALS[n].thing} <= there for n in frames["goals"][i])
        cubes = np.array([name in there and shape_of(name) == "cube" for name in THINGS])
        assert np.array_equal(np.isfinite(frames["turns"][i]), cubes), "only cubes lie turned"
    # The first frame's scene is known from its seed: the label is what the expert says there.
    world = SimWorld(int(frames["episodes"][0]), task="all")
    for number, label in zip(frames["goals"][0], frames["labels"][0], strict=True):
        opening = float(frames["openings"][0])
        chunk = ExpertPolicy(
            GOALS[number], world.ground_truth(), frames["poses"][0], opening
        ).chunk()
        assert np.allclose(label, chunk, atol=1e-5)


def test_recording_stops_when_told(tmp_path):
    jobs = [job for i in range(8) for job in glimpse_jobs(tmp_path / str(i), TRAINING_SEEDS[i : i + 1], "panda", "all")]
    stop = Event()
    stop.set()
    record(jobs, 1, stop)
    assert sum((job.folder / "frames.npz").exists() for job in jobs) < len(jobs)


def test_glimpse_is_one_frame_of_a_scene(objective, folder, tmp_path):
    (job,) = glimpse_jobs(tmp_path, TRAINING_SEEDS[50:54], "panda", "all")
    assert record_job(job).endswith("4 glimpses")
    frames = ShardFrames(objective).add([job.folder])
    assert frames.episodes.tolist() == list(TRAINING_SEEDS[50:54]), "a frame of each"
    assert len(DemonstrationSet(frames, 1, 2).starts) == 4
    with pytest.raises(DatasetError):
        DemonstrationSet(frames, 2, 2)
    (reached,) = glimpse_jobs(tmp_path, TRAINING_SEEDS[140130:140131], "panda", "all")
    record_job(reached)
    assert json.loads((reached.folder / "outcomes.json").read_text())[0]["success"]
    assert len(ShardFrames(objective).add([reached.folder])) == 1, (
        "also where the goal is reached in it"
    )
    images = frames.images(torch.arange(4))
    assert (images.float().std(dim=(2, 3, 4)) > 5).all(), "both cameras see something"
    # Beside whole episodes, windows are of those alone.
    alone = ShardFrames(objective).add(find_shards(folder))
    both = ShardFrames(objective).add([*find_shards(folder), job.folder])
    assert np.array_equal(DemonstrationSet(both, 2, 2).starts, DemonstrationSet(alone, 2, 2).starts)


def test_windows_with_sentences_of_their_own_share_the_prefix(small_mapping):
    policy = build_policy(config_from_mapping(small_mapping["policy"]))
    generator = torch.Generator().manual_seed(0)
    images = {name: torch.randn(6, 3, 96, 96, generator=generator) for name in policy.config.cameras}
    state = torch.randn(3, 2, 11, generator=generator)
    sentences = [instructions(GOALS[n])[i % 4] for i, n in enumerate((0, 12, 30, 45, 7, 20))]  # of different lengths
    words = policy.tokenize(sentences)
    ids, mask = (words[k].unflatten(0, (2, 3)) for k in ("input_ids", "attention_mask"))
    assert len(set(mask.sum(-1).flatten().tolist())) > 1
    with torch.no_grad():
        visual = policy.vlm.encode_frames(images)
        shared = features_under_instructions(policy.vlm, visual, ids, mask, state, 2)
        for c in range(2):
            own = policy.vlm.forward_features(visual, ids[c], mask[c], state, 2)
            assert torch.allclose(shared[3 * c : 3 * c + 3], own, atol=1e-5)


@pytest.fixture
def objective(small_mapping):
    policy = build_policy(config_from_mapping(small_mapping["policy"]))
    initialise(policy, 0)
    return TaskObjective(policy, Recipe(), 2)


def test_frames_keep_what_the_running_policy_computes(objective, folder):
    with np.load(folder / "0" / "frames.npz") as data:
        raw = {name: data[name] for name in data.files}
    config = objective.policy.config
    window = DemonstrationSet(ShardFrames(objective).add(find_shards(folder)), 3, 2)
    windows = window.windows(window.starts[[0, -1]])
    arm, opened = ActionPipeline(config.action).encode(raw["labels"][:, :, : config.model.action_chunk_size])
    for start, row in zip(window.starts[[0, -1]], range(2), strict=True):
        for frame, place in zip(range(start, start + 6, 2), range(3), strict=True):
            state = RobotState(0, raw["joints"][frame].astype(float), None, raw["poses"][frame].astype(float),
                               float(raw["openings"][frame]))
            assert np.array_equal(windows.states[row, place], state_vector(config.proprioception, state))
            assert np.array_equal(windows.arm[row, place], arm[frame].astype(np.float32))
            assert np.array_equal(windows.opened[row, place], opened[frame])
            both = np.concatenate((raw["things"][frame], raw["plates"][frame]))
            assert np.array_equal(windows.places[row, place], both, equal_nan=True)
            assert np.array_equal(windows.turns[row, place, : len(THINGS)], raw["turns"][frame], equal_nan=True)
            assert np.isnan(windows.turns[row, place, len(THINGS) :]).all(), "plates are round"
            assert np.array_equal(windows.poses[row, place], raw["poses"][frame].astype(np.float32))
            for name in ("goals", "yaws"):
                assert np.array_equal(getattr(windows, name)[row, place], raw[name][frame])
    assert windows.goals.dtype == torch.int64


def test_every_goal_is_said_in_its_own_words(objective):
    goal = torch.tensor([[0, 12], [30, 45]])
    generator, said = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        ids, mask = objective._words(goal, generator)
        for number, tokens, there in zip(goal.flatten(), ids.flatten(0, 1), mask.flatten(0, 1), strict=True):
            alone = [
                objective.policy.tokenize([words])["input_ids"][0].tolist()
                for words in SENTENCES[number]
            ]
            assert tokens[there.bool()].tolist() in alone
            said.add((int(number), alone.index(tokens[there.bool()].tolist())))
    assert len(said) > 8


@pytest.mark.parametrize("seeing", [False, True])
def test_what_is_computed_stays_where_the_windows_are(objective, folder, seeing):
    data = DemonstrationSet(ShardFrames(objective).add(find_shards(folder)), 2, 2)
    windows = data.windows(data.starts[:3])

    def losses_of(windows):
        return objective(
            objective.inputs(windows, torch.Generator("cpu").manual_seed(0), seeing=seeing)
        )

    wanted = losses_of(windows)
    # What is created without naming a device now has no values, and nothing can be computed from it
    # and the windows.
    with torch.device("meta"):
        found = losses_of(windows)
    assert found.keys() == wanted.keys() and set(objective.reported) <= found.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, equal_nan=True)
    with torch.autocast("cpu", torch.bfloat16):
        total = losses_of(windows)["loss"]
    assert total.dtype == torch.float32 and total != wanted["loss"]
    torch.testing.assert_close(total, wanted["loss"], rtol=0.02, atol=0.0)


@pytest.mark.parametrize("ground_truth", [True, False])
def test_steps_lower_the_loss(small_mapping, folder, tmp_path, ground_truth):
    policy = build_policy(config_from_mapping(small_mapping["policy"]))
    initialise(policy, 0)
    recipe = Recipe(windows=2, shift=0, gain=0.0, channel_gain=0.0, offset=0.0, state_noise=0.0)
    trainer = build_trainer(
        policy, recipe, tmp_path, lambda *given: TaskObjective(*given, 2, ground_truth)
    )
    data = DemonstrationSet(ShardFrames(trainer.module).add(find_shards(folder)), 2, 2)
    data.starts = data.starts[:2]
    losses = [trainer.train_step(data, 2e-3) for _ in range(60)]
    values = [float(x["loss"]) for x in losses]
    assert np.mean(values[-10:]) < 0.7 * np.mean(values[:3])
    assert np.isnan(float(losses[0]["target_error_m"])) != ground_truth
    assert (trainer.module.auxiliary is not None) == ground_truth


def test_compiled_towers_compute_the_same(small_mapping, folder, monkeypatch):
    """Traced as for a GPU, and run as traced: generating code for a processor would take a
    minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    policy = build_policy(config_from_mapping(small_mapping["policy"]))
    told = []
    for compiled in (False, True):
        torch.manual_seed(0)
        objective = TaskObjective(policy, Recipe(), compiled=compiled)
        data = DemonstrationSet(ShardFrames(objective).add(find_shards(folder)), 2, 2)
        for seeing in (False, True):
            windows = data.windows(data.starts[:2])
            loss = objective(
                objective.inputs(windows, torch.Generator().manual_seed(0), seeing=seeing)
            )["loss"]
            gradients = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
            size = sum(float(g.square().sum()) for g in gradients if g is not None)
            told.append((float(loss.detach()), size))
    assert told[2:] == [pytest.approx(pair, rel=1e-4) for pair in told[:2]]


def test_run_from_nothing_to_a_checkpoint_after_a_kill(small_mapping, tmp_path, monkeypatch):
    stages = [{"steps": 2, "seeing": True, "history": 1, "windows": 3}, {"steps": 2}]
    small = small_mapping | {"episodes": 1, "shard": 1, "workers": 1, "recipe": {"windows": 2}, "stages": stages,
                             "save_every": 1}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small), encoding="utf-8")
    plan = load_plan(path)

    run, step = tmp_path / "run", StageTrainer.train_step

    def killed_at_step_one(trainer, data, rate, stage):
        if trainer.step == 1:
            raise KeyboardInterrupt
        return step(trainer, data, rate, stage)

    stops = []

    def spied(jobs, workers, stop=None):
        stops.append(stop)
        return record(jobs, workers)

    monkeypatch.setattr(StageTrainer, "train_step", killed_at_step_one)
    monkeypatch.setattr(pipeline, "record", spied)
    with pytest.raises(KeyboardInterrupt):
        train(plan, run)
    assert stops[-1].is_set(), "what is recorded ahead is not waited for"
    monkeypatch.undo()
    shards = {p: p.stat().st_mtime_ns for p in run.glob("demonstrations/*/frames.npz")}
    assert len(shards) == 1
    assert not load_policy(train(plan, run)).is_random
    assert shards == {p: p.stat().st_mtime_ns for p in shards}, "nothing is recorded twice"
    # Another run goes on from its checkpoint: the policy can drive from the first stage on.
    more = replace(plan, policy=None, start=str(run / "checkpoint"), stages=(TrainingStage(1, 1e-9),))
    again = load_policy(train(more, tmp_path / "more", run / "demonstrations")).state_dict()
    begun = load_policy(tmp_path / "more" / "run" / "step_0").state_dict()
    for name, value in load_policy(run / "checkpoint").state_dict().items():
        assert torch.equal(begun[name], value) and torch.allclose(again[name], value, atol=1e-6), name
    driven = shards_of_stages(replace(more, stages=(TrainingStage(1, episodes=1),)), tmp_path / "more", run)
    assert driven[0].jobs[-1].checkpoint == tmp_path / "more" / "run" / "step_0"
    with pytest.raises(ConfigError, match="policy = None: must be given, or `start` is"):
        replace(plan, policy=None)


def test_shipped_plan():
    plan = load_plan(share_directory() / "config" / "train" / "tasks.yaml")
    policy = build_policy(plan.policy_config)
    assert 4 * sum(p.numel() for p in policy.parameters()) <= 25e6
    with pytest.raises(ConfigError, match="task = 'juggle'"):
        replace(plan, task="juggle")
    with pytest.raises(ConfigError, match="goals = 9"):
        replace(plan, goals=9)


def test_twins_come_first_and_cameras_stand_loose_in_a_part_of_the_scenes(tmp_path):
    """A scene's goals hold a thing's twin of another shape, where there is one."""
    world, looks = SimWorld(TRAINING_SEEDS[0], blank_cameras=True, task="stack"), []
    seeds = TRAINING_SEEDS[:40]
    record_shard(
        tmp_path,
        seeds,
        build_loop(world),
        ExpertSession(world),
        GLIMPSE,
        Recording(world, moments=True),
        lambda _: looks.append(world.looks),
    )
    assert set(looks) == {LOOSE, SceneAppearance()} and 4 <= looks.count(LOOSE) <= 18
    recorded, with_twins = np.load(tmp_path / "frames.npz")["goals"], 0
    for seed, numbers in zip(seeds, recorded, strict=True):
        world.reset(seed)
        first, *others = (GOALS[number] for number in numbers)

        def is_twin(goal, first=first):
            apart = goal.thing != first.thing and goal.thing.split()[0] == first.thing.split()[0]
            return goal.task == first.task and apart

        if any(map(is_twin, world.goals)):
            with_twins += 1
            assert any(map(is_twin, others)), seed
    assert with_twins >= 5
