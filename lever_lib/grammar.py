"""Where a sentence speaks of objectives, and what the words around do to each.

A vocabulary (`lever_lib/data/vocabulary.yaml`) says which words speak of an objective and which turn a wish round
("without", "ignore", "avoid"). A sentence is cut into wishes at its joints, and within a wish the words that turn it
round are counted: "forget the gold" does not ask for gold, "don't forget the gold" does, and "no traps" asks to be
spared them. Misspellings are taken for the nearest word of the vocabulary.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from rapidfuzz import process
from rapidfuzz.distance import OSA, Prefix

from lever_lib.envs.rewards import COMPONENTS
from lever_lib.text import known_words

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times as fast where it was compiled
_DATA = Path(__file__).parent / "data"
_SIGNS = ("not", "avoid", "few", "ignore", "moot", "care", "leave", "spare", "over", "undo", "same")
_ROLES = ("asks", "names", "shuns", "against", "costs", "units", "mere")
_SINGULAR = ("is", "was", "does", "has")
_PRONOUNS = {"it", "that", "this", "they", "these", "those", "all", "which", "is", "are", "and", "i", "am", "be"}
_LEFT = ("names", "shuns")  # roles of what can be left alone
_GAP = 3  # words that a gap may stand for
_PIECES = re.compile(
    r"w/o(?:ut)?\b|\$+|[a-z0-9]+(?:'[a-z]+)?|[,.;:!?]|[&+/]|\s-+\s|[\u2013\u2014()]", re.ASCII | re.IGNORECASE
)
_DRAWN_OUT = re.compile(r"([a-z])\1{2,}")  # "gooold"
_PLAIN = ("", "s", "ing", "ed")  # endings that any word of the vocabulary may have
_ENDINGS = ("", "s", "es", "ed", "d", "ing", "ly", "er", "est", "y", "e", "ate")


class Mention(NamedTuple):
    """A place in a sentence that speaks of an objective.

    Attributes:
        component: the objective.
        words: as they were typed.
        wanted: whether they ask for it; else it is waved away.
    """

    component: str
    words: str
    wanted: bool


def mentions(text: str) -> list[Mention]:
    """Every mention of an objective in a sentence, in their order."""
    words = _Words.of(text, _current())
    return [
        Mention(name, words.typed(token), _wanted(token.kind, signs))
        for token, signs in _Reader(words).read(_current().tokens(words))
        for name in token.components
    ]


def _current() -> Grammar:
    """The grammar of the reward table as it is now."""
    return _grammar(tuple((name, component.words) for name, component in COMPONENTS.items()))


class _Token(NamedTuple):
    kind: str
    components: tuple[str, ...]
    start: int  # first word
    stop: int  # after the last


@dataclass(frozen=True)
class _Words:
    """A sentence word by word.

    Attributes:
        text: the sentence.
        plain: its words in lower case, spelt right, contractions written out.
        spans: where in `text` each came from.
    """

    text: str
    plain: list[str]
    spans: list[tuple[int, int]]

    @classmethod
    def of(cls, text: str, grammar: Grammar) -> _Words:
        """Take a sentence apart."""
        words = cls(text, [], [])
        for found in _PIECES.finditer(text.replace("\u2019", "'")):
            for part in grammar.written_out(_DRAWN_OUT.sub(r"\1", found.group().lower())):
                words.plain.append(grammar.spelt(part))
                words.spans.append(found.span())
        return words

    def typed(self, token: _Token) -> str:
        """The words of a token as they were typed."""
        return self.text[self.spans[token.start][0] : self.spans[token.stop - 1][1]]


def _is_word(word: str) -> bool:
    """Whether it is spelt right: the encoder knows it, or what it is made from."""
    stems = [word[: -len(ending)] for ending in ("ing", "ed", "ly") if word.endswith(ending)]
    return any(stem in known_words() for stem in (word, *(stem for stem in stems if len(stem) > 3)))


class Grammar:
    """The vocabulary, ready to be looked for in a sentence.

    Args:
        own: words of each component, as the reward table has them.
    """

    def __init__(self, own: tuple[tuple[str, str], ...]) -> None:
        book = yaml.load((_DATA / "vocabulary.yaml").read_bytes(), Loader=_LOADER)
        self.learned = set(book["objectives"])
        entries: list[tuple[str, str, tuple[str, ...]]] = []
        own_entries: list[tuple[str, str, tuple[str, ...]]] = []
        for name, words in own:
            roles = book["objectives"].get(name, {})
            entries += [(phrase, role, (name,)) for role in _ROLES for phrase in _flat(roles.get(role, []))]
            said = words or ("" if name in self.learned else name)
            own_entries += [(word.strip().lower(), "names", (name,)) for word in said.split("|") if word.strip()]
        entries += [(phrase, "asks", tuple(name for name, _ in own)) for phrase in book["everything"]]
        for section in ("signs", "joints"):
            entries += [(phrase, kind, ()) for kind, phrases in book[section].items() for phrase in _flat(phrases)]
        for kind in ("neutral", "verbs", "auxiliaries"):
            entries += [(phrase, kind, ()) for phrase in _flat(book[kind])]
        # The longest expression wins, so the longest comes first; what somebody added goes before all.
        entries.sort(key=lambda entry: (-len(entry[0].replace("_", "").split()), -len(entry[0])))
        self.own, self.entries = own_entries, [*own_entries, *entries]
        self.by_first: dict[str, list[tuple[int, list[str]]]] = {}  # rank and words of the expressions by first word
        for rank, (phrase, _, _) in enumerate(self.entries):
            expression = phrase.split()
            self.by_first.setdefault(expression[0], []).append((rank, expression))
        words = sorted({word for phrase, _, _ in self.entries for word in phrase.split() if word != "_"})
        self.neutral = set(_flat(book["neutral"]))
        self.short = book["short"]
        self.whole = frozenset(word for word in words if not word.endswith("*"))
        self.stems = frozenset(word[:-1] for word in words if word.endswith("*"))
        self.spellings: dict[str, list[str]] = {}
        for word in words:
            forms = [word[:-1] + ending for ending in _ENDINGS] if word.endswith("*") else [word]
            for spelling in forms:
                stem = word.removesuffix("*")
                real = spelling in known_words() or spelling.removeprefix(stem) in _PLAIN or stem not in known_words()
                if real and len(spelling) > 3 and spelling.isalpha():
                    self.spellings.setdefault(spelling[0], []).append(spelling)

    def written_out(self, word: str) -> list[str]:
        """The words that a piece of a sentence stands for: "don't" is "do not"."""
        bare = word.replace("'", "")
        if bare in self.short:
            return self.short[bare].split()
        if word.endswith("n't"):
            return [word[:-3], "not"]
        if "'" in word:
            stem, ending = word.split("'")
            return [stem, *{"s": ["is"], "m": ["am"]}.get(ending, [])]
        if word.startswith("$"):
            return ["money"]
        if word in ("&", "+", "/"):
            return ["and"]
        return [word] if word.isalnum() or word in ",.;:!?" else [";"]

    def has(self, word: str) -> bool:
        """Whether a word stands in the vocabulary."""
        return word in self.whole or any(word[:end] in self.stems for end in range(1, len(word) + 1))

    def spelt(self, word: str) -> str:
        """The word of the vocabulary that a misspelt one is nearest to; other words stay."""
        if len(word) < 3 or not word.isalpha() or self.has(word) or _is_word(word):
            return word
        most = 1 if len(word) < 7 else 2
        near = process.extract(word, self.spellings.get(word[0], []), scorer=OSA.distance, score_cutoff=most, limit=9)
        near = [found for found in near if found[1] < 2 or found[0][-1] == word[-1]]
        return min(near, key=lambda found: self._distance(word, *found[:2]))[0] if near else word

    def _distance(self, word: str, spelling: str, edits: int) -> tuple:
        return edits, spelling in self.neutral, -Prefix.similarity(word, spelling), spelling

    def tokens(self, words: _Words) -> list[_Token]:
        """What is in a sentence; words that mean nothing here are left out."""
        found, place = [], 0
        while place < len(words.plain):
            rank, stop = self.longest(words.plain, place)
            if rank is not None:
                _, kind, components = self.entries[rank]
                found.append(_Token(kind, components, place, stop))
            place = stop
        return found

    def longest(self, words: list[str], start: int) -> tuple[int | None, int]:
        """Rank of the first expression that begins at a word, and the word after it."""
        word = words[start]
        firsts = [word, *(f"{word[:end]}*" for end in range(1, len(word) + 1))]
        here = sorted(entry for first in firsts for entry in self.by_first.get(first, ()))
        for rank, expression in here:
            stop = _matched(expression, words, start)
            if stop is not None and not (rank >= len(self.own) and any(map(self.is_own, words[start + 1 : stop]))):
                return rank, stop
        return None, start + 1

    def is_own(self, word: str) -> bool:
        """Whether somebody's own objective goes by a word, which then is part of no other expression."""
        return any(_fits(phrase.split()[0], word) for phrase, _, _ in self.own)


_grammar = cache(Grammar)


def _flat(entries: list) -> list[str]:
    return [str(phrase) for entry in entries for phrase in (entry if isinstance(entry, list) else [entry])]


def _matched(expression: list[str], words: list[str], start: int) -> int | None:
    """The word after an expression that begins at a word; None if it does not stand there."""
    if not expression:
        return start
    first, rest = expression[0], expression[1:]
    if first == "_":
        gaps = range(_GAP, -1, -1)
        fitting = (gap for gap in gaps if all(map(_fills_gap, words[start : start + gap])))
        stops = (_matched(rest, words, start + gap) for gap in fitting)
        return next((stop for stop in stops if stop is not None), None)
    if start >= len(words) or not _fits(first, words[start]):
        return None
    return _matched(rest, words, start + 1)


def _fits(pattern: str, word: str) -> bool:
    return word.startswith(pattern[:-1]) if pattern.endswith("*") else word == pattern


def _fills_gap(word: str) -> bool:
    return word.isalnum() and word not in ("not", "no", "without", "never")


class _Reader:
    """Reads tokens from left to right and counts, for each mention, the words that turn it round."""

    def __init__(self, words: _Words) -> None:
        self.words = words
        self.mentions: list[tuple[_Token, Counter]] = []
        self.place = 0  # the word after the token that is read
        self.begin()

    def begin(self) -> None:
        """A wish starts here."""
        self.start = self.place
        self.signs: Counter = Counter()
        self.subjects: list[tuple[_Token, Counter]] = []  # mentions that a predicate would be about
        self.last: _Token | None = None  # mention within this wish
        self.joint: _Token | None = None
        self.auxiliary: _Token | None = None
        self.by_comma = False  # whether a comma brought the last mention into a list
        self.either = False  # whether the last mention was joined by "or"
        self.neither: Counter | None = None  # signs up to a "neither"

    def read(self, tokens: list[_Token]) -> list[tuple[_Token, Counter]]:
        """Mentions with their signs."""
        for number, token in enumerate(tokens):
            self.place = token.stop
            if token.kind == "stop" or (token.kind == "weak" and self.auxiliary is None and self.last is not None):
                earlier = self.signs
                self.begin()
                if number + 1 < len(tokens) and tokens[number + 1].kind == "or":  # "Not the gold. Or the lever."
                    self.signs = earlier
            elif token.kind == "nor":
                kept = self.neither or (self.signs if self.signs["not"] % 2 else {"not": 1})
                self.signs, self.last, self.joint = Counter(kept), None, token
            elif token.kind in ("comma", "or"):
                self.joint = token if self.joint is None or token.kind == "or" else self.joint
                self.auxiliary = None
            elif token.kind == "relative":
                self.subjects, self.auxiliary = [], None
            elif token.kind == "auxiliaries" or (token.kind == "colon" and self.ends_mention(token)):
                self.auxiliary = token if self.joint is None and self.subjects else None
                if self.ends_mention(token) and self.by_comma:  # "ignore the gold, the lever is what matters"
                    self.subjects = self.subjects[-1:]
                    self.subjects[0][1].clear()
            elif token.kind == "colon":
                self.begin()
            elif token.kind in _SIGNS:
                self.sign(token, tokens[number + 1 :])
            elif token.kind == "verbs":
                self.verb()
            elif token.kind in _ROLES:
                self.mention(token, tokens[number + 1 :])
        return [(token, signs) for token, signs in self.mentions if token.kind != "mere"]

    def ends_mention(self, token: _Token) -> bool:
        """Whether a mention stands right before a token."""
        return self.last is not None and self.joint is None and self.last.stop == token.start

    def sign(self, token: _Token, rest: list[_Token]) -> None:
        """A word that turns the wish round: of what comes next, or of what a predicate is about."""
        ahead = _mention_ahead(rest)
        after = self.ends_mention(token)
        following = set(self.words.plain[token.stop : token.stop + 4])
        if token.kind == "undo":
            for _, signs in self.mentions[-1:]:
                self.turn(signs, token)
        elif token.kind in ("ignore", "moot") and not ahead and following & {"all", "any", "either", "everything"}:
            for _, signs in self.mentions:
                self.turn(signs, token)
        elif token.kind == "same":
            self.signs = Counter(self.mentions[-1][1]) if self.mentions else Counter()
            self.last = self.joint = None
        elif token.kind == "over":
            if after and rest and rest[0].kind in _ROLES and rest[0].start - token.stop <= 1:  # safety over speed
                self.begin()
                self.signs["not"] += 1
        elif token.kind == "leave" and after and self.signs["not"]:  # no coin left
            self.about_subjects(token)
        elif token.kind == "leave" and self.pointing(token):
            self.backward(token, rest)
        elif token.kind == "leave" and not (rest and rest[0].kind in _LEFT and rest[0].start - token.stop <= _GAP):
            return
        elif token.kind == "care" and not self.denied():
            self.auxiliary = token if after else self.auxiliary  # gold need not be collected
        elif self.predicated(token, ahead, after):
            self.about_subjects(token)
        elif ahead is None or token.kind == "moot":
            self.backward(token, rest)
        else:
            self.forward(token)

    def predicated(self, token: _Token, ahead: _Token | None, after: bool) -> bool:
        """Whether a sign is said of what came before: "gold is not needed", "lever excluded"."""
        first = self.words.plain[token.start]
        if first in ("without", "rather", "instead", "except"):
            return False
        if ahead is not None and ahead.start - token.stop <= 1:  # "my time is not wasted"
            return False
        if self.auxiliary is not None and (ahead is None or token.start == self.auxiliary.stop):
            return True
        said_after = first.endswith("ed") or (self.last is not None and self.last.kind in ("units", "costs"))
        return after and ahead is None and token.kind in ("avoid", "few") and said_after

    def denied(self) -> bool:
        """Whether "care" and its like stand under a "not", before it or in its predicate."""
        if self.auxiliary is not None and self.subjects:
            return bool(self.subjects[-1][1]["denied"])
        return bool(self.signs["not"] % 2)

    def forward(self, token: _Token) -> None:
        """Count a sign for the mentions to come."""
        if self.signs["not"] % 2 and self.words.plain[token.start] in ("except", "apart", "other", "aside"):
            self.begin()  # "no detours except for the gold"
            return
        if self.last is not None:  # a sign before a further mention begins a wish of its own,
            both = token.kind == "not" and self.signs["not"] >= 2  # but: not without this and without that
            self.begin()
            self.signs["not"] += both
        self.joint = None
        self.signs[token.kind] += 1
        if self.words.plain[token.start] == "neither":
            self.neither = Counter(self.signs)

    def about_subjects(self, token: _Token) -> None:
        """The gold is not needed; hazards and levers can be ignored."""
        if not self.subjects:
            return
        front = self.subjects[0][1]
        fronted = any(front[kind] for kind in _SIGNS) and not front["denied"]
        if fronted and self.neither is None and len(self.subjects) > 1:  # this is said of the last alone
            self.subjects = self.subjects[-1:]
            self.subjects[0][1].clear()
        several = self.auxiliary is not None and self.words.plain[self.auxiliary.start] not in _SINGULAR
        last = self.subjects[-1][0].components
        for subject, signs in self.subjects:
            if several or self.either or subject.components == last:
                self.turn(signs, token)

    def before_care(self, token: _Token, rest: list[_Token]) -> bool:
        """Whether a "not" right after a mention is followed by "needed" and its like."""
        after = self.words.plain[token.stop : token.stop + 1]
        cares = bool(rest) and rest[0].kind == "care" and rest[0].start == token.stop
        return self.ends_mention(token) and (cares or any(word.endswith("ed") for word in after))

    @staticmethod
    def turn(signs: Counter, token: _Token) -> None:
        """Count a sign said afterwards; the same thing said twice is said once."""
        kind = "ignore" if token.kind in ("moot", "undo") else token.kind
        signs[kind] += kind == "not" or not signs[kind]
        signs["denied"] += kind == "not"

    def pointing(self, token: _Token) -> bool:
        """Whether a sign is about "it" or "them"."""
        return self.words.plain[token.stop : token.stop + 1] in (["it"], ["them"], ["those"])

    def backward(self, token: _Token, rest: list[_Token]) -> None:
        """A sign with nothing ahead is about what came before: "traps irrelevant", "gold no", "forget it"."""
        following = self.words.plain[token.stop : token.stop + 4]
        said = set(self.words.plain[self.start : token.start])  # in this wish; a word unknown here may be its subject
        loose = not self.subjects and (
            token.kind == "ignore" or (token.kind == "moot" and not _mention_ahead(rest) and said <= _PRONOUNS)
        )
        final = self.ends_mention(token) and (not following or not following[0].isalnum())
        if self.mentions and token.kind != "not" and (self.pointing(token) or loose):
            self.turn(self.mentions[-1][1], token)
        elif self.joint is None and self.subjects:
            if token.kind in ("ignore", "moot", "spare"):
                self.about_subjects(token)
            elif token.kind == "not" and self.signs["not"] % 2 and self.words.plain[token.start] == "without":
                subject, signs = self.subjects[-1]  # "don't go without taking it"
                signs["not"] += not _wanted(subject.kind, signs)
            elif token.kind == "not" and (final or self.before_care(token, rest)):  # "gold no", "gold not needed"
                self.about_subjects(token)
                self.auxiliary = token

    def verb(self) -> None:
        """What a verb begins is a wish of its own, unless a sign stands before it or a predicate runs."""
        self.end_colon()
        if self.joint is not None:
            self.new_part()
        elif self.last is not None and self.auxiliary is None:
            self.begin()

    def end_colon(self) -> None:
        """After "gold:" comes what is said of it, or a new wish."""
        if self.auxiliary is not None and self.auxiliary.kind == "colon":
            self.begin()

    def new_part(self) -> None:
        """Go on after a joint: "not this or that" says not that."""
        kept = self.signs if self.joint.kind != "comma" else Counter()
        self.begin()
        self.signs = Counter(kept)

    def mention(self, token: _Token, rest: list[_Token]) -> None:
        """An objective is spoken of."""
        self.end_colon()
        self.either = self.joint is not None and self.joint.kind != "comma"
        self.by_comma = self.joint is not None and self.words.plain[self.joint.start] == ","
        alone = bool(rest) and rest[0].kind == "weak" and rest[0].start == token.stop  # "forget the gold, speed only"
        if self.joint is not None and (alone or not self.listed(token)):
            self.new_part()
        manner = token.kind not in ("names", "shuns", "mere")
        fresh = self.last is not None and self.joint is None and manner  # "avoid the traps in few steps"
        signs = Counter() if fresh else Counter(self.signs)
        self.mentions.append((token, signs))
        self.subjects.append((token, signs))
        self.last, self.joint, self.auxiliary = token, None, None

    def listed(self, token: _Token) -> bool:
        """Whether a mention continues a list of like things: "ignore the gold and the lever"."""
        if self.joint.kind != "comma":
            return self.joint.kind == "nor" or self.last is not None
        if self.last is None:
            return False
        alike = (self.last.kind == token.kind or self.signs["ignore"]) and token.kind in ("names", "shuns", "mere")
        near = self.joint.start == self.last.stop and token.start - self.joint.stop <= 2
        bare = set(self.signs) == {"not"} and self.words.plain[self.joint.start] == ","  # "no traps, gold"
        return alike and near and not bare


def _mention_ahead(rest: list[_Token]) -> _Token | None:
    """The next mention before any joint."""
    for token in rest:
        if token.kind in _ROLES:
            return token
        if token.kind in ("stop", "comma"):
            return None
    return None


def _wanted(role: str, signs: Counter) -> bool:
    """What the signs make of a mention."""
    denied = bool(signs["not"] % 2)
    left = bool(signs["ignore"] + signs["leave"] + signs["spare"])  # one gesture, in however many words
    if role == "shuns":
        if signs["ignore"]:
            return denied
        return not (denied and (signs["care"] or signs["avoid"] or left))
    if role == "units":
        return bool(signs["avoid"] or signs["few"]) and not denied and not signs["ignore"]
    if role == "costs":
        return not denied and not signs["ignore"]
    if role == "against":
        spared = signs["not"] + bool(signs["avoid"] + signs["few"]) + bool(signs["leave"] + signs["spare"])
        return bool(spared % 2) and not signs["ignore"] and not signs["care"]
    return (signs["not"] + signs["avoid"] + left) % 2 == 0
