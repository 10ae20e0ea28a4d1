#!/usr/bin/env python3
"""How culvertd follows a cluster of 5,000 nodes: memory, processor time, and how soon a change is in the kernel.

    watch.py PID STAND_IN_SOCKET [NODES [SECONDS]]

To be run in the network namespace of the helper, which follows the stand-in API server and is on a gateway with a pod
that has a policy. One CiliumNode a second gets
another address; the change is in the kernel when the kernel's own notification says so. Then the same number of changes
that say nothing to Culvert, as the kubelets' reports of their nodes' state do.
"""
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time

pid, path = sys.argv[1:3]
nodes = int(sys.argv[3]) if len(sys.argv) > 3 else 5000
seconds = int(sys.argv[4]) if len(sys.argv) > 4 else 60


class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)


def control(what, body):
    connection = Unix("localhost")
    connection.request("POST", "/_standin/" + what, json.dumps(body))
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()


def address(n, turn=0):
    return f"100.{64 + (n >> 8)}.{n & 255}.{1 + turn % 250}"


def labels(n):
    return {"kubernetes.io/hostname": f"b{n}", **{f"label{i}": "some-value" for i in range(15)}}


def cilium_node(n, turn=0):
    # Cilium's agent copies the Node's labels.
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": f"b{n}", "labels": labels(n)},
            "spec": {"addresses": [{"type": "InternalIP", "ip": f"172.{16 + (n >> 16)}.{n >> 8 & 255}.{n & 255}"},
                                   {"type": "CiliumInternalIP", "ip": address(n, turn)}],
                     "ipam": {"podCIDRs": [f"100.{64 + (n >> 8)}.{n & 255}.0/24"]}}}


def node(n):
    # About as large as a real one: most of it is images and conditions that nobody here reads.
    return {"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": f"b{n}", "labels": labels(n),
                         "annotations": {f"example.org/annotation{i}": "x" * 60 for i in range(10)}},
            "spec": {"podCIDRs": [f"100.{64 + (n >> 8)}.{n & 255}.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": f"172.{16 + (n >> 16)}.{n >> 8 & 255}.{n & 255}"}],
                       "images": [{"names": [f"registry.example/{i}@sha256:{'0' * 64}"], "sizeBytes": i} for i in range(40)]}}


def bytes_sent():
    connection = Unix("localhost")
    connection.request("GET", "/_standin/counters")
    return sum(client["bytesSent"] for client in json.load(connection.getresponse())["clients"])


def cpu():
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(key):
    return next(int(line.split()[1]) / 1024 for line in open(f"/proc/{pid}/status") if line.startswith(key))


def in_kernel(what):
    return subprocess.run(["nft", "get", "element", "inet", "culvert", "tunnel_outer", "{", what, "}"],
                          capture_output=True).returncode == 0


def thrown():
    """Routes of the pod's table that leave nodes' addresses to their normal way (few: networks side by side are one)."""
    return subprocess.run(["ip", "route", "show", "table", "47000", "type", "throw"], capture_output=True).stdout.count(b"\n")


for start in range(0, nodes, 500):
    batch = range(start, min(start + 500, nodes))
    control("apply", [node(n) for n in batch] + [cilium_node(n) for n in batch])
deadline = time.time() + 120
while not in_kernel(address(nodes - 1)):
    assert time.time() < deadline, "the nodes do not reach the kernel"
    time.sleep(0.2)
assert thrown() > 0, "the pod has no policy"
# Elements of the set that the kernel tells of, and when. (nft 1.0.6's own monitor crashes at our rules.)
seen = {}
NETLINK_NETFILTER, NFNLGRP_NFTABLES, NEW_ELEMENT = 12, 7, 10 << 8 | 12
events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
events.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
events.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
expected = {}


def messages(data):
    while len(data) >= 16:
        length = int.from_bytes(data[:4], "little")
        yield int.from_bytes(data[4:6], "little"), data[16:length]
        data = data[(length + 3) & ~3:]


def listen():
    while True:
        data, now = events.recv(1 << 20), time.time()
        for kind, body in messages(data):
            for raw, text in list(expected.items()):
                if kind == NEW_ELEMENT and b"tunnel_outer\0" in body and raw in body:
                    seen.setdefault(text, now)


threading.Thread(target=listen, daemon=True).start()
time.sleep(5)

# What a quiet cluster costs.
idle = cpu()
time.sleep(10)
idle = (cpu() - idle) / 10

latencies = []
initial = bytes_sent()
before, start = cpu(), time.time()
for turn in range(1, seconds + 1):
    n = turn * 37 % nodes
    expected[socket.inet_aton(address(n, turn))] = address(n, turn)
    began = time.time()
    control("apply", [cilium_node(n, turn)])
    while address(n, turn) not in seen:
        assert time.time() - began < 30, "a change does not reach the kernel"
        time.sleep(0.002)
    latencies.append(seen[address(n, turn)] - began)
    time.sleep(max(0, start + turn - time.time()))
used = (cpu() - before) / (time.time() - start)
changes = bytes_sent() - initial
before, start = cpu(), time.time()
for turn in range(1, seconds + 1):
    report = node(turn * 37 % nodes)
    report["status"]["conditions"] = [{"type": "Ready", "status": "True", "lastHeartbeatTime": str(time.time())}]
    control("apply", [report])
    time.sleep(max(0, start + turn - time.time()))
reports = (cpu() - before) / (time.time() - start)
report_bytes = bytes_sent() - initial - changes
latencies.sort()
p50, p99 = latencies[len(latencies) // 2], latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)]


def verdict(value, goal):
    return "" if value <= goal else "  MISSED"


print(f"\n{nodes} nodes in the API, one change a second for {seconds} s")
print(f"  resident {memory('VmRSS'):.1f} MiB, at most {memory('VmHWM'):.1f} (goal: at most 80){verdict(memory('VmRSS'), 80)}")
print(f"  processor {used * 100:.2f} % of a core, {reports * 100:.2f} % with reports that change nothing,"
      f" {idle * 100:.2f} % without any (goal: at most 1 %){verdict(used, 0.01)}")
print(f"  from the change to the kernel p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms (goal: at most 100 ms){verdict(p99, 0.1)}")
print(f"  from the server: {initial / 1e6:.1f} MB for all events of the start, {changes / seconds:.0f} bytes a change of a"
      f" CiliumNode, {report_bytes / seconds:.0f} bytes a report of a kubelet")
