import pytest

from lever_lib.energy import Meter, policy_joules


def zone(folder, name, title, microjoules, span=1000):
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / "name").write_text(f"{title}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{span}\n")


def test_packages_are_added_up_and_their_parts_are_not(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 50)
    zone(tmp_path, "intel-rapl:1", "package-1", 0)
    zone(tmp_path, "intel-rapl:2", "psys", 500)
    meter = Meter(tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 300)
    zone(tmp_path, "intel-rapl:0:0", "core", 250)
    zone(tmp_path, "intel-rapl:1", "package-1", 11)
    zone(tmp_path, "intel-rapl:2", "psys", 900)
    assert meter.joules == 0
    meter.update()
    assert meter.joules == pytest.approx(211e-6)


def test_a_counter_that_runs_over_is_followed(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 900)
    meter = Meter(tmp_path)
    for value in (200, 700, 100):
        zone(tmp_path, "intel-rapl:0", "package-0", value)
        meter.update()
    assert meter.joules == pytest.approx((300 + 500 + 400) * 1e-6)


def test_where_nothing_can_be_read_nothing_is_measured(tmp_path):
    assert Meter(tmp_path).joules is None
    assert Meter(tmp_path / "nowhere").joules is None
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = Meter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    meter.update()
    assert meter.joules is None
    zone(tmp_path, "intel-rapl:0", "package-0", 500)
    meter.update()
    assert meter.joules is None, "what happened meanwhile nobody knows"
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").unlink()
    meter = Meter(tmp_path)
    meter.update()
    assert meter.joules is None


def test_joules_of_a_policy():
    assert policy_joules([1.0, 2.0], 4.0, None, 15.0) == ([15.0, 30.0], "estimated")
    assert policy_joules([1.0, 2.0], 4.0, 100.0, 15.0) == ([25.0, 50.0], "measured")
