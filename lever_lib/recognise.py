"""Which objectives a sentence asks for, how sure that is, and which of its words say so.

Two readers decide together, neither of which needs a connection. A grammar (`lever_lib.grammar`) finds the words that
speak of an objective and counts what turns them round; a network (`lever_lib.reader`) takes the sentence as a whole.
They go wrong in different places, so together they are right more often than either. Sentences that speak of somebody's
own objectives, which the network was not taught, are the grammar's alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lever_lib.artifacts import source_hash
from lever_lib.envs.rewards import COMPONENTS, COMPOSITE_SENTENCES
from lever_lib.errors import LeverError
from lever_lib.grammar import Mention, mentions
from lever_lib.text import remembered

LEARNED = ("path", "gold", "hazard", "lever")  # what the network was taught, in the order of its outputs
WEIGHTS = Path(__file__).parent / "data" / "recognition.safetensors"  # by `python -m lever_lib.understanding`
# What the grammar's word is worth, as log odds beside the network's: 0.6 standard deviations of these, which was best
# on questions that neither had seen. That it finds no mention says less than that one is waved away.
_ASKED, _ABSENT = 5.0, -2.5
_TEMPERATURE = 2.5  # of the sum, so that it is as sure as it is often right on such questions
_LONE = re.compile("[\ud800-\udfff]")  # halves of characters, which no tokenizer takes


class Reading(NamedTuple):
    """What a sentence was understood to say.

    Attributes:
        mentions: of objectives, in their order.
        chances: how likely each objective is asked for, 0 to 1, in the order of the reward table.
    """

    mentions: list[Mention]
    chances: dict[str, float]

    @property
    def objectives(self) -> tuple[str, ...]:
        """Components asked for, in the order of the reward table."""
        return tuple(name for name, chance in self.chances.items() if chance >= 0.5)


def recognise(text: str, memory: Path | None = None) -> Reading:
    """Every mention of an objective in a sentence, and how likely each objective is asked for.

    Args:
        text: the sentence; the network reads its first 256 tokens.
        memory: file of sentences read before, as in `text.remembered`.
    """
    found = mentions(text)
    odds = dict.fromkeys(COMPONENTS, 0.0)
    taught = all(mention.component in LEARNED for mention in found)
    if taught and any(character.isalnum() for character in text):
        odds |= dict(zip(LEARNED, _read(_LONE.sub(" ", text), memory), strict=True))
    return Reading(found, {name: _chance(odds[name] + _opinion(found, name)) for name in COMPONENTS})


def _read(text: str, memory: Path | None) -> list[float]:
    """Log odds of what the network was taught."""
    return remembered([text], f"reader {_version()}", _log_odds, len(LEARNED), memory)[0].tolist()


def _log_odds(sentences: Sequence[str]) -> np.ndarray:
    from lever_lib.reader import log_odds  # torch takes a second to import, and what is remembered needs none

    return log_odds(sentences)


@cache
def _version() -> str:
    """Hash of the weights, and of the code that reads with them: what others said is not remembered."""
    with WEIGHTS.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()} {source_hash('lever_lib.reader')}"


def _opinion(found: list[Mention], name: str) -> float:
    """What the words have to say of an objective, as log odds."""
    wanted = [mention.wanted for mention in found if mention.component == name]
    return _ABSENT if not wanted else _ASKED if any(wanted) else -_ASKED


def _chance(odds: float) -> float:
    return round(float(1 / (1 + np.exp(-odds / _TEMPERATURE))), 3)


def meant_by(sentence: str, memory: Path | None = None) -> tuple[str, ...]:
    """Components that a sentence of a library asks for; those of the reward table need not be read."""
    for name, component in COMPONENTS.items():
        if sentence == component.sentence:
            return (name,)
    for setup, known in COMPOSITE_SENTENCES.items():
        if sentence == known:
            return tuple(setup.split("-"))
    return recognise(sentence, memory).objectives


def check_sentences() -> None:
    """Refuse a component that nobody could ask for: its sentence is misunderstood, or its name cannot be joined.

    Raises:
        LeverError: naming the component.
    """
    for name, component in COMPONENTS.items():
        if not re.fullmatch(r"[^\W\d_]\w*", name):
            raise LeverError(f"component {name!r}: its name must be a letter, and letters, digits or '_' after it")
        named = {mention.component for mention in mentions(component.sentence) if mention.wanted}
        if named != {name}:
            raise LeverError(
                f"component {name!r}: its sentence {component.sentence!r} must be recognised by its own words and by "
                f"no other's, but names {', '.join(named) or 'none'}"
            )


check_sentences()
