"""Deployment of a news ranker."""

from ray import serve

from serve_apps.config import Family
from serve_apps.ranking import Ranking


class NewsRanking(Ranking):
    """Ranks with a run of a `news/...` recipe."""

    family: Family = "news"


news = serve.deployment(name="news")(NewsRanking)
