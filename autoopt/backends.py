"""Where joblib runs recorded trials: processes of this machine, a Dask cluster or a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

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
            stack.enter_context(joblib.parallel_config(_dask_backend()))
        else:
            stack.enter_context(_ray_session(jobs))
            stack.enter_context(joblib.parallel_config(_ray_backend()))
        yield


@contextlib.contextmanager
def _dask_client(jobs: int) -> Iterator[None]:
    """A context with a default Dask client whose workers have one thread each."""
    try:
        from dask import config
        from distributed import Client, LocalCluster, get_client
    except ImportError as error:
        raise _not_installed("dask", "distributed") from error
    with contextlib.ExitStack() as stack:
        try:
            client = get_client()
        except ValueError:
            address = config.get("scheduler-address", None)
            cluster = address or stack.enter_context(
                LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=":0")
            )
            client = stack.enter_context(Client(cluster))
        cores: Any = client.ncores()
        threads = max(cores.values(), default=1)
        if threads > 1:
            raise MetaDatasetError(
                f"the Dask workers have up to {threads} threads, so trials would share random state; "
                "start them with one thread each (dask worker --nthreads 1 --nworkers N)"
            )
        yield


def _dask_backend() -> Any:
    """Joblib's Dask backend, which also tells joblib of chunks that Dask gave up."""
    from joblib._dask import DaskDistributedBackend

    class ReportingDaskBackend(DaskDistributedBackend):
        # Joblib's own calls back on success only: a chunk whose workers keep dying (KilledWorker)
        # would leave it waiting for ever.
        def submit(self, func: Any, callback: Any = None) -> Any:
            future = super().submit(func, callback)
            if callback is not None:
                future.add_done_callback(lambda done: None if done.exception() is None else callback(done.exception()))
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, BaseException):
                raise out
            return super().retrieve_result_callback(out)

    return ReportingDaskBackend()


@contextlib.contextmanager
def _ray_session(jobs: int) -> Iterator[None]:
    """A context with a Ray session."""
    try:
        import ray
    except ImportError as error:
        raise _not_installed("ray", "ray") from error
    if ray.is_initialized():
        yield
        return
    options = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": jobs, "include_dashboard": False}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        yield
    finally:
        ray.shutdown()


def _ray_backend() -> Any:
    """Ray's backend for joblib, from which results are taken as they come."""
    from ray.util.joblib.ray_backend import RayBackend

    class StreamingRayBackend(RayBackend):
        # Inherited from joblib's multiprocessing backend as False. That holds for a forked pool;
        # Ray's pool hands results over by callback, which is all it takes.
        supports_return_generator = True

    return StreamingRayBackend()


def _not_installed(backend: str, package: str) -> MetaDatasetError:
    """The error about a backend whose package is missing."""
    return MetaDatasetError(f"backend '{backend}' needs the package {package}: pip install {package}")
