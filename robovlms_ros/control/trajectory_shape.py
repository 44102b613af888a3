"""The shape of a trajectory message, by which a controller continues the commanded motion smoothly.

A joint_trajectory_controller that forgets the running trajectory (Jazzy, Kilted) is sent past
points of our own plan first (`self_splice`). One that blends a new trajectory into the running one
would execute those again: it is sent points ahead alone (`replacement`), and leads by itself from
where it is to the first of them, by one cubic. How late the message arrives shifts that motion,
which that first cubic takes up: it must not be short.
"""

from dataclasses import replace

import numpy as np

from robovlms_ros.control.trajectory import SEPARATION_NS, JointBounds, Spline, Stamps
from robovlms_ros.core.types import NANOSECONDS, TrajectoryCommand

BRIDGE_NS = 120_000_000
AFTER_LEAD_NS = 100_000_000
"""The first point of a replacement lies so far ahead, and so far after the time that computing may
take: nearer, and the lateness of a message shakes the arm."""

TRANSIT_NS = 2_000_000
"""A message of times relative to its arrival is expected to take so long, half a control cycle
included."""

BRIDGE_SHARE = 0.6
"""A cubic between two states of a motion needs at most 5/3 of the motion's own acceleration."""


def bridged(curve: Spline, now_ns: int, lead_ns: int) -> Spline:
    """The motion that a blending controller makes of a curve that begins at now_ns or before.

    It has two points ahead at least: onto a trajectory of a single one the controller does not
    blend.
    lead_ns: the time from now_ns in which the message is sent.
    """
    states_ns = np.array([now_ns, now_ns + max(BRIDGE_NS, lead_ns + AFTER_LEAD_NS)])
    positions, velocities = curve(states_ns)
    early = curve.times_ns < now_ns - SEPARATION_NS
    late = curve.times_ns > states_ns[1] + SEPARATION_NS
    ahead = curve.times_ns[late], curve.positions[late], curve.velocities[late]
    if not late.any():
        ahead = states_ns[1:] + BRIDGE_NS, positions[1:], np.zeros_like(velocities[1:])
    return Spline(
        np.concatenate([curve.times_ns[early], states_ns, ahead[0]]),
        np.concatenate([curve.positions[early], positions, ahead[1]]),
        np.concatenate([curve.velocities[early], velocities, ahead[2]]),
    )


def bridgeable(bounds: JointBounds) -> JointBounds:
    """Bounds within which a motion stays inside `bounds` when it is bridged."""
    return replace(bounds, acceleration=BRIDGE_SHARE * bounds.acceleration)


def takeover_times(command: TrajectoryCommand, now_ns: int, arrival_ns: int) -> Stamps:
    """The instants (M,) at which a command must equal the motion before it.

    The controller takes a self-splice over somewhere between now and its arrival; onto a
    replacement it leads itself.
    """
    if command.shape == "replacement":
        return np.array([now_ns])
    return np.array([now_ns, now_ns + arrival_ns])


def wire_form(command: TrajectoryCommand, sent_ns: int) -> TrajectoryCommand:
    """The message of a command that is sent at sent_ns, within the lead that it was computed with.

    A replacement loses its past points, and its times count from its arrival (stamp 0).
    """
    if command.shape == "self_splice":
        return command
    origin = (sent_ns - command.stamp_ns) / NANOSECONDS
    ahead = command.times > origin + AFTER_LEAD_NS / 2 / NANOSECONDS
    times = command.times[ahead] - origin - TRANSIT_NS / NANOSECONDS
    return replace(
        command,
        stamp_ns=0,
        times=times,
        positions=command.positions[ahead],
        velocities=command.velocities[ahead],
        accelerations=None,
    )
