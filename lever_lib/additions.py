"""Policies that somebody adds to a library on disk: beside it, each batch in a folder of its own.

Nothing that is there is written again, so adding one policy takes as long for a large library as for a small one. A
batch is complete before it gets its name, and the manifest names it last: whoever opens the library meanwhile sees it
with the batch or without, never with half of it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from lever_lib.artifacts import ADDED, Outputs, damaged_files, json_hash, shown
from lever_lib.envs.gridworld import Layout
from lever_lib.envs.rewards import COMPONENTS
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.files import read_json
from lever_lib.library import Library, load_records, save_records
from lever_lib.locks import BUILD, PUBLISH, hold
from lever_lib.policies.base import PolicyRecord


def keep(records: Sequence[PolicyRecord], layouts: Sequence[Layout], library: Library, outputs: Outputs) -> Path:
    """Write policies beside a library, as one batch; returns its folder.

    Args:
        records: that the library does not have yet; `Library.joined` says what is wrong with them.
        layouts: that they are valid in and that the library does not have.
        library: that they join.
        outputs: that it is part of.

    Raises:
        LeverError: if one was added already, by another process or an older handle of the library.
    """
    seeds = list(dict.fromkeys(record.seed for record in records))
    records = sorted(records, key=lambda record: seeds.index(record.seed))
    worlds = library.layouts | {layout.name: layout for layout in layouts}
    names = [record.policy_id for record in records]
    name = f"{ADDED}/{json_hash(names)[:16]}"
    with outputs.writing_folder(name, {"key": name}) as draft:
        there = {known for batch in _batches(outputs) for known in _names(outputs.folder / batch)}
        for policy_id in names:
            if policy_id in there:
                raise LeverError(f"policy_id {policy_id!r}: was added to spec {outputs.spec} meanwhile")
        for number, seed in enumerate(seeds):  # episodes in different worlds have different numbers of golds
            of_seed = [record for record in records if record.seed == seed]
            save_records(of_seed, draft / f"policies_{number:04d}.npz")
        about = {
            "policies": names,
            "train_seconds": [None if isnan(record.train_seconds) else record.train_seconds for record in records],
            "worlds": {record.seed: _world(worlds[record.seed]) for record in records},
            "layouts": {layout.name: layout.cells.tolist() for layout in layouts},
        }
        (draft / "about.json").write_text(json.dumps(about) + "\n")
    return outputs.folder / name


def added(library: Library, outputs: Outputs) -> tuple[list[PolicyRecord], list[Layout]]:
    """All policies that were added to a library, and the layouts that came with them.

    What was added to another world than the library now has, or has a name that the library now uses itself, is left
    out, with a warning.

    Raises:
        MissingArtifactError: if a file is missing or damaged.
    """
    with outputs.reading():
        return _added(library, outputs)


def _added(library: Library, outputs: Outputs) -> tuple[list[PolicyRecord], list[Layout]]:
    records: list[PolicyRecord] = []
    layouts: dict[str, Layout] = {}
    own_names = set(library.policies["policy_id"])
    for name, entry in sorted(_batches(outputs).items()):
        damaged = damaged_files(outputs.folder, entry)
        if damaged:
            batch = json.dumps(name)
            raise MissingArtifactError(f"{shown(damaged[0])} is missing or damaged; remove {batch} with `remove`")
        moves = library.params.grid.moves
        files = sorted((outputs.folder / name).glob("policies_*.npz"))
        stored = [record for file in files for record in load_records(file)]
        try:
            about = _about(outputs.folder / name)
            own = {seed: Layout(np.array(cells, np.int8), seed, moves) for seed, cells in about["layouts"].items()}
            worlds = library.layouts | layouts | own
            seconds_of = [nan if seconds is None else float(seconds) for seconds in about["train_seconds"]]
            timed = list(zip(stored, seconds_of, (about["worlds"][record.seed] for record in stored), strict=True))
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            batch = f"{shown(outputs.folder / name)}: holds no policies that were added ({reason})"
            raise MissingArtifactError(f"{batch}; remove {json.dumps(name)} with `remove`") from None
        for record, seconds, world in timed:
            reason = None
            if record.seed not in worlds or _world(worlds[record.seed]) != world:
                reason = "it was added to another world"
            elif record.library not in library.params.libraries:
                reason = f"there is no training budget {record.library!r} any more"
            elif record.policy_id in own_names:
                reason = "the library has its own of that name"
            elif not set(record.setup.split("-")) <= set(COMPONENTS):
                reason = f"there is no reward {record.setup!r} any more"
            if reason:
                text = "%s: policy %s is left out, as %s; remove it with `remove`"
                logging.getLogger(__name__).warning(text, library.spec, record.policy_id, reason)
                continue
            records.append(replace(record, train_seconds=seconds))
            if record.seed in own:
                layouts[record.seed] = own[record.seed]
    return records, list(layouts.values())


def remove(policy_id: str, outputs: Outputs) -> int:
    """Take a policy that was added, and its batch, from a library; returns how many policies went.

    Raises:
        LeverError: if no such policy was added.
    """
    for name in _batches(outputs):
        if policy_id == name or policy_id in (names := _names(outputs.folder / name)):
            count = 1 if policy_id == name else len(names)
            with hold(outputs.folder, BUILD), hold(outputs.folder, PUBLISH):
                outputs.forget(name)
                shutil.rmtree(outputs.folder / name, ignore_errors=True)
                with suppress(OSError):  # there are others
                    (outputs.folder / ADDED).rmdir()
            return count
    raise LeverError(f"policy_id {policy_id!r}: was not added to spec {outputs.spec}; only what was added is removed")


def _batches(outputs: Outputs) -> dict[str, dict[str, Any]]:
    """Entries of what was added, by name of the batch."""
    return {name: entry for name, entry in outputs.manifest().items() if name.startswith(f"{ADDED}/")}


def _names(folder: Path) -> list[str]:
    try:
        names = _about(folder)["policies"]
    except (OSError, ValueError, LookupError, TypeError):  # a damaged batch has no names, and goes by its own
        return []
    return names if isinstance(names, list) else []


def _about(folder: Path) -> dict[str, Any]:
    return read_json(folder / "about.json")


def _world(layout: Layout) -> str:
    """What tells a world from another that has its name."""
    return json_hash([layout.cells.tolist(), layout.moves])
