"""Worlds: layouts, transitions, rewards and state features."""
