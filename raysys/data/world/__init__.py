"""The planted world: a city whose people eat and read by known laws.

It proves correctness, cost and recoverability of methods, never a claim about real people.
"""

from raysys.data.world.config import Effects, WorldConfig
from raysys.data.world.make import make_world

__all__ = ["Effects", "WorldConfig", "make_world"]
