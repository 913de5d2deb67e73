"""Files of a run: where they are, whether they are whole, whether they are still true.

Every stage owns the folder `outputs/<spec>/<stage>/`. It is written under a temporary name and renamed when it is
complete; its entry in `manifest.json` comes last. The entry holds a key, made of what the stage depends on (the params
keys it reads, the checksums of the stages before it, the sources it imports), and a checksum per file. Same key and
same checksums: the stage is reused. Anything else: it is built again, and so is what depends on it.

Whoever writes holds a lock (`lever_lib.locks`), and whoever finds something amiss looks again while nobody publishes: a
reader beside a run sees what was there before or what is there now.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import yaml

from lever_lib.bounded import read_bytes
from lever_lib.errors import LeverError, MissingArtifactError, writing_to
from lever_lib.locks import BUILD, PUBLISH, RUN, hold, run_beside
from lever_lib.params import Params, resolved

_PACKAGE = Path(__file__).resolve().parent
_DATA_ENDINGS = ("csv", "json", "jsonl", "yaml", "safetensors")  # not what editors put beside
ROOT = _PACKAGE.parent


def _sources() -> dict[Path, bytes]:
    """All sources as they are on disk; editors put links that lead nowhere beside what they edit."""
    return {path: path.read_bytes() for path in sorted(_PACKAGE.rglob("*.py")) if path.is_file()}


def _stamps() -> dict[Path, tuple[int, int]]:
    """When each data file of the package was written, and its size: who reads it may have met what it was meanwhile."""
    folder = _PACKAGE / "data"
    files = [path for ending in _DATA_ENDINGS for path in sorted(folder.glob(f"[!.]*.{ending}")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


# As this process loads them: what comes of an edit that is made meanwhile must not count as made by the edited code.
SOURCES = _sources()
DATA = _stamps()
CODE = hashlib.sha256(b"\0".join(SOURCES.values())).hexdigest()  # processes that share it compute the same
CODE_WANTED = "LEVER_CODE"  # in the environment of a kernel: the code of the run that started it, and where it is
if os.environ.get(CODE_WANTED, f"{CODE} {_PACKAGE}") != f"{CODE} {_PACKAGE}":
    raise LeverError(
        "lever_lib was changed while this run goes on, or PYTHONPATH leads to another one; run the same command again"
    )
DRAWN = "LEVER_DRAWN"  # in the environment of a kernel: where its figures wait until the notebook is finished
MANIFEST = "manifest.json"
PARAMS = "params.yaml"
_BATCH = re.compile(r"[0-9a-f]{16}")
_DRAFT = re.compile(r"\.[0-9a-f]{16}\.writing")  # of a file that is written whole
_HASH = re.compile(r"[0-9a-f]{64}")
_DAMAGED = "is missing or damaged"
STUDY = "study"  # folder, and manifest entry, of results that take long and outlive a run
MODEL = "model"  # likewise, of the regressor that a study fits
DEEP = "deep"  # likewise, of deep policies and what became of them
SCALE = "scale"  # likewise, of text search at sizes that no library here has
LADDER = "ladder"  # likewise, of what changes when a library does
LASTING = (STUDY, MODEL, DEEP, SCALE, LADDER)
ADDED = "added"  # folder of policies that somebody added, a folder per batch; in no manifest, for git may bring another
ABOUT = "about.json"  # in such a folder: what is in it, with a checksum for each file and one for itself
# What runs write into a spec's folder; anything else there is somebody's own.
WRITTEN = (
    *("library", "pi2vec", "regressor", "search", "composition", "results", "figures", "notebooks"),
    *(MANIFEST, PARAMS, ".sentences.sqlite*", ".*.writing", ".*.old", ".*.done", *(f".{name}-*" for name in LASTING)),
)
# What a published spec keeps in git, by path within its folder; `.gitignore` says the same. Everything else is bulky
# and comes back by running.
PUBLISHED = (
    "composition/*.csv",
    "results/*",
    "figures/*_share_of_optimum.png",  # what the README shows; all figures are in the executed notebooks
    "figures/05_library.png",
    "notebooks/*.ipynb",
    "study/*",
    "model/*.safetensors",
    "deep/*",
    "scale/*",
    "ladder/*",
)


def outputs_root() -> Path:
    """Where all outputs go: `LEVER_OUTPUTS` if set, else `outputs/` of the repository."""
    return Path(os.environ.get("LEVER_OUTPUTS") or ROOT / "outputs")


def shown(path: Path) -> str:
    """A path as messages show it: from the repository's root where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline and what it depends on.

    Attributes:
        name: of its folder.
        notebook: the one that runs it.
        files: what it writes.
        params: keys of the params file that it reads, dotted where it reads part of a section.
        upstream: stages whose files it reads.
        module: of `lever_lib`; with everything it imports, the code that the result depends on.
        from_published: whether whole files of `upstream` that were made with the same params are enough where no
            library is, whatever became of the code.
        outside: what else it depends on, given the outputs it belongs to.
    """

    name: str
    notebook: str
    files: tuple[str, ...]
    params: tuple[str, ...]
    upstream: tuple[Stage, ...]
    module: str
    from_published: bool = False
    outside: Callable[[Outputs], str | None] = lambda _: None


class Outputs:
    """The artefacts of one spec.

    Args:
        spec: name of the spec and of its folder.
        params: its settings.
        root: of all outputs; by default `outputs_root()`.
    """

    def __init__(self, spec: str, params: Params, root: Path | None = None) -> None:
        self.spec = spec
        self.params = params
        self.folder = (root or outputs_root()) / spec
        try:
            str(self.folder).encode()
        except UnicodeEncodeError:
            rule = "must be a name in UTF-8, or tables cannot be read there"
            raise LeverError(f"outputs folder {str(self.folder)!r}: {rule}") from None

    def manifest(self) -> dict[str, Any]:
        """Entries by stage; empty if nothing was built."""
        return read_manifest(self.folder)

    def key(self, stage: Stage) -> str:
        """Hash of everything that `stage` depends on, as things are now."""
        settings = resolved(self.params)
        manifest = self.manifest()
        parts = {
            "params": {name: _setting(settings, name) for name in stage.params},
            "upstream": {up.name: lasting_files(manifest.get(up.name, {}).get("files", {})) for up in stage.upstream},
            "sources": source_hash(stage.module),
            "outside": stage.outside(self),
        }
        return json_hash(parts)

    def fresh(self, stage: Stage) -> bool:
        """Whether `stage` and all before it are whole and were built from what is there now.

        A damaged file is named in the log.
        """
        problem = self.problem(stage)
        if problem and problem.endswith(_DAMAGED):
            logging.getLogger(__name__).warning("%s; building it again", problem)
        return problem is None

    def require(self, stage: Stage) -> Path:
        """Folder of a stage that another one wants to read.

        Raises:
            MissingArtifactError: if it is absent, damaged or out of date; names the notebook that writes it.
        """
        return self._usable(stage, self.problem(stage))

    def require_files(self, stage: Stage) -> Path:
        """Folder of a stage whose files are whole, whatever became of what they were made of.

        Raises:
            MissingArtifactError: if they are absent or damaged; names the notebook that writes them.
        """
        return self._usable(stage, self._settled(lambda: self._files_problem(stage)))

    def _usable(self, stage: Stage, problem: str | None) -> Path:
        if problem:
            beside = run_beside(self.folder)
            what = f"run notebook {stage.notebook} for spec {self.spec}, or ./run_all.sh {self.spec}"
            raise MissingArtifactError(f"{problem}; {f'{beside}, is building it' if beside else what}")
        return self.folder / stage.name

    def problem(self, stage: Stage) -> str | None:
        """What keeps `stage` from being used, in words; None if nothing does."""
        return self._settled(lambda: self._problem(stage, set()))

    def reading(self) -> AbstractContextManager[None]:
        """Files that are opened in this block belong together: nobody publishes others meanwhile."""
        return _reading(self.folder)

    def _settled(self, look: Callable[[], str | None]) -> str | None:
        """What is wrong, if it still is while nobody publishes."""
        try:
            if look() is None:
                return None
        except (MissingArtifactError, OSError):
            pass  # a moment later it may be whole
        with self.reading():
            return look()

    def _problem(self, stage: Stage, sound: set[str]) -> str | None:
        """Stages in `sound` were found usable on the way here and are not read again."""
        if stage.name in sound:
            return None
        published = self._reads_published(stage)
        for up in stage.upstream:
            problem = self._files_problem(up) if published else self._problem(up, sound)
            if problem:
                return problem
        problem = self._files_problem(stage)
        if problem:
            return problem
        try:
            key = self.key(stage)
        except MissingArtifactError as error:  # of what it depends on outside
            return str(error)
        if self.manifest()[stage.name]["key"] != key:
            return f"{shown(self.folder / stage.name)} was built from other params or code"
        sound.add(stage.name)
        return None

    def _files_problem(self, stage: Stage) -> str | None:
        entry = self.manifest().get(stage.name)
        if entry is None or not any((self.folder / name).is_file() for name in entry["files"]):
            return f"{shown(self.folder / stage.name)} is not built"
        if not {f"{stage.name}/{name}" for name in stage.files} <= set(entry["files"]):
            return f"{shown(self.folder / stage.name)} was built from other params or code"
        damaged = damaged_files(self.folder, entry)
        return f"{shown(damaged[0])} {_DAMAGED}" if damaged else None

    def _reads_published(self, stage: Stage) -> bool:
        """Whether a stage may read what came with the repository: not beside a library, however damaged, of its own."""
        first = stage
        while first.upstream:
            first = first.upstream[0]
        own = (self.folder / first.name).is_dir()
        return stage.from_published and not own and all(self._made_with_these_params(up) for up in stage.upstream)

    def _made_with_these_params(self, stage: Stage) -> bool:
        """Whether a stage's entry says that it, and all before it, read what the params say now."""
        return self.manifest().get(stage.name, {}).get("made_with") == self._made_with(stage)

    def _made_with(self, stage: Stage) -> str:
        """Hash of the params that a stage and all before it read."""
        settings, stages = resolved(self.params), [stage]
        for each in stages:
            stages.extend(each.upstream)
        return json_hash({key: _setting(settings, key) for each in stages for key in each.params})

    def came_along(self, first: Stage) -> list[str]:
        """Entries that came with the repository, as far as the folder of the first stage tells: it never does.

        A run that builds that stage itself must not pass them for its own, so writing it forgets them. What a study
        made is of no run and not among them.
        """
        own = (self.folder / first.name).is_dir()
        return [] if own else [name for name in self.manifest() if not outlives_runs(name)]

    def lasting(self, name: str, files: tuple[str, ...], key: str | None = None) -> Path | None:
        """Folder with what a study made: of this root, else the one that came with the repository; None if neither.

        Args:
            name: entry, one of `LASTING`.
            files: that are wanted; an entry that does not know them all was made by other code and does not count.
            key: of the params it must have been made with; by default any.

        Raises:
            MissingArtifactError: if one of the files is missing or damaged.
        """
        for folder in (self.folder, ROOT / "outputs" / self.spec):
            entry = read_manifest(folder).get(name)
            known = {} if entry is None else entry["files"]
            wanted = {f"{name}/{file}" for file in files}
            if not wanted <= set(known) or key not in (None, entry["key"]):
                continue
            damaged = damaged_files(folder, {"files": {file: known[file] for file in wanted}})
            if damaged:
                raise MissingArtifactError(
                    f"{shown(damaged[0])} {_DAMAGED}; run ./run_all.sh study {self.spec}, or take it from git"
                )
            return folder / name
        return None

    def adopt(self, stage: Stage) -> None:
        """Copy a stage's published files, whole and of these params, from the repository if this root has none."""
        published = ROOT / "outputs" / self.spec
        entry = read_manifest(published).get(stage.name)
        if entry is None or stage.name in self.manifest() or damaged_files(published, entry):
            return
        if entry.get("made_with") != self._made_with(stage):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.folder, BUILD):
            draft = self.folder / f".{stage.name}.writing"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(published / stage.name, draft)
            self.publish(stage.name, draft, entry)

    @contextmanager
    def writing(self, stage: Stage) -> Iterator[Path]:
        """Give a temporary folder to write `stage` into; on leaving, put it in place and enter it in the manifest.

        Nothing is changed if the block raises.

        Raises:
            MissingArtifactError: if a stage before it is not usable.
        """
        with hold(self.folder, BUILD):
            published = self._reads_published(stage)
            for up in stage.upstream:
                self.require_files(up) if published else self.require(up)
            others = () if stage.upstream else self.came_along(stage)
            about = {"key": self.key(stage), "made_with": self._made_with(stage)}
            with self.writing_folder(stage.name, about, others) as draft:
                yield draft
                missing = [name for name in stage.files if not (draft / name).is_file()]
                if missing:
                    raise MissingArtifactError(f"stage {stage.name} did not write {', '.join(missing)}")

    def made_of(self, name: str) -> str | None:
        """Hash of everything that something lasting came from; None if there is nothing."""
        return self.manifest().get(name, {}).get("made_of")

    @contextmanager
    def adding(self, name: str) -> Iterator[Path]:
        """Give a temporary folder that on leaving becomes batch `name` of what was added; as `writing_folder`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / ADDED / name
        with hold(self.folder, BUILD), self._draft(f"{ADDED}/{name}") as draft:
            yield draft
            with hold(self.folder, PUBLISH):
                target.parent.mkdir(exist_ok=True)
                draft.rename(target)

    @contextmanager
    def _draft(self, name: str) -> Iterator[Path]:
        """A temporary folder that is gone afterwards, unless it got another name."""
        draft = self.folder / f".{name.replace('/', '.')}.writing"
        try:
            with writing_to(shown(self.folder / name)):
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir()
                yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def writing_folder(self, name: str, about: dict[str, str], others: Sequence[str] = ()) -> Iterator[Path]:
        """Give a temporary folder that on leaving takes the place of folder `name` and is entered in the manifest.

        Nobody else writes into the spec's folder meanwhile. Nothing is changed if the block raises.

        Args:
            name: of the folder and of its entry.
            about: what the entry says besides checksums: `key`, of the params that it depends on; of a stage also
                `made_with`, of all params that went into it; of what a study made also `made_of`, hash of everything
                that it comes from.
            others: entries that are forgotten with the old one.

        Raises:
            LeverError: if the system does not let it be written, for instance as the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.folder, BUILD), self._draft(name) as draft:
            yield draft
            written = sorted(path for path in draft.rglob("*") if path.is_file())
            files = {f"{name}/{path.relative_to(draft).as_posix()}": file_hash(path) for path in written}
            self.publish(name, draft, about | {"root_seed": self.params.root_seed, "files": files}, others)

    def publish(self, name: str, draft: Path, entry: dict[str, Any], others: Sequence[str] = ()) -> None:
        """Put a finished draft in the place of folder `name`, and enter it in the manifest; forget `others`.

        Raises:
            LeverError: if it is something lasting, and code or data have changed while it was made.
        """
        if outlives_runs(name):
            check_code()
        target = self.folder / name
        old = target.with_name(f".{target.name}.old")
        target.parent.mkdir(exist_ok=True)
        delete(old)
        with hold(self.folder, PUBLISH):
            if not (self.folder / MANIFEST).is_file():
                _write_manifest(self.folder, {})  # without one, what is there now was not put there by us
            self.forget(name, *others)
            if target.exists():
                target.rename(old)
            draft.rename(target)
            self.enter(name, entry)
        with suppress(OSError):  # a later run sweeps it
            delete(old)

    def enter(self, name: str, entry: dict[str, Any]) -> None:
        """Add an entry to the manifest, and put the resolved params beside it. A file is of who wrote it last."""
        with hold(self.folder, PUBLISH):
            stages = self.manifest()
            for other in stages.values():
                other["files"] = {file: found for file, found in other["files"].items() if file not in entry["files"]}
            self._write_params_and(stages | {name: entry})

    def check_manifest(self) -> None:
        """Refuse to go on where studies are that nothing tells of: a new manifest would forget them.

        Raises:
            MissingArtifactError: if the manifest is missing, or damaged, and they are not.
        """
        self.manifest()
        if orphans(self.folder):
            raise _forgotten(self.folder)

    def sweep(self) -> None:
        """Delete what killed processes left half written or half deleted."""
        if not self.folder.is_dir():
            return
        with hold(self.folder, BUILD):
            patterns = [".*.writing", ".*.old", ".*.done", f"{ADDED}/.*.old", "notebooks/0*.running.ipynb"]
            found = [path for pattern in patterns for path in self.folder.glob(pattern)]
            linked = self.folder.glob("figures/.*.writing")  # the folder may be somebody's own, of other things too
            found += [path for path in linked if _DRAFT.fullmatch(path.name) and path.is_file()]
            made_of = {name: self.made_of(name) or "" for name in LASTING}
            found += [self.folder / f".{name}-{made[:16]}" for name, made in made_of.items() if made]
            for path in found:
                delete(path)

    def restore_params(self) -> None:
        """Write the resolved params again if what is beside the manifest is not what was written."""
        with hold(self.folder, PUBLISH):
            if "params" in examine(self.folder):
                self._write_params_and(self.manifest())

    def _write_params_and(self, stages: dict[str, Any]) -> None:
        make_way(self.folder / PARAMS)
        write_whole(self.folder / PARAMS, yaml.safe_dump(resolved(self.params), sort_keys=False))
        _write_manifest(self.folder, stages)

    def forget(self, *names: str) -> None:
        """Take entries out of the manifest."""
        if not self.folder.is_dir():
            return
        with hold(self.folder, PUBLISH):
            stages = self.manifest()
            kept = {name: entry for name, entry in stages.items() if name not in names}
            if kept != stages:
                _write_manifest(self.folder, kept)


def _write_manifest(folder: Path, stages: dict[str, Any]) -> None:
    params = file_hash(folder / PARAMS) if (folder / PARAMS).is_file() else None
    content = {"spec": folder.name, "params": params, "stages": dict(sorted(stages.items()))}
    content = {"checksum": json_hash(content), **content}
    write_whole(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Entries by stage of the manifest in a spec's folder; empty if there is none.

    Raises:
        MissingArtifactError: if it cannot be read, or is not as it was written.
    """
    return _read_manifest(folder)["stages"]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        return {"params": None, "stages": {}}
    try:
        content = json.loads(read_bytes(path))
        checksum, stages = content.pop("checksum"), content["stages"]
        if checksum != json_hash(content) or not isinstance(content["params"], str | None):
            raise ValueError
        for name, entry in stages.items():
            if not all(isinstance(value, str) for value in (entry["key"], *entry["files"].values())):
                raise TypeError
            if not _HASH.fullmatch(entry.get("made_of", "0" * 64)) or not all(map(_is_inside, (name, *entry["files"]))):
                raise ValueError
        spec = content["spec"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # or no file
        raise MissingArtifactError(
            f"{shown(path)}: not a readable manifest; take it from git, or delete the folder and run again"
        ) from None
    if spec != folder.name:  # renamed or copied: its files say so in many places
        raise MissingArtifactError(
            f"{shown(path)}: is of spec {spec!r}, not {folder.name!r}; delete the folder and run again"
        )
    return content


def _is_inside(name: str) -> bool:
    """Whether a name leads to a place within the folder that it is relative to."""
    path = PurePosixPath(name)
    return path.as_posix() == name and all(map(is_plain, path.parts))


def is_plain(name: str) -> bool:
    """Whether a file that is called so can be entered in a manifest: it is not hidden, and can be read by people."""
    return name.isprintable() and not name.startswith((".", " ")) and not {"/", "\\"} & {*name} and name != ""


def made_up(folder: Path, stage: Stage, file: str, rule: str) -> MissingArtifactError:
    """What to say of a file of a stage whose checksum is right, but that no run can have written."""
    again = f"run notebook {stage.notebook} for spec {folder.name} again"
    return MissingArtifactError(f"{shown(folder / stage.name / file)}: {rule}; {again}")


def orphans(folder: Path) -> list[str]:
    """Folders of studies that hold something, where there is no manifest."""
    return [] if (folder / MANIFEST).exists() else studies(folder)


def _forgotten(folder: Path) -> MissingArtifactError:
    lost = ", ".join(orphans(folder))
    return MissingArtifactError(
        f"{shown(folder / MANIFEST)}: is missing, and nothing else tells what {lost} holds; "
        "take it from git, or delete the folder to start over"
    )


def studies(folder: Path) -> list[str]:
    """Folders of studies that hold something."""
    return [name for name in LASTING if (folder / name).is_dir() and any((folder / name).iterdir())]


def outlives_runs(name: str) -> bool:
    """Whether an entry is not for a run to delete or to call its own."""
    return name.split("/")[0] in LASTING


def is_published(name: str) -> bool:
    """Whether a file, by its path within the spec's folder, is one that a published spec keeps in git."""
    return any(PurePosixPath(name).match(pattern) for pattern in PUBLISHED)


class Condition(NamedTuple):
    """What `examine` found of one manifest entry.

    Attributes:
        built: False if none of its bulky files is there, as in a fresh clone; nor, if it is of a run, any of a stage.
        missing: files that should be there.
        damaged: files that do not have their checksum.
    """

    built: bool
    missing: list[Path]
    damaged: list[Path]


def examine(folder: Path) -> dict[str, Condition]:
    """Compare the files of a spec with its manifest, entry by entry; only the manifest if that is at fault.

    What seems wrong is looked at again while nobody publishes.
    """
    found = _examine_now(folder)
    if not any(state.missing or state.damaged for state in found.values()):
        return found
    with _reading(folder):
        return _examine_now(folder)


def _examine_now(folder: Path) -> dict[str, Condition]:
    try:
        return _examine(folder) | {name: _condition(folder, entry, True) for name, entry in batches(folder).items()}
    except OSError as error:  # of a folder that must not be read
        return {"folder": Condition(True, [], [Path(error.filename or folder)])}


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    if not folder.is_dir():
        yield  # nothing is there, and nothing is made for want of it
        return
    with ExitStack() as stack:
        with suppress(OSError):  # where nobody can write, nobody needs to be kept from it
            stack.enter_context(hold(folder, PUBLISH))
        yield


def _examine(folder: Path) -> dict[str, Condition]:
    manifest = folder / MANIFEST
    if not manifest.exists():
        orphaned = folder.is_dir() and any(path.is_dir() and path.name in WRITTEN for path in folder.iterdir())
        orphaned = orphaned or orphans(folder)
        return {"manifest": Condition(True, [manifest], [])} if orphaned else {}
    try:
        content = _read_manifest(folder)
    except MissingArtifactError:
        return {"manifest": Condition(True, [], [manifest])}
    found, entries, params = {}, content["stages"], folder / PARAMS
    if content["params"] is not None and not _intact(params, content["params"]):
        found["params"] = Condition(True, [], [params]) if params.is_file() else Condition(True, [params], [])
    bulky = {name: [file for file in entry["files"] if not is_published(file)] for name, entry in entries.items()}
    there = {name for name, files in bulky.items() if any((folder / file).exists() for file in files)}
    ran = any("/" not in name and not outlives_runs(name) for name in there)
    for name, entry in entries.items():
        built = not bulky[name] or name in there or (ran and not outlives_runs(name))
        found[name] = _condition(folder, entry, built)
    return found


def _condition(folder: Path, entry: dict[str, Any], built: bool) -> Condition:
    wrong = [path for path in damaged_files(folder, entry) if built or is_published(str(path.relative_to(folder)))]
    missing = [path for path in wrong if not path.is_file()]
    return Condition(built, missing, [path for path in wrong if path.is_file()])


def batches(folder: Path) -> dict[str, dict[str, Any]]:
    """What was added to a spec, by name: the checksums of its files, as in a manifest entry."""
    found = {}
    if os.path.lexists(folder / ADDED) and not (folder / ADDED).is_dir():
        found[ADDED] = {"files": {ADDED: "0" * 64}}  # whatever it is, what was added is gone
    for path in sorted((folder / ADDED).glob("*")):
        if _BATCH.fullmatch(path.name):
            name = f"{ADDED}/{path.name}"
            about = read_about(path)
            files = {ABOUT: "0" * 64} if about is None else about["files"] | {ABOUT: file_hash(path / ABOUT)}
            found[name] = {"files": {f"{name}/{file}": checksum for file, checksum in files.items()}}
    return found


def read_about(folder: Path) -> dict[str, Any] | None:
    """What a batch says of itself; None if that is missing or damaged."""
    try:
        about = json.loads(read_bytes(folder / ABOUT))
        whole = about.pop("checksum") == json_hash(about)
        whole = whole and all(_is_inside(name) and isinstance(found, str) for name, found in about["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return about if whole else None


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Finish a batch: say what is in it."""
    about = about | {"files": {path.name: file_hash(path) for path in sorted(folder.iterdir())}}
    (folder / ABOUT).write_text(json.dumps({"checksum": json_hash(about), **about}) + "\n")


def clear(folder: Path) -> None:
    """Delete all that runs wrote into a spec's folder. Studies take long and stay, as does what is somebody's own.

    Raises:
        LeverError: if a run is going on, or the manifest is damaged and studies would be lost with it, or what is
            another spec's, behind a link.
    """
    if folder.is_dir():
        with hold(folder, RUN, wait=False), hold(folder, BUILD), hold(folder, PUBLISH):
            _clear(folder)


def _clear(folder: Path) -> None:
    written = list(WRITTEN)
    known = bool(studies(folder))  # even if no entry tells of them, a manifest does that none is missing
    try:
        if orphans(folder):
            raise _forgotten(folder)
        stages = read_manifest(folder)
        kept = {name: entry for name, entry in stages.items() if outlives_runs(name)}
        written += stages.keys() - kept.keys()
    except MissingArtifactError:
        if known or folder.is_symlink():  # nothing else knows what they hold, and whose the linked folder is
            raise
        kept = {}
    delete(folder / PARAMS)
    if known or kept:
        _write_manifest(folder, kept)  # first, so that whatever happens now they are known
    for path in folder.iterdir():
        ours = any(fnmatchcase(path.name, pattern) for pattern in written)
        if ours and not ((known or kept) and path.name == MANIFEST):
            delete(path)
    if not any(folder.iterdir()):
        if folder.is_symlink():
            folder.unlink()
        else:
            folder.rmdir()


def damaged_files(folder: Path, entry: dict[str, Any]) -> list[Path]:
    """Files of a manifest entry that are missing or do not have their checksum."""
    return [folder / name for name, checksum in sorted(entry["files"].items()) if not _intact(folder / name, checksum)]


def _intact(path: Path, checksum: str) -> bool:
    """Whether a file can be read and has its checksum."""
    try:
        return path.is_file() and file_hash(path) == checksum
    except OSError:
        return False


def delete(path: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link, whatever it leads to; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_way(path: Path) -> None:
    """Delete what stands where a run is to write a file, if it is a folder."""
    if path.is_dir():
        delete(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_code() -> None:
    """Refuse to go on with sources and data of the package that are no longer what this process has loaded.

    Raises:
        LeverError: if one was changed.
    """
    if _sources() != SOURCES or _stamps() != DATA:
        raise LeverError("lever_lib was changed while this run went on; run the same command again")


@cache
def source_hash(module: str) -> str:
    """Hash of a module's source, of all `lever_lib` sources it imports, directly or not, and of data that they name."""
    package = _PACKAGE
    seen: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = package.parent / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or path not in SOURCES:
            continue
        seen[name] = SOURCES[path]
        waiting += [found for found in _imports(seen[name]) if found.startswith(f"{package.name}.")]
    patterns = ("*.safetensors", "*.yaml", "published_*.csv")
    for path in sorted(path for pattern in patterns for path in (package / "data").glob(pattern)):
        if any(path.name.encode() in text for text in seen.values()):
            seen[path.name] = path.read_bytes()
    return _sha256(b"\0".join(name.encode() + b"\0" + text for name, text in sorted(seen.items())))


def _imports(source: bytes) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _setting(settings: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        settings = settings[part]
    return settings


def lasting_files(files: dict[str, str]) -> dict[str, str]:
    """Checksums that count: measured seconds and joules differ from run to run."""
    return {name: checksum for name, checksum in files.items() if "timings" not in Path(name).name}


def json_hash(content: Any) -> str:
    """Hash of what JSON can say."""
    return _sha256(json.dumps(content, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_sayable(path: Path) -> bool:
    """Whether the system can be told a path."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or as it was before, whoever else writes it at the same time.

    Raises:
        LeverError: if the system does not let it be written, or there is something that is no file.
    """
    with writing_to(shown(path)):
        if not _is_sayable(path) or (path.exists() and not path.is_file()):
            raise LeverError(f"{str(path)!r}: cannot be written: is no name of a file")
    draft = path.with_name(f".{_sha256(path.name.encode(errors='surrogatepass'))[:16]}.writing")  # `_DRAFT`: short
    with writing_to(shown(path)), _own(draft) as file:
        try:
            file.truncate()
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


@contextmanager
def _own(draft: Path) -> Iterator[BinaryIO]:
    """A draft that nobody else writes meanwhile; they wait. One that a killed process has left is used again."""
    while True:
        with open(draft, "wb", opener=_without_emptying) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, draft):
                yield file
                return  # or else who had it before has given it its name


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _without_emptying(path: str, flags: int) -> int:
    return os.open(path, (flags & ~os.O_TRUNC) | os.O_NOFOLLOW, 0o666)
