"""What a world folder holds: the figures of its required properties, and its hidden map."""

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from raysys.data.dataset import Dataset
from raysys.data.world.lexicon import DAY_TYPES, MEALTIMES, PLACES, WEATHERS
from raysys.data.world.reading import history_ends, item_fields, read_history, read_rows
from raysys.data.world.recovery import recovery
from raysys.data.world.truth import read_truth

MAX_PARTS = 8  # figures of bigger worlds are from their first parts
ACTIVE = 100  # events that make a user active


def show(path: Path | str) -> dict[str, Any]:
    """The figures of the world folder at `path`, for the command line and for tests.

    Worlds of more than `MAX_PARTS` shards are judged by their first shards; `users_judged` says
    how many users that is.

    Raises:
        DataError: `path` is no world folder.
    """
    truth = read_truth(path)
    dataset = Dataset(path)
    kind = dataset.manifest.world["config"]["kind"]
    tables = {name: entry.rows for name, entry in dataset.manifest.tables.items()}
    parts = min(MAX_PARTS, len(dataset.files("impressions")))
    figures: dict[str, Any] = {
        "kind": kind,
        "tables": tables,
        "b0": dataset.manifest.world["b0"],
        "d0": dataset.manifest.world["d0"],
        "users_judged": sum(f.rows for f in dataset.manifest.tables["users"].files[:parts]),
    }
    rows, history = read_rows(dataset, truth, parts), read_history(dataset, parts)
    start, end = history_ends(history, rows.user, rows.ts)
    length = end - start
    clicks = np.bincount(
        history.item[history.ts < rows.ts[rows.split == 2].min(initial=2**62)],
        minlength=tables["items"],
    )
    test = rows.split[rows.request] == 2
    figures |= {
        "candidate_rows": len(rows.item),
        "click_rate": float(rows.click.mean()),
        "order_rate": float(rows.order.sum() / max(1, rows.click.sum())),
        "history_quantiles": {
            str(q): int(np.quantile(length, q / 100)) for q in (0, 10, 50, 90, 99, 100)
        },
        "test_requests": int((rows.split == 2).sum()),
        "unseen_share": float(rows.unseen[rows.split == 2].mean()),
        "new_value_share": float(rows.new_value[rows.split == 2].mean()),
    }
    if 0 < rows.click[test].sum() < test.sum():
        figures |= {
            "oracle_auc": float(roc_auc_score(rows.click[test], rows.oracle[test])),
            "popularity_auc": float(roc_auc_score(rows.click[test], clicks[rows.item[test]])),
        }
    active = np.flatnonzero((length >= ACTIVE) & ~rows.unseen & ~rows.new_value)
    if len(active):
        figures["exact_context_share"] = float(
            np.mean(
                [
                    (history.context[start[r] : end[r]] == rows.context[r]).mean()
                    for r in active.tolist()
                ]
            )
        )
    if kind == "food":
        prototype = truth.context_map()["prototype"].to_numpy()
        found = recovery(history.context, history.item, item_fields(dataset), prototype)
        figures["prototypes"] = {
            "contexts_judged": found.contexts,
            "js_auc": found.auc,
            "js_nmi": found.nmi,
        }
    return figures


def draw_map(path: Path | str, png: Path | str) -> None:
    """Draw the hidden map of contexts to prototypes as a PNG file.

    One panel per type of day, rows mealtime × place, columns weather; a colour is a prototype.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    prototype = read_truth(path).context_map()["prototype"].to_numpy()
    cube = prototype.reshape(len(MEALTIMES) * len(PLACES), len(WEATHERS), len(DAY_TYPES))
    figure, panels = plt.subplots(1, len(DAY_TYPES), figsize=(10, 7), sharey=True)
    for number, panel in enumerate(panels):
        cells = cube[:, :, number]
        panel.imshow(cells, cmap="tab20", vmin=0, vmax=19, aspect="auto")
        for (row, column), value in np.ndenumerate(cells):
            panel.text(column, row, str(value), ha="center", va="center", fontsize=8)
        panel.set_title(DAY_TYPES[number])
        panel.set_xticks(range(len(WEATHERS)), WEATHERS, rotation=45)
        panel.set_yticks(
            range(len(cells)), [f"{meal}, {place}" for meal in MEALTIMES for place in PLACES]
        )
    figure.suptitle("Hidden prototype of each context")
    figure.tight_layout()
    figure.savefig(png, dpi=120)
    plt.close(figure)
