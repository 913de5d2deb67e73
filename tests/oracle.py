"""The rules of the world, written a second time: slowly, step by step, from cell codes.

Nothing here uses the compiled arrays, so agreement with the kernels means something.
"""

from __future__ import annotations

import math

STEPS = {"forward": [(0, 1), (1, 0), (0, 2), (2, 0)], "cardinal": [(0, 1), (1, 0), (0, -1), (-1, 0)]}


class World:
    """One episode in a layout."""

    def __init__(self, layout, components, legacy=False, cell=0, golds=None, lever=False):
        self.grid = [[int(code) for code in row] for row in layout.cells]
        self.size = len(self.grid)
        self.components = components
        self.legacy = legacy
        self.position = divmod(cell, self.size)
        self.start_golds = sum(code == 1 for row in self.grid for code in row)
        if golds is not None:
            cells = [divmod(int(c), self.size) for c in layout.golds]
            for (r, c), left in zip(cells, golds, strict=True):
                if not left:
                    self.grid[r][c] = 0
        self.lever = lever
        if lever:
            self.grid = [[0 if code == 2 else code for code in row] for row in self.grid]
        self.moves = STEPS[layout.moves]
        self.done = False
        self.hazard_steps = 0

    def hazards_around(self, r, c):
        sides = [(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)]
        return sum(0 <= a < self.size and 0 <= b < self.size and self.grid[a][b] == -2 for a, b in sides)

    def step(self, action):
        """Take one action and return its reward."""
        r, c = self.position[0] + self.moves[action][0], self.position[1] + self.moves[action][1]
        if not (0 <= r < self.size and 0 <= c < self.size) or self.grid[r][c] == -1:
            return -1.0
        code = self.grid[r][c]
        around = self.hazards_around(r, c)
        self.position = (r, c)
        if code == -2:
            self.done = True
            self.hazard_steps += 1
            self.grid[r][c] = 0
            return -100.0
        reward = 0.0
        if code == 1:
            self.grid[r][c] = 0
            reward += 5 * ("gold" in self.components)
        if code == 2:
            self.grid[r][c] = 0
            self.lever = True
            reward += 20 * ("lever" in self.components)
        reward -= 2 * around * ("hazard" in self.components)
        reward -= sum({"path": 1, "gold": 0.01, "hazard": 0.1, "lever": 0.1}[name] for name in self.components)
        if code == 10:
            self.done = True
            reward += self.exit_reward()
        return reward

    def exit_reward(self):
        left = sum(code == 1 for row in self.grid for code in row)
        gold = 100 if left == 0 else (-20 if self.legacy else -10 * left / self.start_golds)
        pays = {"path": 100, "gold": gold, "hazard": 100, "lever": 80 if self.lever else 20}
        return sum(pays[name] for name in self.components)

    def features(self, slots):
        """phi of the current state, by the definition."""
        n = self.size
        r, c = self.position
        grid = [row[:] for row in self.grid]
        grid[r][c] = 7

        def where(code):
            return [(a, b) for a in range(n) for b in range(n) if grid[a][b] == code]

        def nearest(code):
            found = [(b - c, a - r) for a, b in where(code)]
            if not found:
                return [0.0, 0.0, 0.0]
            dx, dy = min(found, key=lambda d: math.hypot(*d))
            return [dx / n, dy / n, math.hypot(dx, dy) / (math.sqrt(2) * n)]

        walls = [
            float(not (0 <= a < n and 0 <= b < n) or grid[a][b] == -1)
            for a, b in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1))
        ]
        distances = sorted((abs(a - r) + abs(b - c)) / (2 * n) for a, b in where(1))
        head = [c / n, r / n, *nearest(1), float(len(where(1))), *nearest(10), *walls, *nearest(2)]
        head += [float(self.lever), len(where(-2)) / n**2, nearest(-2)[2], self.hazard_steps / n**2]
        return head + distances + [0.0] * (slots - len(distances))


def follow(layout, actions, components, legacy=False):
    """Return of a policy that acts by the cell, over the whole horizon, and whether it got stuck."""
    world = World(layout, components, legacy)
    total = 0.0
    for _ in range(layout.horizon):
        total += world.step(int(actions[world.position[0] * world.size + world.position[1]]))
        if world.done:
            return total, False
    return total, True
