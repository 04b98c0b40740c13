"""Rounds on devices and links that a run only stands for: events, loads, a clock, a timeline."""
