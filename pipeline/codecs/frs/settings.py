"""What a user may ask of the frs codec: qualities by name, and profiles."""

from __future__ import annotations

# Feature losses (pipeline/losses/registry.py) whose gradients a profile's step is chosen for.
PROFILES = {"frs": ("feature",), "universal": ("feature", "pkd", "cwd")}
QUALITIES = {"high": 0.01, "balanced": 0.03, "small": 0.10}


def asked(quality: str | float) -> float:
    """The gradient error allowed to each loss, of a named step or a number."""
    return QUALITIES[quality] if isinstance(quality, str) else quality
