"""The tabletop tasks. Words: every task has trained and unseen sentences, the unseen ones are made of trained words, a
sentence means one goal, others are refused by name. Scenes: a seed is a scene and its looks; things lie apart on the
table, plates free; what fits has room for the fingers. Judges: what counts, what does not, what is wrong. Experts: one
episode of each task in the closed loop; the hand turns beside a close neighbour; any frame can be labelled.
"""

import json

import mujoco
import numpy as np
import pytest

from robovlms_ros.cli.main import main
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import read_mapping
from robovlms_ros.core.types import ObservationError
from robovlms_ros.models.tokenization import TEMPLATES, PromptTokenizer, build_word_tokenizer
from robovlms_ros.sim.rollout import EpisodeSettings, ExpertSession, build_loop
from robovlms_ros.sim.tasks import base, grasps, language
from robovlms_ros.sim.tasks.domain_randomization import PLAIN, SceneAppearance
from robovlms_ros.sim.tasks.expert import MAX_SPEED, ExpertPolicy
from robovlms_ros.sim.tasks.language import Goal, TaskError
from robovlms_ros.sim.tasks.objects import PLATE_RADIUS, PLATES, TABLE_Z, TableObject, TableTruth
from robovlms_ros.sim.world import SimWorld

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def world():
    return SimWorld(0, task="all")


def at(name, x, y, z=None, yaw=0.0):
    thing = TableObject(name, np.zeros(3), yaw)
    height = TABLE_Z + thing.half_height if z is None else z
    return TableObject(name, np.array((x, y, height)), yaw)


def table(*things, opening=1.0, plates=None):
    return TableTruth({thing.name: thing for thing in things}, plates or {}, opening)


TWO_PLATES = {"yellow plate": np.array((0.5, 0.1, TABLE_Z)), "purple plate": np.array((0.5, -0.1, TABLE_Z))}


def test_every_task_has_sentences_that_training_never_uses():
    words = set(language.vocabulary())
    for task in language.TASKS:
        phrases = language.PHRASES[task]
        assert len(phrases.all) >= 5 and len(phrases.unseen) >= 2 and not set(phrases.trained) & set(phrases.unseen)
    for goal in language.goals():
        for sentence in language.instructions(goal, unseen=True):
            assert set(sentence.split()) <= words, sentence
            assert language.is_unseen(sentence) and language.meaning(sentence) == goal
        for sentence in language.instructions(goal):
            assert not language.is_unseen(sentence) and language.meaning(sentence) == goal


def test_one_sentence_means_one_goal():
    sentences = [s for g in language.goals() for kind in (False, True) for s in language.instructions(g, kind)]
    assert len(sentences) == len(set(sentences))
    with pytest.raises(TaskError, match="'paint the red cube'.*lift the"):
        language.meaning("paint the red cube")


def test_shipped_plan_knows_exactly_the_trained_words_and_refuses_others_by_name():
    plan = read_mapping(share_directory() / "config" / "train" / "tasks.yaml")
    vocabulary = plan["policy"]["vlm"]["vocabulary"]
    assert tuple(vocabulary) == language.vocabulary()
    template = TEMPLATES["paligemma"]
    longest = plan["policy"]["vlm"]["max_length"]
    tokenizer = PromptTokenizer(build_word_tokenizer(vocabulary, template), template, longest)
    for goal in language.goals():
        for kind in (False, True):
            tokenizer.encode(language.instructions(goal, kind))
    with pytest.raises(ObservationError, match="'orange'"):
        tokenizer.encode(["lift the orange cube"])


def test_a_seed_is_a_scene_and_its_looks(world):
    def scene(seed):
        world.reset(seed)
        return world.ground_truth(), world.render("static"), world.instruction(np.random.default_rng(seed))

    (first, image, words), _, (again, same, repeated) = scene(3), scene(4), scene(3)
    assert list(first.things) == list(again.things) and words == repeated
    assert all(np.array_equal(first.things[n].position, again.things[n].position) for n in first.things)
    assert np.array_equal(image, same)


def test_things_lie_apart_on_the_table(world):
    for seed in range(40):
        world.reset(seed)
        truth = world.ground_truth()
        lying = [*truth.things.values(), *truth.obstacles]
        assert all(abs(thing.height) < 1e-3 for thing in truth.things.values()) and truth.lifted() == ()
        for i, one in enumerate(lying):
            for other in lying[:i]:
                assert np.hypot(*(one.position - other.position)[:2]) > one.radius + other.radius - 0.02
        for thing in truth.things.values():
            assert all(np.hypot(*(thing.position - p)[:2]) > PLATE_RADIUS for p in truth.plates.values())
        assert any(goal.task == world.scene_task for goal in world.goals)
        assert language.meaning(world.instruction(np.random.default_rng(seed))) in world.goals


def test_scenes_are_asked_for_more_than_one_thing(world):
    counts = []
    for seed in range(30):
        world.reset(seed)
        counts.append(len(world.goals))
    assert np.median(counts) >= 5


def test_looks_stay_within_bounds_and_plain_is_plain():
    plain = SimWorld(5, task="all", looks=PLAIN)
    image = plain.render("static")
    plain.reset(5)
    assert np.array_equal(image, plain.render("static"))
    camera = plain._model.camera("static")
    where = camera.pos.copy()
    plain.looks = SceneAppearance(camera_shift=0.02, exact=True)
    for seed in range(5):
        plain.reset(seed)
        assert np.allclose(np.abs(camera.pos - where), 0.02)


def test_unknown_tasks_and_absent_things_are_refused(world):
    with pytest.raises(TaskError, match="'juggle': there are lift, stack, put, push"):
        SimWorld(0, task="juggle")
    world.reset(0)
    absent = next(name for name in language.THINGS if name not in world.ground_truth().things)
    with pytest.raises(TaskError, match=absent):
        world.judge(f"lift the {absent}")


def look(goal, truth, times=base.STEADY_FRAMES):
    judge = base.TableJudge(goal)
    return [judge.look(truth) for _ in range(times)][-1]


def test_judge_of_lift():
    up = TABLE_Z + 0.02 + 0.05
    goal = Goal("lift", "red cube")
    assert look(goal, table(at("red cube", 0.5, 0), at("green cube", 0.6, 0)), 1) == (False, False)
    assert look(goal, table(at("red cube", 0.5, 0, up), at("green cube", 0.6, 0)), 1) == (True, False)
    assert look(goal, table(at("red cube", 0.5, 0), at("green cube", 0.6, 0, up)), 1) == (False, True)


def test_judge_of_stack():
    goal, above = Goal("stack", "red cube", "green cube"), TABLE_Z + 0.06
    lower, other = at("green cube", 0.5, 0), at("blue cube", 0.6, 0)
    on = table(at("red cube", 0.505, 0, above), lower, other)
    assert look(goal, on) == (True, False)
    assert look(goal, on, 1) == (False, False), "not yet at rest"
    held = table(at("red cube", 0.505, 0, above), lower, other, opening=0.5)
    assert look(goal, held) == (False, False), "not let go"
    assert look(goal, table(at("red cube", 0.6, 0, above), lower, other)) == (False, True), "on the wrong one"
    assert look(goal, table(at("red cube", 0.55, 0, above), lower, other)) == (False, False), "in the air"


def test_judges_of_put_and_push():
    put, push = Goal("put", "red cube", "yellow plate"), Goal("push", "red cube", "yellow plate")
    there, wrong = at("red cube", 0.51, 0.1), at("red cube", 0.5, -0.1)
    for goal in (put, push):
        assert look(goal, table(there, plates=TWO_PLATES)) == (True, False)
        assert look(goal, table(at("red cube", 0.5, 0.0), plates=TWO_PLATES)) == (False, False)
        assert look(goal, table(wrong, plates=TWO_PLATES), base.LEFT_FRAMES + 2) == (False, True)
        other = table(at("red cube", 0.5, 0.0), at("blue can", 0.5, 0.1), plates=TWO_PLATES)
        assert look(goal, other) == (False, True), "another thing lies where this one belongs"
    judge = base.TableJudge(push)
    judge.look(table(at("red cube", 0.5, 0.0, TABLE_Z + 0.06), plates=TWO_PLATES))
    assert [judge.look(table(there, plates=TWO_PLATES)) for _ in range(9)][-1] == (False, False), "carried, not pushed"


def test_hand_turns_beside_a_close_neighbour():
    cube = at("red cube", 0.5, 0.0)
    assert grasps.best_yaw(cube, [])[0] == pytest.approx(0.0)
    beside = at("green cube", 0.5, 0.06)  # where a finger would come down
    yaw, left = grasps.best_yaw(cube, [beside])
    assert abs(yaw) == pytest.approx(np.pi / 2) and left >= grasps.CLEARANCE
    assert grasps.clearance(cube.position[:2], 0.0, [beside]) < 0
    around = [beside, at("blue cube", 0.56, 0.0)]
    assert not base.TABLE_TASKS["lift"].fits(Goal("lift", "red cube"), table(cube, *around))


def test_clearance_is_the_distance_of_the_shapes_that_mujoco_measures():
    rng = np.random.default_rng(0)
    length, width, middle = grasps.FINGER_LENGTH, grasps.FINGER_WIDTH, grasps.FINGER_MIDDLE
    spec = mujoco.MjSpec()
    spec.worldbody.add_geom(name="thing", type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.02, 0.02, 0.02])
    spec.worldbody.add_geom(name="can", type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.02, 0.02, 0])
    for name, side in (("left", 1), ("right", -1)):
        finger = spec.worldbody.add_body(name=name, mocap=True)
        finger.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_BOX, pos=[0, side * middle, 0],
                        size=[width, length, 0.02])
    model = spec.compile()
    data, apart = mujoco.MjData(model), 0
    for _ in range(200):
        place, yaw = rng.uniform(-0.11, 0.11, 2), rng.uniform(-np.pi / 2, np.pi / 2)
        data.mocap_pos[:, :2], data.mocap_quat[:] = place, (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        mujoco.mj_forward(model, data)
        for geom, shape in (("thing", "cube"), ("can", "can")):
            measured = min(mujoco.mj_geomDistance(model, data, model.geom(geom).id, model.geom(side).id, 1.0, None)
                           for side in ("left", "right"))
            found = grasps.clearance(place, yaw, [at(f"red {shape}", 0.0, 0.0)])
            assert (found > 0) == (measured > 0)
            # Of two corners that face each other the separating axes tell a little less.
            assert found <= measured + 1e-4 and found >= (0.7 * measured if measured > 0 else -0.04) - 1e-4
            apart += measured > 0
    assert 100 < apart < 390


def test_scene_leaves_more_room_than_the_expert_needs():
    """The expert's own rule finds a turn for every goal of a scene; the reverse does not always hold."""
    rng, more = np.random.default_rng(1), 0
    for _ in range(300):
        cube = TableObject("red cube", np.array((0.5, 0.0, TABLE_Z + 0.02)), rng.uniform(-np.pi / 4, np.pi / 4))
        others = [
            TableObject(
                name,
                np.array((*rng.uniform((0.43, -0.07), (0.57, 0.07)), TABLE_Z + 0.02)),
                rng.uniform(-1, 1),
            )
            for name in ("green cube", "blue can", "blue ball")
        ]
        free = grasps.best_yaw(cube, others)[1] >= grasps.CLEARANCE
        room = grasps.has_room(cube, others)
        assert free or not room
        more += free and not room
    assert more > 20


def test_hand_that_has_begun_to_turn_goes_on():
    for turned in (np.pi / 4 - 0.05, np.pi / 4 + 0.05):
        cube = TableObject("red cube", np.array((0.5, 0.0, TABLE_Z + 0.02)), turned)
        left, right = grasps.best_yaw(cube, [], now=0.15)[0], grasps.best_yaw(cube, [], now=-0.15)[0]
        assert left > 0.6 and right < -0.6, "two turns of a cube that can hardly be told apart"
        assert left - right == pytest.approx(np.pi / 2)
    can = at("red can", 0.5, 0.0)
    assert grasps.best_yaw(can, [], now=0.4)[0] == pytest.approx(0.4), "what is round needs no turn"
    assert grasps.best_yaw(can, [at("green cube", 0.5, 0.06)])[1] >= grasps.CLEARANCE


def test_any_frame_can_be_labelled_under_any_goal_that_fits(world):
    rng = np.random.default_rng(0)
    pose = np.eye(4)
    for seed in range(8):
        world.reset(seed)
        truth = world.ground_truth()
        pose[:3] = world.tool_pose()[:3]
        pose[:3, 3] += rng.uniform(-0.1, 0.1, 3)
        for goal in world.goals:
            values = ExpertPolicy(goal, truth, pose, rng.uniform()).chunk()
            assert values.shape == (16, 7) and np.isfinite(values).all()
            assert np.linalg.norm(values[:, :3], axis=1).max() <= MAX_SPEED * 0.05 + 1e-9
            assert set(np.unique(values[:, 6])) <= {0.0, 1.0}


@pytest.mark.parametrize("task", language.TASKS)
def test_expert_does_the_task_in_the_closed_loop(task):
    world = SimWorld(100, blank_cameras=True, task=task)
    loop = build_loop(world, settings=EpisodeSettings(limit=14.0))
    done = []
    for seed in range(100, 103):
        world.reset(seed)
        words = world.instruction(np.random.default_rng((seed, 3)))
        outcome = loop.run(ExpertSession(world), [(0.0, words)], np.random.default_rng(seed))
        assert not outcome.wrong and outcome.refusals == 0, outcome
        done.append(outcome.success)
    assert sum(done) >= 2, done


def test_plates_are_what_can_be_named():
    assert {goal.place for goal in language.goals() if goal.task in ("put", "push")} == set(PLATES)


def test_ground_truth_survives_the_wire(world):
    for seed in range(6):
        world.reset(seed)
        truth = world.ground_truth()
        read = TableTruth.from_json(json.loads(json.dumps(truth.as_json())))
        assert list(read.things) == list(truth.things) and len(read.obstacles) == len(truth.obstacles)
        assert all(np.array_equal(read.things[n].position, truth.things[n].position) for n in truth.things)
        assert base.fitting(read) == list(world.goals)


def test_rollout_reports_per_task_and_per_kind_of_sentence(tmp_path, capsys):
    report = tmp_path / "report.json"
    assert main(["rollout", "--task", "lift", "--seeds", "3", "--json", str(report)]) == 0
    data = json.loads(report.read_text(encoding="utf-8"))
    assert [(row["instruction"], row["success"]) for row in data["rows"]] == [("lift", 3)] and data["pass"]
    assert sum(row["n"] for row in data["paraphrases"] if row["task"] == "all") == 3
    assert "unseen sentences" in capsys.readouterr().out or all(not e["unseen"] for e in data["episodes"])
    assert main(["rollout", "--task", "juggle"]) == 1
    assert main(["rollout", "--task", "lift", "--condition", "storm"]) == 1
    assert "'light +-50 %'" in capsys.readouterr().err


def test_conditions_are_what_they_say():
    crowded = SimWorld(0, task="lift", obstacles=2)
    for seed in range(5):
        crowded.reset(seed)
        assert len(crowded.ground_truth().obstacles) == 2
