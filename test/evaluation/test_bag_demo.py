"""The demo's bag, end to end: simulated episodes recorded, evaluated with the shipped checkpoint, reported.

- the policy is nearer to what the expert did than holding still, and the report's files say the same;
- each image is inferred once, and the bag is as the live demo records it, so that every topic is detected.
"""

import json

import pytest

pytestmark = pytest.mark.sim


def test_the_demo_bag_end_to_end(tmp_path):
    import torch

    from robovlms_ros.cli.main import main
    from robovlms_ros.control.robot import load_robot
    from robovlms_ros.core.resources import share_directory
    from robovlms_ros.sim.bags import record_episodes
    from robovlms_ros.sim.rollout import EpisodeSettings, ExpertSession, build_loop
    from robovlms_ros.sim.world import SimWorld

    torch.set_num_threads(1)
    checkpoint = share_directory() / "config" / "checkpoints" / "demo"
    world = SimWorld(7)
    loop = build_loop(world, "panda", EpisodeSettings(limit=6.0))
    outcomes = record_episodes(tmp_path / "bag", loop, ExpertSession(world), load_robot("panda"),
                               [(7, "lift the red cube")])
    world.close()
    assert outcomes[0].success, "the expert lifts the cube, so its recording is worth comparing with"

    output = tmp_path / "report"
    arguments = ["eval", str(tmp_path / "bag"), "--checkpoint", f"demo={checkpoint}", "--output", str(output),
                 "--latency", "0.05", "--threshold", "max_against_hold=0.9", "--threshold", "min_gripper_accuracy=0.7"]
    assert main(arguments) == 0
    report = json.loads((output / "report.json").read_text())
    demo, bag = report["policies"]["demo"], report["bags"][0]
    assert demo["chunks"] == bag["images"] > 20
    assert demo["scored"] >= demo["chunks"] - 1, "the first image comes before the first command"
    assert {"camera 'static': /demo/static/image_raw (detected)",
            "recorded commands: /demo/panda_arm_controller/joint_trajectory (detected)",
            "gripper commands: /demo/gripper_controller/joint_trajectory (detected)"} <= set(bag["topics"])
    page = (output / "report.html").read_text()
    assert "PASSED: all 2 thresholds hold." in page and page.count("data:image/jpeg") >= 1
    assert len((output / "chunks.csv").read_text().splitlines()) == demo["chunks"] + 1
    assert main([*arguments[:-4], "--threshold", "max_distance=1e-6"]) == 3, "another threshold, another verdict"
