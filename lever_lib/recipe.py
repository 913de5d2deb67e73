"""A composed policy as a file: what it was composed of and how, so that it can be composed again anywhere.

The file is a plain `.npz` without pickles. It holds the world, the reward, the method and the members' Q-tables and
visit counts, and, for programs that only want to act, the episode: cells, actions and return.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lever_lib.artifacts import write_whole
from lever_lib.composition import Pool, method
from lever_lib.envs.gridworld import Layout, memory_count
from lever_lib.envs.rewards import RewardSystem, reward_system
from lever_lib.errors import LeverError
from lever_lib.files import MOST_OF_A_POLICY, read_arrays
from lever_lib.params import MOST_CELLS_A_SIDE, gold_slots
from lever_lib.planning import optimum
from lever_lib.rollout import Outcome, Policy, evaluate
from lever_lib.timed_planning import check_plannable


@dataclass(frozen=True)
class Recipe:
    """How to make a policy out of others.

    Attributes:
        layout: the world.
        system: the reward it is wanted for.
        method: id of the composition method.
        policy_ids: of the members.
        q_tables: of the members, float64 (M, S, 4), or more rows as in `composition.Pool`.
        visits: of the members, int, as many.
        alpha: step size that trained them.
    """

    layout: Layout
    system: RewardSystem
    method: str
    policy_ids: tuple[str, ...]
    q_tables: np.ndarray
    visits: np.ndarray
    alpha: float

    def policy(self) -> Policy:
        """The composed policy."""
        pool = Pool(self.layout, self.system, self.q_tables, self.visits, self.alpha)
        return pool.compose(method(self.method), tuple(range(len(self.policy_ids))))

    def outcome(self) -> Outcome:
        """The composed policy's episode from the start."""
        return evaluate(self.policy(), self.layout, self.system)

    def save(self, path: str | Path) -> None:
        """Write the recipe and its episode as `.npz`.

        Raises:
            LeverError: if the system does not let it be written; nothing is left behind then.
        """
        path = Path(path)
        episode = self.outcome()
        content: dict[str, Any] = {
            "layout": self.layout.cells,
            "layout_name": self.layout.name,
            "moves": self.layout.moves,
            "setup": self.system.name,
            "legacy_gold_exit": self.system.legacy_gold_exit,
            "method": self.method,
            "policy_ids": np.array(self.policy_ids),
            "q_tables": self.q_tables,
            "visits": self.visits,
            "alpha": self.alpha,
            "cells": episode.cells,
            "actions": episode.actions,
            "return": episode.return_,
            "optimum": optimum(self.layout, self.system).return_,
        }
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **content)
        write_whole(path, packed.getvalue())


def load_policy(path: str | Path) -> Recipe:
    """Read what `Recipe.save` wrote.

    Raises:
        LeverError: if the file is absent or holds something else, or if another policy comes of it here, as it may
            where rewards or methods of one's own, by which `switch` improves what is known, are not the same.
    """
    try:
        parts = read_arrays(Path(path), MOST_OF_A_POLICY)
        cells, q_tables, visits = parts["layout"], parts["q_tables"], parts["visits"]
        names = tuple(str(name) for name in parts["policy_ids"])
        layout = Layout(cells, str(parts["layout_name"]), str(parts["moves"]))
        if parts["legacy_gold_exit"].dtype != np.bool_ or parts["legacy_gold_exit"].size != 1:
            raise LeverError("legacy_gold_exit must be a flag")
        system = reward_system(str(parts["setup"]), bool(parts["legacy_gold_exit"]))
        recipe = Recipe(layout, system, str(parts["method"]), names, q_tables, visits, float(parts["alpha"]))
        method(recipe.method)
        returned, walked = float(parts["return"]), [parts[name].tolist() for name in ("cells", "actions")]
        if layout.size > MOST_CELLS_A_SIDE:
            raise LeverError(f"a world of {layout.size} cells a side; at most {MOST_CELLS_A_SIDE} can be planned for")
        if len(layout.golds) > gold_slots(layout.size):
            raise LeverError(f"{len(layout.golds)} golds; at most {gold_slots(layout.size)} can be planned for")
        check_plannable(layout)
    except Exception as error:  # the readers of damaged archives raise whatever the damage leads them to
        raise LeverError(f"{path}: no saved policy can be read from it ({error})") from None
    memories = memory_count(len(layout.golds)) if q_tables.shape[1:2] != (layout.cells.size,) else 1
    shape = (len(names), layout.cells.size * memories, 4)
    sound = q_tables.dtype == np.float64 and q_tables.shape == shape and np.isfinite(q_tables).all()
    counts = np.issubdtype(visits.dtype, np.integer) and visits.shape == shape and (visits >= 0).all()
    if not names or not sound or not counts:
        raise LeverError(f"{path}: its tables must be {shape}, of finite float64 and of counts")
    if not 0 < recipe.alpha <= 1:
        raise LeverError(f"{path}: alpha = {recipe.alpha} must be above 0 and at most 1")
    found = recipe.outcome()
    if not abs(found.return_ - returned) <= 1e-6:
        difference = f"returns {found.return_:.6g} here, {returned:.6g} where it was saved"
    elif [found.cells.tolist(), found.actions.tolist()] != walked:
        difference = "goes another way here than where it was saved"
    else:
        return recipe
    raise LeverError(f"{path}: its policy {difference}; is a reward or method of your own another one here?")
