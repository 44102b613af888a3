"""The core is free of ROS, and its arrows point one way.

- Every module outside robovlms_ros/ros and the nodes of simulator and benchmarks imports where rclpy and every message
  package are absent.
- None of them imports one of those even inside a function; only the command line may reach robovlms_ros.ros, lazily.
- A module imports only from its own layer or from lower ones, inside functions too.
- No modules and no packages import each other in a circle, inside functions and for types included.
- `sim` and `bench` are leaves: only the command line imports them, and `bench` the simulator that judges a measurement.
- No Python subpackage takes a name that belongs to generated code.
- `robovlms --help` and the types load no heavy library.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "robovlms_ros"
ROS_ONLY = ("rclpy", "rcl_interfaces", "builtin_interfaces", "std_srvs", "cv_bridge", "launch", "launch_ros",
            "ament_index_python", "rosidl_runtime_py", "rosidl_generator_py", "tf2_ros", "rosbag2_py")
PLAIN = ("robovlms_ros.ros.parameters",)
"""Modules of the ROS layer that themselves need no ROS: the table of the node's parameters."""
HEAVY = ("torch", "transformers", "mujoco", "robosuite", "pinocchio", "matplotlib", "cv2", "rclpy")

LAYERS = (
    {"core"},
    {"config"},
    {"models"},
    {"observations"},
    {"inference"},
    {"checkpoints"},
    {"control"},
    {"evaluation"},
    {"training", "ros"},
    {"sim"},
    {"bench"},
    {"cli"},
)
GENERATED = ("robovlms_ros.action", "robovlms_ros.msg", "robovlms_ros.srv")
# Programs outside the ROS layer that are ROS nodes themselves, or run the node's own objects.
NODES = (
    "robovlms_ros.sim.nodes", "robovlms_ros.bench.node", "robovlms_ros.bench.faults",
    "robovlms_ros.bench.handover", "robovlms_ros.bench.so101.arm", "robovlms_ros.bench.so101.measure",
)

BLOCKED_IMPORT = """
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        generated = name in ("robovlms_ros.action", "robovlms_ros.msg", "robovlms_ros.srv")
        if generated or top in {ros_only!r} or top.endswith(("_msgs", "_interfaces")):
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Block())
failed = []
for module in {modules!r}:
    try:
        importlib.import_module(module)
    except Exception as error:
        failed.append(f"{{module}}: {{type(error).__name__}}: {{error}}")
print("\\n".join(failed))
sys.exit(bool(failed))
"""


def sources() -> Iterator[tuple[str, Path]]:
    """(dotted module name, file) of the whole package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it is imported while the module loads) of every import statement in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {id(inner) for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING") for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", id(node) not in lazy) for alias in node.names)


def is_ros(name: str) -> bool:
    top = name.split(".")[0]
    generated = name.startswith(GENERATED)
    return generated or top in ROS_ONLY or top.endswith(("_msgs", "_interfaces"))


def is_plain(name: str) -> bool:
    """True if the name is, or lies in, one of the ROS layer's modules that need no ROS."""
    return name.startswith(PLAIN)


def unit(module: str) -> str:
    """The package, or the lone module, directly below robovlms_ros; empty for robovlms_ros itself."""
    return [*module.split("."), ""][1]


def layer(name: str) -> int:
    for rank, names in enumerate(LAYERS):
        if name in names:
            return rank
    pytest.fail(f"robovlms_ros.{name} has no layer: add it to LAYERS")


def outside_ros() -> list[tuple[str, Path]]:
    return [(name, path) for name, path in sources() if unit(name) != "ros" and not name.startswith(NODES)]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_every_module_outside_ros_imports_without_ros() -> None:
    modules = [*PLAIN, *(name for name, _ in outside_ros() if not name.endswith("__main__"))]
    assert len(modules) > 10
    result = run_python(BLOCKED_IMPORT.format(ros_only=set(ROS_ONLY), modules=modules))
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]


def test_no_module_outside_ros_names_a_ros_package() -> None:
    """Lazily, cv_bridge may be: it converts arrays where it is installed, and has a stand-in where it is not."""
    found = [f"{module}: {name}" for module, path in outside_ros() for name, eager in imports(path)
             if is_ros(name) and (eager or not name.startswith("cv_bridge."))]
    assert not found, found


def test_only_the_command_line_reaches_the_ros_layer_and_only_lazily() -> None:
    found = [f"{module}: {name}" for module, path in outside_ros() for name, eager in imports(path)
             if name.startswith("robovlms_ros.ros") and (unit(module) != "cli" or (eager and not is_plain(name)))]
    assert not found, found


def test_arrows_point_one_way() -> None:
    found = []
    for module, path in sources():
        for name, _ in imports(path):
            source, target = unit(module), unit(name)
            if not name.startswith("robovlms_ros.") or not source or not target:
                continue
            if name.startswith(GENERATED):
                continue
            if layer(target) > layer(source):
                found.append(f"{module} -> {name}")
    assert not found, found


def import_graph(lazily: bool) -> dict[str, set[str]]:
    """Module -> the package's modules that it imports while it loads; lazily: inside functions and for types too."""
    names = {module for module, _ in sources()}
    graph = {}
    for module, path in sources():
        imported = {name for name, eager in imports(path) if eager or lazily}
        graph[module] = {name if name in names else name.rpartition(".")[0] for name in imported} & names
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = set(graph[start])
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= graph[name] - found
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The largest sets of two or more names, each of which reaches every other one."""
    reach = {name: reachable(graph, name) for name in graph}
    groups = {frozenset({name} | {other for other in reach[name] if name in reach[other]}) for name in graph}
    return [set(group) for group in sorted(groups, key=sorted) if len(group) > 1]


def test_circles_are_found_whole() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"d"}, "e": {"f", "a"}, "f": {"e"}}
    assert circles(graph) == [{"a", "b", "c"}, {"e", "f"}]


def test_imports_inside_functions_are_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("import os\n\ndef f():\n    from robovlms_ros import cli\n", encoding="utf-8")
    assert set(imports(module)) == {("os", True), ("robovlms_ros.cli", False)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = circles(import_graph(lazily=True))
    assert not found, found


def test_packages_form_no_circle() -> None:
    packages: dict[str, set[str]] = {}
    for module, targets in import_graph(lazily=True).items():
        packages.setdefault(unit(module), set()).update(unit(target) for target in targets)
    found = circles(packages)
    assert not found, found


def test_simulator_and_benchmarks_are_leaves() -> None:
    users = {"sim": ("sim", "bench", "cli"), "bench": ("bench", "cli")}
    found = [f"{module} -> {name}" for module, path in sources() for name, _ in imports(path)
             for leaf, allowed in users.items()
             if name.startswith(f"robovlms_ros.{leaf}.") and unit(module) not in allowed]
    assert not found, found


def test_no_subpackage_takes_a_generated_name() -> None:
    names = {path.stem for path in PACKAGE.iterdir()}
    assert not names & {"msg", "srv", "action"}


@pytest.mark.parametrize("statement", [
    "import robovlms_ros.core.types, robovlms_ros.core.schema",
    "from robovlms_ros.cli.main import main; main(['--help'])",
])
def test_light_entries_load_no_heavy_library(statement: str) -> None:
    check = f"import sys\nloaded = set({HEAVY!r}) & set(sys.modules)\nassert not loaded, loaded"
    result = run_python(f"{statement}\n{check}")
    assert result.returncode == 0, result.stderr[-2000:]
