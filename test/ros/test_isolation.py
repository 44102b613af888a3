"""The environment of a simulated arm's graph: this machine only, a drawn domain or a given one. Two
test processes have different domains."""

import importlib.util
from pathlib import Path

import pytest

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.ros.processes import isolated_environment


def test_a_domain_is_drawn_or_taken():
    domains = {isolated_environment()["ROS_DOMAIN_ID"] for _ in range(50)}
    assert len(domains) > 10 and all(1 <= int(domain) <= 100 for domain in domains)
    assert isolated_environment("7") == {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": "7"}


@pytest.mark.parametrize("domain", ["233", "-1", "two", "1.5", " ", "\u0663"])
def test_another_text_is_refused(domain):
    with pytest.raises(ConfigError, match="must be a whole number from 0 to 232"):
        isolated_environment(domain)


def test_a_domain_is_reserved_once(monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # loading reserves no domain here
    monkeypatch.setenv("ROS_DOMAIN_ID", "0")
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("environment", path)
    environment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(environment)
    reserved = [environment.reserve_domain() for _ in range(3)]
    domains = {domain for domain, _ in reserved}
    for _, file in reserved:
        file.close()
    assert len(domains) == 3
    assert all(1 <= domain <= 101 for domain in domains)
