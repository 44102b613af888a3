"""Kinds of faults of docs/faults.md, injected into a Simulation; `rng` draws each one's details."""

import dataclasses

import numpy as np
from fault_simulation import HOME, PANDA, TICK

from robovlms_ros.core.types import NANOSECONDS


def ns(seconds):
    return round(seconds * NANOSECONDS)


def silent_joints(sim, rng):
    sim.joint_hook = lambda state: []


def delayed_joints(sim, rng):
    delay = ns(rng.uniform(0.1, 0.6))
    sim.joint_hook = lambda state: [(state[0] - delay, state[1], {})]


def glitch(sim, rng):
    joint = rng.integers(7)
    size = rng.choice([0.6, -0.6, 3.0, 100.0, -100.0])
    ahead = ns(rng.choice([0.0, 0.09]))
    count = [0]

    def hook(state):
        count[0] += 1
        bad = state[1].copy()
        bad[joint] += size
        return [(state[0] + ahead, bad, {})] if count[0] == 1 else [state]

    sim.joint_hook = hook


def second_publisher(sim, rng):
    other = np.zeros(7) if rng.uniform() < 0.5 else HOME
    every = int(rng.choice([1, 2, 10]))
    count = [0]

    def hook(state):
        count[0] += 1
        wrong = (state[0] + 1000, other, {})
        return [state, wrong] if count[0] % every == 0 else [state]

    sim.joint_hook = hook


def not_finite(sim, rng):
    sim.joint_hook = lambda state: [(state[0], np.where(np.arange(7) == 3, np.nan, state[1]), {})]


def velocities_not_finite(sim, rng):
    sim.joint_hook = lambda state: [(state[0], state[1], {"velocities": np.full(7, np.nan)})]


def velocities_missing_one(sim, rng):
    sim.joint_hook = lambda state: [(state[0], state[1], {"velocities": np.zeros(6)})]


def duplicates(sim, rng):
    sim.joint_hook = lambda state: [state, state]


def out_of_order(sim, rng):
    """Every other state is old, with the pose of that time."""
    age = int(rng.integers(5, 100))
    count = [0]

    def hook(state):
        count[0] += 1
        old = (state[0] - ns(age * TICK), sim.measured[-1 - min(age, len(sim.measured) - 1)], {})
        return [old] if count[0] % 2 else [state]

    sim.joint_hook = hook


def ahead_of_the_clock(sim, rng):
    ahead = ns(rng.choice([0.05, 0.09, 0.2, 8.0]))
    sim.joint_hook = lambda state: [(state[0] + ahead, state[1], {})]


def named_twice(sim, rng):
    names = (*PANDA.joints, PANDA.joints[3])
    sim.joint_hook = lambda state: [(state[0], [*state[1], 0.0], {"names": names})]


def frozen_stamps(sim, rng):
    stamp = sim.now()
    sim.joint_hook = lambda state: [(stamp, state[1], {})]


def frozen_values(sim, rng):
    values = sim.measured[-1]
    sim.joint_hook = lambda state: [(state[0], values, {})]


def silent_camera(sim, rng):
    sim.camera_on = False


def no_chunks(sim, rng):
    sim.chunk_hook = lambda chunk: None


def garbage(sim, rng):
    kind = rng.integers(5)
    offset = rng.uniform(-2, 2, 8)
    opening = rng.choice([np.nan, np.inf, -5.0, 1e9])

    def hook(chunk):
        values = chunk.values.copy()
        if kind == 0:
            values[:] = np.nan
        elif kind == 1:
            values += offset[-values.shape[1] :]
        elif kind == 2:
            values = 1e6 * rng.normal(size=values.shape)
        elif kind == 3:
            values[:, :7] += rng.normal(0, 0.3, 7)
        else:
            values[:, -1] = opening
        return dataclasses.replace(chunk, values=values)

    sim.chunk_hook = hook


def late_chunks(sim, rng):
    age = ns(rng.uniform(0.2, 1.5))
    sim.chunk_hook = lambda chunk: dataclasses.replace(chunk, stamp_ns=chunk.stamp_ns - age)


def reset(sim, rng):
    sim.runner.reset("reset")


def pause(sim, rng):
    sim.runner.pause(True)


def pause_and_resume(sim, rng):
    sim.runner.pause(True)
    sim.runner.pause(False)


def deactivate(sim, rng):
    sim.runner.deactivate("deactivated")


def clock_jump(sim, rng):
    sim.offset_ns += ns(rng.choice([-50.0, -0.3, 3.0, 60.0]))
    sim.runner.clock_jumped()


def controller_away(sim, rng):
    sim.arm.listening = 0
    sim.restart_controller()


def second_commander(sim, rng):
    sim.arm.others = ("/stranger",)


KINDS = (
    silent_joints,
    delayed_joints,
    glitch,
    second_publisher,
    not_finite,
    named_twice,
    frozen_stamps,
    frozen_values,
    velocities_not_finite,
    velocities_missing_one,
    duplicates,
    out_of_order,
    ahead_of_the_clock,
    silent_camera,
    no_chunks,
    garbage,
    late_chunks,
    reset,
    pause,
    pause_and_resume,
    deactivate,
    clock_jump,
    controller_away,
    second_commander,
)
UNDETECTED = {clock_jump, frozen_values}
"""Not drawn together. After a clock jump the node has no command to compare a pose with: a driver
that repeats one pose of a moving arm is believed then, and the first command steps
(docs/faults.md)."""
STAYS_AT_REST = {
    silent_joints,
    not_finite,
    named_twice,
    frozen_stamps,
    silent_camera,
    no_chunks,
    pause,
    deactivate,
    second_commander,
}


def mended(sim):
    sim.joint_hook = lambda state: [state]
    sim.chunk_hook = lambda chunk: chunk
    sim.camera_on = True
    sim.arm.listening = 1
    sim.arm.others = ()
