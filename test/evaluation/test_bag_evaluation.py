"""Evaluating policies on bags, with policies whose error is known.

- golden: a policy that is the recording has no error; one that is a step late has the error that arithmetic says, for
  trajectories, set points, arrays, poses, twists, recorded chunks, and the motion that followed;
- what bags lack or garble: topics missing, no messages, images out of order, cameras of different rates, a clock jump,
  several instructions, compressed images, no instruction: each evaluated as far as it goes, with a message;
- baselines answer on the same chunks; the gate and the replayed latencies are those of the executor;
- a result survives JSON, and adding two bags is the same as counting both.
"""

import dataclasses
import json

import numpy as np
import pytest

from robovlms_ros.core.rotations import quaternion_from_matrix, vector_from_matrix
from robovlms_ros.core.schema import ConfigError, build
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec
from robovlms_ros.evaluation.bags.mapping import BagCamera, TopicsConfig
from robovlms_ros.evaluation.bags.reader import BagError
from robovlms_ros.evaluation.replay.evaluate import EvaluationConfig, evaluate_bag, recorded_stamps
from robovlms_ros.evaluation.replay.loop import Subject
from robovlms_ros.evaluation.replay.results import SubjectResult, merge


def evaluate(path, setting, sessions, **arguments):
    """name -> SubjectResult, and the whole result."""
    subjects = [Subject(name, None if session is None else lambda s=session: s) for name, session in sessions.items()]
    result = evaluate_bag(path, subjects, setting, **arguments)
    results = {name: SubjectResult.from_json(json.loads(json.dumps(part)))
               for name, part in result["results"].items() if part is not None}
    return results, result


def shifted_error(tools, stamps, known):
    """(n, 7) mean absolute difference of the motion one step later, over the chunks whose step is `known`."""
    step = round(tools.STEP * NANOSECONDS)
    errors = np.zeros((tools.HORIZON, 7))
    for k in range(tools.HORIZON):
        times = [s + (k + 1) * step for s in stamps if known(s + (k + 1) * step)]
        errors[k] = np.mean([np.abs(tools.motion(t + step) - tools.motion(t)) for t in times], axis=0)
    return errors


def test_recorded_trajectories_that_are_the_policys(tools, setting, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 3.0)
    results, _ = evaluate(path, setting(), {"same": tools.FakeSession(tools.follow()),
                                            "late": tools.FakeSession(tools.follow(1))})
    same, late = (results[name].sums.table(tools.SPEC.names) for name in ("same", "late"))
    assert results["same"].scored == 60
    assert same["mae"][:7] == [0.0] * 7 and same["gripper_accuracy"] == 1.0
    assert same["cosine"] == pytest.approx(1.0)
    stamps = [tools.BEGIN_NS + k * NANOSECONDS // 20 for k in range(60)]
    expected = shifted_error(tools, stamps, lambda _: True)
    np.testing.assert_allclose(np.array(late["mae_by_step"])[:, :7], expected, atol=1e-9)
    assert late["gripper_accuracy"] < 1.0


def test_a_controllers_reference_whoever_commanded_it(tools, setting, controller_states, tmp_path):
    topic = "/panda_arm_controller/controller_state"
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for tick in range(400):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 100
            if tick % 2 == 0:
                message = controller_states.of(bag.store).message(
                    bag.header(now), tools.JOINTS, tools.motion(now))
                bag.write(topic, controller_states.KIND, now + 4_000_000, message)
            # The arm lags its command.
            bag.joints(now, positions=tools.motion(now - NANOSECONDS // 10))
            if tick % 5 == 0:
                bag.image("/static/image_raw", now)
    session = tools.FakeSession(tools.follow())
    results, result = evaluate(tmp_path / "bag", setting(("static",)), {"same": session})
    assert result["reference"] == f"the commands recorded on {topic} (reference)"
    assert results["same"].scored > 70
    assert max(results["same"].sums.table(tools.SPEC.names)["mae"][:7]) < 1e-5


def write_set_points(tools, path, kind, kinematics):
    """The motion as set points: sent at t, the place to be at t + one step."""
    step = NANOSECONDS // 20
    with tools.BagWriter(path) as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for tick in range(300):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 100
            if tick % 5 == 0:
                target = tools.motion(now + step)
                if kind == "array":
                    message = bag.make("std_msgs/msg/Float64MultiArray", data=target, layout=bag.make(
                        "std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0))
                    bag.write("/forward/commands", "std_msgs/msg/Float64MultiArray", now, message)
                elif kind == "joint_state":
                    bag.joints(now, topic="/commanded", positions=target)
                elif kind == "pose":
                    pose = kinematics.forward(target)
                    w, x, y, z = quaternion_from_matrix(pose[:3, :3])
                    place = bag.make("geometry_msgs/msg/Point", x=pose[0, 3], y=pose[1, 3], z=pose[2, 3])
                    turn = bag.make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)
                    message = bag.make("geometry_msgs/msg/PoseStamped", header=bag.header(now, "panda_link0"),
                                       pose=bag.make("geometry_msgs/msg/Pose", position=place, orientation=turn))
                    bag.write("/target_pose", "geometry_msgs/msg/PoseStamped", now, message)
            bag.joints(now)
            if tick % 5 == 0:
                bag.image("/static/image_raw", now)
    return path


@pytest.mark.parametrize(("kind", "topic"), [("array", "/forward/commands"), ("joint_state", "/commanded")])
def test_joint_set_points_lead_by_one_step(tools, setting, kinematics, tmp_path, kind, topic):
    path = write_set_points(tools, tmp_path / "bag", kind, kinematics)
    results, result = evaluate(path, setting(("static",)), {"same": tools.FakeSession(tools.follow())})
    assert f"recorded commands: {topic} (detected)" in result["topics"]
    assert max(results["same"].sums.table(tools.SPEC.names)["mae"][:7]) < 1e-12


def eef_follow(tools, kinematics):
    """The policy that predicts the recorded tool poses, as poses."""
    spec = ActionSpec("eef_pose", "base", "rotation_vector", "chained", tools.STEP)

    def value(stamp, k):
        time = stamp + round((k + 1) * tools.STEP * NANOSECONDS)
        pose = kinematics.forward(tools.motion(time))
        return np.concatenate([pose[:3, 3], vector_from_matrix(pose[:3, :3]), [tools.opening(time)]])

    return tools.FakeSession(value, spec)


def test_poses_and_forward_kinematics_agree(tools, setting, kinematics, tmp_path):
    path = write_set_points(tools, tmp_path / "bag", "pose", kinematics)
    results, _ = evaluate(path, setting(("static",)), {"poses": eef_follow(tools, kinematics)})
    table = results["poses"].sums.table(results["poses"].names)
    assert table["distance"] < 1e-9 and table["angle"] < 1e-6 and results["poses"].unit == "m"


def test_twists_are_integrated(tools, setting, kinematics, tmp_path):
    velocity, spin = np.array([0.04, -0.02, 0.01]), np.array([0.0, 0.0, 0.3])
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for tick in range(200):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 100
            vectors = {name: bag.make("geometry_msgs/msg/Vector3", x=v[0], y=v[1], z=v[2])
                       for name, v in (("linear", velocity), ("angular", spin))}
            message = bag.make("geometry_msgs/msg/TwistStamped", header=bag.header(now, "panda_link0"),
                               twist=bag.make("geometry_msgs/msg/Twist", **vectors))
            bag.write("/servo/delta_twist_cmds", "geometry_msgs/msg/TwistStamped", now, message)
            bag.joints(now, positions=tools.HOME)
            if tick % 10 == 0:
                bag.image("/static/image_raw", now)
    spec = ActionSpec("eef_delta", "base", "rotation_vector", "chained", tools.STEP)
    step = np.concatenate([velocity * tools.STEP, spin * tools.STEP, [1.0]])
    results, _ = evaluate(tmp_path / "bag", setting(("static",)), {"same": tools.FakeSession(lambda *_: step, spec)})
    table = results["same"].sums.table(results["same"].names)
    assert max(table["mae"][:6]) < 1e-9 and table["cosine"] == pytest.approx(1.0)
    hold = results["same"].baselines["hold still"].table(results["same"].names)
    assert hold["mae"][:6] == pytest.approx(np.abs(step[:6]).tolist(), abs=1e-9)


def write_chunks(tools, path, values, policy="live"):
    """A bag whose commands are ActionChunks: values(stamp) -> (n, 7)."""
    from robovlms_ros.evaluation.bags.chunks import CHUNK, message_of_chunk

    spec = ActionSpec("eef_delta", "base", "rotation_vector", "chained", tools.STEP)
    with tools.BagWriter(path) as bag:
        bag.instruction("go", tools.BEGIN_NS)
        connection = bag.writer.add_connection("/vla_node/action_chunk", CHUNK, typestore=bag.store)
        for tick in range(200):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 100
            bag.joints(now)
            if tick % 10 == 0:
                bag.image("/static/image_raw", now)
                chunk = ActionChunk(now, values(now), spec, "go", policy, tick // 10)
                bag.writer.write(connection, now + 5_000_000, message_of_chunk(bag.store, chunk, "panda_link0"))
    return path, spec


def test_recorded_chunks_that_are_the_models_and_shifted(tools, setting, tmp_path):
    def values(stamp):
        rng = np.random.default_rng(stamp % 2**32)
        return np.column_stack([rng.uniform(-0.01, 0.01, (tools.HORIZON, 6)), rng.integers(0, 2, tools.HORIZON)])

    path, spec = write_chunks(tools, tmp_path / "bag", values)
    same = tools.FakeSession(lambda stamp, k: values(stamp)[k], spec)
    late = tools.FakeSession(lambda stamp, k: values(stamp)[min(k + 1, tools.HORIZON - 1)], spec)
    chunks = TopicsConfig(commands="/vla_node/action_chunk")
    sessions = {"same": same, "late": late, "recorded": None}
    results, result = evaluate(path, setting(("static",), topics=chunks), sessions)
    assert "recorded chunks: /vla_node/action_chunk (detected)" in result["topics"]
    tables = {name: results[name].sums.table(spec.names) for name in results}
    assert tables["same"]["mae"] == [0.0] * 7 and tables["same"]["distance"] == 0.0
    assert results["same"].recorded.chunks == 20 and results["same"].recorded_max == 0.0
    stamps = sorted(recorded_stamps(path, setting().config.topics))
    assert len(stamps) == 20
    arithmetic = np.mean([np.abs(np.diff(values(s), axis=0)) for s in stamps], axis=0)
    np.testing.assert_allclose(np.array(tables["late"]["mae_by_step"])[:-1], arithmetic, atol=1e-12)
    assert tables["late"]["mae_by_step"][-1] == [0.0] * 7
    assert results["recorded"].chunks == 20 and tables["recorded"]["mae"] == [0.0] * 7


def test_a_bag_of_another_passport_has_a_note(tools, setting, tmp_path):
    class Session(tools.FakeSession):
        def predict_block(self, observations, wanted):
            chunks = super().predict_block(observations, wanted)
            name = {"policy_id": "new@1-9-3-4"}
            return [chunk and dataclasses.replace(chunk, **name) for chunk in chunks]

    path, spec = write_chunks(
        tools, tmp_path / "bag", lambda _: np.zeros((tools.HORIZON, 7)), "old@1-2-3-4"
    )
    session = Session(lambda *_: np.zeros(7), spec)
    _, result = evaluate(path, setting(("static",)), {"a": session})
    sentence = "recorded with old@1-2-3-4, which has other statistics than new@1-9-3-4"
    assert result["notes"].count(sentence) == 1
    _, result = evaluate(path, setting(("static",)), {"recorded": None})
    assert not any("recorded with" in note for note in result["notes"])


def test_inference_at_recorded_stamps_only(tools, setting, tmp_path):
    path, spec = write_chunks(tools, tmp_path / "bag", lambda _: np.zeros((tools.HORIZON, 7)))
    stamps = frozenset(sorted(recorded_stamps(path, setting().config.topics))[::3])
    session = tools.FakeSession(lambda *_: np.zeros(7), spec)
    results, _ = evaluate(path, setting(("static",)), {"a": session}, stamps=stamps)
    assert results["a"].chunks == 7
    assert len(session.seen) == 20, "every frame reaches the history"


def test_without_commands_the_motion_that_followed_counts(tools, setting, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 2.0, commands=False)
    results, result = evaluate(path, setting(), {"same": tools.FakeSession(tools.follow())})
    table = results["same"].sums.table(tools.SPEC.names)
    assert max(table["mae"][:7]) < 1e-4, "joint states at 100 Hz, linear between them"
    assert any("compared with the motion that followed" in line for line in result["topics"])


def test_baselines_gate_and_latencies(tools, setting, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 3.0)
    results, _ = evaluate(path, setting(latencies=(0.05, 0.3)), {"same": tools.FakeSession(tools.follow())})
    same = results["same"]
    hold = same.baselines["hold still"].table(same.names)
    moved = np.mean([np.abs(tools.motion(tools.BEGIN_NS + i * NANOSECONDS // 20 + (k + 1) * NANOSECONDS // 20)
                            - tools.motion(tools.BEGIN_NS + i * NANOSECONDS // 20)).tolist()
                     for i in range(60) for k in range(tools.HORIZON)], axis=0)
    assert hold["mae"][:7] == pytest.approx(moved.tolist(), abs=1e-6)
    assert same.gate.verdicts["pass"] == same.gate.chunks > 55
    fast, slow = same.latencies
    assert fast.chunks > 4 * slow.chunks and slow.starved > 0.2 and fast.starved == 0
    assert same.agreement.table()["apart"] == pytest.approx(0.0, abs=1e-12)


def test_the_gate_lets_no_jump_pass(tools, setting, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 1.5)

    def value(stamp, k):
        return np.append(tools.motion(stamp) + 1.0, 1.0)

    results, _ = evaluate(path, setting(), {"wild": tools.FakeSession(value)})
    for lane in (results["wild"].gate, results["wild"].latencies[0]):
        assert lane.chunks > 0 and lane.verdicts["pass"] == 0 and lane.verdicts["refuse"] > 0
        assert sum(lane.reasons.values()) == lane.chunks


def test_a_missing_camera_names_what_is_there(tools, setting, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 0.3)
    with pytest.raises(BagError, match=r"camera 'overhead'; image topics there: /static/image_raw, /wrist/image_raw"):
        evaluate(path, setting(("overhead",)), {"a": tools.FakeSession(tools.follow())})


def test_missing_joint_states_are_an_error_in_words(tools, setting, tmp_path):
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.image("/static/image_raw", tools.BEGIN_NS)
    with pytest.raises(BagError, match=r"no joint states .* and no TF"):
        evaluate(tmp_path / "bag", setting(("static",)), {"a": tools.FakeSession(tools.follow())})


def test_a_missing_instruction_is_said(tools, setting, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 0.5, instruction=None)
    results, result = evaluate(path, setting(), {"a": tools.FakeSession(tools.follow())})
    assert results == {} and "give one with --instruction" in result["notes"][0]
    results, _ = evaluate(path, setting(instruction="lift it"), {"a": tools.FakeSession(tools.follow())})
    assert results["a"].chunks == 10


def test_zero_messages(tools, setting, tmp_path):
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.writer.add_connection("/static/image_raw", "sensor_msgs/msg/Image", typestore=bag.store)
        bag.writer.add_connection("/joint_states", "sensor_msgs/msg/JointState", typestore=bag.store)
    results, result = evaluate(tmp_path / "bag", setting(("static",)), {"a": tools.FakeSession(tools.follow())})
    assert results == {} and result["notes"][0].startswith("nothing was evaluated: the bag holds no messages")


def test_images_out_of_order_are_left_out_and_counted(tools, setting, tmp_path):
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for i in range(40):
            log = tools.BEGIN_NS + i * 50_000_000
            bag.joints(log)
            stamp = log - 75_000_000 if i % 10 == 9 else log
            bag.image("/static/image_raw", stamp, log)
    results, result = evaluate(tmp_path / "bag", setting(("static",)), {"a": tools.FakeSession(tools.follow())})
    assert results["a"].chunks == 36
    assert any("4 times: camera 'static': images out of order" in note for note in result["notes"])


def test_cameras_of_different_rates(tools, setting, tmp_path):
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for i in range(100):
            now = tools.BEGIN_NS + i * 20_000_000
            bag.joints(now)
            if i % 2 == 0:
                bag.image("/static/image_raw", now)
            if i % 5 == 0:
                bag.image("/wrist/image_raw", now + 3_000_000)
    session = tools.FakeSession(tools.follow())
    results, result = evaluate(tmp_path / "bag", setting(), {"a": session})
    assert 10 <= results["a"].chunks <= 20
    left_out = 50 - results["a"].chunks
    assert f"{left_out} of 50 images of camera 'static' are left out: no image of every other camera within 20 ms " \
        "(camera_tolerance). The cameras: static 25.0 Hz, wrist 10.0 Hz." in result["notes"]
    for o in session.seen:
        pairs = [abs(o.stamp_ns - (tools.BEGIN_NS + i * 20_000_000 + 3_000_000)) for i in range(0, 100, 5)
                 if (o.images["wrist"] == tools.test_image("/wrist/image_raw",
                                                           tools.BEGIN_NS + i * 20_000_000 + 3_000_000)).all()]
        assert len(pairs) == 1 and pairs[0] <= 20_000_000


def test_a_clock_jump_begins_anew(tools, setting, tmp_path):
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for begin in (tools.BEGIN_NS, tools.BEGIN_NS - 20 * NANOSECONDS):
            for i in range(60):
                now = begin + i * NANOSECONDS // 20
                bag.joints(now)
                bag.image("/static/image_raw", now)
    session = tools.FakeSession(tools.follow())
    results, result = evaluate(tmp_path / "bag", setting(("static",)), {"a": session})
    assert session.resets == 1 and len(result["episodes"]) == 2
    assert any(note.startswith("1 times: the bag's clock jumped back") for note in result["notes"])
    assert results["a"].chunks == 120 and max(results["a"].sums.table(tools.SPEC.names)["mae"][:7]) < 2e-3


def test_several_instructions_in_one_bag(tools, setting, tmp_path):
    with tools.BagWriter(tmp_path / "bag") as bag:
        for i in range(60):
            now = tools.BEGIN_NS + i * NANOSECONDS // 20
            if i in (0, 20, 40):
                bag.instruction(["red", "green", "red"][i // 20], now)
            bag.joints(now)
            bag.image("/static/image_raw", now + 1)
    session = tools.FakeSession(tools.follow())
    _, result = evaluate(tmp_path / "bag", setting(("static",)), {"a": session})
    assert [e["instruction"] for e in result["episodes"]] == ["red", "green", "red"]
    assert [o.instruction for o in session.seen] == ["red"] * 20 + ["green"] * 20 + ["red"] * 20


def write_marked(tools, path, marks, images=80, also=lambda bag, stamp: None):
    """A bag at 20 Hz with texts on /episode before the image of that number. also: called for each
    image."""
    with tools.BagWriter(path) as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for i in range(images):
            now = tools.BEGIN_NS + i * NANOSECONDS // 20
            if i in marks:
                bag.instruction(marks[i], now, "/episode")
            bag.joints(now)
            bag.image("/static/image_raw", now + 1)
            also(bag, now + 1)
    return path


def test_marks_end_and_judge_episodes(tools, setting, tmp_path):
    marks = {0: "one", 20: "success", 40: "two", 60: "end", 70: "failure"}
    path = write_marked(tools, tmp_path / "bag", marks)
    session = tools.FakeSession(tools.follow())
    _, result = evaluate(path, setting(("static",)), {"a": session})
    episodes = [(e["images"], e["mark"]) for e in result["episodes"]]
    assert episodes == [(20, "success"), (20, "failure")] and len(session.seen) == 40
    assert any("40 times: images between the end of an episode" in note for note in result["notes"])
    assert result["left_out"] == []


def test_discarded_episodes_are_left_out(tools, setting, tmp_path):
    marks = {0: "one", 20: "success", 25: "two", 40: "end", 50: "discard",
             55: "three", 65: "discard", 70: "success"}
    path = write_marked(tools, tmp_path / "bag", marks)
    session = tools.FakeSession(tools.follow())
    results, result = evaluate(path, setting(("static",)), {"a": session}, output=tmp_path)
    evaluated = [(e["images"], e["mark"]) for e in result["episodes"]]
    assert evaluated == [(20, "success"), (10, "success")]
    assert result["left_out"] == [{
        "name": "two", "reason": "it was discarded", "images": 15,
        "begin_ns": tools.BEGIN_NS + 25 * NANOSECONDS // 20 + 1,
        "end_ns": tools.BEGIN_NS + 39 * NANOSECONDS // 20 + 1}]
    stamps = [round((o.stamp_ns - tools.BEGIN_NS) * 20 / NANOSECONDS) for o in session.seen]
    assert stamps == [*range(20), *range(55, 65)]
    assert results["a"].chunks == 30
    assert len((tmp_path / "bag.csv").read_text().splitlines()) == 31


def test_recorded_chunks_of_discarded_episodes_are_left_out(tools, setting, tmp_path):
    from robovlms_ros.evaluation.bags.chunks import CHUNK, message_of_chunk

    def write_chunk(bag, stamp):
        if CHUNK not in bag.connections:
            bag.connections[CHUNK] = bag.writer.add_connection(
                "/vla_node/action_chunk", CHUNK, typestore=bag.store)
        chunk = ActionChunk(stamp, np.zeros((tools.HORIZON, 8)), tools.SPEC, "go", "live")
        # Published 60 ms later: the last one of an episode is recorded in the next.
        data = message_of_chunk(bag.store, chunk, "panda_link0")
        bag.writer.write(bag.connections[CHUNK], stamp + 60_000_000, data)

    marks = {0: "one", 40: "two", 60: "discard", 61: "three"}
    path = write_marked(tools, tmp_path / "bag", marks, also=write_chunk)
    results, _ = evaluate(path, setting(("static",)), {"recorded": None})
    # The last one lies after the last joint state.
    assert results["recorded"].chunks == 80 - 20 - 1


def test_a_bag_of_discarded_episodes_alone(tools, setting, tmp_path):
    path = write_marked(tools, tmp_path / "bag", {0: "one", 70: "discard"})
    _, result = evaluate(path, setting(("static",)), {"a": tools.FakeSession(tools.follow())})
    assert result["notes"][0] == "nothing was evaluated: its episodes were discarded."


def test_compressed_images(tools, setting, tmp_path):
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for i in range(10):
            now = tools.BEGIN_NS + i * NANOSECONDS // 20
            bag.joints(now)
            bag.compressed("/static/image_raw/compressed", now)
    session = tools.FakeSession(tools.follow())
    evaluate(tmp_path / "bag", setting(("static",)), {"a": session})
    for o in session.seen:
        assert (o.images["static"] == tools.test_image("/static/image_raw", o.stamp_ns)).all()


def test_an_annotated_bag_holds_both(tools, setting, tmp_path):
    from robovlms_ros.evaluation.bags.reader import Bag

    path = tools.write_bag(tmp_path / "bag", 1.0)
    evaluate(path, setting(annotate=True), {"mine": tools.FakeSession(tools.follow())}, output=tmp_path)
    with Bag(path) as recorded, Bag(tmp_path / "bag.mcap") as annotated:
        assert annotated.counts["/robovlms/mine/action_chunk"] == 20
        assert annotated.counts["/robovlms/mine/joint_trajectory"] > 15
        kept = [(m.topic, m.log_ns, m.data) for m in annotated.messages(set(recorded.topics))]
        assert sorted(kept) == sorted((m.topic, m.log_ns, m.data) for m in recorded.messages())
    rows = (tmp_path / "bag.csv").read_text().splitlines()
    assert len(rows) == 21 and rows[0].startswith("bag,policy,episode,")


def test_adding_bags(tools, setting, tmp_path):
    parts = []
    for i, seconds in enumerate((1.0, 1.5)):
        path = tools.write_bag(tmp_path / f"bag{i}", seconds)
        parts.append(evaluate(path, setting(), {"a": tools.FakeSession(tools.follow(1))})[0]["a"])
    both = merge(parts)
    assert both.scored == 50 and both.sums.steps.sum() == sum(p.sums.steps.sum() for p in parts)
    assert both.latencies[0].chunks == sum(p.latencies[0].chunks for p in parts)


@pytest.mark.parametrize("velocity", [np.full(8, np.nan), np.zeros(3)])
def test_velocities_that_are_unusable_cost_nothing(tools, setting, tmp_path, velocity):
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for tick in range(200):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 100
            message = bag.make("sensor_msgs/msg/JointState", header=bag.header(now), name=[
                *tools.JOINTS, "panda_finger_joint1"], position=np.append(tools.motion(now), 0.04), velocity=velocity,
                effort=np.empty(0))
            bag.write("/joint_states", "sensor_msgs/msg/JointState", now, message)
            if tick % 5 == 0:
                bag.image("/static/image_raw", now)
    _, result = evaluate(tmp_path / "bag", setting(("static",)), {"a": tools.FakeSession(tools.follow())})
    assert result["images"] == 40 and not result["lost"]


def write_without_stamps(tools, path, joints_stamped, recorder_ahead=0):
    """Images stamped zero; joint states stamped or not; a recorder whose clock is ahead by so many ns."""
    with tools.BagWriter(path) as bag:
        bag.instruction("go", tools.BEGIN_NS + recorder_ahead)
        for tick in range(200):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 100
            positions = tools.motion(now)
            bag.joints(now if joints_stamped else 0, log_ns=now + recorder_ahead, positions=positions)
            if tick % 5 == 0:
                bag.image("/static/image_raw", 0, log_ns=now + recorder_ahead)
    return path


@pytest.mark.parametrize(("joints_stamped", "recorder_ahead"), [(True, 0), (False, 0), (True, 3600 * NANOSECONDS)])
def test_images_without_stamps_by_their_reception(tools, setting, tmp_path, joints_stamped, recorder_ahead):
    path = write_without_stamps(tools, tmp_path / "bag", joints_stamped, recorder_ahead)
    session = tools.FakeSession(tools.follow())
    _, refused = evaluate(path, setting(("static",)), {"a": session})
    assert refused["images"] == 0
    assert any("40 times: camera 'static': the stamp is zero" in note and "`stamps: bag`" in note
               for note in refused["notes"])
    results, result = evaluate(path, setting(("static",), stamps="bag"), {"a": session})
    assert result["images"] == 40
    assert results["a"].sums.table(tools.SPEC.names)["mae"][:7] == pytest.approx([0.0] * 7, abs=1e-9)
    note = next(note for note in result["notes"] if note.startswith("stamps: bag"))
    assert "40 images" in note and ("200 joint states" in note) is not joints_stamped


def write_8uc3(tools, path, compressed=False):
    """Images of a driver that leaves the order of the colours open, or compressed ones."""
    with tools.BagWriter(path) as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for tick in range(200):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 100
            bag.joints(now)
            if tick % 5 == 0 and compressed:
                bag.compressed("/static/image_raw/compressed", now)
            elif tick % 5 == 0:
                bag.image("/static/image_raw", now, encoding="8UC3")
    return path


def test_an_encoding_of_the_evaluation_or_of_the_nodes_parameters(tools, setting, tmp_path):
    path = write_8uc3(tools, tmp_path / "bag")
    session = tools.FakeSession(tools.follow())
    _, refused = evaluate(path, setting(("static",)), {"a": session})
    assert refused["images"] == 0
    assert any("set `camera.NAME.encoding` to bgr8 or rgb8" in note for note in refused["notes"])
    given = {"static": BagCamera("bgr8")}
    own = setting(("static",), camera=given)
    node = {"static": "bgr8", "another": "rgb8"}
    of_the_node = dataclasses.replace(setting(("static",)), encodings=node)
    both = dataclasses.replace(own, encodings={"static": "rgb8"})
    for choice in (own, of_the_node, both):
        session.seen.clear()
        _, result = evaluate(path, choice, {"a": session})
        assert result["images"] == 40
        first = session.seen[0]
        expected = tools.test_image("/static/image_raw", first.stamp_ns)[..., ::-1]
        assert np.array_equal(first.images["static"], expected)


def test_an_encoding_that_does_not_fit_is_refused_as_the_node_does(tools, setting, tmp_path):
    session = tools.FakeSession(tools.follow())
    with pytest.raises(ConfigError, match="encoding = 'brg8': not allowed. Did you mean 'rgb8'"):
        build(EvaluationConfig, {"camera": {"static": {"encoding": "brg8"}}}, "evaluation")
    path = write_8uc3(tools, tmp_path / "raw")
    unknown = setting(("static",), camera={"statc": BagCamera("bgr8")})
    with pytest.raises(ConfigError, match="statc: the policy has no such camera. Did you mean"):
        evaluate(path, unknown, {"a": session})
    path = write_8uc3(tools, tmp_path / "compressed", compressed=True)
    given = setting(("static",), camera={"static": BagCamera("bgr8")})
    with pytest.raises(ConfigError, match="static.encoding = 'bgr8': only raw images have an"):
        evaluate(path, given, {"a": session})
    ignored = dataclasses.replace(setting(("static",)), encodings={"static": "bgr8"})
    assert evaluate(path, ignored, {"a": session})[1]["images"] == 40
