"""Policies that somebody adds to a library on disk: beside it, each batch in a folder of its own.

Nothing that is there is written again, so adding one policy takes as long for a large library as for a small one. A
batch is complete before it gets its name, so whoever opens the library meanwhile sees it with the batch or without,
never with half of it. It says itself what is in it, with checksums: whatever manifest git brings back, it is there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import isnan, nan
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from lever_lib.artifacts import (
    ADDED,
    Outputs,
    batches,
    damaged_files,
    delete,
    json_hash,
    read_about,
    shown,
    write_about,
)
from lever_lib.envs.gridworld import Layout, States
from lever_lib.envs.rewards import COMPONENTS, reward_system
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.library import Library, check_layout, load_records, save_records
from lever_lib.locks import BUILD, PUBLISH, hold
from lever_lib.pi2vec import METHODS, are_states
from lever_lib.policies.base import PolicyRecord


@dataclass(frozen=True)
class Added:
    """Policies that join a library, with all that it takes to have them in it again as they are now.

    Attributes:
        records: of policies.
        layouts: that they are valid in and that the library does not have.
        methods: by which each is embedded, as in `Embeddings.joined`; by default None for all.
        canonical: states of these layouts, by name, that they are embedded at; by default they are drawn again.
    """

    records: Sequence[PolicyRecord] = ()
    layouts: Sequence[Layout] = ()
    methods: Sequence[str | None] = ()
    canonical: Mapping[str, States] = field(default_factory=dict)


def keep(batch: Added, library: Library, outputs: Outputs) -> Path:
    """Write policies beside a library, as one batch; returns its folder.

    Args:
        batch: that the library does not have yet; `Library.joined` says what is wrong with its records.
        library: that they join.
        outputs: that it is part of.

    Raises:
        LeverError: if one was added already, or another layout by the name of one, by another process or an older
            handle of the library.
    """
    worlds = library.layouts | {layout.name: layout for layout in batch.layouts}
    names = [record.policy_id for record in batch.records]
    name = json_hash(names)[:16]
    with outputs.adding(name) as draft:
        others = [_look(outputs.folder / other) for other in batches(outputs.folder)]
        for other in others:
            for policy_id in names:
                if policy_id in other["policies"]:
                    raise LeverError(
                        f"policy_id {policy_id!r}: was added to spec {outputs.spec} before; go on with what `keep` "
                        "returned, or open the library again"
                    )
            for layout in batch.layouts:
                if other["worlds"].get(layout.name, _world(layout)) != _world(layout):
                    raise LeverError(
                        f"layout {layout.name!r}: another one of that name was added to spec {outputs.spec}, with "
                        f"policy {other['policies'][0]!r}; choose another name, or remove that"
                    )
        of_seeds = groupby(batch.records, attrgetter("seed"))  # other worlds have other numbers of golds
        for number, (_, records) in enumerate(of_seeds):
            save_records(list(records), draft / f"policies_{number:06d}.npz")
        seconds = [record.train_seconds for record in batch.records]
        canonical = {layout.name: batch.canonical.get(layout.name) for layout in batch.layouts}
        about = {
            "number": 1 + max((other["number"] for other in others), default=0),
            "policies": names,
            "train_seconds": [None if isnan(one) else one for one in seconds],
            "methods": list(batch.methods) or [None] * len(names),
            "worlds": {record.seed: _world(worlds[record.seed]) for record in batch.records},
            "layouts": {layout.name: layout.cells.tolist() for layout in batch.layouts},
            "canonical": {seed: [part.tolist() for part in states] for seed, states in canonical.items() if states},
        }
        write_about(draft, about)
    return outputs.folder / ADDED / name


def added(library: Library, outputs: Outputs) -> Added:
    """All policies that were added to a library, in the order in which they were, and the layouts that came with them.

    What was added to another world than the library now has, or has a name that the library now uses itself, is left
    out, with a warning.

    Raises:
        MissingArtifactError: if a file is missing or damaged.
    """
    with outputs.reading():
        found = []
        for name, entry in batches(outputs.folder).items():
            damaged = damaged_files(outputs.folder, entry)
            if damaged:
                what = json.dumps(name)
                raise MissingArtifactError(f"{shown(damaged[0])} is missing or damaged; remove {what} with `remove`")
            found.append(_read(outputs.folder / name, library))
    found.sort(key=lambda numbered: numbered[0])
    return _fitting([batch for _, batch in found], library)


def _read(folder: Path, library: Library) -> tuple[int, tuple[Added, dict[str, str]]]:
    """A batch from its files: its number, what is in it, and which worlds it was added to."""
    files = sorted(folder.glob("policies_*.npz"))
    stored = [record for file in files for record in load_records(file)]
    try:
        about = read_about(folder)
        number, methods, worlds = about["number"], about["methods"], about["worlds"]
        moves = library.params.grid.moves
        layouts = [Layout(np.array(cells, np.int8), seed, moves) for seed, cells in about["layouts"].items()]
        canonical = {layout.name: _states(about["canonical"], layout) for layout in layouts}
        seconds_of = [nan if seconds is None else float(seconds) for seconds in about["train_seconds"]]
        records = [replace(record, train_seconds=seconds) for record, seconds in zip(stored, seconds_of, strict=True)]
        sound = isinstance(number, int) and len(methods) == len(records) and set(methods) <= {None, *METHODS}
        if not sound or not {record.seed for record in records} <= worlds.keys():
            raise ValueError("its numbers, methods or worlds are not those of its policies")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise MissingArtifactError(
            f"{shown(folder)}: holds no policies that were added ({reason}); "
            f"remove {json.dumps(f'{ADDED}/{folder.name}')} with `remove`"
        ) from None
    known = {name: states for name, states in canonical.items() if states is not None}
    return number, (Added(records, layouts, methods, known), worlds)


def _states(canonical: dict[str, list], layout: Layout) -> States | None:
    if layout.name not in canonical:
        return None
    cells, golds, lever = canonical[layout.name]
    count = len(layout.golds)
    states = States(np.array(cells, np.int32), np.array(golds, bool).reshape(len(cells), count), np.array(lever, bool))
    if not are_states(states, layout.horizon, count):
        raise ValueError(f"holds no states of layout {layout.name!r}")
    return states


def _fitting(found: list[tuple[Added, dict[str, str]]], library: Library) -> Added:
    """What of some batches fits a library; of two layouts by one name the first counts."""
    fitting: list[tuple[PolicyRecord, str | None]] = []
    layouts: dict[str, Layout] = {}
    canonical: dict[str, States] = {}
    left_out: dict[str, list[str]] = {}  # by reason
    moving = {record.seed for batch, _ in found for record in batch.records if len(record.episode.actions)}
    own_names, names = set(library.policies["policy_id"]), set[str]()
    for batch, worlds in found:
        own = {layout.name: layout for layout in batch.layouts}
        known = own | layouts | library.layouts
        unfit = _unfit([layout for name, layout in own.items() if known[name] is layout], library)
        unfit |= dict.fromkeys(_still(batch, moving, library), "no policy of its layout takes a step to embed it at")
        for stored, method in zip(batch.records, batch.methods, strict=True):
            record, reason = stored, None
            if record.seed not in known or _world(known[record.seed]) != worlds[record.seed]:
                reason = "the world is another one now"
            elif record.seed in unfit:
                reason = unfit[record.seed]
            elif record.q_table.shape != library.q_tables.shape[1:]:
                reason = f"Q-tables have shape {library.q_tables.shape[1:]} now, not {record.q_table.shape}"
            elif record.library not in library.params.libraries:
                reason = f"there is no training budget {record.library!r} any more"
            elif record.policy_id in own_names:
                reason = "the library has one of that name itself"
            elif record.policy_id in names:
                reason = "another batch has one of that name"
            elif not set(record.setup.split("-")) <= set(COMPONENTS):
                reason = f"there is no reward {record.setup!r} any more"
            else:
                record = replace(record, setup=reward_system(record.setup).name)  # rewards may be in another order now
            if reason:
                left_out.setdefault(reason, []).append(record.policy_id)
                continue
            fitting.append((record, method))
            names.add(record.policy_id)
            if record.seed not in library.layouts:
                layouts[record.seed] = known[record.seed]
                if record.seed in batch.canonical:
                    canonical.setdefault(record.seed, batch.canonical[record.seed])
    for reason, (first, *others) in left_out.items():
        who = f"policy {first} is" if not others else f"policies {first} and {len(others)} more are"
        text = "%s: %s left out, as %s; take out what was added with `remove`"
        logging.getLogger(__name__).warning(text, library.spec, who, reason)
    records, methods = zip(*fitting, strict=True) if fitting else ((), ())
    return Added(records, list(layouts.values()), methods, canonical)


def _still(batch: Added, moving: set[str], library: Library) -> set[str]:
    """Layouts of a batch in which nothing moves that was added, and no states are known to embed policies at."""
    count = library.params.pi2vec.canonical_states
    known = {name for name, states in batch.canonical.items() if len(states.cells) == count}
    return {layout.name for layout in batch.layouts} - known - moving - library.layouts.keys()


def _unfit(layouts: list[Layout], library: Library) -> dict[str, str]:
    """Which layouts cannot join a library (any more), and why not."""
    reasons = {}
    for layout in layouts:
        try:
            check_layout(layout, library)
        except LeverError as error:
            reasons[layout.name] = str(error)
    return reasons


def remove(policy_id: str, outputs: Outputs) -> int:
    """Take a policy that was added, and its batch, from a library; returns how many policies went.

    Raises:
        LeverError: if no such policy was added.
    """
    for name in batches(outputs.folder):
        names = _look(outputs.folder / name)["policies"]
        if policy_id == name or policy_id in names:
            folder = outputs.folder / name
            old = folder.with_name(f".{folder.name}.old")
            with hold(outputs.folder, BUILD), hold(outputs.folder, PUBLISH):
                delete(old)
                with suppress(FileNotFoundError):  # another process removed it meanwhile
                    folder.rename(old)  # a run sweeps it if this process ends here
                delete(old)
                with suppress(OSError):  # there are others
                    folder.parent.rmdir()
            return 1 if policy_id == name else len(names)
    raise LeverError(f"policy_id {policy_id!r}: was not added to spec {outputs.spec}; only what was added is removed")


def _look(folder: Path) -> dict[str, Any]:
    """The number, policies and worlds of a batch; none of a damaged one, which goes by its own name."""
    about, kinds = read_about(folder), {"number": int, "policies": list, "worlds": dict}
    if about is not None and all(isinstance(about.get(name), kind) for name, kind in kinds.items()):
        return about
    return {"number": 0, "policies": [], "worlds": {}}


def _world(layout: Layout) -> str:
    """What tells a world from another that has its name."""
    return json_hash([layout.cells.tolist(), layout.moves])
