"""lastseen.py SOCKET NODES fill: makes NODES nodes in 50 locations in the stand-in for the API server.
lastseen.py SOCKET NODES beat SECONDS: each of them says every 30 seconds that it is there."""
import base64, http.client, json, socket, sys, time

path, nodes, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def apply(items):
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("POST", "/_standin/apply", json.dumps(items))
    if connection.getresponse().status != 200:
        sys.exit("the stand-in refuses")
    connection.close()


def node(n):
    address, pods = f"10.{64 + n // 65536}.{n // 256 % 256}.{n % 256}", f"10.{128 + n // 256}.{n % 256}"
    kilo = {"key": base64.b64encode(n.to_bytes(32, "little")).decode(), "endpoint": f"198.18.{n // 256}.{n % 256}:51820",
            "internal-ip": f"{address}/32", "location": f"l{n % 50}", "granularity": "location", "wireguard-ip": "",
            "discovered-endpoints": "{}", "cni-compatibility-ip": f"{pods}.1/32", "last-seen": str(int(time.time()))}
    return {"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": f"x{n}", "labels": {"kubernetes.io/hostname": f"x{n}"},
                         "annotations": {f"kilo.squat.ai/{k}": v for k, v in kilo.items()}},
            "spec": {"podCIDR": f"{pods}.0/24", "podCIDRs": [f"{pods}.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}}, {
        "apiVersion": "cilium.io/v2", "kind": "CiliumNode",
        "metadata": {"name": f"x{n}", "labels": {"kubernetes.io/hostname": f"x{n}"}},
        "spec": {"addresses": [{"type": "InternalIP", "ip": address}, {"type": "CiliumInternalIP", "ip": f"{pods}.1"}],
                 "ipam": {"podCIDRs": [f"{pods}.0/24"]}}}


if what == "fill":
    own = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
           "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
           "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.11"}]}}
    cilium = {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": "n1"},
              "spec": {"addresses": [{"type": "InternalIP", "ip": "10.0.0.11"}, {"type": "CiliumInternalIP", "ip": "10.244.1.1"}],
                       "ipam": {"podCIDRs": ["10.244.1.0/24"]}}}
    apply([own, cilium])
    for first in range(1, nodes, 500):
        apply([o for n in range(first, min(nodes, first + 500)) for o in node(n)])
else:
    end, n = time.monotonic() + float(sys.argv[4]), 1
    while (start := time.monotonic()) < end:
        # A tenth of a second's worth at a time.
        count = max(1, round(nodes / 300))
        apply([node(1 + (n + i) % (nodes - 1))[0] for i in range(count)])
        n += count
        time.sleep(max(0, 0.1 - (time.monotonic() - start)))
