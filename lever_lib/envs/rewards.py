"""The reward table, declared once as data.

A step of the world produces *events*; a reward component is a weight per event; a reward system is the sum of its
components plus what every system pays (a bump, a hazard). Because all rewards are linear in the same events, one
roll-out of a policy, counted in events, gives its return under every reward system at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from lever_lib.errors import LeverError

EVENTS = (
    "bump",  # a move that leaves the grid or enters a block: the agent stays
    "hazard",  # entering a hazard: the episode ends, nothing else is paid
    "step",  # any other move
    "gold",  # entering a gold cell for the first time
    "lever",  # entering the lever cell for the first time
    "hazard_neighbour",  # hazards among the 4 neighbours of the cell entered
    "exit",  # entering the exit: the episode ends
    "exit_all_gold",  # ... with no gold left
    "exit_some_gold",  # ... with gold left
    "exit_gold_share",  # ... golds left / golds at the start
    "exit_with_lever",  # ... with the lever taken
)
_EVENT_INDEX = {name: index for index, name in enumerate(EVENTS)}

_MOST = 1e9  # reward per event; far beyond it, sums over an episode lose what small rewards add
EVERY_SYSTEM = MappingProxyType({"bump": -1.0, "hazard": -100.0})


@dataclass(frozen=True)
class Component:
    """One objective: the words it is described by and what it pays per event.

    Attributes:
        sentence: how a person would ask for it; also the text its policies are indexed under.
        pays: reward per event; names as in `EVENTS`. With forward moves, a bump must not come to more than 0 in a sum
            of components: there, whoever bumps has come to an end.
        words: words and short expressions by which a question is understood to mean it, with `|` between them and `*`
            for any ending; by default its name. One of them must occur in its own sentence, none in another
            component's. The four below have theirs in `lever_lib/data/vocabulary.yaml`.
        pays_legacy: `pays` under `legacy_gold_exit`, where it differs.
    """

    sentence: str
    pays: dict[str, float]
    words: str = ""
    pays_legacy: dict[str, float] | None = None

    def __post_init__(self) -> None:
        texts = isinstance(self.sentence, str) and isinstance(self.words, str)
        if not texts or not self.sentence.strip() or not self.sentence.isprintable():
            raise LeverError(f"component {self.sentence!r}: its sentence must be a line of text, its words text")
        if not isinstance(self.pays, dict) or not isinstance(self.pays_legacy, dict | None):
            raise LeverError(f"component {self.sentence!r}: what it pays must be a dict, reward by event")
        for event, reward in (*self.pays.items(), *(self.pays_legacy or {}).items()):
            if event not in EVENTS:
                raise LeverError(f"component {self.sentence!r}: {event!r} is no event; events: {', '.join(EVENTS)}")
            if not isinstance(reward, int | float) or isinstance(reward, bool) or not abs(reward) <= _MOST:
                raise LeverError(
                    f"component {self.sentence!r}: {event} = {reward!r}: must be a number, {_MOST:g} at most"
                )


# An objective of your own is one entry more. Reaching the exit alone is no objective: every policy is meant to.
COMPONENTS: dict[str, Component] = {
    "path": Component(
        "Find the shortest path to the exit.",
        {"step": -1.0, "exit": 100.0},
    ),
    "gold": Component(
        "Collect as much gold as possible before exiting.",
        {"step": -0.01, "gold": 5.0, "exit_all_gold": 100.0, "exit_gold_share": -10.0},
        pays_legacy={"step": -0.01, "gold": 5.0, "exit_all_gold": 100.0, "exit_some_gold": -20.0},
    ),
    "hazard": Component(
        "Reach the exit while avoiding hazards and staying away from them.",
        {"step": -0.1, "hazard_neighbour": -2.0, "exit": 100.0},
    ),
    "lever": Component(
        "Activate the lever before reaching the exit.",
        {"step": -0.1, "lever": 20.0, "exit": 20.0, "exit_with_lever": 60.0},
    ),
}


COMPOSITE_SENTENCES: dict[str, str] = {
    "hazard-lever": "Activate the lever and avoid hazards while reaching the exit.",
    "path-gold": "Find the fastest exit and collect as much gold as possible.",
    "path-gold-hazard": "Find the fastest exit, collect as much gold as possible, and avoid hazards.",
    "path-gold-hazard-lever": (
        "Find the fastest exit, collect as much gold as possible, avoid hazards, and activate the lever."
    ),
}

SINGLE_OBJECTIVES = tuple(COMPONENTS)
REWARD_SYSTEMS = (*SINGLE_OBJECTIVES, *COMPOSITE_SENTENCES)


@dataclass(frozen=True)
class RewardSystem:
    """A reward function: which components it sums and what it pays per event.

    Attributes:
        name: components joined by `-`, in the order of the table.
        components: the active components.
        legacy_gold_exit: whether leaving gold behind costs a flat 20 at the exit instead of 10 x the share left.
    """

    name: str
    components: tuple[str, ...]
    legacy_gold_exit: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.legacy_gold_exit, bool):
            raise LeverError(f"legacy_gold_exit = {self.legacy_gold_exit!r}: must be True or False")
        unknown = [name for name in self.components if name not in COMPONENTS]
        if unknown or not self.components:
            known = ", ".join(COMPONENTS)
            raise LeverError(f"reward system {self.name!r}: components {self.components!r} must be among {known}")

    @cached_property
    def weights(self) -> np.ndarray:
        """Reward per event, float64 (E,), in the order of `EVENTS`."""
        weights = np.zeros(len(EVENTS))
        for event, reward in EVERY_SYSTEM.items():
            weights[_EVENT_INDEX[event]] = reward
        for name in self.components:
            component = COMPONENTS[name]
            legacy = self.legacy_gold_exit and component.pays_legacy is not None
            for event, reward in (component.pays_legacy if legacy else component.pays).items():
                weights[_EVENT_INDEX[event]] += reward
        weights.setflags(write=False)
        return weights

    @cached_property
    def sentence(self) -> str:
        """What the system asks for, in words."""
        if len(self.components) == 1:
            return COMPONENTS[self.name].sentence
        default = " ".join(COMPONENTS[name].sentence for name in self.components)
        return COMPOSITE_SENTENCES.get(self.name, default)

    @property
    def indicator(self) -> np.ndarray:
        """Which components are active, float64 (C,), in the order of `COMPONENTS`."""
        return np.array([name in self.components for name in COMPONENTS], dtype=np.float64)


def reward_system(name: str, legacy_gold_exit: bool = False) -> RewardSystem:
    """The reward system called `name`.

    Args:
        name: component names joined by `-`, in any order: `gold-path` is `path-gold`.
        legacy_gold_exit: use the older exit rule for gold.

    Raises:
        LeverError: if a component is unknown or named twice.
    """
    if not isinstance(name, str):
        raise LeverError(f"setup {name!r}: must be component names joined by '-'")
    parts = name.split("-")
    unknown = [part for part in parts if part not in COMPONENTS]
    if unknown:
        known = ", ".join(COMPONENTS)
        raise LeverError(f"setup {name!r}: {unknown[0]!r} is no reward component; components: {known}, joined by '-'")
    if len(set(parts)) != len(parts):
        raise LeverError(f"setup {name!r}: each component may be named once")
    components = tuple(part for part in COMPONENTS if part in parts)
    return RewardSystem("-".join(components), components, legacy_gold_exit)
