"""CoFARS as a retriever: requests in, event rows out, whatever the candidates are."""

import numpy as np
import numpy.typing as npt
import torch

from raysys.cofars.lists import Lists, Retrieved, tiers
from raysys.cofars.requests import RequestReader
from raysys.cofars.selector import CofarsSelector
from raysys.data.batch import Pointers
from raysys.data.histories import Histories
from raysys.errors import ConfigError

Ints = npt.NDArray[np.int64]


class CofarsRetriever:
    """Chooses K events of each history by the contexts of the prototypes that are on.

    Args:
        selector: the fitted selector.
        reader: of the histories.
        lists: made with the selector over the reader's index.
        events: K.
        strict: see `ListConfig`.
    """

    def __init__(
        self,
        selector: CofarsSelector,
        reader: RequestReader,
        lists: Lists,
        *,
        events: int = 100,
        strict: bool = False,
    ) -> None:
        self.selector = selector.eval()
        self.reader = reader
        self.lists = lists
        self.events = events
        self.strict = strict

    @torch.no_grad()
    def retrieve(self, pointers: Pointers) -> Retrieved:
        """Positions and tiers [R, K] of R requests."""
        reader, lists = self.reader, self.lists
        contexts = reader.contexts(pointers)
        device = self.selector.encoder.prototypes.device
        chosen = self.selector(reader(pointers, contexts).to(device)).z.cpu().numpy() > 0.5
        tier = tiers(
            reader.table,
            contexts,
            reader.target_keys(pointers),
            lists.membership(contexts),
            chosen,
            strict=self.strict,
        )
        return Retrieved(*lists.index.newest(contexts, tier, self.events))

    def rows(self, pointers: Pointers, histories: Histories) -> Ints:
        """Event rows [R, K] of the reader's histories, newest first, −1 padding.

        Raises:
            ConfigError: other histories than those of the lists.
        """
        if histories is not self.reader.histories:
            raise ConfigError("the CoFARS lists belong to other histories; build them for these")
        positions = self.retrieve(pointers).positions
        return np.where(positions >= 0, positions + pointers.start[:, None], -1)
