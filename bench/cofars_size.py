"""How much memory the stored lists of CoFARS take."""

import numpy as np
import numpy.typing as npt

from bench.cofars_data import Drawn, spread_lengths
from raysys.cofars.nightly import Nightly
from raysys.data.attribute_counts import event_keys
from raysys.data.context_index import ContextIndex

_PART = 5_000  # users held at once
MILLION = 1_000_000
LONGEST = 10_000  # events
BUDGET = {"per_user": 4096.0, "per_event": 40.0}


def list_sizes(users: int, mean_events: float, seed: int, part: int = _PART) -> dict[str, object]:
    """Bytes of the lists of `users` users with lognormal history lengths, by array.

    Index and histories are real; what a selector adds is of the same size whatever it says, and
    is left 0.
    """
    lengths = spread_lengths(users, mean_events, LONGEST, seed)
    total: dict[str, int] = {}
    pairs = steps = 0
    for low in range(0, users, part):
        drawn = Drawn.of(lengths[low : low + part], 1000, seed + low)
        fitted = drawn.fitted(100)
        users_here, encoder = len(drawn.coming), fitted.options.encoder
        prototypes = encoder.prototypes
        keys = event_keys(drawn.histories, fitted.table, slice(None))
        index = ContextIndex.build(drawn.histories.start, keys)
        bits = np.zeros((len(index.key), -(-prototypes // 8)), np.uint8)
        graphs = Nightly(
            end=np.zeros(users_here, np.int64),
            prototypes=np.zeros((users_here, prototypes * encoder.dim), np.float32),
            similarity=np.zeros((len(index.key), prototypes), np.float32),
        )
        pairs, steps = pairs + len(index.key), steps + len(index.moves)
        for name, values in {**vars(index), "bits": bits, **_named(graphs)}.items():
            total[name] = total.get(name, 0) + values.nbytes
    events = int(lengths.sum())
    per_user = sum(total.values()) / users
    budget = BUDGET["per_user"] + BUDGET["per_event"] * events / users
    return {
        "bytes_per_user": per_user,
        "bytes_per_event": sum(total.values()) / events,
        "budget": BUDGET,
        "budget_bytes_per_user": budget,
        "within_budget": per_user <= budget,
        "gib_of_a_million_users_budget": budget * MILLION / 2**30,
        "gib_of_a_million_users": per_user * MILLION / 2**30,
        "users": users,
        "events_per_user": events / users,
        "contexts_per_user": pairs / users,
        "steps_per_user": steps / users,
        "bytes_per_user_by_array": {name: size / users for name, size in total.items()},
    }


def _named(graphs: Nightly) -> dict[str, npt.NDArray[np.generic]]:
    return {f"nightly_{name}": values for name, values in vars(graphs).items()}
