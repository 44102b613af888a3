"""`robovlms rollout` over many scenes: two processes give what one gives; a scene's result does not depend on the
scenes before it; a stopped run goes on, loses no scene that was done, and refuses another run's episodes; every goal
of a scene is asked for, in words drawn by the seed, and counted per task and per scene.
"""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from robovlms_ros.cli.main import main
from robovlms_ros.control.motion_guard import CommandRejected
from robovlms_ros.sim.closed_loop import EpisodeResult
from robovlms_ros.sim.rollout import EpisodeSettings, ExpertSession, build_loop
from robovlms_ros.sim.scenes import Bench, BenchSettings, EpisodeLog, LogError, Scene, identity_of, run_scenes
from robovlms_ros.sim.tasks.evaluate import TaskEpisode, obedience, obedience_table, taken_instead
from robovlms_ros.sim.tasks.language import Goal, instructions, is_unseen, meaning, paraphrase
from robovlms_ros.sim.world import SimWorld

SHORT = BenchSettings(limit=4.0)
SCENES = [Scene("stack", 100), Scene("lift", 101), Scene("push", 102)]


def episode(task="lift", seed=0, success=True, scene=None, why=""):
    result = EpisodeResult("words", "named", seed, success, False, 2.0 if success else None, 5, why=why)
    return TaskEpisode(task, result, False, scene or task)


@pytest.mark.sim
def test_two_processes_give_what_one_gives_in_any_order():
    one = dict(run_scenes(SHORT, SCENES, 1))
    assert list(one) == SCENES and all(len(episodes) == 1 for episodes in one.values())
    assert one[Scene("lift", 101)][0].result.time_to_success is not None
    assert dict(run_scenes(SHORT, SCENES[::-1], 2)) == one


@pytest.mark.sim
def test_every_goal_that_fits_is_asked_for():
    bench = Bench(replace(SHORT, limit=0.2, every_goal="own"))
    world = SimWorld(103, task="put")
    own = [goal for goal in world.goals if goal.task == "put"]
    asked = [e.result.instruction for e in bench.run(Scene("put", 103))]
    assert [meaning(words) for words in asked] == own and len(own) > 1
    assert asked == [paraphrase(goal, 103) for goal in own]
    bench.settings = replace(bench.settings, every_goal="all")
    everything = bench.run(Scene("put", 103))
    assert [meaning(e.result.instruction) for e in everything] == list(world.goals)
    assert {e.task for e in everything} == {goal.task for goal in world.goals}
    assert {e.scene for e in everything} == {"put"}
    bench.close()


def test_paraphrases_are_drawn_by_the_seed():
    goal = Goal("stack", "red cube", "green cube")
    drawn = {paraphrase(goal, seed) for seed in range(100)}
    assert drawn == {*instructions(goal), *instructions(goal, unseen=True)}
    assert any(map(is_unseen, drawn)) and paraphrase(goal, 7) == paraphrase(goal, 7)


def test_what_was_taken_instead_is_counted_by_how_it_differs():
    def failed(words, taken, condition="named"):
        result = EpisodeResult(words, condition, 0, False, True, None, 5, why="wrong object", taken=taken)
        return TaskEpisode(meaning(words).task, result, False)

    episodes = [
        failed("lift the red can", "red cube"), failed("push the red can to the yellow plate", "red ball"),
        failed("lift the red can", "blue can"), failed("lift the red can", "blue cube"),
        failed("stack the red can on the blue cube", "blue cube"), failed("lift the red can", ""),
        failed("lift the red can", "red cube", "blanked"), episode(success=False, why="dropped"),
    ]
    assert taken_instead(episodes) == {
        "another shape": {"lift": 1, "push": 1}, "another colour": {"lift": 1}, "another colour and shape": {"lift": 1},
        "not kept": {"lift": 1}, "the thing to stack on": {"stack": 1},
    }


def test_obedience_counts_scenes():
    scenes = {0: (True, True), 1: (True, False), 2: (False, False), 3: (True,)}
    episodes = [episode(seed=seed, success=done) for seed, row in scenes.items() for done in row]
    (row,) = obedience(episodes)
    assert (row.scene, row.scenes, row.instructions) == ("lift", 3, 6), "a single instruction says nothing"
    assert (row.obeyed, row.refused, row.mixed) == (1, 1, 1)
    rate = 4 / 7
    assert row.mixed_by_chance == pytest.approx(3 * 2 * rate * (1 - rate))
    assert "1/3" in obedience_table([row]).splitlines()[2]
    other = [episode("put", 5, True), episode("lift", 5, False, scene="put")]
    rows = obedience([*episodes, *other])
    assert [(r.scene, r.scenes, r.mixed) for r in rows] == [("lift", 3, 1), ("put", 1, 1), ("all", 4, 2)]
    assert obedience([]) == [] and json.dumps(rows[0].as_json())


def test_log_goes_on_after_a_kill_within_a_line(tmp_path):
    path, identity = tmp_path / "a.episodes.jsonl", {"robot": "panda", "latency": (0.1, 0.2)}
    log = EpisodeLog(path, identity)
    log.add(Scene("lift", 0), [episode()])
    log.add(Scene("lift", 1), [episode(seed=1, success=False, why="dropped")])
    log.close()
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"task": "lift", "seed": 2, "epis', encoding="utf-8")
    again = EpisodeLog(path, identity)
    assert list(again.done) == [Scene("lift", 0), Scene("lift", 1)] and again.done == log.done
    again.close()
    assert path.read_text(encoding="utf-8") == whole
    path.write_text('{"rollout"', encoding="utf-8")
    EpisodeLog(path, identity).close()
    assert path.read_text(encoding="utf-8") == whole.splitlines(keepends=True)[0]


def test_log_of_another_run_is_refused(tmp_path):
    path, settings = tmp_path / "a.episodes.jsonl", BenchSettings()
    EpisodeLog(path, identity_of(settings, None)).close()
    for field, value, name in (("every_goal", "own", "every_goal"), ("limit", 9.0, "time_limit")):
        with pytest.raises(LogError, match=f"{name} = .*delete the file"):
            EpisodeLog(path, identity_of(replace(settings, **{field: value}), None))
    with pytest.raises(LogError, match="latency = None"):
        EpisodeLog(path, identity_of(settings, (0.1, 0.2)))
    for other in ("{}\n", "notes", "[1]\n"):
        path.write_text(other, encoding="utf-8")
        with pytest.raises(LogError, match="not a log of episodes"):
            EpisodeLog(path, identity_of(settings, None))
        assert path.read_text(encoding="utf-8") == other


def test_log_knows_its_checkpoint_by_its_content(tmp_path):
    def identity(content):
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(content)
        (folder / "curve.csv").write_bytes(os.urandom(8))
        return identity_of(BenchSettings(checkpoint=str(folder)), None)

    assert identity(b"one") == identity(b"one") != identity(b"two")
    with pytest.raises(LogError, match="nowhere"):
        identity_of(BenchSettings(checkpoint=str(tmp_path / "nowhere")), None)


@pytest.mark.sim
def test_stopped_run_goes_on(tmp_path, capsys):
    """Two scenes are done, the third was being written when the kill came; the same command with four scenes."""
    report, log = tmp_path / "report.json", tmp_path / "report.episodes.jsonl"
    arguments = ["rollout", "--task", "lift", "--time-limit", "0.5", "--json", str(report), "--seeds"]
    assert main([*arguments, "2"]) == 1  # half a second is not enough
    before = json.loads(report.read_text(encoding="utf-8"))["episodes"]
    report.unlink()
    with log.open("a", encoding="utf-8") as file:
        file.write('{"task": "lift", "seed": 2, "cond')
    capsys.readouterr()
    assert main([*arguments, "4"]) == 1
    shown = capsys.readouterr()
    assert "2 of 4 scenes are in" in shown.err and shown.err.count("\n[") == 2
    data = json.loads(report.read_text(encoding="utf-8"))
    assert data["rows"][0]["n"] == 4 and [e["result"]["seed"] for e in data["episodes"]] == [0, 1, 2, 3]
    assert data["episodes"][:2] == before and log.read_text(encoding="utf-8").count("\n") == 5
    assert data["failures"] == {"never reached": {"lift": 4}} and "never reached" in shown.out
    assert main([*arguments, "4", "--every-goal"]) == 1
    assert "every_goal" in capsys.readouterr().err


@pytest.mark.sim
def test_scenes_of_training_are_asked_for_by_name(tmp_path, capsys):
    numbers = tmp_path / "seen.json"
    command = ["rollout", "--seeds", "2", "--time-limit", "0.2", "--first-seed", "1000007", "--json", str(numbers)]
    assert main([*command, "--task", "all"]) == 1
    assert "--first-seed = 1000007" in capsys.readouterr().err
    assert main([*command, "--task", "all", "--training-scenes"]) == 1, "0.2 s are not enough"
    episodes = json.loads(numbers.read_text())["episodes"]
    world = SimWorld(1000007, task="all")  # as training sets it up
    assert [e["result"]["seed"] for e in episodes] == [1000007, 1000008]
    assert episodes[0]["result"]["instruction"] == world.sentence and episodes[0]["task"] == world.scene_task
    for other in (["--task", "lift"], ["--task", "all", "--every-goal"]):
        assert main([*command, *other, "--training-scenes"]) == 1
        assert "--task all and without --every-goal" in capsys.readouterr().err


def test_an_episode_goes_on_where_no_stop_is_possible(monkeypatch):
    world = SimWorld(0, blank_cameras=True)
    loop = build_loop(world, settings=EpisodeSettings(limit=1.0))
    monkeypatch.setattr(loop, "disturb", lambda chunk, frame: lost(chunk))
    stops = []

    def lost(chunk):
        return chunk if chunk.sequence < 3 else replace(chunk, values=chunk.values * np.nan)

    def impossible(now_ns):
        stops.append(now_ns)
        raise CommandRejected("no stop is free")

    monkeypatch.setattr(loop.executor, "smooth_stop", impossible)
    words = "lift the red cube"
    outcome = loop.run(ExpertSession(world), [(0.0, words)], np.random.default_rng(0))
    world.close()
    assert outcome.refusals == len(stops) > 0 and not outcome.success
