"""LEVER: reuse reinforcement-learning policies at inference time: retrieve, score, compose."""
