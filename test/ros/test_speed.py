"""Configure's report on a policy that is too slow, from its warm-up; needs no graph.

- too slow for its horizon, for the robot's max_latency, or for its history's rate: said with the numbers, or refused;
- `on_slow_inference: thin` thins the history out, and says to what;
- a schedule that contradicts the robot is refused with both values.
"""

from types import SimpleNamespace

import pytest

from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.ros.loading import check_speed, load_body, thinning_of
from robovlms_ros.ros.parameters import defaults, from_values


def brain(latency, horizon=30, step=0.1):
    model = SimpleNamespace(action_chunk_size=horizon, history_length=4, history_step=step)
    config = SimpleNamespace(model=model, action=SimpleNamespace(step_duration=1 / 30))
    return SimpleNamespace(policy=SimpleNamespace(config=config), latency=latency, history_step=step)


def parameters(**values):
    return from_values({**defaults(), **values})


def test_what_is_fast_enough_is_not_mentioned():
    assert check_speed(parameters(), brain(0.05), load_robot("panda")) == []
    assert thinning_of(parameters(on_slow_inference="thin"), brain(0.05)) == 1


@pytest.mark.parametrize(("given", "latency", "parameter", "text"), [
    ({}, 0.09, "on_short_horizon", None),
    ({"added_latency": 0.5}, 0.09, "on_short_horizon", "takes over after 1.200 s"),
    ({"added_latency": 1.0}, 0.09, "on_short_horizon", "1.110 s pass from an image to the command that answers it"),
    ({}, 0.15, "on_slow_inference", "takes the policy 0.150 s, but it was trained on one every 0.100 s"),
])
def test_what_is_too_slow_is_said_or_refused(given, latency, parameter, text):
    said = check_speed(parameters(**given), brain(latency), load_robot("panda"))
    if text is None:
        assert said == []
        return
    assert any(text in line for line in said)
    with pytest.raises(ConfigError, match=f"{parameter} = refuse"):
        check_speed(parameters(**given, **{parameter: "refuse"}), brain(latency), load_robot("panda"))


def test_a_slow_policy_is_thinned_out_where_the_parameter_says_so():
    slow, thin = brain(0.15), parameters(on_slow_inference="thin")
    assert (thinning_of(parameters(), slow), thinning_of(thin, slow)) == (1, 3)
    assert "one frame in 3 steps is seen" in check_speed(thin, slow, load_robot("panda"))[0]


def test_contradictions_with_the_robot_are_refused():
    with pytest.raises(ConfigError, match=r"max_latency = 0\.3: must be 0\.5 \(max_age\) or more"):
        load_body(parameters(max_latency=0.3), lambda topic: "")
    body = load_body(parameters(max_age=3.0), lambda topic: "")
    assert (body.robot.max_age, body.robot.max_latency) == (3.0, 3.0)
