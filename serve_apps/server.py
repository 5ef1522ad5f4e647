"""Starting and stopping the graph: checks first, then Ray, then Serve, then health."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import requests

from raysys.artifacts.run import RunConfig, load_run
from raysys.dist.cluster import ensure_ray
from raysys.errors import ConfigError, RaysysError
from raysys.larr.online import scene_fit
from serve_apps.config import APP, Family, ServeConfig, check_family
from serve_apps.llm import check_llm
from serve_apps.news import persona_table

HEALTHY_WITHIN_S = 60.0


def check_runs(config: ServeConfig) -> dict[Family, RunConfig]:
    """Open every run folder, as the replicas will, before anything is started.

    A replica that cannot open its run would be tried again and again, with a traceback each.

    Raises:
        ArtifactError: a run is unfinished, damaged or of the other family, or has no scenes to
            fill, or no personas to show.
        RaysysError: see `check_llm`.
    """
    found = {}
    for family, model in config.models.served():
        run = load_run(model.run)
        found[family] = run.config
        check_family(found[family].recipe, family, model)
        if family == "ctr" and config.models.scene is not None:
            scene_fit(found[family], model.run)
        if family == "news" and config.models.personas is not None:
            config.models.personas.barred(persona_table(run))
    if config.models.llm is not None:
        check_llm(config.models.llm)
    return found


@contextmanager
def running(config: ServeConfig) -> Iterator[str]:
    """The graph, answering at the URL that is yielded; it is taken down at the end.

    Joins the cluster of RAY_ADDRESS, or starts one on this machine.

    Raises:
        ArtifactError: a run folder cannot be served.
        RaysysError: the port is taken, CPUs are missing, or the graph does not become healthy.
    """
    _check_port(config)
    check_runs(config)
    own = ensure_ray()
    # Only now: Ray reads its authentication mode when it is imported.
    import ray
    from ray import serve

    from serve_apps.app import LOGGING, build, http_options
    from serve_apps.edge import CONTROLLER

    # Serve writes a line per event; its warnings and our own progress are enough.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    try:
        _check_cpus(config)
        serve.start(
            proxy_location="EveryNode",
            http_options=http_options(config),
            logging_config=LOGGING,
            controller_options=CONTROLLER,
        )
        try:
            try:
                serve.run(build(config), name=APP, route_prefix="/", logging_config=LOGGING)
            except RuntimeError as error:
                raise RaysysError(f"{error} The replicas' own words are above.") from error
            url = f"http://{config.http.host}:{config.http.port}"
            _wait_healthy(url)
            yield url
        finally:
            serve.delete(APP)
            # In a cluster that goes on, Serve with nobody in it would only hold the port.
            if not own and not serve.status().applications:
                serve.shutdown()
    finally:
        if own:
            ray.shutdown()


def _check_port(config: ServeConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.http.host, config.http.port))
        except OSError as error:
            raise ConfigError(
                f"http: cannot listen on {config.http.host}:{config.http.port} "
                f"({error.strerror}); choose another port"
            ) from error


def _check_cpus(config: ServeConfig) -> None:
    import ray

    present = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    if config.cpus > present:
        # Ray would wait for the missing ones for ever.
        raise ConfigError(
            f"the replicas ask for {config.cpus:g} CPUs and the cluster has {present:g}; "
            "lower replicas or num_cpus in the config"
        )


def _wait_healthy(url: str) -> None:
    end = time.monotonic() + HEALTHY_WITHIN_S
    while True:
        try:
            if requests.get(f"{url}/healthz", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        if time.monotonic() > end:
            raise RaysysError(
                f"{url} is not healthy after {HEALTHY_WITHIN_S:g} s; `serve status` says why, "
                "or Serve had been started in this cluster with another port: `serve shutdown`"
            )
        time.sleep(0.2)
