"""The arms of the fair test by name (§5), as options of `Perconet`."""

from typing import Any

_PLAIN = {"contrast": {"weight": 0.0}}

PRESETS: dict[str, dict[str, Any]] = {
    # C1: the user side; all read title and abstract alike.
    "P0": {**_PLAIN, "user": "latent"},
    "P1": {**_PLAIN, "persona": {"prominence": "even", "size": 200, "eta": 0.0}},
    "P2": {**_PLAIN, "user": "persona"},
    "P3": _PLAIN,
    "X1": {**_PLAIN, "persona": {"placebo": "shuffled"}},
    "X2": {**_PLAIN, "persona": {"placebo": "popular"}},
    # C2: the news; the user side is P3's.
    "V0": {**_PLAIN, "fusion": "title"},
    "V1": {**_PLAIN, "fusion": "abstract"},
    "V2": {**_PLAIN, "fusion": "concat_text"},
    "V3": _PLAIN,
    "V4": {},
    "V5": {"fusion": "title"},
    "V6": {"contrast": {"views": "dropout"}},
}
