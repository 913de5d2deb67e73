from dataclasses import replace

import pandas as pd
import pytest

from lever_lib import ladder
from lever_lib.columns import column_dictionary
from lever_lib.envs.rewards import COMPONENTS, Component
from lever_lib.errors import LeverError
from lever_lib.params import Budget, Grid, Sarsa
from lever_lib.recognise import check_sentences


@pytest.fixture(scope="module")
def few(smoke_params):
    """Three layouts, with the fewest episodes that still have twenty snapshots."""
    study = replace(smoke_params.study, first_seed=50, layouts=3)
    libraries = {name: replace(budget, episodes=400) for name, budget in smoke_params.libraries.items()}
    return replace(smoke_params, study=study, libraries=libraries)


@pytest.fixture(scope="module")
def table(few):
    rows = [row for seed in few.study.test_seeds for row in ladder.measure(ladder.LadderJob(few, seed))]
    return ladder.summary(pd.DataFrame(rows), few.root_seed)


def test_every_change_is_measured_with_every_method(table):
    assert set(table["method"]) == {*ladder.COMPOSED, ladder.SCRATCH}
    changes = {"snapshots", "stopped", "systems", "budget", "hazards", "objectives", "discount", "moves"}
    assert set(table["change"]) == changes
    assert (table["layouts"] == 3).all()
    assert (table["share"] <= 1 + 1e-9).all()
    assert list(table) == column_dictionary("ladder/library.csv").index.tolist()


def test_what_may_be_read_more_of_is_never_worth_less(table):
    shares = table.pivot(index=["change", "value"], columns="method", values="share")
    assert (shares["switch"] >= shares["gpi"] - 1e-9).all()
    assert (shares["exnonzero"] >= shares["switch"] - 1e-6).all()


def test_more_snapshots_never_lower_the_bound(table):
    """The snapshots of a coarser library are among those of a finer one whose number is a multiple."""
    bound = table.query("change == 'snapshots' and method == 'switch'").set_index("value")["share"]
    assert bound[1] <= bound[2] + 1e-9 <= bound[10] + 2e-9 <= bound[20] + 3e-9
    assert bound[1] <= bound[5] + 1e-9 <= bound[20] + 2e-9


def test_a_training_that_was_not_stopped_early_is_one_with_a_single_snapshot(table):
    shares = table.set_index(["change", "value", "method"])["share"]
    for method in (*ladder.COMPOSED, ladder.SCRATCH):
        assert shares["stopped", 1.0, method] == shares["snapshots", 1, method]
    assert shares["stopped", 0.05, ladder.SCRATCH] != shares["stopped", 1.0, ladder.SCRATCH], "the early policy acts"


def test_what_was_seen_early_is_seen_later(table):
    """Visits add up over a training, so what they allow does too."""
    believed = table.query("change == 'stopped' and method == 'exnonzero'").sort_values("value")["share"]
    assert (believed.diff().dropna() > -1e-9).all()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"libraries": {"X1": Budget(15, 0.9)}, "sarsa": Sarsa(snapshots=(0.5, 1.0))}, "too few for the snapshots"),
        ({"grid": Grid(6, 12, 10, 7)}, "must fit"),
        ({"grid": Grid(5, 3, 2, 9)}, "14 hazards"),
    ],
)
def test_what_a_change_cannot_be_made_of_is_found_before_anything_is_trained(smoke_params, change, rule):
    ladder.check_changes(smoke_params)
    with pytest.raises(LeverError, match=rf"study: the ladder takes 20 snapshots .*{rule}"):
        ladder.check_changes(replace(smoke_params, **change))


def test_somebodys_own_objectives_stay_what_they_are(monkeypatch):
    mine = Component("Take a long walk before the exit.", {"step": 2.0, "exit": 10.0}, words="stroll|walk")
    monkeypatch.setitem(COMPONENTS, "stroll", mine)
    with ladder.further_objectives() as names:
        assert names == ["tidy", "further_stroll"]
        assert COMPONENTS["stroll"] is mine
    assert list(COMPONENTS) == ["path", "gold", "hazard", "lever", "stroll"]


def test_further_objectives_are_there_for_a_while_only(table):
    assert list(COMPONENTS) == ["path", "gold", "hazard", "lever"]
    with ladder.further_objectives():
        assert list(COMPONENTS) == ["path", "gold", "hazard", "lever", "tidy", "stroll"]
        check_sentences()
    assert list(COMPONENTS) == ["path", "gold", "hazard", "lever"]
