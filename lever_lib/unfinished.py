"""Long work a few layouts at a time: what is finished is kept, so that it can be interrupted and gone on with."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from lever_lib.artifacts import Outputs, check_code, delete, file_hash, read_manifest, shown
from lever_lib.bounded import read_bytes
from lever_lib.errors import LeverError, writing_to
from lever_lib.params import Deep

Found = TypeVar("Found")
_CHUNK = 10  # layouts that are worked on before their results are put away
_SUMS = "checksums.json"  # of a part, written last


def whole(find: Callable[[Outputs], Found | None], outputs: Outputs) -> Found | None:
    """What `find` finds of earlier work; None if it is damaged, so that it is made again."""
    try:
        return find(outputs)
    except LeverError as error:
        sys.stderr.write(f"{outputs.spec}: {error}; making it again\n")
        return None


def work_folder(outputs: Outputs, what: str, made_of: str) -> Path:
    """Where unfinished work is kept; work of other params, models or code is thrown away."""
    work = outputs.folder / f".{what}-{made_of[:16]}"
    for old in outputs.folder.glob(f".{what}-*"):
        if old != work or old.is_symlink() or (old.exists() and not (old / "parts").is_dir()):
            delete(old)
    (work / "parts").mkdir(parents=True, exist_ok=True)
    return work


def parts_of(
    outputs: Outputs, seeds: list[int], work: Path, files: tuple[str, ...], make: Callable[[Outputs, Path], None]
) -> list[Path]:
    """Folders with what was made of a few layouts each; those that are there are not made again.

    Args:
        outputs: of the spec.
        seeds: layouts.
        work: folder of unfinished work.
        files: that a finished part holds.
        make: given outputs of its own, to be thrown away, and the folder to write into.

    Raises:
        LeverError: if a file cannot be written, or `lever_lib` was changed meanwhile.
    """
    parts = []
    for chunk in np.array_split(seeds, -(-len(seeds) // _CHUNK)):
        part = work / "parts" / f"{chunk[0]:04d}-{chunk[-1]:04d}"
        parts.append(part)
        if _is_whole(part, files):
            continue
        again = f", as {shown(part)} is damaged" if part.exists() else ""
        sys.stderr.write(f"{outputs.spec}: layouts {part.name}{again}\n")
        draft = part.with_name(f".{part.name}.writing")
        own = replace(outputs.params, seeds=tuple(chunk.tolist()), deep=Deep())
        with writing_to(shown(part)):
            delete(draft)
            if not _can_go_on(work / part.name, outputs.spec):
                delete(work / part.name)
            draft.mkdir()
            make(Outputs(outputs.spec, own, work / part.name), draft)
            sums = {"part": part.name, **{path.name: file_hash(path) for path in sorted(draft.iterdir())}}
            check_code()
            (draft / _SUMS).write_text(json.dumps(sums) + "\n")
        delete(part)
        draft.rename(part)
        shutil.rmtree(work / part.name)
    return parts


def _can_go_on(root: Path, spec: str) -> bool:
    """Whether a part's own outputs, of a run that was killed, can be gone on with."""
    try:
        read_manifest(root / spec)
    except LeverError:
        return False
    return root.is_dir() and not root.is_symlink()


def _is_whole(part: Path, files: tuple[str, ...]) -> bool:
    """Whether a part has at least these files, all as they were written, and is of the layouts that its name says."""
    try:
        sums = json.loads(read_bytes(part / _SUMS))
        found = {path.name: file_hash(path) for path in part.iterdir() if path.name != _SUMS}
    except (OSError, ValueError, RecursionError):
        return False
    return sums == {"part": part.name, **found} and found.keys() >= set(files)


def new_draft(work: Path) -> Path:
    """An empty folder to write what was found into; `publish` takes it from there."""
    draft = work / "draft"
    delete(draft)
    draft.mkdir()
    return draft


def publish(outputs: Outputs, what: str, work: Path, about: dict[str, str]) -> None:
    """Put a finished draft in place, enter it in the manifest, and throw the work away."""
    draft = work / "draft"
    files = {f"{what}/{path.name}": file_hash(path) for path in sorted(draft.iterdir())}
    outputs.publish(what, draft, about | {"root_seed": outputs.params.root_seed, "files": files})
    done = work.with_name(f"{work.name}.done")  # half deleted it must not be taken for work to go on with
    work.rename(done)
    shutil.rmtree(done)
