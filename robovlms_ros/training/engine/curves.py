"""A run's numbers while it runs: two CSV files, TensorBoard where installed, the trackers of
`training.trackers`, a progress bar with the time left."""

import csv
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robovlms_ros.training.engine.batches import TrainingError

log = logging.getLogger(__name__)
STEPS = "curve.csv"
EPOCHS = "validation.csv"
SCALARS_EVERY = 10
"""Steps from one value of TensorBoard and of trackers to the next."""
PROJECT = "robovlms_ros"
TRACKER_ID = "tracker_id.txt"


class Curves:
    """Rows up to `step` are kept, later ones (of a run that was killed) dropped. Does nothing
    unless `active`.

    total: steps of the run. bar: shows the progress, with the time left. trackers: see
    `start_trackers`, settings: what they store of the run.
    """

    def __init__(
        self, folder: Path, step: int, total: int, active: bool, bar: bool = True,
        trackers: Sequence[str] = (), settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.active = active
        self._writer: Any = None
        self._trackers: list[Any] = []
        self._bar: Any = None
        if not active:
            return

        for name in (STEPS, EPOCHS):
            rows = read_rows(folder / name)
            write_rows(folder / name, [row for row in rows if int(row["step"]) <= step])
        self._writer = _tensorboard(folder / "tensorboard", step)
        self._trackers = start_trackers(trackers, folder, settings or {})
        if bar:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=step, desc="training", unit="step", mininterval=1.0
            )

    def step(self, step: int, values: dict[str, float], epoch: int | None = None) -> None:
        """One step of the optimiser, or the means of the steps since the last row."""
        if not self.active:
            return
        place = {"step": step} if epoch is None else {"step": step, "epoch": epoch}
        append_row(self.folder / STEPS, {**place, **values})
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {values['loss']:.4f}, arm {values['arm']:.4f}", refresh=False
            )
            self._bar.update()
        if step % SCALARS_EVERY == 0:
            self._scalars("train", step, values)

    def validation(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """The end of an epoch."""
        if not self.active:
            return
        append_row(self.folder / EPOCHS, {"step": step, "epoch": epoch, **values})
        log.info("epoch %d: validation %s", epoch + 1, ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
        self._scalars("validation", step, values)

    def close(self) -> None:
        """End the progress bar, TensorBoard's file and the trackers' runs."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()
        for tracker in self._trackers:
            tracker.finish()

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        named = {f"{group}/{name}": value for name, value in values.items()}
        if self._writer is not None:
            for name, value in named.items():
                self._writer.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(named, step=step)


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("no TensorBoard here (`pip install tensorboard`): the curves are in %s", folder.parent)
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def start_trackers(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Any]:
    """A run of each tracker (`wandb`, `trackio`), by accelerate; one that was begun in `folder`
    goes on.

    Raises TrainingError for a tracker that is not installed or does not start.
    """
    if not names:
        return []
    from accelerate.tracking import TrackioTracker, WandBTracker

    file = folder / TRACKER_ID
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    identity = file.read_text().strip()
    run = f"{folder.name}-{identity}"
    started = []
    for name in names:
        try:
            if name == "wandb":
                tracker = WandBTracker(
                    PROJECT, id=identity, name=run, resume="allow", dir=str(folder)
                )
            else:
                tracker = TrackioTracker(PROJECT, name=run, resume="allow")
            tracker.start()
            tracker.store_init_configuration(dict(settings))
        except ImportError as error:
            raise TrainingError(
                f"training.trackers: {name} is not installed ({error}): `pip install {name}`, or "
                "leave it out. The CSV files and TensorBoard need neither."
            ) from error
        except Exception as error:  # a tracker raises its own kinds: no network, no account
            raise TrainingError(f"training.trackers: {name} does not start: {error}") from error
        started.append(tracker)
    return started


def read_rows(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows, none where there is no file; a last line that was cut off is left out."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Replace the file; without rows there is none."""
    path.unlink(missing_ok=True)
    for row in rows:
        append_row(path, row)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row, after a header where the file is new."""
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(row)
        writer.writerow([f"{v:.8g}" if isinstance(v, float) else v for v in row.values()])
