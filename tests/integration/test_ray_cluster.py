"""`faasrt.ray.run_tasks` with an embedded FaaS on each node of a Ray cluster, which loses actors and nodes."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from support.served import PATIENCE_S, is_gone

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
CPUS = 2
BATCH_SIZE = 4
# Nodes that are killed are found dead after some seconds.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1_000,
    "health_check_timeout_ms": 2_000,
    "health_check_failure_threshold": 3,
}
NAP = "import time; time.sleep(0.2); print({0})"


@pytest.fixture
def cluster(whole_cluster: Any) -> Iterator[Any]:
    """The cluster. No FaaS is left after a test."""
    yield whole_cluster
    gc.collect()  # Ray Data ends the actors of a failed job when the error is garbage-collected
    wait_for(lambda: not servers(whole_cluster))


@pytest.fixture(scope="module")
def whole_cluster() -> Iterator[Any]:
    """Start a cluster of a head without CPUs and of two nodes, each with its own raylet, and connect to it."""
    import ray.data
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH_CHECKS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=CPUS)
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield cluster
    finally:
        ray.shutdown()  # type: ignore[no-untyped-call]
        cluster.shutdown()  # type: ignore[no-untyped-call]


def dataset(rows: list[dict[str, Any]], **options: Any) -> Any:
    import ray.data

    import faasrt.ray

    tasks = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // BATCH_SIZE))
    return faasrt.ray.run_tasks(tasks, batch_size=BATCH_SIZE, **options)


def naps(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"id": n, "language": "py", "code": NAP.format(n), **fields} for n in range(count)]


def servers(cluster: Any) -> list[psutil.Process]:
    """Return the processes of the embedded FaaS on all nodes."""
    return [server for node in cluster.worker_nodes for server in servers_of(node)]


def servers_of(node: Any) -> list[psutil.Process]:
    [raylet] = node.all_processes["raylet"]
    return [
        process
        for process in psutil.Process(raylet.process.pid).children()
        if not is_gone(process) and "NodeFaaS" in " ".join(process.cmdline())
    ]


def read_capacity(actor: Any) -> int:
    """Use a FaaS for a moment. Return the number of Python programs that it runs at once. It requires its token."""
    import ray

    with subprocess.Popen(["sleep", "60"]) as user:
        try:
            address = ray.get(actor.attend.remote(user.pid))
            assert ray.get(actor.wait_ready.remote("python")) is None
            request = urllib.request.Request(f"{address.url}/health")
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(request)
            request.add_header("Authorization", f"Bearer {address.token}")
            with urllib.request.urlopen(request) as answer:
                capacity: int = json.load(answer)["languages"]["python"]["capacity"]
        finally:
            user.kill()
    return capacity


def wait_for(condition: Any) -> None:
    """Wait until a condition is true. Ray blocks the thread, so there is no event loop."""
    end = time.monotonic() + 3 * PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def assert_one_verdict_each(found: list[dict[str, Any]], count: int) -> None:
    assert sorted(row["id"] for row in found) == list(range(count))
    for row in found:
        assert [row["outcome"], row["infra_error"], row["invalid_task"]].count(None) == 2
        assert row["outcome"] in (None, "OK")
        assert row["stdout"] == (None if row["outcome"] is None else f"{row['id']}\n")


def test_the_actors_of_a_node_share_one_faas(cluster: Any) -> None:
    """Each node has one FaaS, which runs many programs for each CPU that the node has in Ray. It ends with the actors,
    and with it all of its processes.
    """
    import ray

    results = iter(dataset(naps(48), actors=2 * CPUS).iter_rows())
    first = next(results)
    named = ray.util.list_named_actors(all_namespaces=True)
    actors = [ray.get_actor(**actor) for actor in named if actor["namespace"] == "faasrt"]
    assert len(actors) == 2
    assert all(CPUS < read_capacity(actor) <= 32 * CPUS for actor in actors)
    processes = servers(cluster)
    assert len(processes) == 2
    descendants = [child for process in processes for child in process.children(recursive=True)]
    assert descendants
    found = [first, *results]
    assert_one_verdict_each(found, 48)
    assert all(row["outcome"] == "OK" for row in found)
    assert len({row["endpoint"] for row in found}) == 2
    wait_for(lambda: all(map(is_gone, [*processes, *descendants])))


def test_a_faas_ends_with_a_driver_that_is_killed(cluster: Any) -> None:
    """Programs end, too, although the cluster goes on."""
    code = f"""
import ray, ray.data, faasrt.ray
ray.init({cluster.address!r}, log_to_driver=False)
rows = [{{"language": "py", "code": "while True: pass"}} for _ in range(8)]
faasrt.ray.run_tasks(ray.data.from_items(rows)).take_all()
"""
    # Ray may have set variables for its authentication in this process.
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: [child for server in servers(cluster) for child in server.children()])
    finally:
        driver.kill()
        driver.wait()
    processes = servers(cluster)
    processes += [child for process in processes for child in process.children(recursive=True)]
    wait_for(lambda: all(map(is_gone, processes)) and not servers(cluster))


def test_a_faas_that_dies_is_started_again(cluster: Any) -> None:
    """The programs that were running have a verdict if they are idempotent, and otherwise an error of the
    infrastructure. All others run.
    """
    rows = naps(40, idempotent=False)
    for row in rows[::2]:
        row["idempotent"] = True
    results = iter(dataset(rows, actors=1).iter_rows())
    first = next(results)
    [server] = servers(cluster)
    server.kill()
    found = [first, *results]
    assert_one_verdict_each(found, 40)
    failed = [row for row in found if row["outcome"] is None]
    assert all(row["infra_error"].startswith("ConnectionLostError: ") and not row["idempotent"] for row in failed)
    assert len(failed) <= CPUS
    assert len({row["endpoint"] for row in found if row["outcome"]}) == 2


def test_a_job_survives_the_loss_of_a_node(cluster: Any) -> None:
    """The job ends, and each row has one verdict. The processes of the node end one after the other, so an actor may
    still report that it has lost the FaaS.
    """
    results = iter(dataset(naps(60), actors=2).iter_rows())
    first = next(results)
    lost = next(node for node in cluster.worker_nodes if servers_of(node))
    cluster.remove_node(lost, allow_graceful=False)
    try:
        found = [first, *results]
    finally:
        cluster.add_node(num_cpus=CPUS)
    assert_one_verdict_each(found, 60)
    failed = [row["infra_error"] for row in found if row["outcome"] is None]
    assert all(error.startswith("ConnectionLostError: ") for error in failed), failed
    assert len(failed) <= CPUS


def test_a_faas_ends_with_a_job_that_fails(cluster: Any) -> None:
    """The driver goes on. The fixture waits for the end of the FaaS."""
    from ray.exceptions import RayError

    def fail(row: dict[str, Any]) -> dict[str, Any]:
        raise ValueError(f"the row {row['id']} is wrong")

    with pytest.raises(RayError, match="is wrong"):
        dataset(naps(8), actors=1).map(fail).take_all()
    wait_for(lambda: servers(cluster))


def test_wrong_settings_fail_the_job(cluster: Any) -> None:
    """The error of the job names the setting. No FaaS is started."""
    from ray.exceptions import RayError

    from faasrt import SandboxConfig, Settings

    settings = Settings(sandbox=SandboxConfig(memory_limit_mb=1))
    with pytest.raises((RayError, RuntimeError), match="memory_limit_mb must be at least"):
        dataset(naps(1), settings=settings, actors=1).take_all()
    assert not servers(cluster)
