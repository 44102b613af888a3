"""Cloning of the tabletop tasks: a shard holds each goal's label, the followed one first, a glimpse is one frame of a
scene, and frames keep what the running policy computes of it; features of windows with sentences of their own equal
the policy's; every goal is said in its own words; what is computed stays on the windows' device, bfloat16 hardly
changes it and compilation not at all; a step lowers the loss, with and without the simulator's ground truth; the
shipped plan is runnable and small enough; a killed run goes on where it was, another one from its checkpoint.
Ablations: every variant's policy learns and drives; what is left is said beforehand, with the time it takes once one
was timed; what was not run is listed as not run beside what RoboVLMs found, what was is not run again.
"""

import json
from dataclasses import fields, replace
from functools import partial
from threading import Event

import numpy as np
import pytest
import torch
import yaml

from robovlms_ros.config import config_from_mapping
from robovlms_ros.policy.checkpoint import build_policy, load_policy
from robovlms_ros.policy.proprioception import state_vector
from robovlms_ros.processing.actions import ActionPipeline
from robovlms_ros.resources import share_directory
from robovlms_ros.schema import ConfigError
from robovlms_ros.sim.task import TRAINING_SEEDS
from robovlms_ros.sim.tasks.expert import expert_chunk
from robovlms_ros.sim.tasks.language import goals, instructions
from robovlms_ros.sim.tasks.things import PLATES, THINGS, shape_of
from robovlms_ros.sim.tasks.world import TaskWorld
from robovlms_ros.training.simulated import ablations, costs, pipeline, published
from robovlms_ros.training.simulated.behaviour_cloning import Recipe, Stage, initialise
from robovlms_ros.training.simulated.costs import Work
from robovlms_ros.training.simulated.pipeline import shards_of_stages, train
from robovlms_ros.training.simulated.plans import load_plan
from robovlms_ros.training.simulated.recording import glimpse_jobs, record, record_job
from robovlms_ros.training.simulated.shards import DatasetError, DemonstrationSet, Frames, find_shards
from robovlms_ros.training.simulated.shared_prefix import features_under_instructions
from robovlms_ros.training.simulated.task_cloning import SENTENCES, TaskLearner
from robovlms_ros.training.simulated.trainer import Trainer
from robovlms_ros.types import Observation, RobotState

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
    world = TaskWorld(int(frames["episodes"][0]))
    for number, label in zip(frames["goals"][0], frames["labels"][0], strict=True):
        chunk = expert_chunk(GOALS[number], world.ground_truth(), frames["poses"][0], float(frames["openings"][0]))
        assert np.allclose(label, chunk, atol=1e-5)


def test_recording_stops_when_told(tmp_path):
    jobs = [job for i in range(8) for job in glimpse_jobs(tmp_path / str(i), TRAINING_SEEDS[i : i + 1], "panda", "all")]
    stop = Event()
    stop.set()
    record(jobs, 1, stop)
    assert sum((job.folder / "frames.npz").exists() for job in jobs) < len(jobs)


def test_glimpse_is_one_frame_of_a_scene(learner, folder, tmp_path):
    (job,) = glimpse_jobs(tmp_path, TRAINING_SEEDS[50:54], "panda", "all")
    assert record_job(job).endswith("4 glimpses")
    frames = Frames(learner).add([job.folder])
    assert frames.episodes.tolist() == list(TRAINING_SEEDS[50:54]), "a frame of each"
    assert len(DemonstrationSet(frames, 1, 2).starts) == 4
    with pytest.raises(DatasetError):
        DemonstrationSet(frames, 2, 2)
    (reached,) = glimpse_jobs(tmp_path, TRAINING_SEEDS[80098:80099], "panda", "all")
    record_job(reached)
    assert json.loads((reached.folder / "outcomes.json").read_text())[0]["success"]
    assert len(Frames(learner).add([reached.folder])) == 1, "also where the goal is reached in it"
    images = frames.images(torch.arange(4))
    assert (images.float().std(dim=(2, 3, 4)) > 5).all(), "both cameras see something"
    # Beside whole episodes, windows are of those alone.
    alone = Frames(learner).add(find_shards(folder))
    both = Frames(learner).add([*find_shards(folder), job.folder])
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
def learner(small_mapping):
    policy = build_policy(config_from_mapping(small_mapping["policy"]))
    initialise(policy, 0)
    return TaskLearner(policy, Recipe(), 2)


def test_frames_keep_what_the_running_policy_computes(learner, folder):
    with np.load(folder / "0" / "frames.npz") as data:
        raw = {name: data[name] for name in data.files}
    config = learner.policy.config
    window = DemonstrationSet(Frames(learner).add(find_shards(folder)), 3, 2)
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


def test_every_goal_is_said_in_its_own_words(learner):
    goal = torch.tensor([[0, 12], [30, 45]])
    generator, said = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        ids, mask = learner._words(goal, generator)
        for number, tokens, there in zip(goal.flatten(), ids.flatten(0, 1), mask.flatten(0, 1), strict=True):
            alone = [learner.policy.tokenize([words])["input_ids"][0].tolist() for words in SENTENCES[number]]
            assert tokens[there.bool()].tolist() in alone
            said.add((int(number), alone.index(tokens[there.bool()].tolist())))
    assert len(said) > 8


@pytest.mark.parametrize("part", ["losses", "seeing"])
def test_what_is_computed_stays_where_the_windows_are(learner, folder, part):
    data = DemonstrationSet(Frames(learner).add(find_shards(folder)), 2, 2)
    windows = data.windows(data.starts[:3])
    losses_of = getattr(learner, part)
    wanted = losses_of(windows, torch.Generator().manual_seed(0))
    # What is created without naming a device now has no values, and nothing can be computed from it and the windows.
    with torch.device("meta"):
        found = losses_of(windows, torch.Generator("cpu").manual_seed(0))
    for field in fields(wanted):
        torch.testing.assert_close(getattr(found, field.name), getattr(wanted, field.name), equal_nan=True)
    rounded = TaskLearner(learner.policy, Recipe(precision="bfloat16"), 2)
    rounded.load_state_dict(learner.state_dict())
    total = getattr(rounded, part)(windows, torch.Generator().manual_seed(0)).total
    assert total.dtype == torch.float32 and total != wanted.total
    torch.testing.assert_close(total, wanted.total, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("ground_truth", [True, False])
def test_steps_lower_the_loss(small_mapping, folder, tmp_path, ground_truth):
    policy = build_policy(config_from_mapping(small_mapping["policy"]))
    initialise(policy, 0)
    recipe = Recipe(windows=2, shift=0, gain=0.0, channel_gain=0.0, offset=0.0, state_noise=0.0)
    trainer = Trainer(policy, recipe, tmp_path, lambda *given: TaskLearner(*given, 2, ground_truth))
    data = DemonstrationSet(Frames(trainer.learner).add(find_shards(folder)), 2, 2)
    data.starts = data.starts[:2]
    losses = [trainer.train_step(data, 2e-3) for _ in range(60)]
    values = [float(x.total.detach()) for x in losses]
    assert np.mean(values[-10:]) < 0.7 * np.mean(values[:3])
    assert np.isnan(float(losses[0].target_error)) != ground_truth
    assert (trainer.learner.auxiliary is not None) == ground_truth


def test_compiled_towers_compute_the_same(small_mapping, folder, monkeypatch):
    """Traced as for a GPU, and run as traced: generating code for a processor would take a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    policy = build_policy(config_from_mapping(small_mapping["policy"]))
    told = []
    for compiled in (False, True):
        torch.manual_seed(0)
        learner = TaskLearner(policy, Recipe(), compiled=compiled)
        data = DemonstrationSet(Frames(learner).add(find_shards(folder)), 2, 2)
        for losses_of in (learner.losses, learner.seeing):
            losses = losses_of(data.windows(data.starts[:2]), torch.Generator().manual_seed(0))
            gradients = torch.autograd.grad(losses.total, list(policy.parameters()), allow_unused=True)
            size = sum(float(g.square().sum()) for g in gradients if g is not None)
            told.append((float(losses.total.detach()), size))
    assert told[2:] == [pytest.approx(pair, rel=1e-4) for pair in told[:2]]


def test_run_from_nothing_to_a_checkpoint_after_a_kill(small_mapping, tmp_path, monkeypatch):
    stages = [{"steps": 2, "seeing": True, "history": 1, "windows": 3}, {"steps": 2}]
    small = small_mapping | {"episodes": 1, "shard": 1, "workers": 1, "recipe": {"windows": 2}, "stages": stages,
                             "save_every": 1}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small), encoding="utf-8")
    plan = load_plan(path)

    run, step = tmp_path / "run", Trainer.train_step

    def killed_at_step_one(trainer, data, rate, stage):
        if trainer.step == 1:
            raise KeyboardInterrupt
        return step(trainer, data, rate, stage)

    stops = []

    def spied(jobs, workers, stop=None):
        stops.append(stop)
        return record(jobs, workers)

    monkeypatch.setattr(Trainer, "train_step", killed_at_step_one)
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
    more = replace(plan, policy=None, start=str(run / "checkpoint"), stages=(Stage(1, 1e-9),))
    again = load_policy(train(more, tmp_path / "more", run / "demonstrations")).state_dict()
    begun = load_policy(tmp_path / "more" / "run" / "step_0").state_dict()
    for name, value in load_policy(run / "checkpoint").state_dict().items():
        assert torch.equal(begun[name], value) and torch.allclose(again[name], value, atol=1e-6), name
    driven = shards_of_stages(replace(more, stages=(Stage(1, episodes=1),)), tmp_path / "more", run)
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


@pytest.fixture(scope="module")
def small_plan(small_mapping, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(yaml.safe_dump(small_mapping | {"workers": 1, "task": "lift"}), encoding="utf-8")
    return load_plan(path)


@pytest.mark.parametrize("name", [n for n, v in ablations.VARIANTS.items() if not v.base])
def test_every_variant_learns_and_predicts(small_plan, folder, name):
    plan = ablations.plan_of(name, small_plan, 10)
    policy = build_policy(plan.policy_config, seed=plan.recipe.seed)
    model = plan.policy_config.model
    learner = TaskLearner(policy, plan.recipe, 2, plan.ground_truth)
    data = DemonstrationSet(Frames(learner).add(find_shards(folder)), model.history_length, 2)
    losses = learner.losses(data.windows(data.starts[:2]), torch.Generator().manual_seed(0))
    losses.total.backward()
    assert all(p.grad is not None for p in policy.head.parameters())
    images = {camera: np.zeros((96, 96, 3), np.uint8) for camera in ("static", "wrist")}
    state = RobotState(0, np.zeros(7), None, np.eye(4), 1.0)
    chunk = policy.eval().new_session().predict_action_chunk(Observation(0, images, "lift the red cube", state))
    assert chunk.values.shape == (16, 7)


def test_ablation_runs_once_and_says_what_is_left(small_plan, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "REFERENCE_EPISODES", 5)

    small_plan = replace(small_plan, stages=(Stage(2, seeing=True, history=1), Stage(4, demonstrations=8),
                                               Stage(9, episodes=7), Stage(5)))

    def left(*names):
        return ablations.work(names, small_plan, tmp_path, 3, range(1))

    names = ("reference", "executed_4", "history_16")
    needed = [Work(5, 3, 1), Work(0, 0, 1), Work(0, 3, 1)]  # what several need counts once
    assert list(left(*names).values()) == needed
    assert left("executed_4") == {"executed_4": Work(5, 3, 1)}
    assert [stage.steps for stage in ablations.plan_of("reference", small_plan, 3).stages] == [1, 2]
    assert [stage.steps for stage in ablations.plan_of("without_ground_truth", small_plan, 3).stages] == [3]
    # What the later stages would add is left out, and a step has as many frames whatever the history's length.
    reference, single = (ablations.plan_of(name, small_plan, 3) for name in ("reference", "history_1"))
    assert reference.demonstrations == 5 and single.recipe.windows == 2 * reference.recipe.windows
    with pytest.raises(ConfigError, match="variant = 'histroy_1'"):
        left("histroy_1")
    (tmp_path / "demonstrations").mkdir()
    (tmp_path / "demonstrations" / str(TRAINING_SEEDS[0])).symlink_to(folder / "0")
    seconds = iter([0.0, 0.0, 7.0, 10.0, 20.0, 20.0, 20.0, 25.0])
    for name in names[:2]:
        ablations.run(name, small_plan, tmp_path, 3, range(1), 0.3, lambda: next(seconds))
    assert list(left(*names).values()) == [Work(), Work(), Work(0, 3, 1)]
    rates = costs.rates(tmp_path / name for name in names)
    assert rates == {"steps": pytest.approx(7.0 / 3), "episodes": 4.0}
    assert costs.seconds_of(Work(0, 6, 3), rates) == pytest.approx(26.0)
    assert costs.seconds_of(Work(1, 0, 0), rates) is None
    text = costs.table({"a": Work(0, 80, 15), "b": Work(1)}, rates)
    assert "4 min" in text and "not known" in text.splitlines()[-1]
    written = (tmp_path / "executed_4" / "lift.json").stat().st_mtime_ns
    ablations.run("executed_4", small_plan, tmp_path, 3, range(1), 0.3)
    assert (tmp_path / "executed_4" / "lift.json").stat().st_mtime_ns == written
    table, note = ablations.report(tmp_path).split("\n\n")
    lines = {line.split(" | ")[1]: line for line in table.splitlines()[2:]}
    assert set(lines) == set(ablations.VARIANTS)
    assert "/1 (" in lines["reference"] and lines["reference"].count("not run") == 3
    assert lines["history_16"].count("not run") == 5
    assert "one step 4.04, head over the history 4.49 [1]" in lines["history_1"]
    assert lines["without_proprioception"].endswith("| not studied |") and "[1] arXiv 2412.14058" in note


def test_findings_are_of_variants_that_exist():
    assert set(published.FINDINGS) <= set(ablations.VARIANTS)
