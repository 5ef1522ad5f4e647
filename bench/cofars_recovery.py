"""What of the planted map a CoFARS run has found: prototypes against the hidden ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from sklearn.metrics import normalized_mutual_info_score

from raysys.artifacts.run import load_run
from raysys.cofars.ranker import CofarsDIN, CofarsDINConfig
from raysys.data.attribute_counts import count_contexts
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import FIRST
from raysys.data.prepared import Prepared
from raysys.data.training_counts import training_stop
from raysys.data.world.truth import read_truth
from raysys.layers.divergence import Divergence


def recovery(data: Prepared, runs: Sequence[Path]) -> dict[str, Any]:
    """Means over runs, and each: `nmi` between the nearest prototype of a context and the planted
    one; `spearman` between predicted similarity and 1 − JS of the logged shares, over pairs of
    contexts; `open`: share of prototype–context pairs that lists hold. Contexts with support only.
    """
    each = [_of(data, run) for run in runs]
    return {
        name: {"mean": float(np.mean([e[name] for e in each])), "runs": [e[name] for e in each]}
        for name in each[0]
    }


@torch.no_grad()
def _of(data: Prepared, folder: Path) -> dict[str, float]:
    run = load_run(folder)
    model = run.model
    assert isinstance(model, CofarsDIN)
    fitted = CofarsDINConfig.model_validate(run.config.model_options).cofars
    table, options = fitted.table, fitted.options.preferences
    values = fitted.attributes.encode(data.dataset.table("items"))
    widths = fitted.attributes.widths
    counts = count_contexts(data.histories, table, values, widths, training_stop(data))
    planted = _planted(data, table)
    rows = counts.supported(options.support)
    rows = rows[planted[rows - 1] >= 0]
    keys = table.known_keys[rows - 1]
    encoder, gate = model.chooser.encoder, model.chooser.edge_gate
    vectors = encoder.contexts(torch.from_numpy(table.codes(keys)), torch.from_numpy(rows))
    profile = encoder.profile(vectors)
    one = torch.zeros(len(rows), dtype=torch.int64)
    near = encoder.similarities(profile, encoder.profile(encoder.prototypes)[None], one)
    alike = encoder.similarities(profile, profile[None], one).numpy()
    shares = torch.from_numpy(counts.shares(table, options.strength)[rows])
    logged = 1 - Divergence(widths).pairwise(shares, shares).numpy()
    pairs = np.triu_indices(len(rows), 1)
    nearest = near.argmax(1).numpy()
    return {
        "nmi": float(normalized_mutual_info_score(planted[rows - 1], nearest)),
        "spearman": float(spearmanr(alike[pairs], logged[pairs]).statistic),
        "open": float(gate.on(near).float().mean()),
        "contexts": float(len(rows)),
    }


def _planted(data: Prepared, table: ContextTable) -> npt.NDArray[np.int64]:
    """The hidden prototype of each of the M combinations, −1 where the map has none."""
    names = table.codec.names
    hidden = {
        tuple(row[name] for name in names): row["prototype"]
        for row in read_truth(data.dataset.path).context_map().to_pylist()
    }
    spelt = [feature.values for feature in table.codec.features]
    codes = table.codes(table.known_keys) - FIRST
    return np.array(
        [
            hidden.get(tuple(v[c] for v, c in zip(spelt, row, strict=True)), -1)
            if (row >= 0).all()
            else -1
            for row in codes
        ],
        np.int64,
    )
