"""The thresholds that the fast path has to keep, and what was measured against each."""

from collections.abc import Sequence
from dataclasses import dataclass

from robovlms_ros.bench.policy.head_window import WindowCost
from robovlms_ros.bench.policy.results import PolicyRow


@dataclass(frozen=True)
class Check:
    """name: of what is checked. value: as measured, None when it was not. bound: at least
    (`at_least`) or at most."""

    name: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def kept(self) -> bool:
        """True if it was measured and lies on the right side."""
        if self.value is None:
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        side = ">=" if self.at_least else "<="
        value = "not measured" if self.value is None else f"{self.value:.3g}"
        return f"{'kept  ' if self.kept else 'MISSED'} {self.name}: {value} ({side} {self.bound:g})"


def cpu_checks(
    rows: Sequence[PolicyRow], head: WindowCost, memory: dict[str, dict[str, int | None]]
) -> list[Check]:
    """Mid-size models on a CPU in float32. memory: backbone to path to peak bytes, `fast` and
    `careful`."""
    checks = []
    for row in rows:
        name = f"{row.case.backbone}, fast against {row.path}"
        if row.path == "fast":
            continue
        checks.append(Check(f"{name}: largest difference", row.difference, 1e-4, False))
        if row.path == "careful":
            checks.append(Check(f"{name}: times as fast", row.ratio, 0.97, True))
        elif row.path == "logits" and row.case.backbone == "paligemma":
            checks.append(Check(f"{name}: times as fast", row.ratio, 1.3, True))
    for backbone, peaks in memory.items():
        fast = peaks.get("fast")
        careful = peaks.get("careful")
        share = fast / careful if fast and careful else None
        checks.append(Check(f"{backbone}: peak memory over careful's", share, 1.02, False))
    return checks + head_checks(head)


def head_checks(head: WindowCost, on_gpu: bool = False) -> list[Check]:
    """The LSTM head's window: in float32 on a CPU, in bfloat16 on a GPU."""
    title = f"LSTM 4 x 1024, W {head.window}"
    return [
        Check(
            f"{title}: time to the answer over that of W 1",
            head.growth,
            1.2 if on_gpu else 2.5,
            False,
        ),
        Check(f"{title}: answers times as fast as the window run again", head.gain, 6.0, True),
        Check(f"{title}: largest difference", head.difference, 0.03 if on_gpu else 1e-4, False),
    ]


def gpu_checks(rows: Sequence[PolicyRow]) -> list[Check]:
    """Full-size models on a GPU in bfloat16: the default path's times, the verification of every
    fast path, and what compiled code and fp8 gain."""
    found = {
        (row.case.backbone, row.case.cameras, row.path): row for row in rows if row.sessions == 1
    }

    def value(backbone: str, cameras: int, path: str, read: str) -> float | None:
        row = found.get((backbone, cameras, path))
        if row is None:
            return None
        if read == "roof":
            return row.p50 / row.roofline if row.roofline else None
        if read == "accepted":
            return float(row.verdict.startswith("accepted")) if row.verdict else None
        return {"tail": row.p99 / row.p50, "ratio": row.ratio, "p50": row.p50}[read]

    checks = []
    for backbone, bound in (("paligemma", 2.0), ("kosmos", 3.0)):
        checks += [
            Check(
                f"{backbone}: p50 over the roofline",
                value(backbone, 2, "fast", "roof"),
                bound,
                False,
            ),
            Check(f"{backbone}: p99 over p50", value(backbone, 2, "fast", "tail"), 1.2, False),
            Check(
                f"{backbone}: times as fast as logits, bfloat16",
                value(backbone, 2, "logits", "ratio"),
                3.0,
                True,
            ),
            Check(
                f"{backbone}: times as fast as logits, float32",
                value(backbone, 2, "logits_float32", "ratio"),
                6.0,
                True,
            ),
        ]
    checks.append(
        Check("llava, one camera: s a step", value("llava", 1, "fast", "p50"), 1 / 45, False)
    )
    for backbone, cameras in (("paligemma", 2), ("kosmos", 2), ("llava", 1)):
        default = value(backbone, cameras, "fast", "p50")
        for path in ("fast", "fast:max", "fast:fp8"):
            accepted = value(backbone, cameras, path, "accepted")
            checks.append(
                Check(f"{backbone}, {path}: accepted by the verification", accepted, 1.0, True)
            )
            p50 = value(backbone, cameras, path, "p50")
            if path != "fast":
                gain = default / p50 if default and p50 else None
                checks.append(Check(f"{backbone}, {path}: times as fast as fast", gain, 1.0, True))
    return checks
