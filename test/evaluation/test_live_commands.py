"""`robovlms record` and `robovlms eval --live` as a user types them, beside the simulated arm and the policy node.

- `record`, in a terminal: t and a name begin an episode, Ctrl-C ends the recording; the bag holds
  the cameras, the joint states, the chunks, the status, the configuration and the markers, stamped
  by the node's clock, and evaluates: the instruction comes from the node's status where no topic
  carried it;
- `eval --live`: records the running node, evaluates its chunks and the same checkpoint offline, and writes the report;
- a recording that hears nobody is an error, in words.
"""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.sim]

NAMESPACE = "live_commands"
PATIENCE = 180.0


def wait_for(condition, what, patience=PATIENCE):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"waited {patience:.0f} s for {what}"
        time.sleep(0.05)


def start(*arguments, **options):
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-m", *arguments], stderr=subprocess.STDOUT, text=True, **options)


@pytest.fixture(scope="module")
def chunks(tmp_path_factory):
    """A simulated arm and an active node, which has its instruction from its parameters; a counter of its chunks."""
    import rclpy
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    from robovlms_ros.core.resources import share_directory
    from robovlms_ros.msg import ActionChunk

    config, logs = share_directory() / "config", tmp_path_factory.mktemp("logs")
    names = ["--ros-args", "-r", f"__ns:=/{NAMESPACE}", "--params-file"]
    nodes = {"sim.nodes.sim_arm": [*names, str(config / "sim_arm.yaml"), "-p", "real_time_factor:=0.5"],
             "ros.vla_node": [*names, str(config / "demo.yaml"), "-p", "instruction:=lift the red cube",
                          "-p", "dry_run:=true"]}
    files = {name: (logs / name).open("w+") for name in nodes}
    running = [start(f"robovlms_ros.{name}", *arguments, stdout=files[name]) for name, arguments in nodes.items()]
    context = rclpy.Context()
    context.init()
    node = rclpy.create_node("watcher", context=context, use_global_arguments=False)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        client = node.create_client(ChangeState, f"/{NAMESPACE}/vla_node/change_state")
        assert client.wait_for_service(PATIENCE)
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
            executor.spin_until_future_complete(future, PATIENCE)
            assert future.done() and future.result().success, (logs / "ros.vla_node").read_text()[-3000:]
        heard = []
        topic = f"/{NAMESPACE}/vla_node/action_chunk"
        node.create_subscription(ActionChunk, topic, lambda message: heard.append(message.sequence), 10)

        def count():
            executor.spin_once(timeout_sec=0.05)
            return len(heard) if node.count_subscribers(topic) > 1 else 0

        wait_for(lambda: executor.spin_once(timeout_sec=0.05) or heard, "the first chunk")
        yield count
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(30.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for file in files.values():
            file.close()
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


def demo_parameters():
    from robovlms_ros.core.resources import share_directory

    return str(share_directory() / "config" / "demo.yaml")


def test_record_in_a_terminal(chunks, tmp_path):
    from robovlms_ros.cli.main import main
    from robovlms_ros.evaluation.bags.reader import Bag

    terminal, keyboard = pty.openpty()
    process = start("robovlms_ros.cli", "record", str(tmp_path / "bag"), "--config", demo_parameters(),
                    "--namespace", NAMESPACE, stdin=keyboard)
    try:
        wait_for(lambda: chunks() or process.poll() is not None, "the recorder to listen")
        begin = chunks()
        os.write(terminal, b"tfirst try\n")
        wait_for(lambda: chunks() >= begin + 12 or process.poll() is not None, "a dozen chunks")
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(terminal)
        os.close(keyboard)
    assert process.returncode == 0 and "ros2 bag record --storage mcap" in said, said
    with Bag(tmp_path / "bag") as bag:
        assert bag.notes == []
        for topic in ("static/image_raw", "wrist/image_raw", "joint_states", "vla_node/action_chunk", "vla_node/status",
                      "configuration", "episode", "robot_description"):
            assert bag.counts[f"/{NAMESPACE}/{topic}"] >= 1, said
        texts = {raw.topic.rsplit("/", 1)[-1]: bag.decode(raw).data for raw in
                 bag.messages({f"/{NAMESPACE}/episode", f"/{NAMESPACE}/configuration"})}
    assert texts["episode"] == "first try" and json.loads(texts["configuration"])["checkpoint"] == "demo"
    output = tmp_path / "report"
    assert main(["eval", str(tmp_path / "bag"), "--checkpoint", "recorded", "--config", demo_parameters(), "--quick",
                 "--output", str(output), "--commands", "motion"]) == 0
    (evaluated,) = json.loads((output / "report.json").read_text())["bags"]
    assert evaluated["instructions"] == ["lift the red cube"] and evaluated["images"] > 5
    assert not any("different clocks" in note for note in evaluated["notes"]), "recorded by /clock, as the node runs"


def test_eval_live(chunks, tmp_path):
    process = start("robovlms_ros.cli", "eval", "--live", "--config", demo_parameters(), "--namespace", NAMESPACE,
                    "--checkpoint", "demo", "--quick", "--latency", "0.05", "--output", str(tmp_path))
    try:
        wait_for(lambda: chunks() or process.poll() is not None, "the recorder to listen")
        begin = chunks()
        wait_for(lambda: chunks() >= begin + 25 or process.poll() is not None, "some chunks")
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, said
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["policies"]) == {"recorded", "demo"}
    assert report["policies"]["recorded"]["chunks"] >= 20
    offline = report["policies"]["demo"]
    assert offline["recorded"]["chunks"] > 0 and offline["numbers"]["parity"] is not None
    assert (tmp_path / "report.html").exists() and "lift the red cube" in report["bags"][0]["instructions"]


def test_nobody_to_record_is_said(tmp_path):
    process = start("robovlms_ros.cli", "record", str(tmp_path / "bag"), "--duration", "1", "--namespace", "nobody")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "nothing was recorded: no message came" in said, said
