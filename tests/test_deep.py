"""Black boxes at toy size: the records are those of any source, and the rest of the code asks no questions."""

import shutil
import sys
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from lever_lib import artifacts, deep
from lever_lib.api import OpenLibrary
from lever_lib.artifacts import Outputs, is_published, read_manifest
from lever_lib.columns import column_dictionary
from lever_lib.composition import everyday_methods
from lever_lib.deep import find_deep, load_records, run_deep, save_records
from lever_lib.envs.environment import GridWorldEnv
from lever_lib.envs.gridworld import make_layout
from lever_lib.envs.rewards import reward_system
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.params import Deep, Pi2Vec
from lever_lib.policies.base import CellPolicy, greedy_actions
from lever_lib.policies.black_box import BlackBoxJob, CellEnv, one_hot, train_black_box
from lever_lib.policies.dqn import DQN
from lever_lib.policies.ppo import PPO
from lever_lib.rollout import evaluate

STEPS = 700


def job(algorithm, params, steps=STEPS):
    layout = make_layout(params.grid, 0)
    return BlackBoxJob(algorithm, "smoke", layout, reward_system("path"), "X5", steps, (0.5, 1.0), 0)


@pytest.fixture(scope="module")
def trained(smoke_params):
    return {algorithm.source: train_black_box(job(algorithm, smoke_params)) for algorithm in (DQN, PPO)}


def test_the_environment_is_seen_as_a_cell_and_takes_notes(smoke_params):
    layout = make_layout(smoke_params.grid, 0)
    env, plain = CellEnv(GridWorldEnv("smoke", layout, "path")), GridWorldEnv("smoke", layout, "path")
    seen, _ = env.reset(seed=0)
    plain.reset()
    assert seen.tolist() == one_hot([0], 36)[0].tolist()
    cells, done = [0], False
    actions = iter([0, 1] * 40)
    taken = []
    while not done:
        taken.append(next(actions))
        seen, reward, terminated, truncated, info = env.step(taken[-1])
        _, expected, *_ = plain.step(taken[-1])
        assert reward == pytest.approx(expected / 100)
        assert seen.argmax() == info["cell"]
        cells.append(info["cell"])
        done = terminated or truncated
    assert env.episodes == 1
    assert env.last[0].tolist() == cells
    assert env.last[1].tolist() == taken
    assert env.visits.sum() == len(taken)
    assert env.visits[0, 0] >= 1


@pytest.mark.parametrize("source", ["dqn", "ppo"])
def test_records_are_those_of_any_source(trained, source, smoke_params):
    first, last = trained[source]
    assert (first.snapshot, last.snapshot) == (0.5, 1.0)
    assert last.source == source
    assert last.policy_id == f"{source}-X5-0000-path-100"
    assert last.description == reward_system("path").sentence
    assert first.q_table.shape == last.visits.shape == (36, 4)
    assert STEPS / 2 <= first.visits.sum() < last.visits.sum()
    assert last.visits.sum() >= STEPS
    assert (first.q_table != last.q_table).any()
    assert first.episodes < last.episodes
    assert 0 < first.train_seconds < last.train_seconds
    episode = last.episode
    assert episode.cells[0] == 0
    assert len(episode.cells) == len(episode.actions) + 1 == len(episode.golds)


def test_the_values_of_ppo_are_log_probabilities(trained):
    total = np.exp(trained["ppo"][-1].q_table).sum(axis=1)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_the_values_of_dqn_are_in_units_of_reward(smoke_params):
    """An exit pays 100: after some training the value of the start is no longer below one."""
    record = train_black_box(job(DQN, smoke_params, 4000))[-1]
    layout = make_layout(smoke_params.grid, 0)
    found = evaluate(CellPolicy(greedy_actions(record.q_table)), layout, reward_system("path"))
    assert 20 < record.q_table[0].max() < 200
    assert found.return_ > 0


def test_the_same_job_gives_the_same_policies(trained, smoke_params):
    again = train_black_box(job(DQN, smoke_params))
    for one, other in zip(again, trained["dqn"], strict=True):
        assert (one.q_table == other.q_table).all()
        assert (one.visits == other.visits).all()


def test_training_leaves_nothing_behind(smoke_params, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads = torch.get_num_threads()
    train_black_box(job(PPO, smoke_params, 100))
    assert not list(tmp_path.iterdir())
    assert torch.get_num_threads() == threads


def test_the_jobs_own_reward_pays(smoke_params):
    legacy = reward_system("gold", legacy_gold_exit=True)
    assert GridWorldEnv("smoke", make_layout(smoke_params.grid, 0), legacy).system is legacy


def test_without_the_package_one_line_says_so(smoke_params, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("stable_baselines3")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(LeverError, match=r"deep.steps: needs stable-baselines3; pip install"):
        train_black_box(job(DQN, smoke_params))


def test_records_survive_their_file(trained, tmp_path):
    records = [*trained["dqn"], *trained["ppo"]]
    save_records(records, tmp_path / "policies.npz")
    for one, other in zip(load_records(tmp_path / "policies.npz"), records, strict=True):
        for name, value in vars(replace(other, train_seconds=np.nan, episode=None)).items():
            found = getattr(one, name)
            assert name in ("train_seconds", "episode") or np.array_equal(found, value), name
        for a, b in zip(one.episode, other.episode, strict=True):
            assert np.array_equal(a, b)
    whole = (tmp_path / "policies.npz").read_bytes()
    for harmed in (b"nothing", b"", whole[: len(whole) // 2]):
        (tmp_path / "policies.npz").write_bytes(harmed)
        with pytest.raises(LeverError, match="no policies can be read"):
            load_records(tmp_path / "policies.npz")


def test_black_boxes_join_are_embedded_by_a_network_found_and_composed(trained, smoke, smoke_params):
    opened = OpenLibrary(smoke_params, smoke).with_records([*trained["dqn"], *trained["ppo"]], embedding="network")
    exact = OpenLibrary(smoke_params, smoke).with_records([*trained["dqn"], *trained["ppo"]])
    learned, followed = (each.retriever.embeddings.embeddings[-4:] for each in (opened, exact))
    assert (learned != followed).any()
    np.testing.assert_allclose(learned, followed, atol=0.05 * np.abs(followed).max())
    assert opened.retriever.embeddings.settings == smoke.embeddings.settings, "what comes later is as before"
    answer = opened.ask("find the shortest path", seed=0, library="X5", top_k=30)
    found = set(answer.candidates[0]["policy_id"])
    assert {record.policy_id for record in trained["dqn"]} <= found
    whole = opened.ask("fast exit with gold", seed=0, library="X5", strategy="library")
    assert {record.policy_id for record in trained["ppo"]} <= set(whole.policy_ids)
    assert whole.return_ <= whole.optimum + 1e-9
    with pytest.raises(LeverError, match="embedding = 'lucky': must be one of exact, network"):
        OpenLibrary(smoke_params, smoke).with_records(trained["dqn"], embedding="lucky")


@pytest.fixture(scope="module")
def studied(smoke_params, tmp_path_factory):
    params = replace(smoke_params, deep=Deep(steps=300), pi2vec=Pi2Vec(canonical_states=16))
    outputs = Outputs("smoke", params, tmp_path_factory.mktemp("deep"))
    return outputs, run_deep(outputs)


def test_a_study_of_black_boxes(studied):
    outputs, found = studied
    assert len(found.records) == 2 * 8 * 5
    assert set(found.returns["source"]) == {"sarsa", "dqn", "ppo"}
    assert (found.returns["return"] <= found.returns["optimum"] + 1e-6).all()
    assert set(found.composition["pool"]) == {"sarsa", "dqn", "ppo", "all"}
    assert len(found.composition) == 4 * 6 * 2 * len(everyday_methods())
    everybody = found.composition.query("pool == 'all'").pivot_table(
        index=["query_class", "setup", "strategy"], columns="method", values="return"
    )
    assert (everybody["exnonzero"] >= everybody["gpi"] - 1e-6).all()
    assert (found.placement["nearest_own"] >= 0.9).all()
    assert (found.training_timings["train_seconds"] > 0).all()
    entry = read_manifest(outputs.folder)["deep"]
    assert all(is_published(name) for name in entry["files"])
    known = column_dictionary()
    explained = known[known["table"].str.startswith("deep/")]
    for name, columns in explained.groupby("table")["column"]:
        assert columns.tolist() == list(vars(found)[name.split("/")[1].removesuffix(".csv")]), name


def test_it_is_not_done_twice_and_not_where_nobody_asks(studied, smoke_params, tmp_path, monkeypatch):
    outputs, found = studied
    monkeypatch.setattr(deep, "run_jobs", None)
    assert run_deep(outputs).returns.equals(found.returns)
    assert run_deep(Outputs("smoke", smoke_params, tmp_path)) is None
    assert find_deep(Outputs("smoke", smoke_params, tmp_path)) is None


def test_another_root_reads_it_from_the_repository(studied, monkeypatch, tmp_path):
    outputs, found = studied
    shutil.copytree(outputs.folder, tmp_path / "outputs" / "smoke")
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    elsewhere = Outputs("smoke", outputs.params, tmp_path / "elsewhere")
    assert find_deep(elsewhere).returns.equals(found.returns)
    (tmp_path / "outputs" / "smoke" / "deep" / "returns.csv").write_text("harmed\n")
    with pytest.raises(MissingArtifactError, match=r"returns\.csv is missing or damaged; run"):
        find_deep(elsewhere)
