"""Words of The Complete Journey's products, coupons and campaigns."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.loaders.reading import Source

_LEVELS = ("department", "product_category", "product_type")
_NAMED = 5  # categories that a campaign's text names


def product_items(products: Source, wanted: pa.Array) -> pa.Table:
    """The products with these ids; category is department, category, type."""
    ids = products.required("product_id")
    kept = pc.is_in(ids, value_set=wanted)
    column = {
        name: products.strings(name).filter(kept)
        for name in (*_LEVELS, "brand", "package_size", "manufacturer_id")
    }
    levels = zip(*(column[name].to_pylist() for name in _LEVELS), strict=True)
    words = zip(column["product_type"].to_pylist(), column["package_size"].to_pylist(), strict=True)
    return pa.table(
        {
            "item_id": ids.filter(kept),
            "kind": pa.array(["product"] * len(column["brand"])),
            "name": pa.array([" ".join(filter(None, pair)) or None for pair in words], pa.string()),
            "category": pa.array([_path(path) for path in levels], pa.list_(pa.string())),
            "brand": column["brand"],
            "attributes": pa.array(
                [[("manufacturer", name)] for name in column["manufacturer_id"].to_pylist()],
                pa.map_(pa.string(), pa.string()),
            ),
        }
    )


def coupon_items(coupons: Source, products: Source, wanted: pa.Array) -> pa.Table:
    """The coupons with these ids; category is that of most of the products they are good for."""
    good = _categories(coupons, "coupon_upc", products)
    ids = wanted.to_pylist()
    usual = [_most(good.get(name.removeprefix("coupon:"), Counter())) for name in ids]
    paths = [found[0] if found else () for found in usual]
    return pa.table(
        {
            "item_id": wanted,
            "kind": pa.array(["coupon"] * len(ids), pa.string()),
            "name": pa.array([f"coupon for {p[-1]}" if p else "coupon" for p in paths],
                             pa.string()),
            "category": pa.array([list(path) for path in paths], pa.list_(pa.string())),
        }
    )  # fmt: skip


def campaign_items(described: Source, coupons: Source, products: Source) -> pa.Table:
    """All campaigns; the text names the categories that most products of its coupons are of."""
    good = _categories(coupons, "campaign_id", products)
    ids = described.required("campaign_id").to_pylist()
    named = [", ".join(path[-1] for path in _most(good.get(name, Counter()))) for name in ids]
    kinds = described.required("campaign_type").to_pylist()
    return pa.table(
        {
            "item_id": pa.array([f"campaign:{name}" for name in ids]),
            "kind": pa.array(["campaign"] * len(ids)),
            "name": pa.array([f"campaign of {kind}" for kind in kinds]),
            "text": pa.array([f"coupons for {text}" if text else None for text in named],
                             pa.string()),
            "created_at": described.times("start_date"),
        }
    )  # fmt: skip


def _categories(
    coupons: Source, owner: str, products: Source
) -> dict[str, Counter[tuple[str, ...]]]:
    """How many products of each (department, category) the coupons of an owner are good for.

    Some of these products are in no list of products, and some have no category.
    """
    product = coupons.required("product_id")
    place = pc.index_in(product, value_set=products.required("product_id"))
    levels = [products.strings(name).take(place).to_pylist() for name in _LEVELS[:2]]
    found: dict[str, Counter[tuple[str, ...]]] = {}
    for name, *path in zip(coupons.required(owner).to_pylist(), *levels, strict=True):
        if all(path):
            found.setdefault(name, Counter())[tuple(path)] += 1
    return found


def _path(levels: tuple[str | None, ...]) -> list[str]:
    """A path ends where a level is not told."""
    return [level for level in levels[: (*levels, None).index(None)] if level is not None]


def _most(counts: "Counter[tuple[str, ...]]") -> list[tuple[str, ...]]:
    return sorted(counts, key=lambda path: (-counts[path], path))[:_NAMED]
