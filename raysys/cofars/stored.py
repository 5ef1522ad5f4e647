"""Lists in a folder, with the selector and the histories that they belong to.

Beside the columns of `Lists`: `histories`, the name of what they were made of, and `users`, the
users' hashes in the order of the lists.
"""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raysys.cofars.fit import hash_users
from raysys.cofars.lists import Lists
from raysys.cofars.selector import CofarsSelector
from raysys.data.attribute_counts import event_keys
from raysys.data.columns import ColumnFolder
from raysys.data.context_keys import ContextTable
from raysys.data.files import new_folder
from raysys.data.histories import Histories
from raysys.errors import ArtifactError

Ints = npt.NDArray[np.int64]
_NAME = "histories"
_USERS = "users"


def fingerprint(histories: Histories) -> str:
    """Hex sha256 of what lists depend on: users, events by user, contexts."""
    digest = hashlib.sha256(histories.codec.model_dump_json().encode())
    digest.update(hash_users(histories).data)
    for values in (histories.start, histories.context):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def write_lists(folder: Path, lists: Lists, histories: Histories) -> None:
    """Write the lists of these histories beside `folder` and rename; replaces what was there."""
    with new_folder(folder, overwrite=True) as scratch:
        lists.save(scratch)
        ColumnFolder(scratch).write(_USERS, hash_users(histories))
        (scratch / _NAME).write_text(fingerprint(histories), encoding="utf-8")


def is_lists(folder: Path) -> bool:
    """Whether the folder holds lists of some selector and histories."""
    return (folder / _NAME).is_file()


def made_of(folder: Path, model: str, histories: Histories) -> bool:
    """Whether the folder holds the lists of this selector and these histories."""
    if not folder.is_dir() or Lists.version(folder) != model:
        return False
    if not is_lists(folder):
        return False
    return (folder / _NAME).read_text(encoding="utf-8") == fingerprint(histories)


def grown(
    folder: Path,
    selector: CofarsSelector,
    table: ContextTable,
    histories: Histories,
    users: Ints,
    model: str,
) -> tuple[Lists, int]:
    """The lists in `folder` with the events that these histories have beyond them, and how many.

    users [U] rows of the encoder; model: the selector's name. Users may be new; what the lists
    hold must be how each history begins. Steps between contexts stay as they were, see
    `ContextIndex.append`.

    Raises:
        ArtifactError: no lists, or those of another selector; or the histories have changed
            otherwise than by later events.
    """
    lists = Lists.load(folder, model)
    if not ColumnFolder(folder).file(_USERS).is_file():
        raise ArtifactError(
            f"{folder}: these lists do not name their users; build without --append"
        )
    known, asked = ColumnFolder(folder).read(_USERS), hash_users(histories)
    if lost := len(np.setdiff1d(known, asked)):
        raise ArtifactError(
            f"{folder}: {lost} of {len(known)} users have no history any more; "
            "build without --append"
        )
    lists = lists.of(_places(known, asked))
    user, key, position = lists.index.everything()
    keys = event_keys(histories, table, slice(None))
    held = np.bincount(user, minlength=len(asked))
    length = np.diff(histories.start)
    same = held[user] <= length[user]
    same[same] = keys[histories.start[user[same]] + position[same]] == key[same]
    if not same.all():
        raise ArtifactError(
            f"{folder}: {len(np.unique(user[~same]))} users have other events than when these "
            "lists were made, not only later ones; build without --append"
        )
    owner = np.repeat(np.arange(len(asked)), length)
    place = np.arange(len(keys)) - histories.start[owner]
    later = place >= held[owner]
    added = lists.append(selector, table, users, owner[later], keys[later], place[later])
    return added, int(later.sum())


def _places(known: Ints, asked: Ints) -> Ints:
    """Where each of `asked` is in `known`, −1 where it is not."""
    if not len(known):
        return np.full(len(asked), -1, np.int64)
    order = np.argsort(known, kind="stable")
    place = order[np.minimum(np.searchsorted(known[order], asked), len(known) - 1)]
    return np.where(known[place] == asked, place, -1)
