"""`pip install .` for machines without ROS: training, evaluation of bags, benchmarks. A robot builds with colcon.

The version is package.xml's, the only place where it is written.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
PACKAGE = "robovlms_ros"


def version() -> str:
    """The version in package.xml."""
    match = re.search(r"<version>\s*([\d.]+)\s*</version>", (ROOT / "package.xml").read_text(encoding="utf-8"))
    if match is None:
        raise RuntimeError("package.xml holds no <version>x.y.z</version>.")
    return match[1]


def data_files() -> list[tuple[str, list[str]]]:
    """What a colcon build installs below share/robovlms_ros, at the same place below the Python prefix."""
    folders: dict[str, list[str]] = {}
    for top in ("action", "config", "launch", "msg", "srv"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                relative = path.relative_to(ROOT)
                folders.setdefault(f"share/{PACKAGE}/{relative.parent}", []).append(str(relative))
    return sorted(folders.items())


SIM = [
    "mujoco>=3.3,<3.4",
    "numba",
    "pin>=3",
    "robosuite==1.5.2",
    "scipy",
]
REPORTS = ["jinja2>=3.1", "matplotlib"]
EVAL = [*REPORTS, "mcap>=1.2", "opencv-python-headless", "rosbags>=0.11"]
FLEET = [*EVAL, "ray>=2.9"]
TRAIN = [*REPORTS, "accelerate>=1.10", "av>=14", "mcap>=1.2", "peft>=0.17", "pyarrow>=17",
         "rosbags>=0.11", "tensorboard", "tqdm"]
DOCS = ["myst-parser", "sphinx"]
DEV = ["hypothesis", "lxml", "mypy", "pytest", "pytest-xdist", "ruff", "types-PyYAML"]

setup(
    name=PACKAGE,
    version=version(),
    description="RoboVLMs-style vision-language-action policies driving real arms through ROS 2.",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["**/*.yaml", "**/*.json", "**/*.xml", "**/*.safetensors", "**/*.html"]},
    data_files=data_files(),
    install_requires=[
        "numpy>=1.26",
        "pillow",
        "PyYAML",
        "safetensors",
        "tokenizers",
        "torch>=2.11",
        "transformers>=5.17",
    ],
    extras_require={
        "arm": ["pin>=3"],
        "eval": EVAL,
        "fleet": FLEET,
        "train": TRAIN,
        "sim": SIM,
        "dev": DEV,
        "docs": DOCS,
    },
    entry_points={"console_scripts": ["robovlms = robovlms_ros.cli.main:main"]},
    zip_safe=False,
)
