"""Counters by container, with Prometheus itself where it is installed.

The man page has the rules. Here they are taken from it.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import textwrap
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT, Mounted, wait_for

Spawn = Callable[..., subprocess.Popen[bytes]]

PAGE = (CHECKOUT / "netnsfs/data/netnsfs.8").read_text()
ID = "0123456789abcdef" * 4
UID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
UNDER = UID.replace("-", "_")
STATIC = "0123456789abcdef" * 2
QOS = "/kubepods.slice/kubepods-burstable.slice"
USER = "/user.slice/user-1000.slice/user@1000.service/user.slice"


def literal(beginning: str) -> str:
    """The block of the man page that begins with a line."""
    found = re.search(rf"^\.Bd -literal\n({re.escape(beginning)}\n.*?)^\.Ed", PAGE, re.M | re.S)
    assert found
    return found[1].replace("\\e", "\\")


RELABELLING = literal("metric_relabel_configs:")
RULES = literal("groups:")


def relabelled(cgroup: str) -> dict[str, str]:
    """What Prometheus makes of a control group: its expressions match the whole of a label."""
    labels: dict[str, str] = {}
    for rule in RELABELLING.split("  - source_labels: [cgroup]\n")[1:]:
        fields = dict(re.findall(r"^    (\w+): '?(.*?)'?$", rule, re.MULTILINE))
        found = re.fullmatch(fields["regex"], cgroup)
        if found:
            template = re.sub(r"\$(\d)", r"\\\1", fields.get("replacement", "$1"))
            labels[fields["target_label"]] = found.expand(template)
    return labels


@pytest.mark.parametrize(
    ("cgroup", "container", "pod"),
    [
        # docker, by systemd and by cgroupfs
        (f"/system.slice/docker-{ID}.scope", ID, None),
        (f"/docker/{ID}", ID, None),
        # podman: alone, in a pod, without root; with a group of crun's below
        (f"/machine.slice/libpod-{ID}.scope", ID, None),
        (f"/machine.slice/libpod-{ID}.scope/container", ID, None),
        (f"/machine.slice/machine-libpod_pod_{ID}.slice", ID, None),
        (f"{USER}/libpod-{ID}.scope/container", ID, None),
        (f"/libpod_parent/libpod-{ID}", ID, None),
        # containerd and CRI-O under the kubelet: one container, and the pod of several
        (f"{QOS}/kubepods-burstable-pod{UNDER}.slice/cri-containerd-{ID}.scope", ID, UID),
        (f"{QOS}/kubepods-burstable-pod{UNDER}.slice/crio-{ID}.scope", ID, UID),
        (f"{QOS}/kubepods-burstable-pod{UNDER}.slice", None, UID),
        (f"/kubepods/burstable/pod{UID}/{ID}", ID, UID),
        (f"/kubepods/besteffort/pod{UID}/crio-{ID}", ID, UID),
        (f"/kubepods/pod{UID}", None, UID),
        # static pods
        (f"{QOS}/kubepods-burstable-pod{STATIC}.slice/cri-containerd-{ID}.scope", ID, STATIC),
        (f"/kubepods/burstable/pod{STATIC}/{ID}", ID, STATIC),
        (f"/kubepods/burstable/pod{STATIC}", None, STATIC),
        # containerd by nerdctl and ctr, and what is no container
        (f"/system.slice/nerdctl-{ID}.scope", ID, None),
        (f"/default/{ID}", ID, None),
        ("/system.slice/tripod.service", None, None),
        ("/", None, None),
        ("", None, None),
    ],
)
def test_ids_are_taken_out_of_control_groups(
    cgroup: str, container: str | None, pod: str | None
) -> None:
    wanted = {"container_id": container, "pod_uid": pod}
    assert relabelled(cgroup) == {name: value for name, value in wanted.items() if value}


RULE_TESTS = """
rule_files: [rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: netnsfs_namespaces_without_members{instance="a"}
        values: 30x90
      - series: netnsfs_network_receive_bytes_total{instance="a",netns="u/1",device="eth0"}
        values: 0+600x90
      - series: netnsfs_network_receive_bytes_total{instance="a",netns="u/1",device="lo"}
        values: 0+6000x90
      - series: netnsfs_tcp_listen_overflows_total{instance="a",netns="u/1"}
        values: 0+1x90
      - series: netnsfs_namespace_info{instance="a",netns="u/1",inode="1",container_id="c"}
        values: 1x90
    promql_expr_test:
      - expr: container:netnsfs_receive_bytes:rate5m
        eval_time: 30m
        exp_samples:
          - labels: container:netnsfs_receive_bytes:rate5m{instance="a",container_id="c"}
            value: 10
    alert_rule_test:
      - eval_time: 80m
        alertname: NetworkNamespacesLeft
        exp_alerts:
          - exp_labels: {instance: a}
            exp_annotations: {summary: 30 network namespaces have no process}
      - eval_time: 30m
        alertname: ListenQueueFull
        exp_alerts:
          - exp_labels: {instance: a, netns: u/1, container_id: c}
            exp_annotations: {summary: u/1 refuses connections}
"""


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def test_the_rules_are_those_of_prometheus(tmp_path: Path) -> None:
    promtool = tool("promtool")
    (tmp_path / "rules.yml").write_text(RULES)
    (tmp_path / "tests.yml").write_text(RULE_TESTS)
    (tmp_path / "prometheus.yml").write_text(configuration(9100))
    for words in (
        ["check", "rules", "rules.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "tests.yml"],
    ):
        done = subprocess.run(
            [promtool, *words], cwd=tmp_path, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def configuration(port: int) -> str:
    target = f"  - job_name: node\n    static_configs: [targets: ['127.0.0.1:{port}']]\n"
    return (
        "global: {scrape_interval: 1s}\nrule_files: [rules.yml]\nscrape_configs:\n"
        + target
        + textwrap.indent(RELABELLING, "    ")
    )


def test_a_query_by_container_answers(mnt: Mounted, spawn: Spawn, tmp_path: Path) -> None:
    """A container made by hand: unshare(1), in a control group called as docker calls it."""
    exporter, prometheus = tool("prometheus-node-exporter"), tool("prometheus")
    process = spawn("unshare", "--net", "sleep", "120")
    path = f"/proc/{process.pid}/ns/net"
    wait_for(lambda: os.stat(path).st_ino != os.stat("/proc/self/ns/net").st_ino)
    inode = os.stat(path).st_ino
    (tmp_path / "rules.yml").write_text(RULES)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "netnsfs.prom").symlink_to(mnt / ".netnsfs/metrics_all.prom")
    ports = [free_port(), free_port()]
    (tmp_path / "prometheus.yml").write_text(configuration(ports[0]))
    with control_group(process.pid):
        spawn(
            exporter,
            f"--collector.textfile.directory={texts}",
            f"--web.listen-address=127.0.0.1:{ports[0]}",
        )
        spawn(
            prometheus,
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{ports[1]}",
        )
        query = (
            "netnsfs_member_processes * on (instance, netns) group_left (container_id) "
            f'netnsfs_namespace_info{{container_id="{ID}"}}'
        )
        found = answered(ports[1], query)
        assert [sample["metric"]["netns"] for sample in found] == [f".netnsfs/unnamed/{inode}"]
        assert found[0]["value"][1] == "1"
        process.kill()
        process.wait()


@contextmanager
def control_group(pid: int) -> Iterator[None]:
    unified = Path("/sys/fs/cgroup")
    if not (unified / "cgroup.procs").exists():
        unified /= "unified"
    if not os.access(unified / "cgroup.procs", os.W_OK):
        pytest.skip("there is no control group to be made")
    group = unified / "docker" / ID
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text(str(pid))
    try:
        yield
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
        group.parent.rmdir()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answered(port: int, query: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except OSError:
            found = []
        if found:
            return found
        time.sleep(0.5)
    return []
