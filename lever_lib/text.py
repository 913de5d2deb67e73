"""Sentence and word embeddings. The default encoder travels inside a package, so nothing is fetched.

Other encoders are named in params: a folder, or a model of the hub that is in the local cache already. Nothing is ever
downloaded here, so a model that is missing is one line at once and not a minute of retries.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lever_lib import minilm
from lever_lib.artifacts import ROOT, source_hash
from lever_lib.errors import LeverError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EMBEDDED = "minilm"


def encode(sentences: Sequence[str], encoder: str = EMBEDDED, trust_remote_code: bool = False) -> np.ndarray:
    """Unit vectors of sentences, float32 (n, W); their inner products are cosines.

    Args:
        sentences: at least one.
        encoder: `minilm` (all-MiniLM-L6-v2, W = 384), the name of a sentence-transformers model, or its folder.
        trust_remote_code: whether code that comes with a named model may be run; some cannot be loaded without.

    Raises:
        LeverError: if the model is not on this machine or cannot be loaded.
    """
    if encoder == EMBEDDED:
        return minilm.encode(sentences)
    model = _model(encoder, trust_remote_code)
    with _sound(encoder, trust_remote_code):
        return model.encode(list(sentences), normalize_embeddings=True, show_progress_bar=False)


def remembered(
    sentences: Sequence[str], reader: str, read: Callable[[list[str]], np.ndarray], width: int, file: Path | None
) -> np.ndarray:
    """What a reader makes of sentences; what it made of them before is looked up, without loading it.

    Args:
        sentences: at least one.
        reader: what made the vectors, with its version: each has a memory of its own.
        read: from sentences to vectors, float32 (n, W).
        width: W; a stored vector of another length is done without.
        file: SQLite database that vectors are kept in; one that cannot be read or written is done without.

    Returns:
        float32 (n, W).
    """
    if file is None:
        return read(list(sentences))
    name = hashlib.sha256(reader.encode()).hexdigest()
    known = {text: vector for text, vector in _looked_up(file, name, sentences).items() if vector.shape == (width,)}
    fresh = [sentence for sentence in dict.fromkeys(sentences) if sentence not in known]
    if fresh:
        vectors = read(fresh)
        known |= dict(zip(fresh, vectors, strict=True))
        _keep(file, name, fresh, vectors)
    return np.stack([known[sentence] for sentence in sentences])


_TABLE = """
CREATE TABLE IF NOT EXISTS sentences (
    encoder TEXT, sentence TEXT, vector BLOB, checksum BLOB, PRIMARY KEY (encoder, sentence)
)
"""
_LOOK = "SELECT vector, checksum FROM sentences WHERE encoder = ? AND sentence = ?"
_STEPS = 100_000  # of the database machine that a look may take; it takes some dozen in a table that we made
_MOST = 1_000_000  # bytes of a row


def _looked_up(file: Path, name: str, sentences: Sequence[str]) -> dict[str, np.ndarray]:
    if not file.is_file():
        return {}
    found = {}
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=1)) as memory:
            memory.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST)
            memory.set_progress_handler(lambda: True, _STEPS)
            for sentence in sentences:
                row = memory.execute(_LOOK, (name, sentence)).fetchone()
                if row and isinstance(row[0], bytes) and row[1] == _checksum(name, sentence, row[0]):
                    found[sentence] = np.frombuffer(row[0], dtype=np.float32)
    except (sqlite3.Error, ValueError):
        return {}
    return found


def _checksum(name: str, sentence: str, vector: bytes) -> bytes:
    """Of a row: the database does not notice a bit that is flipped, and an answer would come out wrong."""
    return hashlib.sha256(f"{name}\0{sentence}\0".encode() + vector).digest()


def _keep(file: Path, name: str, sentences: Sequence[str], vectors: np.ndarray) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=1)) as memory, memory:
            memory.execute(_TABLE)
            rows = [(name, text, vector.tobytes()) for text, vector in zip(sentences, vectors, strict=True)]
            rows = [(*row, _checksum(*row)) for row in rows]
            memory.executemany("INSERT OR REPLACE INTO sentences VALUES (?, ?, ?, ?)", rows)
    except (sqlite3.Error, OSError, ValueError):
        return  # a memory is a convenience: a folder that cannot be written to costs seconds and no answer


def fingerprint(encoder: str) -> str | None:
    """What an index made with an encoder depends on besides its name: a folder's files, a cached model's revision."""
    folder = _folder(encoder)
    if folder is None:
        return None if encoder == EMBEDDED or (found := _cached(encoder)) is None else Path(found).parent.name
    _check_folder(encoder, folder)
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


@cache
def code_version() -> str:
    """Hash of the code that encodes: what other code made of a sentence is not remembered."""
    return source_hash("lever_lib.text")


@cache
def known_words() -> frozenset[str]:
    """Words that the embedded encoder knows whole: a spelling among them is no misspelling."""
    lines = (minilm.FOLDER / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return frozenset(line for line in lines if line.isalpha())


def _folder(encoder: str) -> Path | None:
    """Folder that an encoder is named by; a relative one is looked for from here and from the repository."""
    with suppress(RuntimeError):  # a home of nobody
        for folder in (Path(encoder).expanduser(), ROOT / encoder):
            if encoder != EMBEDDED and folder.is_dir():
                return folder
    return None


def _check_folder(encoder: str, folder: Path) -> None:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise LeverError(f"search.encoder = {encoder!r}: is a folder without a sentence-transformers model")


def _place(encoder: str) -> str:
    """Folder with an encoder's files, or the name of a model that is in the cache."""
    if (folder := _folder(encoder)) is not None:
        _check_folder(encoder, folder)
        return str(folder)
    if _cached(encoder) is None:
        raise LeverError(
            f"search.encoder = {encoder!r}: not on this machine, neither as a folder nor as a model in the cache; "
            f"fetch it once with `hf download {encoder}`, or use {EMBEDDED!r}"
        )
    return encoder


def _cached(encoder: str) -> str | None:
    """Where a model of the hub has its settings on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(encoder, "config.json")
    except HFValidationError:
        return None
    return found if isinstance(found, str) else None


@cache
def _model(encoder: str, trust_remote_code: bool) -> SentenceTransformer:
    """Load an encoder once per process; the import alone takes seconds, so it waits until it is needed."""
    place = _place(encoder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a missing file fails at once instead of after minutes of retries
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers would print a warning each
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _sound(encoder, trust_remote_code):
        return SentenceTransformer(place, device="cpu", trust_remote_code=trust_remote_code)


@contextmanager
def _sound(encoder: str, trust_remote_code: bool) -> Iterator[None]:
    """Whatever a model stumbles over that is none, or a broken one, is one line."""
    try:
        yield
    except Exception as error:
        code = "" if trust_remote_code else "; if it brings code of its own, search.trust_remote_code: true runs it"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise LeverError(f"search.encoder = {encoder!r}: cannot be loaded ({reason}){code}") from None
