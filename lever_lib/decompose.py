"""From a question in words to objectives and sub-queries.

`offline` asks nobody: it recognises the objectives itself (`lever_lib.recognise`) and then picks, from a pool of
sentences, the smallest set that covers exactly these objectives. `llm` lets a language model
pick the sentences. `none` hands the question on as it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from lever_lib import llm
from lever_lib.artifacts import ROOT, file_hash
from lever_lib.bounded import LONGEST
from lever_lib.envs.rewards import COMPONENTS
from lever_lib.errors import LeverError
from lever_lib.params import LanguageModel, Params
from lever_lib.recognise import Reading, meant_by, recognise

OFFLINE = "offline"  # who answers where no language model was asked

_TASK = """\
You plan for an agent in a grid world. It starts in one corner; the exit is in the opposite one. Cells may hold gold,
hazards, blocks that cannot be entered, and one lever. Entering a hazard ends the episode. Actions: {actions}.
There is a policy for each of the sentences below. Somebody says in words how the agent should behave. Choose the
sentences that together ask for exactly that: as few as possible, each at most once, copied letter by letter from the
list. Do not choose a sentence for something that is not asked for, or that is waved away.

Sentences:
{sentences}"""


@dataclass(frozen=True)
class Evidence:
    """Why an objective was recognised, or why it was not although it is spoken of.

    Attributes:
        component: the objective.
        confidence: how likely it is asked for, 0 to 1; if it is waved away, how likely it is not.
        words: of the question that speak of it, as they were typed; none if only the sentence as a whole does.
    """

    component: str
    confidence: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Decomposition:
    """What a question asks for.

    Attributes:
        query: as it was asked.
        objectives: component names recognised, in the order of the reward table.
        sub_queries: sentences to search for, one policy each.
        confidence: of the least sure objective; 0 if there is none.
        evidence: for each objective.
        waved_away: objectives that the question speaks of and does not ask for.
        answered_by: `offline`, or a language model and its host.
        tokens: that the language model took; None if none was asked or it did not say.
        seconds: wall time; of a recorded exchange, those of the recording.
    """

    query: str
    objectives: tuple[str, ...]
    sub_queries: tuple[str, ...]
    confidence: float
    evidence: tuple[Evidence, ...]
    waved_away: tuple[Evidence, ...]
    answered_by: str
    tokens: int | None
    seconds: float


def decompose(
    query: str,
    pool: tuple[str, ...],
    how: str = "offline",
    model: LanguageModel | None = None,
    actions: tuple[str, ...] = ("right", "down"),
    count: int | None = None,
    memory: Path | None = None,
) -> Decomposition:
    """Split a question into sub-queries.

    Args:
        query: in words.
        pool: sentences to choose from.
        how: `offline`, `llm` or `none`.
        model: which language model `llm` asks; by default as in `LanguageModel`.
        actions: of the world, as the language model is told.
        count: sentences wanted of the language model; by default as many as it takes.
        memory: file of questions read before, as in `text.remembered`.

    Raises:
        LeverError: if the query is empty, if `offline` recognises objectives that the pool cannot say exactly, or if
            the language model gives no usable answer and `model.fallback` is `error`.
    """
    if not isinstance(query, str) or not query.strip():
        raise LeverError(f"query {query!r}: must be words")
    check_length(query)
    query = query.encode(errors="replace").decode()  # half letters, which a prompt lets through, are no text
    if not isinstance(how, str) or how not in ("offline", "llm", "none"):
        raise LeverError(f"decompose = {how!r}: must be 'offline', 'llm' or 'none'")
    if how == "llm":
        model = model or LanguageModel()
        try:
            return _by_model(query, pool, model, actions, count)
        except llm.LLMError:
            if model.fallback == "error":
                raise
    started = time.perf_counter()
    found = recognised(query, memory)
    sub_queries = (query,) if how == "none" else _cover(found.objectives, pool, memory)
    return replace(found, sub_queries=sub_queries, seconds=time.perf_counter() - started)


def recognised(query: str, memory: Path | None = None) -> Decomposition:
    """The objectives of a question, without sub-queries; needs no pool and no library."""
    check_length(query)
    started = time.perf_counter()
    reading = recognise(query, memory)
    evidence = tuple(_evidence(reading, name, True) for name in reading.objectives)
    waved_away = tuple(_evidence(reading, name, False) for name in _waved_away(reading))
    return Decomposition(
        query=query,
        objectives=reading.objectives,
        sub_queries=(),
        confidence=min((found.confidence for found in evidence), default=0.0),
        evidence=evidence,
        waved_away=waved_away,
        answered_by=OFFLINE,
        tokens=None,
        seconds=time.perf_counter() - started,
    )


def check_length(query: str) -> None:
    """Refuse what nobody asks: it would be read for minutes.

    Raises:
        LeverError: naming its length.
    """
    if len(query) > LONGEST:
        raise LeverError(f"query {query[:40]!r}...: has {len(query):,} letters, at most {LONGEST:,} are read")


def _waved_away(reading: Reading) -> list[str]:
    """Objectives that a sentence speaks of, but only to say that they are not wanted."""
    wanted = {mention.component for mention in reading.mentions if mention.wanted}
    spoken = {mention.component for mention in reading.mentions} - wanted - set(reading.objectives)
    return [name for name in COMPONENTS if name in spoken]


def _evidence(reading: Reading, name: str, wanted: bool) -> Evidence:
    found = [mention.words for mention in reading.mentions if mention.component == name and mention.wanted == wanted]
    chance = reading.chances[name]
    return Evidence(name, round(chance if wanted else 1 - chance, 3), tuple(dict.fromkeys(found)))


def understood(split: Decomposition) -> dict[str, Any]:
    """What a question was understood to ask for, for programs."""
    return {
        "confidence": split.confidence,
        "evidence": [_shown(found) for found in split.evidence],
        "waved_away": [_shown(found) for found in split.waved_away],
        "answered_by": split.answered_by,
        "tokens": split.tokens,
        "seconds": split.seconds,
    }


def _shown(found: Evidence) -> dict[str, Any]:
    return {"objective": found.component, "confidence": found.confidence, "words": list(found.words)}


def meaning(split: Decomposition) -> str:
    """One line: which objectives, how sure, from which words, and what is waved away."""
    asked = [f"{found.component} {_basis(found)}" for found in split.evidence] or ["no objective"]
    away = [f"{found.component} ({_quoted(found)})" for found in split.waved_away]
    line = ", ".join(asked) + (f"; not asked for: {', '.join(away)}" if away else "")
    if split.answered_by == OFFLINE:
        return line
    tokens = "" if split.tokens is None else f", {split.tokens} tokens"
    return f"{line} [{split.answered_by}{tokens}, {split.seconds:.1f} s]"


def _basis(found: Evidence) -> str:
    words = f", from {_quoted(found)}" if found.words else ""
    return f"({found.confidence:.0%} sure{words})"


def _quoted(found: Evidence) -> str:
    return ", ".join(f"'{words}'" for words in found.words)


def _cover(objectives: tuple[str, ...], pool: tuple[str, ...], memory: Path | None) -> tuple[str, ...]:
    """The first smallest set of pool sentences whose objectives together are exactly `objectives`."""
    if not objectives:
        return ()
    meanings = {sentence: set(meant_by(sentence, memory)) for sentence in pool}
    useful = [sentence for sentence in pool if meanings[sentence] and meanings[sentence] <= set(objectives)]
    for count in range(1, len(useful) + 1):
        for chosen in combinations(useful, count):
            if set().union(*(meanings[sentence] for sentence in chosen)) == set(objectives):
                return chosen
    raise LeverError(f"query asks for {', '.join(objectives)}, which the sentences to choose from cannot cover exactly")


def _by_model(
    query: str, pool: tuple[str, ...], model: LanguageModel, actions: tuple[str, ...], count: int | None
) -> Decomposition:
    """Let a language model choose sentences."""

    def check(answer: Any) -> tuple[str, ...]:
        return _chosen(answer, pool, count)

    wanted = "Choose as many as it takes, none if the agent is asked for nothing of the kind."
    if count is not None:
        wanted = f"Choose exactly {count}."
    listed = "\n".join(f"- {sentence}" for sentence in pool)
    system = _TASK.format(actions=", ".join(actions), sentences=listed) + f"\n\n{wanted}"
    least, most = (0, len(pool)) if count is None else (count, count)
    items = {"type": "string", "enum": list(pool)}
    sentences = {"type": "array", "items": items, "minItems": least, "maxItems": most}
    schema = {
        "type": "object",
        "properties": {"sentences": sentences},
        "required": ["sentences"],
        "additionalProperties": False,
    }
    reply = llm.converse(system, query, schema, check, _settings(model))
    named = {name for sentence in reply.value for name in meant_by(sentence)}
    objectives = tuple(name for name in COMPONENTS if name in named)
    confidence = 1.0 if objectives else 0.0  # a model says which, not how sure it is
    return Decomposition(
        query=query,
        objectives=objectives,
        sub_queries=reply.value,
        confidence=confidence,
        evidence=tuple(Evidence(name, confidence, ()) for name in objectives),
        waved_away=(),
        answered_by=reply.answered_by,
        tokens=reply.tokens,
        seconds=reply.seconds,
    )


def check_model(model: LanguageModel) -> None:
    """See that a language model can be asked, without asking it.

    Raises:
        LeverError: on a missing key, an address or a recording that cannot be used.
    """
    llm.check(_settings(model))


def _settings(model: LanguageModel) -> llm.Settings:
    """Params as the door to the model wants them; files are looked for from the repository's root."""
    record, replay = (None if path is None else ROOT / path for path in (model.record, model.replay))
    return llm.Settings(model.model, model.timeout_s, model.tries, record, replay)


def recording_hash(params: Params) -> str | None:
    """Checksum of the recording that splits questions in a model's place; None if there is none, or none is wanted."""
    path = _settings(params.llm).replay if params.search.decompose == "llm" else None
    return file_hash(path) if path is not None and path.is_file() else None


def _chosen(answer: Any, pool: tuple[str, ...], count: int | None) -> tuple[str, ...]:
    """The sentences of an answer, or the reason why they are refused."""
    sentences = answer.get("sentences") if isinstance(answer, dict) else None
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise llm.Refused('it must be {"sentences": [...]} with a list of strings')
    strange = [sentence for sentence in sentences if sentence not in pool]
    if strange:
        raise llm.Refused(f"{strange[0]!r} is not in the list of sentences; copy them letter by letter")
    if len(set(sentences)) != len(sentences):
        raise llm.Refused("a sentence is there twice; each may be chosen once")
    if count is not None and len(sentences) != count:
        raise llm.Refused(f"it chooses {len(sentences)} sentences, {count} are wanted")
    return tuple(sentences)
