"""Results of a measurement: rows that go into a JSON file as they are finished, and the table of
them."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from robovlms_ros.bench.policy.cases import Case
from robovlms_ros.bench.policy.timing import Ceilings
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned

FORMAT = 1
HEADER = (
    "path", "p50 ms", "p99 ms", "images/s", "peak GB", "GFLOP", "GB", "roof ms", "x roof",
    "x first", "differs", "busy", "stages",
)


@dataclass(frozen=True)
class PolicyRow:
    """One path of one case.

    path: `fast`, `plain` (the package's), `careful`, `logits` (transformers by hand),
        `logits_float32`.
    p50, p99: s a step, of `steps` steps. images_per_second: camera pictures at p50. peak_bytes: of
    the device's memory while this path ran, weights included (None where the device has no count).
    shares: by stage, of a step that waits after every stage. flops, bytes: of a step, counted.
    roofline: s. ratio: median over the rounds of this path's time over the first path's, in the
    same round. difference: largest, from the plain path's normalised answers. sessions: robots
    stepped together. description: parts of the path. flops, bytes and roofline are 0
    where nothing was counted. busy: share of p50 in which the GPU computes, None without one.
    verdict: the verification's, empty where it did not judge.
    """

    case: Case
    path: str
    p50: float
    p99: float
    steps: int
    images_per_second: float
    peak_bytes: int | None
    shares: dict[str, float]
    flops: int
    bytes: int
    roofline: float
    ratio: float
    difference: float
    parameters: dict[str, int]
    sessions: int = 1
    description: str = ""
    busy: float | None = None
    verdict: str = ""

    @property
    def key(self) -> str:
        return key_of(self.case, self.sessions, self.path)


def key_of(case: Case, sessions: int, path: str) -> str:
    """The name of a row in the file."""
    return f"{case.title}, {case.dtype}, {sessions} x {path}"


@dataclass
class Results:
    """A file's content. machine: as in `machine_of`. rows: finished ones; `complete` once all
    are."""

    machine: dict[str, Any]
    ceilings: Ceilings
    rows: list[PolicyRow] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    complete: bool = False

    def write(self, path: Path) -> None:
        """The whole file, replaced at once, so that an interrupted run leaves what was finished."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @staticmethod
    def read(path: Path) -> "Results":
        """A file that `write` left. Raises ConfigError for another one."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            content.pop("checks", None)  # judged anew
            rows = [PolicyRow(**{**row, "case": Case(**row["case"])}) for row in content.pop("rows")]
            return Results(**{**content, "ceilings": Ceilings(**content["ceilings"]), "rows": rows})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}: not a file of `robovlms bench policy --json`: {error}") from error


def machine_of(device: torch.device) -> dict[str, Any]:
    """Machine and versions of the measurement."""
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": device.type, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "transformers": transformers.__version__, "python": platform.python_version()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(rows: Sequence[PolicyRow]) -> str:
    """The rows as text, a table per case."""
    texts = []
    for (case, sessions), group in groupby(rows, lambda row: (row.case, row.sessions)):
        members = list(group)
        more = f", {sessions} sessions" if sessions > 1 else ""
        size = members[0].parameters["without_embedding"] / 1e9
        texts.append(f"\n{case.title}, {case.dtype}{more} ({size:.2f} B + words)")
        texts.append(aligned(HEADER, [cells(row) for row in members], numbers=True))
        fast = [row for row in members if row.path.startswith("fast")]
        texts += [f"{row.path}: {row.description}" for row in fast]
        texts += [f"{row.path}, verification {row.verdict}" for row in members if row.verdict]
    return "\n".join(texts)


def cells(row: PolicyRow) -> list[str]:
    """One row of the table, as in HEADER."""
    stages = [f"{name} {share:.0%}" for name, share in row.shares.items() if share >= 0.005]
    return [
        row.path,
        f"{row.p50 * 1e3:.2f}",
        f"{row.p99 * 1e3:.2f}",
        f"{row.images_per_second:.1f}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.2f}",
        f"{row.flops / 1e9:.2f}",
        f"{row.bytes / 1e9:.3f}",
        f"{row.roofline * 1e3:.2f}",
        f"{row.p50 / row.roofline:.2f}" if row.roofline else "",
        f"{row.ratio:.2f}",
        f"{row.difference:.1e}",
        "" if row.busy is None else f"{row.busy:.0%}",
        " ".join(stages),
    ]
