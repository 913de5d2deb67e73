"""The gridworld as a Gymnasium environment: `gymnasium.make("lever/GridWorld-v0")` after `import lever_lib`.

It steps through the same compiled arrays as training and planning here, so what another agent earns in it compares
with the library's returns and the exact optimum.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np

from lever_lib.envs.gridworld import (
    ACTIONS,
    BUMP,
    ENTER_EMPTY,
    ENTER_EXIT,
    ENTER_HAZARD,
    Layout,
    drawn,
    enter,
    make_layout,
)
from lever_lib.envs.layouts import AGENT, EMPTY, EXIT, HAZARD
from lever_lib.envs.rewards import RewardSystem, reward_system
from lever_lib.errors import LeverError
from lever_lib.looks import GRID_LINE, GROUND, LOOKS
from lever_lib.params import load_params

TILE = 24  # pixels per cell of a rendered frame


class GridWorldEnv(gymnasium.Env):
    """One layout under one reward system.

    Observation: the cells as the agent finds them, int8 (N, N): 7 where it stands, golds, the lever and hazards that
    it entered gone. Actions 0..3: right, down, right x2, down x2. An episode terminates at the exit or in a hazard and
    is truncated after N * N steps. `info` holds `cell`, `golds_left` and `lever`.

    Args:
        spec: params file that gives grid, counts and exit rule.
        layout: a seed of the published layouts, or a `Layout` of your own.
        setup: reward system, e.g. `path-gold`; by name it pays under the spec's exit rule.
        render_mode: `rgb_array`, `ansi` or None.

    Raises:
        LeverError: if one of these is unknown.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}

    def __init__(
        self,
        spec: str = "8x8",
        layout: int | str | Layout = 0,
        setup: str | RewardSystem = "path-gold-hazard-lever",
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise LeverError(f"render_mode = {render_mode!r}: must be one of rgb_array, ansi, None")
        grid = load_params(spec).grid
        self.layout = layout if isinstance(layout, Layout) else make_layout(grid, layout)
        self.system = setup if isinstance(setup, RewardSystem) else reward_system(setup, grid.legacy_gold_exit)
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)
        codes = self.layout.cells
        self.observation_space = gymnasium.spaces.Box(int(HAZARD), int(EXIT), codes.shape, np.int8)
        self._start_over()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Back to the start. Nothing here is random: `seed` feeds the generator that Gymnasium asks for, no more."""
        super().reset(seed=seed, options=options)
        self._start_over()
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take an action: observation, reward, terminated, truncated, info.

        Raises:
            LeverError: if `action` is not 0, 1, 2 or 3, or the episode is over.
        """
        if not self.action_space.contains(action):
            raise LeverError(f"action = {action!r}: must be a whole number from 0 to {ACTIONS - 1}")
        if self._over:
            raise LeverError("step: the episode is over, call reset first")
        action = int(action)
        rewards, transitions = self.layout.rewards(self.system), self.layout.transitions
        event = int(transitions.event[self._cell, action])
        reward = float(rewards.fixed[self._cell, action])
        if event != BUMP:
            reached = int(transitions.next_cell[self._cell, action])
            first_time = self._world.flat[reached] != EMPTY  # what was entered before is gone
            extra, self._left, self._taken = enter(
                event if first_time else ENTER_EMPTY, self._left, self._taken, rewards.pay
            )
            reward += extra
            self._cell = reached
            if reached != 0 and event != ENTER_EXIT:
                self._world.flat[reached] = EMPTY
        self._steps += 1
        terminated = event in (ENTER_EXIT, ENTER_HAZARD)
        truncated = not terminated and self._steps >= self.layout.horizon
        self._over = terminated or truncated
        return self._observation(), reward, terminated, truncated, self._info()

    def render(self) -> np.ndarray | str | None:
        """The world as an image, uint8 (pixels, pixels, 3), or as text, as `render_mode` says."""
        if self.render_mode == "rgb_array":
            return picture(self._observation(), self.layout.cells)
        return drawn(self._world, [self._cell]) if self.render_mode == "ansi" else None

    def _start_over(self) -> None:
        self._cell, self._steps, self._over = 0, 0, False
        self._left, self._taken = len(self.layout.golds), 0
        self._world = np.array(self.layout.cells)

    def _observation(self) -> np.ndarray:
        cells = self._world.copy()
        cells.flat[self._cell] = AGENT
        return cells

    def _info(self) -> dict[str, Any]:
        return {"cell": self._cell, "golds_left": int(self._left), "lever": bool(self._taken)}


def picture(cells: np.ndarray, ground: np.ndarray | None = None, tile: int = TILE) -> np.ndarray:
    """A world drawn with the shapes of `looks`, uint8 (N * tile, N * tile, 3).

    Args:
        cells: cell codes, int (N, N).
        ground: cell codes of what lies under the agent, int (N, N).
        tile: pixels per cell.
    """
    image = np.empty((*cells.shape, tile, tile, 3), np.uint8)
    image[:] = _rgb(GROUND)
    image[:, :, 0, :] = image[:, :, :, 0] = _rgb(GRID_LINE)
    under = np.where(cells == AGENT, EMPTY if ground is None else ground, EMPTY)
    for codes in (under, cells):
        for code, look in LOOKS.items():
            mask = _shape(look.shape, tile)
            for row, column in np.argwhere(codes == code):
                image[row, column][mask] = _rgb(look.colour)
    return image.transpose(0, 2, 1, 3, 4).reshape(cells.shape[0] * tile, cells.shape[1] * tile, 3)


def _rgb(colour: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)


def _shape(name: str, tile: int) -> np.ndarray:
    """Which pixels of a tile a shape covers, bool (tile, tile)."""
    along = np.linspace(-1, 1, tile)
    x, y = np.abs(along[None, :]), along[:, None]  # left and right are alike
    square = np.maximum(x, np.abs(y))
    return {
        "diamond": x + np.abs(y) < 0.8,
        "triangle": (x < (y + 0.75) / 1.8) & (y < 0.7) & (y > -0.75),
        "cross": (np.abs(x - np.abs(y)) < 0.28) & (square < 0.75),
        "frame": (square > 0.6) & (square < 0.9),
        "full": square < 0.95,
        "ring": (abs(x**2 + y**2 - 0.5) < 0.2) | (x**2 + y**2 < 0.08),
    }[name]
