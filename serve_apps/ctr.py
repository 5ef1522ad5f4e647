"""Deployment of a CTR ranker: shops, places and goods, with click and order probabilities."""

from typing import Any

from ray import serve

from raysys.larr.ranker import LarrDIN
from serve_apps.config import Family, Model
from serve_apps.ranking import Ranking, Reply
from serve_apps.scene import SceneWatch
from serve_apps.schemas import RankRequest, Stats, to_json


class CTRRanking(Ranking):
    """Ranks with a run of a `ctr/...` recipe.

    encoder: handle of the deployment that fills missing scene values, at most `most` of them.
    """

    family: Family = "ctr"

    def __init__(self, model: Model, encoder: Any = None, most: int = 0) -> None:
        super().__init__(model)
        self.scene: SceneWatch | None = None
        if isinstance(self.predictor.model, LarrDIN):
            self.scene = SceneWatch(self.predictor, self.thread, encoder, most)

    async def rank(self, request: RankRequest) -> Reply:
        """See `Ranking`; the scene's vectors are looked up, never made."""
        if request.recent:
            told = "recent: only news models take it; send the whole history"
            body = dict(error="bad_request", detail=told, request_id=request.request_id)
            return 422, to_json(body)
        status, body = await super().rank(request)
        if self.scene is not None and status == 200:
            self.scene.look(request)
        return status, body

    async def stats(self) -> Stats:
        """See `Ranking`."""
        found = await super().stats()
        scene = None if self.scene is None else self.scene.report()
        return found.model_copy(update={"scene": scene})


ctr = serve.deployment(name="ctr")(CTRRanking)
