"""One data set for both sides of a comparison: ours, and the same rows in FuxiCTR's layout."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.peers.fuxictr_data import Rows, write_fuxictr_dataset
from raysys.data.catalogue import Catalogue
from raysys.data.features import FeatureConfig, VocabularyField, fit_features
from raysys.data.mapping import LocalMapper
from raysys.data.prepared import Prepared, cache_root
from raysys.data.world import WorldConfig, make_world

# The two item fields of the DIN paper's public data: the item and its category.
ITEM_FIELDS = ("item_id", "category:2")
FEATURES = FeatureConfig(items=tuple(VocabularyField(source=name) for name in ITEM_FIELDS))


def planted_world(users: int, days: int, seed: int) -> Path:
    """The folder of a planted food world, made in the cache if it is missing."""
    path = cache_root() / "bench" / f"world-{users}-{days}-{seed}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make_world(WorldConfig(users=users, days=days, seed=seed), path, LocalMapper())
    return path


def impressions_of(data: Prepared, split: str, least: int = 0) -> npt.NDArray[np.int64]:
    """Impressions of a split in table order whose histories have `least` events or more."""
    rows = data.impressions
    chosen = rows.of(split)
    return chosen[rows.end[chosen] - rows.start[chosen] >= least]


def split_rows(
    data: Prepared, split: str, least: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Candidate rows [R] of `impressions_of`, and the impressions they belong to [R]."""
    rows = data.impressions
    chosen = impressions_of(data, split, least)
    return rows.rows(chosen), np.repeat(chosen, np.diff(rows.offsets)[chosen])


def fuxictr_data(data: Prepared, least: int = 0) -> Path:
    """The folder of the same rows, histories and codes for FuxiCTR, made if it is missing.

    Rows are grouped by their users. `least`: see `impressions_of`.
    """
    features = fit_features(data, FEATURES)
    name = f"longctr-{data.dataset.manifest.hash}-{features.hash[:16]}-{least}"
    path = cache_root() / "bench" / name
    if path.exists():
        return path
    names = features.contexts.names
    codes = Catalogue.build(data.dataset.table("items"), features).codes
    context = features.contexts.translator(data.codec)(data.impressions.context)
    sizes = (*features.item_cardinalities, *features.context_cardinalities)

    def of(split: str) -> Rows:
        row, owner = split_rows(data, split, least)
        return Rows(
            user=data.impressions.user[owner],
            end=data.impressions.end[owner],
            item=data.impressions.item[row],
            label=data.impressions.click[row],
            context={name: context[owner, index] for index, name in enumerate(names)},
            group=data.impressions.user[owner],
        )

    write_fuxictr_dataset(
        path,
        data.histories.start,
        data.histories.item,
        {name: codes[:, index] for index, name in enumerate(ITEM_FIELDS)},
        {split: of(split) for split in ("train", "valid")},
        dict(zip((*ITEM_FIELDS, *names), sizes, strict=True)),
    )
    return path


def data_sizes(data: Prepared) -> dict[str, float]:
    """How much there is to train on."""
    row, owner = split_rows(data, "train")
    impressions = np.unique(owner)
    lengths = data.impressions.end[impressions] - data.impressions.start[impressions]
    return {
        "train_rows": len(row),
        "train_impressions": len(impressions),
        "candidates_per_impression": len(row) / len(impressions),
        "mean_history": float(lengths.mean()),
        "items": len(data.item_ids),
    }
