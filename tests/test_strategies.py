import numpy as np
import pytest

from lever_lib import strategies
from lever_lib.composition import METHODS, Pool
from lever_lib.envs.features import SLICES, feature_tables
from lever_lib.envs.gridworld import layout_from_text
from lever_lib.envs.rewards import reward_system
from lever_lib.errors import LeverError
from lever_lib.experiment import experiment_jobs
from lever_lib.params import Pi2Vec
from lever_lib.pi2vec import Embedder
from lever_lib.rollout import start_state
from lever_lib.scaling import indifferent
from lever_lib.strategies import STRATEGIES, choices, choose, combinations
from lever_lib.timed_planning import states_to_plan

CANDIDATES = [[4, 2, 7, 1, 0], [3, 5, 6, 8, 9]]


@pytest.mark.parametrize(("strategy", "count"), [("targeted", 1), ("hybrid", 9), ("exhaustive", 25), ("library", 1)])
def test_how_many_combinations(strategy, count):
    assert len(combinations(strategy, CANDIDATES, 3, range(10))) == count


def test_published_counts_for_two_to_four_sub_queries():
    for parts, exhaustive, hybrid in ((2, 25, 9), (3, 125, 27), (4, 625, 81)):
        rows = [list(range(5))] * parts
        assert len(combinations("exhaustive", rows, 3, [])) == exhaustive
        assert len(combinations("hybrid", rows, 3, [])) == hybrid


def test_more_combinations_than_anybody_can_try_are_refused():
    rows = [list(range(80))] * 4
    with pytest.raises(
        LeverError, match=r"exhaustive: 80 x 80 x 80 x 80 candidates make 40,960,000 combinations, must"
    ):
        combinations("exhaustive", rows, 3, [])
    with pytest.raises(LeverError, match=r"hybrid: .*100,000 at most; take fewer of each \(top_k, search.candidates\)"):
        combinations("hybrid", rows, 10**30, [])
    assert len(combinations("hybrid", rows, 3, [])) == 81


def test_targeted_takes_the_best_and_hybrid_contains_it():
    assert combinations("targeted", CANDIDATES, 3, []) == [(4, 3)]
    assert combinations("hybrid", CANDIDATES, 2, []) == [(4, 3), (4, 5), (2, 3), (2, 5)]
    assert combinations("library", CANDIDATES, 3, [5, 6]) == [(5, 6)]
    with pytest.raises(LeverError, match=STRATEGIES[0]):
        combinations("lucky", CANDIDATES, 3, [])


def test_the_first_combinations_are_those_of_fewer_candidates():
    every = combinations("exhaustive", CANDIDATES, 3, [])
    assert every[:9] == combinations("hybrid", CANDIDATES, 3, [])
    assert every[:1] == combinations("targeted", CANDIDATES, 3, [])
    assert len(set(every)) == 25
    uneven = combinations("exhaustive", [[0, 1, 2], [3]], 2, [])
    assert uneven == [(0, 3), (1, 3), (2, 3)]


class ByLever:
    """Predicts by the discounted time with the lever taken."""

    def predict(self, embedded, system):
        return embedded.mean[:, SLICES["lever_taken"].start]


def test_the_best_prediction_is_kept_and_the_first_on_ties(corridor):
    q_tables = np.zeros((3, 16, 4))
    q_tables[0, 0, 1] = q_tables[1, 0, 3] = q_tables[2, 0, 3] = 1.0  # down; down x2, twice
    pool = Pool(corridor, reward_system("path"), q_tables, np.zeros((3, 16, 4), np.int32), 0.1)
    embedder = Embedder(corridor, start_state(corridor), feature_tables(corridor), Pi2Vec(gamma=0.9))
    predictor = ByLever()
    choice = choose(pool, METHODS["qsum"], [(0,), (2,), (1,)], embedder, predictor)
    assert choice.members == (2,), "only down x2 takes the lever; of equals the first"
    assert choice.combinations == 3
    assert choice.predicted_return > 0
    assert choice.seconds_compose > 0
    assert choice.seconds_score > 0
    with pytest.raises(LeverError, match="nothing to compose"):
        choose(pool, METHODS["qsum"], [], embedder, predictor)


def test_what_acts_alike_is_composed_once(corridor, monkeypatch):
    q_tables = np.zeros((4, 16, 4))
    q_tables[2:, 0, 3] = 1.0  # policies 0, 1 act alike, and 2, 3
    q_tables[1] += 7.0
    pool = Pool(corridor, reward_system("path"), q_tables, np.zeros((4, 16, 4), np.int32), 0.1)
    assert pool.behaviour == [0, 0, 2, 2]
    composed = []
    monkeypatch.setattr(
        Pool,
        "compose",
        lambda self, method, members: composed.append(members) or method.compose(self.view(method, members)),
    )
    embedder = Embedder(corridor, start_state(corridor), feature_tables(corridor), Pi2Vec(gamma=0.9))
    predictor = indifferent(4)
    choice = choose(pool, METHODS["gpi"], [(0, 2), (1, 2), (1, 3), (0, 1)], embedder, predictor)
    assert composed == [(0, 2), (0, 1)]
    assert choice.combinations == 4
    assert choice.members == (0, 2)


def test_policies_that_take_much_memory_do_not_wait_for_many_others(monkeypatch):
    around = layout_from_text("S G .\n. . L\n. . E", "around", "cardinal")
    planned = states_to_plan(around)
    pool = Pool(around, reward_system("gold"), np.zeros((7, 9, 4)), np.ones((7, 9, 4), np.int32), 0.1)
    embedder = Embedder(around, start_state(around), feature_tables(around), Pi2Vec(gamma=0.9))
    waited, embed = [], embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda _, policies: waited.append(len(policies)) or embed(policies))
    monkeypatch.setattr(strategies, "_WAITING", 3 * planned)
    combos = [(row,) for row in range(7)]
    choice = choose(pool, METHODS["exnonzero"], combos, embedder, indifferent(7))
    assert pool.compose(METHODS["exnonzero"], (0,)).actions.nbytes <= 2 * planned
    assert (waited, choice.members) == ([3, 3, 1], (0,))


def test_choices_in_one_go_are_those_made_apart(smoke):
    job = experiment_jobs(smoke)[-1]
    asked = job.asked[2]
    system = reward_system(asked.query.setup)
    pool = Pool(job.embedder.layout, system, job.q_tables, job.visits, job.alpha)
    combos, ends = combinations("exhaustive", asked.candidates, 3, []), [1, 81, 625]
    for method in METHODS.values():
        seen = []
        together = list(choices(pool, method, combos, ends, job.embedder, job.predictor, seen.append))
        apart = [choose(pool, method, combos[:end], job.embedder, job.predictor) for end in ends]
        for one, other in zip(together, apart, strict=True):
            assert one.members == other.members
            assert one.predicted_return == other.predicted_return
            assert one.combinations == other.combinations
        assert 0 < len(seen) <= 625


def test_choices_in_one_go_count_the_seconds_of_those_made_apart(smoke, monkeypatch):
    """With a clock that ticks once per composition and ten times per policy embedded."""
    clock = [0]
    compose, embed = Pool.compose, Embedder.embed
    monkeypatch.setattr(Pool, "compose", lambda *args: (tick(clock, 1), compose(*args))[1])
    monkeypatch.setattr(Embedder, "embed", lambda *args: (tick(clock, 10 * len(args[1])), embed(*args))[1])
    monkeypatch.setattr(strategies.time, "perf_counter", lambda: clock[0])
    job = experiment_jobs(smoke)[-1]
    asked = job.asked[2]
    pool = Pool(job.embedder.layout, reward_system(asked.query.setup), job.q_tables, job.visits, job.alpha)
    combos, ends = combinations("exhaustive", asked.candidates, 3, []), [1, 16, 81]

    def disturb(policy):
        tick(clock, 1000)

    for method in METHODS.values():
        together = choices(pool.fresh(), method, combos, ends, job.embedder, job.predictor, disturb)
        for one, end in zip(together, ends, strict=True):
            tick(clock, 1000)
            other = choose(pool.fresh(), method, combos[:end], job.embedder, job.predictor)
            assert one.seconds_compose == other.seconds_compose > 0
            assert one.seconds_score == other.seconds_score > 0


def tick(clock, seconds):
    clock[0] += seconds
