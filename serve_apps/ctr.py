"""Deployment of a CTR ranker: shops, places and goods, with click and order probabilities."""

from ray import serve

from serve_apps.config import Family
from serve_apps.ranking import Ranking


class CTRRanking(Ranking):
    """Ranks with a run of a `ctr/...` recipe."""

    family: Family = "ctr"


ctr = serve.deployment(name="ctr")(CTRRanking)
