"""Lists in a folder, with the selector and the histories that they belong to.

The columns of `Lists`, `lists.json`, which says what they are, `histories`, the name of what they
were made of, and `users`, the users' hashes in the order of the lists.
"""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysys.cofars.fit import hash_users
from raysys.cofars.lists import Lists
from raysys.cofars.nightly import Nightly
from raysys.cofars.selector import CofarsSelector
from raysys.data.attribute_counts import event_keys
from raysys.data.columns import ColumnFolder
from raysys.data.context_index import ContextIndex
from raysys.data.context_keys import ContextTable
from raysys.data.files import new_folder, standing
from raysys.data.histories import Histories
from raysys.errors import ArtifactError

Ints = npt.NDArray[np.int64]
_HEADER = "lists.json"
_BITS = "bits"
_NAME = "histories"
_USERS = "users"
_AGAIN = "build them with: raysys build cofars-lists RUN --data DIR"


def fingerprint(histories: Histories) -> str:
    """Hex sha256 of what lists depend on: users, events by user, contexts."""
    digest = hashlib.sha256(histories.codec.model_dump_json().encode())
    digest.update(hash_users(histories).data)
    for values in (histories.start, histories.context):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


class _Header(BaseModel):
    """model: the selector's name; nightly: whether graphs are stored beside the lists."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prototypes: int = Field(ge=1)
    nightly: bool


def save_lists(folder: Path, lists: Lists) -> None:
    """Write the lists as Arrow IPC columns into `folder`."""
    lists.index.save(folder)
    ColumnFolder(folder).write(_BITS, lists.bits)
    if lists.nightly is not None:
        lists.nightly.save(folder)
    header = _Header(
        model=lists.model, prototypes=lists.prototypes, nightly=lists.nightly is not None
    )
    (folder / _HEADER).write_text(header.model_dump_json() + "\n", encoding="utf-8")


def version(folder: Path) -> str:
    """The selector that the lists in `folder` were made with.

    Raises:
        ArtifactError: there are none, or what says so is damaged.
    """
    return _header(standing(folder)).model


def load_lists(folder: Path, model: str) -> Lists:
    """Open memory-mapped lists.

    Raises:
        ArtifactError: there are none, they were made with another selector, or a file is missing,
            damaged or of other lists.
    """
    folder = standing(folder)
    header = _header(folder)
    if header.model != model:
        raise ArtifactError(
            f"{folder}: lists of model {header.model} cannot serve model {model}; {_AGAIN}"
        )
    columns = ColumnFolder(folder)
    names = [*ContextIndex.COLUMNS, _BITS, *(Nightly.COLUMNS if header.nightly else ())]
    shapes = {}
    for name in names:
        try:
            shapes[name] = columns.read(name).shape
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{columns.file(name)}: missing or damaged; {_AGAIN}") from error
    index = ContextIndex.load(folder)
    nightly = Nightly.load(folder) if header.nightly else None
    lists = Lists(index, columns.read(_BITS), header.prototypes, model, nightly)
    for name, wanted in _shapes(lists).items():
        if shapes[name] != wanted:
            raise ArtifactError(
                f"{columns.file(name)}: {_by(shapes[name])} values, where the other files have "
                f"{_by(wanted)}; {_AGAIN}"
            )
    return lists


def _header(folder: Path) -> _Header:
    path = folder / _HEADER
    try:
        return _Header.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{folder}: holds no CoFARS lists; {_AGAIN}") from error
    except ValidationError as error:
        raise ArtifactError(f"{path}: damaged; {_AGAIN}") from error


def _shapes(lists: Lists) -> dict[str, tuple[int, ...]]:
    """What the shapes of columns have to be, going by the lengths of others."""
    index, count = lists.index, lists.prototypes
    pairs, users = len(index.key), index.users
    found: dict[str, tuple[int, ...]] = {
        "key": (_last(index.pair_begin),),
        "entry_begin": (pairs + 1,),
        "entry": (_last(index.entry_begin),),
        "move_begin": (users + 1,),
        "moves": (_last(index.move_begin), 3),
        _BITS: (pairs, -(-count // 8)),
    }
    if lists.nightly is not None:
        dim = lists.nightly.prototypes.shape[-1] // count
        shapes = ((users,), (users, count * dim), (pairs, count))
        found |= dict(zip(Nightly.COLUMNS, shapes, strict=True))
    return found


def _last(begin: Ints) -> int:
    return int(begin[-1]) if len(begin) else 0


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def write_lists(folder: Path, lists: Lists, histories: Histories) -> None:
    """Write the lists of these histories beside `folder` and rename; replaces what was there."""
    with new_folder(folder, overwrite=True) as scratch:
        save_lists(scratch, lists)
        ColumnFolder(scratch).write(_USERS, hash_users(histories))
        (scratch / _NAME).write_text(fingerprint(histories), encoding="utf-8")


def is_lists(folder: Path) -> bool:
    """Whether the folder holds lists of some selector and histories."""
    return (standing(folder) / _NAME).is_file()


def made_of(folder: Path, model: str, histories: Histories) -> bool:
    """Whether the folder holds the lists of this selector and these histories."""
    folder = standing(folder)
    if not folder.is_dir() or version(folder) != model or not is_lists(folder):
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
    folder = standing(folder)
    lists = load_lists(folder, model)
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
