"""What RoboVLMs found about what the ablations change, to stand beside our rows.

Their numbers are CALVIN's: the mean count of tasks done in a row, of 5, so that only directions compare. Kosmos with an
LSTM over the history (trained on ABCD, tested on D) unless a finding says otherwise. Taken from the project's README
and from what others quote of the paper and its extended tables, not compared with the paper itself.
"""

from dataclasses import dataclass

PAPER = "arXiv 2412.14058"
TABLES = f"{PAPER} in Nature Machine Intelligence (s42256-025-01168-7), Extended Table 5"
EARLIER = "the authors' earlier repository github.com/lixinghang12/RoboVLM, ablation_plot.py"
NOT_STUDIED = "not studied"


@dataclass(frozen=True)
class PublishedFinding:
    """text: what was found; source: where it stands."""

    text: str
    source: str = PAPER


_DATA = "a tenth of the data 2.52, all of it 4.49, five times 4.51"
_EXECUTED = "PaliGemma, one step, flow matching, trained on ABC: first action 2.45, whole chunk 3.68"
_HEADS = "with history: MLP 1.357, GPT 4.06, LSTM 4.086"
FINDINGS: dict[str, PublishedFinding] = {
    "reference": PublishedFinding("4.49"),
    "history_1": PublishedFinding("one step 4.04, head over the history 4.49"),
    "executed_4": PublishedFinding(_EXECUTED),
    "executed_8": PublishedFinding(_EXECUTED),
    "head_gpt": PublishedFinding(_HEADS, EARLIER),
    "head_fc": PublishedFinding(_HEADS, EARLIER),
    "without_wrist_camera": PublishedFinding("static camera alone, after 5 epochs: 3.59", TABLES),
    **{f"demonstrations_{n}": PublishedFinding(_DATA) for n in (25, 50, 100, 200)},
}
"""By variant of `ablations.VARIANTS`; the others were not studied."""


def beside(variant: str) -> str:
    """The cell beside a variant's row: what was found, with the number of its source in `sources`, or `not studied`."""
    finding = FINDINGS.get(variant)
    if finding is None:
        return NOT_STUDIED
    return f"{finding.text} [{1 + _sources().index(finding.source)}]"


def _sources() -> list[str]:
    return list(dict.fromkeys(finding.source for finding in FINDINGS.values()))


def sources() -> str:
    """The note under the table."""
    told = "; ".join(f"[{number}] {source}" for number, source in enumerate(_sources(), 1))
    return (
        "RoboVLMs: mean count of tasks in a row, of 5, on CALVIN ABCD -> D, Kosmos with an LSTM over the history where "
        f"nothing else is said. Directions compare, sizes do not. Quoted at second hand: {told}."
    )
