"""Hyper-parameter sweeps: every module beside `runner` is a space of that name.

A space module has one pure function `space() -> Space`; nothing else is needed to add a sweep.
"""

import difflib
import importlib
import pkgutil

from raysys.errors import ConfigError
from tune_spaces.runner.space import Space


def names() -> list[str]:
    """The spaces there are."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.ispkg)


def open_space(name: str) -> Space:
    """The space of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no space is called {name!r}; {hint}There are {', '.join(known)}")
    found: Space = importlib.import_module(f"tune_spaces.{name}").space()
    return found
