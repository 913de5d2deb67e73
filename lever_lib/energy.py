"""How much energy training takes: measured by the processor's own counters where they can be read, else estimated.

Linux exposes the counters of Intel and AMD processors (RAPL) as files of microjoules that run over; most systems let
only root read them. They count a whole processor package, idle share and other programs included, so a measured figure
is the package's energy while the training ran, split over policies by CPU seconds. An estimate is CPU seconds times a
declared wattage. The label beside each figure says which it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

POWERCAP = Path("/sys/class/powercap")
MEASURED, ESTIMATED, UNKNOWN = "measured", "estimated", "unknown"


class Meter:
    """Joules that the processor packages have used since the meter was made.

    Args:
        folder: where the counters are.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._zones = sorted(path for path in folder.glob("intel-rapl:*") if _is_package(path))
        self._last = self._read("energy_uj")
        self._spans = self._read("max_energy_range_uj")
        self._microjoules = 0

    def update(self) -> None:
        """Read the counters. Call it more often than they run over: every few minutes will do."""
        if self._last is None or self._spans is None:
            return
        now = self._read("energy_uj")
        for before, after, span in zip(self._last, now or [], self._spans, strict=False):
            self._microjoules += after - before + span * (after < before)
        self._last = now  # a reading that fails once leaves a hole: from then on nothing is measured

    @property
    def joules(self) -> float | None:
        """Joules up to the last update; None where the counters cannot be read."""
        return None if self._last is None or self._spans is None else self._microjoules / 1e6

    def _read(self, name: str) -> list[int] | None:
        try:
            return [int((zone / name).read_text()) for zone in self._zones] or None
        except (OSError, ValueError):  # not ours to read
            return None


def policy_joules(
    seconds: list[float], run_seconds: float, measured: float | None, watts: float
) -> tuple[list[float], str]:
    """Joules that each policy took to train, and how they were come by.

    Args:
        seconds: CPU seconds of each policy.
        run_seconds: CPU seconds of all training runs together.
        measured: joules of all training runs together, None if nothing could be read.
        watts: of one busy core, for the estimate.

    Returns:
        Joules, and `measured` or `estimated`.
    """
    if measured is None:
        return [watts * second for second in seconds], ESTIMATED
    return [measured * second / run_seconds for second in seconds], MEASURED


def joules_in_words(table: pd.DataFrame) -> list[str]:
    """The columns `energy_joules` and `energy_label` of a table for people, as in `0.12 (estimated)`."""
    pairs = zip(table["energy_joules"], table["energy_label"], strict=True)
    return [label if joules != joules else f"{joules:.3g} ({label})" for joules, label in pairs]


def _is_package(zone: Path) -> bool:
    """Whether a zone is a whole processor: its parts, and the whole system, would count the same joules again."""
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False
