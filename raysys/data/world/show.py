"""What a world folder holds: the figures of its required properties, and its hidden map."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score

from raysys.data.dataset import Dataset
from raysys.data.world.lexicon import CUISINES, DAY_TYPES, MEALTIMES, NEW_WEATHERS, PLACES, WEATHERS
from raysys.data.world.scene import CONTEXT_COUNT, FEATURES, context_code
from raysys.data.world.truth import Truth, read_truth

MAX_PARTS = 8  # figures of bigger worlds are from their first parts
ACTIVE = 100  # events that make a user active
SUPPORT = 30  # clicks that make a context's counts usable
FIELDS = {"cuisine": CUISINES, "price_band": "01234", "quality": "0123", "delivery": "0123"}


def codes_of(values: pa.Array | pa.ChunkedArray, names: Any) -> np.ndarray:
    """Index of each value in `names`; −1 where it is none of them or null."""
    index = pc.index_in(values, pa.array(list(names)))
    codes: np.ndarray = pc.fill_null(index, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def lawful_codes(context: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Context codes of a `context` column; a new weather word has the code of its old one."""
    column = context.combine_chunks() if isinstance(context, pa.ChunkedArray) else context
    weather = codes_of(column.field("weather"), (*WEATHERS, *NEW_WEATHERS)) % len(WEATHERS)
    return context_code(
        codes_of(column.field("mealtime"), MEALTIMES),
        codes_of(column.field("place"), PLACES),
        weather,
        codes_of(column.field("day"), DAY_TYPES),
    )


def counted_js(counts: list[np.ndarray]) -> np.ndarray:
    """[C, C] Jensen-Shannon divergence (base 2) of contexts, mean over fields.

    Args:
        counts: per field [C, values] how often each value was clicked in each context.
    """
    total = np.zeros((len(counts[0]), len(counts[0])))
    for field in counts:
        law = field / field.sum(axis=1, keepdims=True)
        middle = 0.5 * (law[:, None] + law[None, :])

        def entropy(p: np.ndarray) -> np.ndarray:
            return -(p * np.log2(np.where(p > 0, p, 1.0))).sum(axis=-1)

        total += entropy(middle) - 0.5 * (entropy(law)[:, None] + entropy(law)[None, :])
    divergence: np.ndarray = total / len(counts)
    return divergence


@dataclass(frozen=True)
class Recovery:
    """How well counted preferences give the hidden prototypes back."""

    contexts: int
    auc: float  # same prototype or not, by −JS over pairs of contexts
    nmi: float  # clusters of JS (average linkage, true number) with the map


def recovery(
    contexts: np.ndarray, items: np.ndarray, fields: list[np.ndarray], prototype: np.ndarray
) -> Recovery:
    """Compare contexts by counted JS of the clicked items' fields.

    Args:
        contexts, items: [N] context code and item row of each click.
        fields: per field [items] value code.
        prototype: [180] the hidden map.
    """
    support = np.bincount(contexts, minlength=CONTEXT_COUNT)
    kept = np.flatnonzero(support >= SUPPORT)
    counts = []
    for field in fields:
        width = int(field.max()) + 1
        table = np.bincount(contexts * width + field[items], minlength=CONTEXT_COUNT * width)
        counts.append(table.reshape(CONTEXT_COUNT, width)[kept])
    truth = prototype[kept]
    if len(np.unique(truth)) < 2:
        return Recovery(len(kept), float("nan"), float("nan"))
    divergence = counted_js(counts)
    upper = np.triu_indices(len(kept), 1)
    same = truth[upper[0]] == truth[upper[1]]
    clusters = AgglomerativeClustering(
        n_clusters=len(np.unique(truth)), metric="precomputed", linkage="average"
    ).fit_predict(divergence)
    return Recovery(
        contexts=len(kept),
        auc=float(roc_auc_score(same, -divergence[upper])),
        nmi=float(normalized_mutual_info_score(truth, clusters)),
    )


@dataclass(frozen=True)
class Rows:
    """Candidate rows of a world's parts, flat; `request` points into the per-request arrays."""

    item: np.ndarray
    request: np.ndarray
    click: np.ndarray
    order: np.ndarray
    oracle: np.ndarray
    user: np.ndarray  # [R]
    ts: np.ndarray  # [R]
    context: np.ndarray  # [R]
    split: np.ndarray  # [R] 0 train, 1 valid, 2 test
    unseen: np.ndarray  # [R]
    new_value: np.ndarray  # [R]
    prototype: np.ndarray  # [R]


def _members(part: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(request, item text as dictionary-free array) of a list column."""
    column = part[name].combine_chunks()
    return pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column)


def read_rows(dataset: Dataset, truth: Truth, parts: int) -> Rows:
    """Candidate rows of the first `parts` shards beside their truth."""
    ids = dataset.table("items", ["item_id"])["item_id"].combine_chunks()
    users = dataset.table("users", ["user_id"])["user_id"].combine_chunks()
    blocks: list[dict[str, np.ndarray]] = []
    offset = 0
    for number, part in enumerate(dataset.parts("impressions")):
        if number == parts:
            break
        rows, requests = truth.rows(number), truth.requests(number)
        request, item = _members(part, "candidates")
        code = codes_of(item, ids)
        marks = {}
        for name in ("clicks", "orders"):
            owner, chosen = _members(part, name)
            marks[name] = np.isin(
                request * len(ids) + code, owner * len(ids) + codes_of(chosen, ids)
            )
        blocks.append(
            {
                "item": code,
                "request": request + offset,
                "click": marks["clicks"],
                "order": marks["orders"],
                "oracle": rows["oracle"].to_numpy(),
                "user": codes_of(part["user_id"], users),
                "ts": part["ts"].to_numpy(),
                "context": lawful_codes(part["context"]),
                "split": codes_of(part["split"], ("train", "valid", "test")),
                "unseen": requests["unseen_combination"].to_numpy(zero_copy_only=False),
                "new_value": requests["new_value"].to_numpy(zero_copy_only=False),
                "prototype": requests["prototype"].to_numpy(),
            }
        )
        offset += len(part)
    return Rows(**{name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]})


@dataclass(frozen=True)
class History:
    """Clicks of a world's parts, sorted by (user, time). All arrays [N]."""

    user: np.ndarray
    ts: np.ndarray
    item: np.ndarray
    context: np.ndarray


def read_history(dataset: Dataset, parts: int) -> History:
    """The click events of the first `parts` shards."""
    ids = dataset.table("items", ["item_id"])["item_id"].combine_chunks()
    users = dataset.table("users", ["user_id"])["user_id"].combine_chunks()
    blocks = []
    for number, part in enumerate(
        dataset.parts("events", ["user_id", "ts", "item_id", "behaviour", "context"])
    ):
        if number == parts:
            break
        part = part.filter(pc.equal(part["behaviour"], "click"))
        blocks.append(
            (
                codes_of(part["user_id"], users),
                part["ts"].to_numpy(),
                codes_of(part["item_id"], ids),
                lawful_codes(part["context"]),
            )
        )
    return History(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def history_ends(history: History, user: np.ndarray, ts: np.ndarray) -> tuple[np.ndarray, ...]:
    """(start, end) rows [R] of the events of `user` strictly before `ts`."""
    base = min(int(history.ts.min(initial=0)), int(ts.min(initial=0)))
    span = np.int64(1) << 52
    key = history.user * span + (history.ts - base)
    return (
        np.searchsorted(key, user * span),
        np.searchsorted(key, user * span + (ts - base), side="left"),
    )


def item_fields(dataset: Dataset) -> list[np.ndarray]:
    """Per field [items] value codes of the items' attributes."""
    attributes = [
        dict(row) for row in dataset.table("items", ["attributes"])["attributes"].to_pylist()
    ]
    return [
        np.array([list(values).index(row[name]) for row in attributes])
        for name, values in FIELDS.items()
    ]


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
