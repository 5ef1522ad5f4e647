"""The persona cards of all users of a run: what `news/perconet` believes of them, in words."""

import os
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from raysys.artifacts.run import load_run
from raysys.data.dataset import Dataset
from raysys.data.files import fsync_tree, scratch_folder
from raysys.data.mapping import progress_line
from raysys.data.prepared import prepare
from raysys.errors import ArtifactError, ConfigError, DataError
from raysys.perconet.cards import Cards
from raysys.perconet.ranker import Perconet


class CardsReport(BaseModel):
    """What was built. fallback: users without an entity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    model_id: str
    users: int
    entities: int
    fallback: int
    seconds: float


def build_personas(
    run: Path, data: Path | None = None, out: Path | None = None, users: tuple[str, ...] = ()
) -> CardsReport:
    """Write a card per user as lines of JSON, RUN/indexes/personas/cards.jsonl by default.

    data: whose histories, by default those in the run. users: only theirs.

    Raises:
        ArtifactError: no run with personas.
        ConfigError: neither the run nor `data` holds histories; a prominence without cards.
        DataError: an unknown user.
    """
    begin = time.monotonic()
    loaded = load_run(run)
    model = loaded.model
    if not isinstance(model, Perconet) or model.table is None:
        raise ArtifactError(f"{run}: {loaded.config.recipe} has no personas; train news/perconet")
    histories, ids = loaded.histories, loaded.catalogue.item_ids
    if data is not None:
        prepared = prepare(Dataset(data))
        if not prepared.item_ids.equals(ids):
            raise DataError(f"{data}: other items than those of {run}; train again")
        histories = prepared.histories
    if histories is None:
        raise ConfigError(f"{run} keeps no histories (with_histories=false); give --data")
    chosen = list(users) or histories.users.to_pylist()
    rows = histories.lookup(chosen)
    unknown = [user for user, row in zip(chosen, rows, strict=True) if row < 0]
    if unknown:
        raise DataError(f"user {unknown[0]!r} has no history here")
    cards = Cards(model.options.persona, model.table, loaded.config.model_id, ids, histories)
    where = out or run / "indexes" / "personas" / "cards.jsonl"
    entities = fallback = 0
    with scratch_folder(where) as scratch:
        with (scratch / where.name).open("w", encoding="utf-8") as sink, progress_line() as line:
            pairs = list(zip(chosen, rows.tolist(), strict=True))
            for user, row in line.track(pairs, description="personas"):
                card = cards.of(user, row)
                entities += len(card.entities)
                fallback += card.fallback
                sink.write(card.model_dump_json() + "\n")
        fsync_tree(scratch)
        os.replace(scratch / where.name, where)
    return CardsReport(
        out=str(where),
        model_id=loaded.config.model_id,
        users=len(chosen),
        entities=entities,
        fallback=fallback,
        seconds=round(time.monotonic() - begin, 2),
    )
