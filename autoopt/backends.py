"""Where joblib runs recorded trials: processes of this machine, a Dask cluster or a Ray cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from autoopt.errors import MetaDatasetError

BACKENDS = ("loky", "dask", "ray")


@contextlib.contextmanager
def parallel_backend(name: str, jobs: int) -> Iterator[None]:
    """A context in which `joblib.Parallel` runs on the named backend, one thread a worker.

    Dask: the client that is already there is used; else one is made, for the scheduler of
    `DASK_SCHEDULER_ADDRESS` where that is set, and otherwise for a local cluster of `jobs` workers.
    Ray: the session that is already there is used; else one is started, on the cluster of
    `RAY_ADDRESS` where that is set, and otherwise on this machine with `jobs` processors. What was
    made here is shut down at the end.

    Args:
        name: One of `BACKENDS`.
        jobs: Number of workers; on a Dask cluster that is there already, all its workers are used.

    Raises:
        MetaDatasetError: If the backend is unknown or not installed, or its workers would run
            several trials in one process (they would share random state).
    """
    import joblib

    if name not in BACKENDS:
        raise MetaDatasetError(f"backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    with contextlib.ExitStack() as stack:
        if name == "loky":
            stack.enter_context(joblib.parallel_config("loky", inner_max_num_threads=1))
        elif name == "dask":
            stack.enter_context(_dask_client(jobs))
            stack.enter_context(joblib.parallel_config("dask"))
        else:
            stack.enter_context(_ray_session(jobs))
            stack.enter_context(joblib.parallel_config("ray"))
        yield


@contextlib.contextmanager
def _dask_client(jobs: int) -> Iterator[None]:
    """A context with a default Dask client whose workers have one thread each."""
    try:
        import dask
        from distributed import Client, LocalCluster, get_client
    except ImportError as error:
        raise _not_installed("dask", "distributed") from error
    with contextlib.ExitStack() as stack:
        try:
            client = get_client()
        except ValueError:
            address = dask.config.get("scheduler-address", None)
            cluster = address or stack.enter_context(
                LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
            )
            client = stack.enter_context(Client(cluster))
        threads = max(client.ncores().values(), default=1)
        if threads > 1:
            raise MetaDatasetError(
                f"the Dask workers have up to {threads} threads, so trials would share random state; "
                "start them with one thread each (dask worker --nthreads 1 --nworkers N)"
            )
        yield


@contextlib.contextmanager
def _ray_session(jobs: int) -> Iterator[None]:
    """A context with a Ray session and joblib's Ray backend registered."""
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise _not_installed("ray", "ray") from error
    import os

    register_ray()
    started = not ray.is_initialized()
    if started:
        options = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": jobs, "include_dashboard": False}
        ray.init(configure_logging=False, log_to_driver=False, **options)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _not_installed(backend: str, package: str) -> MetaDatasetError:
    """The error about a backend whose package is missing."""
    return MetaDatasetError(f"backend '{backend}' needs the package {package}: pip install {package}")
