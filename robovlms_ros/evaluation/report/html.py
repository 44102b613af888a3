"""The report as one HTML file: no script, no link, nothing to load. Opens with the answer."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from robovlms_ros.evaluation.report.build import length
from robovlms_ros.evaluation.report.moments import worst_moments
from robovlms_ros.evaluation.report.svg import PALETTE, RECORDED, Line, bars, chart

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --quiet: #5b6573; --paper: #ffffff; --line: #d8dee6; --soft: #f4f6f9;
  --good: #1a7f37; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --quiet: #9aa5b3; --paper: #12161c; --line: #2c343f;
  --soft: #1a2028; --good: #4cc36d; --bad: #ff7b6b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 12px; } h2 { font-size: 19px; margin: 36px 0 6px; } h3 { font-size: 15px; margin: 18px 0 4px; }
.answer { border-left: 6px solid var(--quiet); background: var(--soft); padding: 12px 18px; }
.answer.good { border-color: var(--good); } .answer.bad { border-color: var(--bad); }
.answer p { margin: 5px 0; font-size: 16px; } .quiet { color: var(--quiet); } .bad-text { color: var(--bad); }
table { border-collapse: collapse; margin: 8px 0; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 8px; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; } th:first-child, td:first-child { text-align: left; } th { font-weight: 600; } tr.trivial td { color: var(--quiet); }
.scroll { overflow-x: auto; } .grid2 { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 14px; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--quiet); }
svg .grid, svg line.grid { stroke: var(--line); } .legend { font-size: 12px; color: var(--quiet); }
.legend span { margin-right: 14px; white-space: nowrap; } svg.key { width: 22px; height: 8px; margin-right: 5px; }
.moments { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 16px; }
.moment { border: 1px solid var(--line); padding: 10px; } .moment .views { display: flex; gap: 4px; }
.moment svg.small { width: 50%; } .picture { position: relative; } .picture img { width: 100%; display: block; }
.picture svg { position: absolute; inset: 0; height: 100%; } details { margin: 8px 0; } summary { cursor: pointer; }
code { font-size: 13px; }
"""


def render(report: Mapping[str, Any], title: str = "Bag evaluation") -> str:
    """The HTML text of a report made by `build_report`."""
    policies = report["policies"]
    parts = [f"<h1>{escape(title)}</h1>", _answer(report)]
    if policies:
        parts += [_numbers(report), _horizon(policies), _comparisons(report)]
        for i, (name, policy) in enumerate(policies.items()):
            body = _policy(name, policy, PALETTE[i % len(PALETTE)])
            parts.append(f"<h2>{escape(name)}</h2>{body}" if i == 0 or len(policies) < 3 else
                         f"<details><summary><b>{escape(name)}</b></summary>{body}</details>")
    parts += [_bags(report), _how_to_read(report)]
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n")


def _answer(report: Mapping[str, Any]) -> str:
    judged = any(value is not None for value in report["thresholds"].values())
    mood = "bad" if report["missed"] else "good" if judged else ""
    sentences = "".join(f"<p>{escape(text)}</p>" for text in report["answer"])
    misses = "".join(f"<li>{escape(name)}: {escape(text)}</li>" for name, texts in report["missed"].items() for text in texts)
    return f'<div class="answer {mood}">{sentences}{f"<ul>{misses}</ul>" if misses else ""}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], trivial: Sequence[bool] = ()) -> str:
    """An HTML table of texts; `trivial` rows are printed quietly."""
    marks = list(trivial) or [False] * len(rows)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f'<tr{" class=trivial" if quiet else ""}>' + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
                   for row, quiet in zip(rows, marks, strict=True))
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _plain(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _numbers(report: Mapping[str, Any]) -> str:
    header = ["", "distance", "95 %", "at the end", "angle", "direction (cosine)", "gripper", "edges missed", "extra edges",
              "edge timing", "chunks"]
    rows, trivial, known = [], [], set()
    for name, policy in report["policies"].items():
        interval, unit = policy["interval"], policy["unit"]
        span = "-" if interval is None else f"{length(interval['low'], unit)} to {length(interval['high'], unit)}"
        rows.append([name, *_error_cells(policy["errors"], policy["edges"], unit, span), str(policy["scored"])])
        trivial.append(False)
    for policy in report["policies"].values():
        kind = (policy["space"], policy["horizon"], policy["step"], tuple(policy["names"]))
        if kind in known:
            continue
        known.add(kind)
        for name, errors in policy["baselines"].items():
            rows.append([f"{name} (trivial)", *_error_cells(errors, errors["edges"], policy["unit"], "-"), ""])
            trivial.append(True)
    reference = report["bags"][0]["reference"] if report["bags"] else ""
    return (f"<h2>How near</h2><p class=quiet>Distance between predicted and recorded target, mean over a chunk's steps, "
            f"against {escape(reference)}. The trivial policies say what an error means.</p>" + table(header, rows, trivial))


def _error_cells(errors: Mapping[str, Any], edges: Mapping[str, Any], unit: str, span: str) -> list[str]:
    ends = [value for value in errors["distance_by_step"] if value is not None]
    timing = "-" if edges["late"] is None else f"{1000 * edges['late']:+.0f} ms"
    missed = f"{edges['missed']}/{edges['recorded']}" if edges["recorded"] else "-"
    angle = "-" if unit != "m" or errors["angle"] is None else f"{1000 * errors['angle']:.1f} mrad"
    return [length(errors["distance"], unit), span, length(ends[-1] if ends else None, unit), angle,
            _plain(errors["cosine"]), _percent(errors["gripper_accuracy"]), missed, str(edges["extra"]), timing]


def _horizon(policies: Mapping[str, Any]) -> str:
    lines, trivial = [], []
    first = next(iter(policies.values()))
    scale, unit = 1000, "mm" if first["unit"] == "m" else "mrad"
    for i, (name, policy) in enumerate(policies.items()):
        if policy["unit"] == first["unit"]:
            lines.append(Line(_by_step(policy["errors"]["distance_by_step"], policy["step"], scale),
                              PALETTE[i % len(PALETTE)], name, 2.2))
    for name, errors in first["baselines"].items():
        dash = {"hold still": "6 3", "repeat the last action": "2 3"}.get(name, "1 4")
        trivial.append(Line(_by_step(errors["distance_by_step"], first["step"], scale), RECORDED, name, 1.4, dash))
    cosine = [Line(_by_step(policy["errors"]["cosine_by_step"], policy["step"], 1), PALETTE[i % len(PALETTE)], name, 2.0)
              for i, (name, policy) in enumerate(policies.items())]
    return ('<h2>Error by horizon</h2><div class="grid2"><div>'
            + chart([*lines, *trivial], "time after the image [s]", f"distance [{unit}]", zero=True)
            + "</div><div>" + chart(cosine, "time after the image [s]", "cosine of the direction") + "</div></div>")


def _by_step(values: Sequence[float | None], step: float, scale: float) -> list[tuple[float, float | None]]:
    return [((k + 1) * step, None if value is None else value * scale) for k, value in enumerate(values)]


def _comparisons(report: Mapping[str, Any]) -> str:
    if not report["comparisons"]:
        return ""
    rows = []
    for pair in report["comparisons"]:
        for where, interval in [("all", pair["difference"]), *pair["episodes"].items()]:
            if interval is None:
                continue
            clear = "yes" if interval["low"] > 0 or interval["high"] < 0 else "no"
            nearer = pair["a"] if interval["mean"] > 0 else pair["b"]
            unit = pair["unit"]
            rows.append([f"{pair['b']} minus {pair['a']}", where, length(interval["mean"], unit),
                         f"{length(interval['low'], unit)} to {length(interval['high'], unit)}", clear, nearer,
                         f"{interval['count']} {interval['unit']}"])
    shown = table(["difference of distances", "episode", "mean", "95 %", "clear", "nearer", "drawn from"], rows[:24])
    return f"<h2>Side by side</h2><p class=quiet>The same images, paired; intervals by bootstrap.</p>{shown}"


def _policy(name: str, policy: Mapping[str, Any], colour: str) -> str:
    facts = (f"{policy['chunks']} chunks of {policy['horizon']} steps of {policy['step']:g} s, {policy['space']}; "
             f"{policy['scored']} scored, {policy['unscored']} without anything recorded to compare with")
    parts = [f"<p class=quiet>{escape(facts)}. Policy: {escape(policy['policy_id'] or name)}.</p>"]
    parts.append("<h3>Predicted (coloured) and recorded (grey)</h3>" + _fans(policy, colour))
    parts.append("<h3>The moments of the largest error</h3>" + _drawn(policy) + worst_moments(policy, colour))
    parts.append("<h3>What scheduler and gate make of it</h3>" + _latencies(policy) + _gate(policy))
    parts.append(_agreement(policy) + _sensitivity(policy) + _inference(policy) + _dimensions(policy))
    if policy["refused_inputs"]:
        items = "".join(f"<li>{count}: {escape(reason)}</li>" for reason, count in policy["refused_inputs"].items())
        parts.append(f"<h3>Not evaluated</h3><ul>{items}</ul>")
    return "".join(parts)


def _drawn(policy: Mapping[str, Any]) -> str:
    if any(moment.get("pixels") for moment in policy["worst"]):
        return '<p class="quiet">In the images: predicted (coloured) and recorded (white), from the dot on.</p>'
    return '<p class="quiet">The camera is not calibrated, so the motions are drawn beside the images.</p>'


def _fans(policy: Mapping[str, Any], colour: str) -> str:
    if not policy["track"]:
        return '<p class="quiet">nothing was recorded to compare with</p>'
    eef = policy["unit"] == "m"
    names = ["x [m]", "y [m]", "z [m]", "turned about x [rad]", "about y [rad]", "about z [rad]", "gripper opening"] \
        if eef else [*policy["names"][:-1], "gripper opening"]
    charts = []
    for d, label in enumerate(names):
        recorded = [(row[0], row[d + 1]) for row in policy["track"] if len(row) > d + 1]
        lines = [Line([(fan["t"] + (k + 1) * policy["step"], row[d]) for k, row in enumerate(fan["values"])],
                      colour, "", 1.0, "", 0.45) for fan in policy["fans"]]
        charts.append("<div>" + chart([Line(recorded, RECORDED, "", 2.4), *lines], "time [s]", label, height=180) + "</div>")
    return f'<div class="grid2">{"".join(charts)}</div>'


def _latencies(policy: Mapping[str, Any]) -> str:
    if not policy["latencies"]:
        return '<p class="quiet">not run: no arm description, no joint states, or a controller that takes chunks only</p>'
    rows = [[f"{1000 * lane['latency']:.0f} ms", f"{lane['chunks']} of {lane['frames']}",
             f"{lane['verdicts']['pass']} / {lane['verdicts']['clamp']} / {lane['verdicts']['refuse']}",
             "-" if lane["age"] is None else f"{1000 * lane['age']:.0f} ms",
             "-" if lane["handover_mean"] is None else
             f"{1000 * lane['handover_mean']:.1f} / {1000 * lane['handover_max']:.1f} mrad",
             f"{1000 * lane['tick_max']:.2f} mrad", f"{lane['starved']:.2f} s",
             "-" if lane["off"] is None else f"{1000 * lane['off']:.0f} mrad"] for lane in policy["latencies"]]
    return "<p class=quiet>If inference took so long, one at a time, always on the newest image.</p>" + table(
        ["latency", "images used", "passed / clamped / refused", "age at takeover", "plain switch would jump (mean / max)",
         "worst command step in 2 ms", "ran out of plan", "command from recorded arm"], rows)


def _gate(policy: Mapping[str, Any]) -> str:
    gate, margins = policy["gate"], policy["margins"]
    if gate is None:
        return ""
    lane = policy["latencies"][0]
    reasons = "".join(f"<li>{count}: {escape(reason)}</li>" for reason, count in lane["reasons"].items())
    rows = [["nearest position limit", "-" if margins["position"] is None else f"{margins['position']:.3f} rad",
             f"{margins['beyond_position']} chunks beyond"],
            ["largest share of a velocity limit", _percent(margins["velocity"]), f"{margins['too_fast']} chunks above"],
            ["nearest to the workspace's edge",
             "-" if margins["workspace"] is None else f"{1000 * margins['workspace']:.0f} mm",
             f"{margins['outside_workspace']} chunks outside"],
            ["out of reach", "", f"{margins['unreachable']} chunks"]]
    counts = gate["verdicts"]
    text = (f"In dry_run, where each chunk is judged as if the arm followed the ones before, the node would have said: "
            f"{counts['pass']} passed, {counts['clamp']} clamped, {counts['refuse']} refused.")
    why = f"<p>Why, at {1000 * lane['latency']:.0f} ms:</p><ul>{reasons}</ul>" if reasons else ""
    return why + table(["margin", "", ""], rows) + f'<p class="quiet">{text}</p>'


def _agreement(policy: Mapping[str, Any]) -> str:
    agreement, recorded, unit = policy["agreement"], policy["recorded"], policy["unit"]
    text = ""
    if agreement["chunks"]:
        text = (f"Consecutive chunks differ by {length(agreement['apart'], unit)} on average where they overlap, and in "
                f"{agreement['gripper']:.1%} of the gripper's steps.")
    if recorded["chunks"]:
        text += (f" {recorded['chunks']} chunks were recorded live for the same images: the largest difference of any number "
                 f"is {recorded['largest']:.2g}, the mean distance at the end {length(recorded['apart'], unit)}.")
    return f"<h3>Does it agree with itself?</h3><p>{text or 'unknown: too few chunks'}</p>"


def _sensitivity(policy: Mapping[str, Any]) -> str:
    if not policy["sensitivity"]:
        return ""
    unit = policy["unit"]
    rows = [[label, str(entry["chunks"]), length(entry["apart"], unit), _percent(entry["share"]), _percent(entry["gripper"]),
             length(entry.get("distance"), unit)] for label, entry in policy["sensitivity"].items()]
    return "<h3>Does it listen, does it look?</h3>" + table(
        ["changed", "chunks", "moves the chunk's end by", "share of its motion", "gripper steps changed", "distance then"], rows)


def _inference(policy: Mapping[str, Any]) -> str:
    spent = policy["inference_ms"]
    if spent is None:
        return ""
    return (f"<h3>Inference time</h3><p>p50 {spent['p50']:.1f} ms, p99 {spent['p99']:.1f} ms per chunk on this machine "
            "(recorded chunks: as recorded; replayed ones: their share of a batch).</p><div class=grid2><div>"
            + bars(spent["histogram"]["edges"], spent["histogram"]["counts"], "ms per chunk") + "</div></div>")


def _dimensions(policy: Mapping[str, Any]) -> str:
    errors = policy["errors"]
    rows = [[name, _plain(mae, 5), _plain(rmse, 5)] for name, mae, rmse in
            zip(errors["names"], errors["mae"], errors["rmse"], strict=True)]
    steps = [[f"{k + 1}", *[_plain(value, 5) for value in row]] for k, row in enumerate(errors["mae_by_step"])]
    return ("<h3>By dimension</h3><p class=quiet>In the policy's own numbers (m, rad; the gripper's opening).</p>"
            + table(["dimension", "MAE", "RMSE"], rows)
            + "<details><summary>MAE of every step</summary>" + table(["step", *errors["names"]], steps) + "</details>")


def _bags(report: Mapping[str, Any]) -> str:
    parts = ["<h2>Bags</h2>"]
    for bag in report["bags"]:
        notes = "".join(f"<li>{escape(note)}</li>" for note in bag["notes"])
        topics = "".join(f"<li>{escape(line)}</li>" for line in bag["topics"])
        images = f"{bag['images']} observations, {len(bag['episodes'])} episodes"
        parts.append(f"<h3>{escape(bag['bag'])}</h3><p>{images}.</p>{f'<ul>{notes}</ul>' if notes else ''}"
                     f"<details><summary>topics</summary><ul>{topics}</ul></details>")
    return "".join(parts)


def _how_to_read(report: Mapping[str, Any]) -> str:
    bounds = {name: value for name, value in report["thresholds"].items() if value is not None}
    given = ", ".join(f"{name} = {value:g}" for name, value in bounds.items()) or "none"
    return ("<h2>How to read this</h2><p>A recording shows one way to do a task; a good policy may do it another way, so a "
            "distance is evidence, not success. What is near the recording, passes the gate, agrees with itself, listens and "
            "looks is worth a dry run on the arm, then a slow one. The recorded arm did what it was told then: a replay cannot "
            f"show how errors add up.</p><p class=quiet>Thresholds: {escape(given)}.</p>")
