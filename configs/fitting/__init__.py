"""Presets of the three fitting stages: fitting=NAME."""
