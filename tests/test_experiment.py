import hashlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lever_lib.artifacts import Outputs
from lever_lib.composition import Pool, everyday_methods
from lever_lib.envs.rewards import reward_system
from lever_lib.experiment import experiment_jobs, load_results, run_job, search_settings
from lever_lib.params import Execution, Pi2Vec
from lever_lib.policies.base import CellPolicy
from lever_lib.queries import QUERIES, QUERY_CLASSES
from lever_lib.rollout import evaluate
from lever_lib.strategies import STRATEGIES, choose, combinations
from tests.conftest import build_everything

KEY = ["spec", "library", "seed", "query_class", "setup", "query", "strategy", "method"]
RESULTS = [
    *KEY,
    *("rung", "policies", "return", "optimum", "support_return", "scratch_return", "best_single_return"),
    *("predicted_return", "coverage_regret", "composition_regret"),
    *("certificate_estimate", "certificate_lower", "certificate_upper", "combinations", "stuck"),
]
TIMINGS = [
    *KEY,
    *("seconds_decompose", "seconds_search", "seconds_compose", "seconds_score", "scratch_seconds"),
]


@pytest.fixture
def tables(smoke, smoke_outputs):
    found = load_results(smoke_outputs)
    return found.results, found.timings


def test_every_query_strategy_method_layout_and_library_has_a_row(tables):
    results, timings = tables
    assert results.columns.tolist() == RESULTS
    assert timings.columns.tolist() == TIMINGS
    assert len(results) == len(timings) == len(QUERIES) * len(STRATEGIES) * len(everyday_methods()) * 3 * 2
    assert not results.duplicated(KEY).any()
    assert (results[KEY] == timings[KEY]).all(axis=None)
    assert results.notna().all(axis=None)


def test_regret_splits_exactly_and_is_never_negative(tables):
    results = tables[0]
    assert (results[["coverage_regret", "composition_regret"]] >= 0).all(axis=None)
    parts = results["coverage_regret"] + results["composition_regret"]
    assert ((results["optimum"] - results["return"]) - parts).abs().max() < 1e-6
    assert ((results["optimum"] - results["support_return"]) - results["coverage_regret"]).abs().max() < 1e-6


def test_what_is_promised_is_kept(tables):
    results = tables[0]
    assert (results["certificate_lower"] <= results["return"] + 1e-6).all()
    assert (results["optimum"] <= results["certificate_upper"] + 1e-6).all()
    above = results[results["rung"] > 0]
    assert (above["certificate_estimate"] <= above["return"] + 1e-6).all()


def test_gpi_is_never_below_the_best_policy_it_was_made_of(tables):
    rows = tables[0].query("method == 'gpi'")
    assert (rows["return"] >= rows["best_single_return"] - 1e-6).all()


def test_rung_3_is_supported_by_more(tables):
    results = tables[0].set_index([*KEY[:7], "method"])["support_return"].unstack("method")
    library = results.xs("library", level="strategy")
    assert (library["exnonzero"] >= library["gpi"] - 1e-6).all()
    assert (library["qsum"] == library["gpi"]).all(), "same policies, same support"


def test_references_are_what_they_say(tables, smoke):
    library = smoke.library
    policies = library.policies.set_index("policy_id")
    for row in tables[0].sample(40, random_state=1).itertuples():
        layout, system = library.layout(row.seed), library.system(row.setup)
        members = row.policies.split("+")
        assert set(policies.loc[members, "seed"]) == {row.seed}
        assert set(policies.loc[members, "library"]) == {row.library}
        assert row.setup not in set(policies.loc[members, "setup"]), "nobody trained on the question helps to answer it"
        singles = [
            evaluate(CellPolicy(library.actions[policies.loc[name, "q_index"]]), layout, system).return_
            for name in members
        ]
        assert row.best_single_return == max(singles)
        scratch = policies.query(
            "library == @row.library and seed == @row.seed and setup == @row.setup and snapshot == 1.0"
        )
        assert row.scratch_return == scratch["return"].iloc[0]


def test_times_are_measured(tables, smoke):
    timings = tables[1]
    seconds = timings.set_index("strategy")[[name for name in timings if name.startswith("seconds_")]]
    assert (seconds.loc[["targeted", "hybrid", "exhaustive"]] > 0).all(axis=None)
    assert (seconds.loc["library", ["seconds_decompose", "seconds_search"]] == 0).all(axis=None), "nothing to search"
    trained = smoke.library.policies.merge(smoke.library.timings, on="policy_id").query("snapshot == 1.0")
    trained = trained.set_index(["library", "seed", "setup"])["train_seconds"]
    for row in timings.sample(20, random_state=2).itertuples():
        written = pytest.approx(trained[row.library, row.seed, row.setup], rel=1e-5, abs=1e-9)  # to six digits
        assert row.scratch_seconds == written


def test_combinations_and_who_is_composed(tables):
    results = tables[0]
    counts = results.groupby(["query_class", "setup", "strategy"])["combinations"].first()
    assert counts["trivial", "path-gold-hazard-lever"].to_dict() == {
        "exhaustive": 625,
        "hybrid": 81,
        "library": 1,
        "targeted": 1,
    }
    assert counts["double", "path-gold-hazard", "hybrid"] == 9
    assert counts["triple", "path-gold-hazard-lever", "exhaustive"] == 25
    members = results.query("strategy == 'library'")["policies"].str.split("+")
    assert (members.str.len() == 35).all()


def test_rows_are_what_a_single_run_would_choose(smoke, smoke_outputs):
    job = experiment_jobs(smoke)[1]
    asked = job.asked[3]
    system = reward_system(asked.query.setup)
    pool = Pool(job.embedder.layout, system, job.q_tables, job.visits, job.alpha)
    found = load_results(smoke_outputs)
    for method in everyday_methods():
        for k, strategy in ((1, "targeted"), (2, None), (3, "hybrid"), (4, None), (5, "exhaustive")):
            combos = combinations("hybrid", asked.candidates, k, ())
            alone = choose(pool.fresh(), method, combos, job.embedder, job.predictor)
            earned = evaluate(alone.policy, pool.layout, system).return_
            which = {"library": job.library, "seed": pool.layout.name, "setup": system.name, "method": method.name}
            which["query_class"] = asked.query.query_class
            rows = [(found.results, {"strategy": strategy})] if strategy else []
            rows += [(found.sweep, {"k": k})] if k > 1 else []
            for table, more in rows:
                [row] = table[(table[list(which | more)] == pd.Series(which | more)).all(axis=1)].to_dict("records")
                assert row["return"] == pytest.approx(earned)
                assert row["predicted_return"] == alone.predicted_return
                assert row["combinations"] == len(combos)
                if "policies" in row:
                    assert row["policies"] == "+".join(job.policies["policy_id"].iloc[list(alone.members)])
                else:
                    policies = [pool.compose(method, members) for members in combos]
                    best = max(evaluate(policy, pool.layout, system).return_ for policy in policies)
                    assert row["best_return"] == pytest.approx(best)


def test_where_fewer_candidates_are_found_the_sweep_goes_on(smoke):
    job = experiment_jobs(smoke)[0]
    few = [replace(asked, candidates=[rows[:2] for rows in asked.candidates]) for asked in job.asked]
    sweep = pd.DataFrame(run_job(replace(job, asked=few))["sweep"])
    assert sweep.groupby("k").size().nunique() == 1, "every question at every k"
    assert (sweep.groupby(["query_class", "setup", "method"])["return"].nunique() == 1).all()


def test_the_sweep_grows(smoke, smoke_outputs):
    """More combinations are never predicted to be worse, and the best of them never is."""
    found = load_results(smoke_outputs)
    sweep = found.sweep.set_index(["library", "seed", "query_class", "setup", "method", "k"])
    assert len(sweep) == len(QUERIES) * len(everyday_methods()) * 3 * 2 * 4
    assert sweep.index.is_unique
    for column in ("predicted_return", "best_return", "combinations"):
        by_k = sweep[column].unstack("k")
        assert (by_k.diff(axis=1).iloc[:, 1:] >= -1e-9).all(axis=None), column
    assert (sweep["return"] <= sweep["best_return"] + 1e-9).all()
    assert (sweep["best_return"] <= sweep["optimum"] + 1e-9).all()


def test_direct_bounds_are_made_of_the_right_policies_at_their_best(smoke, smoke_outputs):
    library = smoke.library
    policies = library.policies.set_index("policy_id")
    parts = {(query.query_class, query.setup): query.parts for query in QUERIES}
    direct = load_results(smoke_outputs).direct
    assert len(direct) == len(QUERIES) * len(everyday_methods()) * 3 * 2
    for row in direct.itertuples():
        members = policies.loc[row.policies.split("+")]
        assert tuple(members["setup"]) == parts[row.query_class, row.setup]
        assert set(members["seed"]) == {row.seed}
        assert set(members["library"]) == {row.library}
        for member in members.itertuples():
            others = policies.query("seed == @row.seed and library == @row.library and setup == @member.setup")
            better = others[others["return"] >= others["return"].max()]
            assert member.snapshot == better["snapshot"].min(), "the earliest of the best"


def test_candidates_come_from_the_class_only(smoke):
    for job in experiment_jobs(smoke):
        for asked in job.asked:
            allowed = QUERY_CLASSES[asked.query.query_class].setups
            for rows in asked.candidates:
                assert len(rows) == 5
                assert job.policies.loc[rows, "setup"].nunique() == 1
                assert set(job.policies.loc[rows, "setup"]) <= set(allowed)


def test_an_undivided_query_is_one_sub_query(smoke):
    params = smoke.library.params
    undivided = replace(smoke.library, params=replace(params, search=replace(params.search, decompose="none")))
    for job in experiment_jobs(replace(smoke, library=undivided))[:1]:
        assert [len(asked.candidates) for asked in job.asked] == [1] * len(QUERIES)
        rows = run_job(job)["results"]
        assert len(rows) == len(QUERIES) * len(STRATEGIES) * len(everyday_methods())
        assert all(row["return"] <= row["optimum"] for row in rows)


def test_predictions_come_from_the_model_that_never_saw_the_layout(smoke):
    for job in experiment_jobs(smoke):
        assert job.predictor is smoke.regressor.models[job.embedder.layout.name]


def digests(folder):
    """SHA-256 of every file that must not differ between runs; what questions leave behind is of no run."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "timings" not in path.name
        if not path.name.startswith(".") and path.name not in ("manifest.json", "params.yaml")
    }


def test_same_params_same_bytes_on_one_worker_or_two(smoke, smoke_outputs, smoke_params, tmp_path):
    params = replace(smoke_params, execution=Execution(workers=2))
    build_everything(params, Outputs("smoke", params, tmp_path))
    first, second = digests(smoke_outputs.folder), digests(tmp_path / "smoke")
    assert len(first) == 26
    assert first == second


def test_another_root_seed_gives_other_policies(smoke, smoke_params, tmp_path):
    from lever_lib.library import build_library

    params = replace(smoke_params, root_seed=1)
    other = build_library(params, Outputs("smoke", params, tmp_path))
    assert (other.q_tables != smoke.library.q_tables).any()
    assert (other.layout(0).cells == smoke.library.layout(0).cells).all(), "layouts have streams of their own"


def test_with_a_network_for_exact_embeddings_the_whole_pipeline_runs(smoke, smoke_params, tmp_path):
    budgets = {"X1": smoke_params.libraries["X1"]}
    params = replace(smoke_params, libraries=budgets, pi2vec=Pi2Vec(method="network", canonical_states=8))
    learned = build_everything(params, Outputs("smoke", params, tmp_path))
    results = load_results(Outputs("smoke", params, tmp_path)).results
    embedder = learned.embeddings.embedder(learned.library.layout(1))
    assert embedder.settings == params.pi2vec, "composed policies are embedded as the library is"
    mine = np.flatnonzero(learned.library.policies["seed"] == "0001")
    exact = replace(embedder, settings=replace(embedder.settings, method="exact"))
    true = exact.embed([CellPolicy(actions) for actions in learned.library.actions[mine]]).mean
    spread = true.std(axis=0)
    error = np.abs(learned.embeddings.embeddings[mine] - true)[:, spread > 1e-6] / spread[spread > 1e-6]
    assert 0 < np.median(error) < 0.05
    assert len(results) == 6 * 4 * len(everyday_methods()) * 3
    assert np.isfinite(results["predicted_return"]).all()
    assert (results["return"] <= results["optimum"] + 1e-9).all()


def test_the_files_of_an_encoder_count(smoke_params, tmp_path):
    assert "encoder_files" not in search_settings(smoke_params)
    (tmp_path / "config.json").write_text("{}")
    params = replace(smoke_params, search=replace(smoke_params.search, encoder=str(tmp_path)))
    before = search_settings(params)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert search_settings(params) != before
