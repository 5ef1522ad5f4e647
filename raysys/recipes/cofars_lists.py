"""The nightly job of CoFARS: the lists of all users of a data set, for a trained run."""

import time
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from raysys.artifacts.run import LoadedRun, load_run, read_config
from raysys.cofars.lists import Lists
from raysys.cofars.ranker import LISTS, CofarsDIN
from raysys.cofars.stored import fingerprint, grown, is_lists, write_lists
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import ContextCodec
from raysys.data.dataset import Dataset
from raysys.data.histories import Histories
from raysys.data.mapping import progress_line
from raysys.data.prepared import prepare
from raysys.errors import ArtifactError, ConfigError, DataError


class ListsReport(BaseModel):
    """What was built.

    model_id: of the run; selector: the version of the lists; data_card_id: of the data set;
    contexts: pairs of a user and a context; open: share of (context, prototype) pairs that belong
    together; added: later events, with `append` only; served: whether the run's own snapshot
    holds these very histories, so that serving it uses the lists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    model_id: str
    selector: str
    data_card_id: str
    users: int
    known_users: int
    events: int
    contexts: int
    prototypes: int
    open: float
    added: int | None
    bytes: int
    seconds: float
    served: bool


def build_lists(
    run: Path, data: Path, out: Path | None = None, *, append: bool = False
) -> ListsReport:
    """Build the lists for the histories of a data set folder, and put them in their place.

    They are written beside it and renamed; whatever fails leaves it as it was.

    out: RUN/indexes/cofars by default. append: keep the lists that are there, and add what the
    histories have beyond them; steps between contexts are refreshed by a whole build only.

    Raises:
        ArtifactError: a run that is no CoFARS, unfinished or damaged; with `append` no lists,
            lists of another version, or other histories than grown ones.
        DataError: no data set folder, or one without the contexts of the run.
        ConfigError: `out` holds something else; `append` to the lists of a placebo.
    """
    begin = time.monotonic()
    if out is not None and out.exists() and not is_lists(out):
        raise ConfigError(f"{out} exists and holds no CoFARS lists; choose another --out")
    loaded, model = _cofars(run)
    if append and model.placebo is not None:
        raise ConfigError(f"{run}: lists of a placebo are drawn as a whole; build without --append")
    prepared = prepare(Dataset(data))
    histories = prepared.histories
    check_contexts(model.table, histories.codec, data)
    folder = run / "indexes" / LISTS if out is None else out
    version = model.selector_id()
    added = None
    if append:
        users = model.user_rows(histories)
        lists, added = grown(folder, model.chooser, model.table, histories, users, version)
    else:
        with progress_line() as bar:
            track = partial(bar.track, description="assigning contexts")
            lists = model.lists(histories, track, nightly=True)
    write_lists(folder, lists, histories)
    return _report(
        loaded,
        lists,
        histories,
        folder,
        known_users=int((model.user_rows(histories) >= 0).sum()),
        data_card_id=prepared.dataset.card.id,
        added=added,
        seconds=time.monotonic() - begin,
    )


def _cofars(run: Path) -> tuple[LoadedRun, CofarsDIN]:
    config = read_config(run)
    if config.recipe != "ctr/cofars":
        raise ArtifactError(f"{run} is a run of {config.recipe}; only ctr/cofars has lists")
    # Lists of another version may lie there: they are what is to be replaced.
    loaded = load_run(run, indexes=False)
    assert isinstance(loaded.model, CofarsDIN)
    loaded.model.freeze()
    return loaded, loaded.model


def check_contexts(table: ContextTable, codec: ContextCodec, data: Path) -> None:
    """Refuse a data set whose contexts are not those of a run.

    Raises:
        DataError: a feature is missing, of another kind or with other bucket edges.
    """
    found = {feature.name: feature for feature in codec.features}
    for feature in table.codec.features:
        other = found.get(feature.name)
        if other is None:
            raise DataError(
                f"{data}: context feature {feature.name} is missing; the contexts of the run are "
                f"{', '.join(table.codec.names)}, the data set has {', '.join(found) or 'none'}"
            )
        if other.kind != feature.kind:
            raise DataError(
                f"{data}: context feature {feature.name} is {other.kind}, the run was trained on "
                f"a {feature.kind} one"
            )
    try:
        table.codec.translator(codec)
    except ConfigError as error:
        raise DataError(f"{data}: {error}") from error


def _report(
    loaded: LoadedRun,
    lists: Lists,
    histories: Histories,
    folder: Path,
    *,
    known_users: int,
    data_card_id: str,
    added: int | None,
    seconds: float,
) -> ListsReport:
    kept = loaded.histories
    belong = lists.open_pairs()
    return ListsReport(
        out=str(folder),
        model_id=loaded.config.model_id,
        selector=lists.model,
        data_card_id=data_card_id,
        users=lists.index.users,
        known_users=known_users,
        events=len(lists.index.entry),
        contexts=len(lists.index.key),
        prototypes=lists.prototypes,
        open=belong / max(1, len(lists.index.key) * lists.prototypes),
        added=added,
        bytes=sum(file.stat().st_size for file in folder.iterdir()),
        seconds=round(seconds, 3),
        served=kept is not None and fingerprint(kept) == fingerprint(histories),
    )
