r"""Many servers behind one client: Kubernetes, sizing, autoscaling, security, upgrades, and what to alert on.

A server has no state that a client needs, so a fleet is any number of `faasrt serve` processes. Applications add
replicas, not code: one `RuntimeManager` spreads the calls, and leaves out servers that fail, refuse or stop. Here one
of two servers stops in the middle, and no call is lost:

```python
import asyncio

from faasrt import LimiterSettings, RuntimeManager
from faasrt.local import LocalFaaS

LIMITER = LimiterSettings(max_concurrency=4)  # one server can run them alone


async def main():
    async with LocalFaaS(["js"]) as one, LocalFaaS(["js"]) as two:
        await asyncio.gather(one.wait_ready("js"), two.wait_ready("js"))
        async with RuntimeManager.from_url([one.url, two.url], limiter=LIMITER) as manager:
            calls = [manager.run_code(f"console.log({number} ** 2)", "js") for number in range(40)]
            tasks = [asyncio.create_task(call) for call in calls]
            await tasks[0]
            await two.drain()  # as SIGTERM: programs in flight finish, new ones go to the other server
            results = await asyncio.gather(*tasks)
            print(sum(result.ok for result in results), "of", len(results))


asyncio.run(main())
```

```text
40 of 40
```

## Kubernetes

`faasrt deploy` prints files, and sends nothing. Read them, change them, and keep them with your other manifests. They
have comments that say why each setting is there.

```console
$ faasrt deploy kubernetes --image registry.example.com/faasrt:1 --replicas 4 --namespace sandbox | grep ^kind
kind: Deployment
kind: Service
kind: PodDisruptionBudget
kind: HorizontalPodAutoscaler
kind: NetworkPolicy
$ faasrt deploy containerfile | grep ^FROM
FROM docker.io/library/python:3.13-slim
```

The steps from an empty namespace to the first program are:

    faasrt deploy containerfile | podman build --tag registry.example.com/faasrt:1 --file - .
    podman push registry.example.com/faasrt:1
    openssl rand -hex 32 | kubectl -n sandbox create secret generic faasrt-token --from-file=token=/dev/stdin
    faasrt deploy kubernetes --image registry.example.com/faasrt:1 --namespace sandbox | kubectl apply -f -

Applications get the same token as FAASRT_TOKEN, and this URL:

    COZE_LOOP_FAAS_URL=dns+http://faasrt.sandbox:8000

`--python wasm` prints manifests that a namespace with the Pod Security level `restricted` accepts. `--knative` prints a
Knative Service in place of Deployment, Service and autoscaler; its URL is `http://faasrt.sandbox`, without `dns+`,
because Knative spreads requests itself.

## Discovery

The Service is headless: its name resolves to the addresses of all pods that are ready. `dns+http://` makes the client
look the name up every 10 s while it is used, and treat each address as a replica, with a circuit breaker, a limit and
metrics of its own. A pod that leaves finishes its calls. `faasrt.discovery` has the details and the settings.

Do not put one virtual address in front, that of a normal Service or of a load balancer for connections. A client keeps
its connections open, and all requests on a connection go to the same pod. So a client would use a few pods only, new
pods would stay idle, and the limits that the client learns would be those of a mixture.

## Sizing

| resource | rule |
|---|---|
| CPU | one worker (`--workers`) for each CPU of the pod; `--cpus` sets both |
| memory | 1 GiB for the server, and 1.5 GiB for each worker at the default limit of 128 MiB for a program |
| processes | a program may have 64 threads, so allow `podPidsLimit` of at least 100 for each worker, and 200 more |
| disk | 1.8 GB for the image: packages 0.9 GB, the compiled sandbox of `wasm` 0.7 GB |
| replicas | programs per second * seconds of CPU per program / workers / 0.7 |

Without `--workers`, a server starts as many as the node has CPUs, whatever the limit of the pod is. A few pods with 4
to 8 CPUs use memory better than many with one, because all workers of a pod share the prepared interpreters; more pods
lose less when a node fails. If programs may use more memory (`--memory-mb`), add the difference once for each worker,
and four times for JavaScript. Measure with programs of yours: `python -m faasrt.examples.benchmark`.

Sessions (`faasrt.docs.sessions`) are turned off in the manifests (`--max-sessions=0`), because an open session keeps
its memory, and ends with its pod. To have them, give the server `--session-memory-mb`, which bounds the sum of their
memory limits, add as much memory to the pod, and 110 MiB more for each session in JavaScript. Clients with `dns+` send
all requests of a session to its pod. Through Knative or a load balancer there can be no sessions, because requests go
to any pod.

A client needs no sizing: its limit for each endpoint starts at the capacity that the server states.

## Limits and overload

A program waits at most 1.5 s for a worker, in a queue of at most 1,000. Then it is refused with 429 and
`x-faasrt-not-started: 1`, and the client tries another server. So overload costs time, but runs nothing twice. What a
client does when all servers refuse is its own choice: wait (the default), or fail soon with
`LimiterSettings(max_queue=..., queue_timeout_s=...)`; see `faasrt.docs.concurrency`.

`--max-connections` bounds the connections of a server, `--timeout-s`, `--memory-mb` and `--output-bytes` bound a
program. Requests may lower the limits of a program, never raise them.

## Autoscaling

The HorizontalPodAutoscaler takes the largest answer of three metrics: the utilization of the busiest engine of a pod
(70 %), the programs that wait in a pod, and CPU (80 %). Utilization is better than CPU, because programs that sleep
occupy workers too.

The first two come from `/metrics`, by Prometheus and an adapter. For prometheus-adapter, these rules are enough:

    rules:
      - seriesQuery: '{__name__=~"faasrt_local_(utilization_ratio|queued)", namespace!="", pod!=""}'
        resources: {overrides: {namespace: {resource: namespace}, pod: {resource: pod}}}
        metricsQuery: 'max by (<<.GroupBy>>) (<<.Series>>{<<.LabelMatchers>>})'

and this is the job of Prometheus that finds the pods:

    scrape_configs:
      - job_name: faasrt
        authorization: {credentials_file: /run/secrets/faasrt/token}
        kubernetes_sd_configs: [{role: pod}]
        relabel_configs:
          - {source_labels: [__meta_kubernetes_pod_label_app_kubernetes_io_name], regex: faasrt, action: keep}
          - {source_labels: [__meta_kubernetes_pod_container_port_number], regex: "8000", action: keep}
          - {source_labels: [__meta_kubernetes_namespace], target_label: namespace}
          - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}

While a metric is missing, the autoscaler still adds pods by the others, but removes none. A pod that is removed drains
first, so scaling down loses no call. The NetworkPolicy admits pods of the same namespace only: add that of Prometheus.

## Security

The jail of a program at the level `namespaces` is made of namespaces inside the pod. Kubernetes can allow that without
privileges on the node:

| needed | by | without it |
|---|---|---|
| a user namespace for the pod | `hostUsers: false`: Kubernetes 1.33, containerd 2.0 or CRI-O, Linux 6.3 | no start |
| user namespaces in the pod | `user.max_user_namespaces` above 0; on Ubuntu a sysctl of AppArmor | level `filters` |
| mounting /proc | `procMount: Unmasked`: Kubernetes 1.33 | level `filters` |
| eight system calls, see below | the seccomp profile `Unconfined`, or one of your own | level `filters` |
| `mount` on nodes with AppArmor | the AppArmor profile `Unconfined`, or one of your own | level `filters` |
| leave for these settings | a namespace with the Pod Security level `privileged` | the pods are refused |

`Unconfined` is about the server, which is trusted. Programs always run under faasrt's own filter of system calls, which
is stricter than the default profile. A seccomp profile of your own needs, besides what RuntimeDefault allows,
`unshare`, `setns`, `mount`, `mount_setattr`, `umount2`, `pivot_root`, `sethostname`, and `clone` with namespaces. At
the level `filters`, Python runs on `wasm`, and JavaScript in a weaker jail without files; nothing else changes. So a
fleet may mix nodes; the alert FaasrtLevelIsLow names those that are lower.

The manifests also give the pod an unprivileged user, a read-only root, no capabilities, no token of Kubernetes, and no
network beyond answers to requests. Give untrusted code nodes of its own (a taint and a nodeSelector), and read "What is
not protected" in `faasrt.docs.sandboxes`.

The token is read from a file. To change it, change the Secret, wait about a minute until the files have followed, and
send SIGHUP to the servers:

    kubectl -n sandbox get pods -l app.kubernetes.io/instance=faasrt -o name |
      xargs -I POD kubectl -n sandbox exec POD -- sh -c 'kill -HUP 1'

Clients with the old token then get a RejectedError (401). So change theirs at the same time, or start a second fleet
with another `--name`. HTTP inside the cluster is not encrypted. With `--tls-cert` and `--tls-key`, the probes need
`scheme: HTTPS`, and clients `dns+https://`; or use a service mesh.

## Upgrades and changes

* **A new image.** `kubectl apply` replaces pods one by one: a new pod must be ready before an old one stops.
* **A pod that goes** leaves the Service at once, and serves on for 45 s (`preStop`), because clients and DNS servers
  know its address until then. Then comes SIGTERM: `/readyz` and new programs get 503 with `x-faasrt-not-started: 1`,
  and go elsewhere. Programs in flight have 35 s (`--grace-s`) to finish. Keep `terminationGracePeriodSeconds` above
  the sum of both, and `--grace-s` above `--timeout-s`.
* **A single server** that restarts needs no second one: calls wait for it for `RetrySettings.connect_retry_s`, within
  their deadlines. Raise `connect_retry_s` and `grace_s` if a restart takes longer.
* **SIGHUP.** The server reads `--config`, the token file and the certificates again. Calls in flight keep what they
  started with. A wrong file is refused as a whole, with a line in the log, and the server goes on as before.
* **Versions.** Servers and clients of one minor version work together in any order. Upgrade servers first when a new
  version brings a new feature of the protocol.
* **Nodes.** The PodDisruptionBudget lets `kubectl drain` take a tenth of the pods at a time, at least one.

## What to alert on

`faasrt deploy prometheus-rules` prints these alerts, and `faasrt deploy grafana-dashboard` a dashboard for the same
metrics. Alerts about calls need `PrometheusSink` in the applications; see `faasrt.docs.logging_and_metrics`.

| alert | what to do |
|---|---|
| FaasrtNoServers | look at the pods, and whether Prometheus reaches them (NetworkPolicy, token) |
| FaasrtEngineNotReady | `faasrt health --url` of that pod says why: no memory, or a wrong `--python` |
| FaasrtEngineFails | processes are killed: more memory for the pod, or fewer workers; the log has the reasons |
| FaasrtRefusesPrograms | more replicas: the autoscaler has reached its maximum, or is slower than the load |
| FaasrtQueueGrows | the same, earlier |
| FaasrtBusy | more replicas or a higher maximum, before a peak or the loss of a node |
| FaasrtLevelIsLow | `faasrt health` says what the node does not allow; see "Security" |
| FaasrtTimeoutsRise | compare with FaasrtBusy: slow nodes if it fires too, otherwise the programs |
| FaasrtCallsFail | the label `error` says which infrastructure failed; see `faasrt.docs.troubleshooting` |
| FaasrtEndpointGetsNoCalls | delete the pod if it stays; the other servers take its calls |
| FaasrtRetriesRise | look at refusals, and at pods that come and go |
| FaasrtCallsWait | more replicas, or a higher `max_concurrency` if the servers are idle |
"""

__docformat__ = "markdown"
