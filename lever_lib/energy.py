"""How much energy training takes: measured by the processor's own counters where they can be read, else estimated.

Linux exposes the counters of Intel and AMD processors (RAPL) as files of microjoules that run over; most systems let
only root read them. They count a whole processor package, idle share and other programs included, so a measured figure
is the package's energy while the training ran, split over policies by CPU seconds. An estimate is CPU seconds times a
declared wattage. The label beside each figure says which it is.
"""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
MEASURED, ESTIMATED, UNKNOWN = "measured", "estimated", "unknown"


class Meter:
    """Joules that the processor packages have used since the meter was made.

    Args:
        folder: where the counters are.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._zones = sorted(path for path in folder.glob("intel-rapl:*") if _is_package(path))
        self._last = self._counters()
        self._microjoules = 0

    def update(self) -> None:
        """Read the counters. Call it more often than they run over: every few minutes will do."""
        now = self._counters()
        if self._last is not None and now is not None:
            for zone, before, after in zip(self._zones, self._last, now, strict=True):
                ran_over = after < before
                self._microjoules += after - before + ran_over * _number(zone / "max_energy_range_uj")
        self._last = now

    @property
    def joules(self) -> float | None:
        """Joules up to the last update; None where the counters cannot be read."""
        return None if self._last is None else self._microjoules / 1e6

    def _counters(self) -> list[int] | None:
        try:
            return [_number(zone / "energy_uj") for zone in self._zones] or None
        except OSError:  # not ours to read
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


def _is_package(zone: Path) -> bool:
    """Whether a zone is a whole processor: its parts, and the whole system, would count the same joules again."""
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _number(path: Path) -> int:
    return int(path.read_text())
