#!/usr/bin/env python3
"""One node of Kilo, as far as its neighbours and its successor can tell: the annotations that it writes and reads, its timers,
whom it takes for ready, whom it chooses as leader, how it ends, and what it leaves in the kernel. Written from what Kilo does
(github.com/squat/kilo, pkg/mesh and pkg/k8s); where the two differ, Kilo is right and this program has a mistake.

    kilo_like.py --server http://127.0.0.1:6443 --token T --node n1 --internal-ip 10.1.0.11/24 --external-ip 198.51.100.1

SIGTERM is a clean end: the annotations, routes and rules go, the device stays (Kilo's default, --clean-up-interface=false).
SIGKILL is an unclean one: everything stays. What it does not do: peers, NAT, iptables, full granularity in one cluster with
others, the informer's watch (it lists five times a second, and an object counts as news when its resourceVersion has changed).

--device says what kilo0 is:
  none          nothing is done to the kernel
  veth          a device of that name which carries nothing: for what is left behind
  wireguard     the kernel's own; needs the program wg
  wireguard-go  the same in user space; the program goes on when this one ends, as a device of the kernel would

--tunnel-kind says what the tunnel inside a location is:
  none   a device that somebody else has made
  ipip   the kernel's tunl0, as Kilo has it
  vxlan  a stand-in for kernels without IPIP. It is what Culvert has with `protocol: vxlan`, so the two understand each other.
         Two such devices cannot be in one namespace, as tunl0 and another IPIP device can: a clean end deletes this one
"""
import argparse, base64, fcntl, http.client, ipaddress, json, os, signal, socket, struct, subprocess, sys, time, urllib.parse

PREFIX = "kilo.squat.ai/"
CHECK_IN = 30      # pkg/mesh/backend.go, checkInPeriod
RESYNC = 30        # cmd/kg, --resync-period
SILENCE = 2 * CHECK_IN
LOOK = 0.2
TABLE = "1107"
WIREGUARD_MTU = 1420
VXLAN_PORT = "8475"  # Culvert's (Ownership.vxlanPort), for the stand-in
NO_KEY = base64.b64encode(bytes(32)).decode()


def x25519_public(private):
    """RFC 7748, section 5, with the base point 9."""
    p = 2**255 - 19
    k = bytearray(private)
    k[0] &= 248
    k[31] = k[31] & 127 | 64
    k = int.from_bytes(k, "little")
    x2, z2, x3, z3, swap = 1, 0, 9, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % p, b * b % p, d * a % p, c * b % p
        e = aa - bb
        x3, z3 = pow(da + cb, 2, p), 9 * pow(da - cb, 2, p) % p
        x2, z2 = aa * bb % p, e * (aa + 121665 * e) % p
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


def is_public(text):
    """pkg/mesh/ip.go: not of RFC 1918, not of fd00::/16."""
    address = ipaddress.ip_address(text)
    private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"] if address.version == 4 else ["fd00::/16"]
    return not any(address in ipaddress.ip_network(n) for n in private)


def network(text):
    """An address with its length; None where the text is none, as it is where the length is missing."""
    try:
        return ipaddress.ip_interface(text) if "/" in (text or "") else None
    except ValueError:
        return None


def endpoint(text):
    host, _, port = (text or "").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() and int(port) else None


def address_of(host):
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        try:
            return socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)[0][4][0]
        except OSError:
            return None


def vxlan_mac(address):
    """What Culvert gives its device on the node with this overlay address (VXLANEncapsulation.mac)."""
    return "02:c7:" + ":".join(f"{byte:02x}" for byte in address.packed)


def userspace_device():
    """Runs wireguard-go for kilo0 in a process that nobody waits for. The kernel's device frees its UDP port when it is set down;
    wireguard-go does not, so this process has it do so."""
    if os.fork():
        return
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    program = subprocess.Popen(["wireguard-go", "-f", "kilo0"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    control, was_up = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), False
    while program.poll() is None:
        time.sleep(0.05)
        try:
            answer = fcntl.ioctl(control, 0x8913, struct.pack("16sH22x", b"kilo0", 0))  # SIOCGIFFLAGS
        except OSError:
            continue
        is_up = bool(struct.unpack("16sH22x", answer)[1] & 1)
        if was_up and not is_up:
            subprocess.run(["wg", "set", "kilo0", "listen-port", "0"])
        was_up = is_up
    os._exit(0)


class Node:
    """What Kilo makes of a Node (pkg/k8s, translateNode)."""
    FIELDS = ("endpoint", "key", "internal", "compatibility", "leader", "location", "name", "subnet", "wireguard",
              "keepalive", "allowed", "granularity")

    def __init__(self, item, label):
        meta = item["metadata"]
        said = {k[len(PREFIX):]: v for k, v in (meta.get("annotations") or {}).items() if k.startswith(PREFIX)}
        self.name = meta["name"]
        self.endpoint = endpoint(said.get("force-endpoint")) or endpoint(said.get("endpoint"))
        self.no_internal = said.get("force-internal-ip") in ("", "-")
        self.internal = None if self.no_internal else \
            network(said.get("force-internal-ip")) or network(said.get("internal-ip"))
        self.key = said.get("key") or NO_KEY
        try:
            self.last_seen = int(said.get("last-seen", "0"))
        except ValueError:
            self.last_seen = 0
        self.leader = "leader" in said
        self.location = said.get("location", (meta.get("labels") or {}).get(label, ""))
        self.subnet = network((item.get("spec") or {}).get("podCIDR"))
        self.wireguard = network(said.get("wireguard-ip"))
        self.compatibility = network(said.get("cni-compatibility-ip"))
        self.keepalive = said.get("persistent-keepalive", "0")
        self.allowed = [n for n in (network(t) for t in said.get("allowed-location-ips", "").split(",")) if n]
        self.granularity = said.get("granularity", "")

    def ready(self):
        return bool(self.endpoint) and self.key != NO_KEY and self.subnet is not None \
            and int(time.time()) - self.last_seen < SILENCE

    def same(self, other):
        """nodesAreEqual: a newer last-seen alone is no difference; that it became valid or invalid is."""
        return other is not None and all(getattr(self, f) == getattr(other, f) for f in self.FIELDS) \
            and self.ready() == other.ready()


class Kilo:
    def __init__(self, options):
        self.options, self.nodes, self.versions = options, {}, {}
        self.own_wireguard = None
        self.end = False
        try:
            with open(options.key, "rb") as file:
                self.private = base64.b64decode(file.read())
        except OSError:
            private = bytearray(os.urandom(32))
            # As WireGuard has it (RFC 7748): what it shows must be what it was given.
            private[0] &= 248
            private[31] = private[31] & 127 | 64
            self.private = bytes(private)
            with open(options.key, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
                file.write(base64.b64encode(self.private))
        self.public = base64.b64encode(x25519_public(self.private)).decode()
        self.written = {}  # commands that take back what was put into the kernel, by what it is
        self.has_devices, self.device_address = False, None

    # -- the API

    def call(self, method, path, body=None, kind="application/json"):
        url = urllib.parse.urlsplit(self.options.server)
        connection = http.client.HTTPConnection(url.hostname or "localhost", url.port, timeout=10)
        if url.scheme == "unix":
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(10)
            connection.sock.connect(url.path)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None,
                               {"Authorization": f"Bearer {self.options.token}", "Content-Type": kind})
            answer = connection.getresponse()
            data = answer.read()
            if answer.status >= 300:
                raise OSError(f"{method} {path}: {answer.status} {data[:200]!r}")
            return json.loads(data)
        finally:
            connection.close()

    def list(self):
        return {item["metadata"]["name"]: item for item in self.call("GET", "/api/v1/nodes").get("items") or []}

    def set(self, node):
        """Writes what differs from the API's object (pkg/k8s, Set)."""
        text = {
            "endpoint": f"{node.endpoint[0]}:{node.endpoint[1]}", "key": node.key, "last-seen": str(node.last_seen),
            "internal-ip": str(node.internal or ""), "wireguard-ip": str(node.wireguard or ""),
            "discovered-endpoints": "{}", "granularity": node.granularity,
            "cni-compatibility-ip": str(node.compatibility or ""),
        }
        there = self.items[self.options.node]["metadata"].get("annotations") or {}
        changes = {PREFIX + k: v for k, v in text.items() if there.get(PREFIX + k) != v}
        self.call("PATCH", f"/api/v1/nodes/{node.name}?fieldManager=kg", {"metadata": {"annotations": changes}},
                  "application/strategic-merge-patch+json")

    # -- the loop

    def run(self):
        check_in, resync = time.monotonic() + CHECK_IN, time.monotonic() + RESYNC
        while not self.end:
            try:
                self.look()
                if time.monotonic() >= check_in:
                    check_in = time.monotonic() + CHECK_IN
                    self.check_in()
                if time.monotonic() >= resync:
                    resync = time.monotonic() + RESYNC
                    self.apply()
            except OSError as error:
                print(error, file=sys.stderr, flush=True)
            time.sleep(LOOK)
        self.clean_up()

    def look(self):
        self.items = self.list()
        changed = False
        for name in set(self.nodes) - set(self.items):
            del self.nodes[name]
            changed = True
        for name, item in self.items.items():
            version = item["metadata"].get("resourceVersion")
            if self.versions.get(name) == version:
                continue
            self.versions[name] = version
            node = Node(item, self.options.topology_label)
            if name == self.options.node:
                self.handle_local(node)
                continue
            changed |= not node.same(self.nodes.get(name))
            self.nodes[name] = node
        if changed:
            self.apply()

    def handle_local(self, told):
        options, local = self.options, Node(self.items[self.options.node], self.options.topology_label)
        if not local.endpoint:
            local.endpoint = ((options.external_ip or options.internal_ip).split("/")[0], options.port)
        if local.internal is None and not local.no_internal:
            local.internal = network(options.internal_ip)
        local.key, local.last_seen = self.public, int(time.time())
        local.compatibility, local.wireguard = network(options.compatibility_ip), self.own_wireguard
        local.granularity = options.granularity
        if not told.same(local):
            self.set(local)
        if not local.same(self.nodes.get(local.name)):
            self.nodes[local.name] = local
            self.apply()

    def check_in(self):
        if node := self.nodes.get(self.options.node):
            before, node.last_seen = node.last_seen, int(time.time())
            try:
                self.set(node)
            except OSError:
                node.last_seen = before
                raise

    # -- the topology (pkg/mesh/topology.go)

    def segments(self):
        places = {}
        for node in self.nodes.values():
            if node.ready():
                alone = self.options.granularity == "full" or node.internal is None
                places.setdefault(f"node:{node.name}" if alone else f"location:{node.location}", []).append(node)
        result, last = [], ipaddress.ip_network(self.options.subnet).network_address
        for place in sorted(places):
            nodes, last = sorted(places[place], key=lambda n: n.name), last + 1
            public = [is_public(a) if (a := address_of(n.endpoint[0])) else False for n in nodes]
            ranks = [(0 if n.leader and p else 1 if n.leader else 2 if p else 3) for n, p in zip(nodes, public)]
            result.append((place, nodes, nodes[ranks.index(min(ranks))], last))
        return result

    def apply(self):
        own = self.nodes.get(self.options.node)
        if own is None or not own.ready():
            return
        segments = self.segments()
        mine = next(s for s in segments if own in s[1])
        leads = mine[2] is own
        bits = ipaddress.ip_network(self.options.subnet).prefixlen
        self.own_wireguard = network(f"{mine[3]}/{bits}") if leads else None
        if self.options.state:
            with open(self.options.state + ".new", "w") as file:
                json.dump({place: {"nodes": [n.name for n in nodes], "leader": leader.name, "address": str(address)}
                           for place, nodes, leader, address in segments}, file)
            os.replace(self.options.state + ".new", self.options.state)
        if self.options.device != "none":
            self.apply_kernel(own, mine, segments, leads)

    # -- the kernel (pkg/mesh/mesh.go, routes.go)

    @staticmethod
    def ip(*words, check=True):
        return subprocess.run(["ip", *words], check=check, capture_output=True, text=True).returncode == 0

    @staticmethod
    def batch(commands):
        """Commands of ip in one process; one that fails does not keep the others from being tried."""
        if commands:
            subprocess.run(["ip", "-force", "-batch", "-"], input="".join(" ".join(c) + "\n" for c in commands), text=True,
                           capture_output=True)

    def devices(self):
        """kilo0 and the tunnel, once; both may be there from before."""
        if self.has_devices:
            return
        self.has_devices = True
        options = self.options
        if not self.ip("link", "show", "kilo0", check=False):
            if options.device == "veth":
                self.ip("link", "add", "kilo0", "type", "veth", "peer", "name", "kilo0-end")
                self.ip("link", "set", "kilo0-end", "up")
            elif options.device == "wireguard":
                self.ip("link", "add", "kilo0", "type", "wireguard")
            else:
                userspace_device()
                while not os.path.exists("/run/wireguard/kilo0.sock"):
                    time.sleep(0.05)
        if options.device.startswith("wireguard"):
            self.ip("link", "set", "kilo0", "mtu", str(WIREGUARD_MTU))
        if options.tunnel_kind == "none":
            return
        if options.tunnel_kind == "vxlan":
            own = network(options.compatibility_ip).ip
            self.ip("link", "add", options.tunnel, "address", vxlan_mac(own), "mtu", "1400", "type", "vxlan", "id", "1",
                    "local", str(own), "dstport", VXLAN_PORT, check=False)
        else:
            self.ip("link", "add", options.tunnel, "type", "ipip", check=False)
        self.ip("link", "set", options.tunnel, "up")
        # As Cilium's nodes have it. What comes by a device without an address passes no filter at all.
        for device in ("kilo0", options.tunnel):
            with open(f"/proc/sys/net/ipv4/conf/{device}/rp_filter", "w") as file:
                file.write("0")

    def apply_kernel(self, own, mine, segments, leads):
        self.devices()
        source = ["src", str(own.internal.ip)] if own.internal else []
        tunnel, wanted = self.options.tunnel, {}

        def route(destination, gateway, device, table="main", source=source):
            words = [str(destination), "via", str(gateway), "dev", device, "onlink", "proto", "static", "table", table]
            wanted["route", str(destination), table] = words + source

        def rule(*words):
            wanted[("rule", *words)] = [*words, "table", TABLE]

        if leads:
            if self.own_wireguard != self.device_address:
                self.batch([["addr", "flush", "dev", "kilo0"], ["addr", "add", str(self.own_wireguard), "dev", "kilo0"]])
                self.device_address = self.own_wireguard
            if self.options.device.startswith("wireguard"):
                self.wireguard(own, mine, segments)
            self.ip("link", "set", "kilo0", "up")
            for place, nodes, leader, address in segments:
                if place == mine[0]:
                    for node in nodes:
                        if node is not own and node.compatibility:
                            route(f"{node.internal.ip}/32", node.compatibility.ip, tunnel, TABLE, [])
                            rule("to", f"{node.internal.ip}/32", "iif", "kilo0")
                    continue
                for node in nodes:
                    route(node.subnet.network, address, "kilo0")
                    if node.internal and str(node.internal.ip) != leader.endpoint[0]:
                        route(f"{node.internal.ip}/32", address, "kilo0")
        else:
            self.ip("link", "set", "kilo0", "down")
            gateway = mine[2].compatibility.ip if mine[2].compatibility else mine[2].internal.ip
            for place, nodes, leader, address in segments:
                route(f"{address}/32", gateway, tunnel)
                if place != mine[0]:
                    for node in nodes:
                        route(node.subnet.network, gateway, tunnel)
                        if node.internal:
                            route(f"{node.internal.ip}/32", gateway, tunnel)
        commands = [[what[0], "del", *words] for what, words in self.written.items() if what not in wanted]
        if self.options.tunnel_kind == "vxlan":
            for node in mine[1]:
                if node is not own and node.compatibility:
                    peer, mac = str(node.compatibility.ip), vxlan_mac(node.compatibility.ip)
                    commands.append(["neigh", "replace", peer, "lladdr", mac, "nud", "permanent", "dev", tunnel])
                    subprocess.run(["bridge", "fdb", "replace", mac, "dev", tunnel, "dst", peer, "self", "permanent"])
        for what, words in wanted.items():
            if what[0] == "route":
                commands.append(["route", "replace", *words])
            elif what not in self.written:
                commands.append(["rule", "add", *words])
        self.batch(commands)
        self.written = wanted

    def wireguard(self, own, mine, segments):
        """Sets the device where it differs. All of its peers are made anew then, and shake hands again (ReplacePeers)."""
        port, peers, lines = str(own.endpoint[1]), {}, []
        for place, nodes, leader, address in segments:
            if place == mine[0]:
                continue
            allowed = [f"{address}/32"] + [str(n.subnet.network) for n in nodes] + \
                [f"{n.internal.ip}/32" for n in nodes if n.internal]
            where = f"{leader.endpoint[0]}:{leader.endpoint[1]}"
            peers[leader.key] = (where, frozenset(allowed))
            lines += ["[Peer]", f"PublicKey = {leader.key}", f"Endpoint = {where}", "AllowedIPs = " + ", ".join(allowed)]
        rows = [row.split("\t") for row in subprocess.run(
            ["wg", "show", "kilo0", "dump"], text=True, check=True, capture_output=True).stdout.splitlines()]
        private = base64.b64encode(self.private).decode()
        if rows[0][0] == private and rows[0][2] == port \
                and {r[0]: (r[2], frozenset(r[3].split(","))) for r in rows[1:]} == peers:
            return
        text = "\n".join(["[Interface]", f"PrivateKey = {private}", f"ListenPort = {port}", *lines]) + "\n"
        subprocess.run(["wg", "setconf", "kilo0", "/dev/stdin"], input=text, text=True, check=True)

    # -- a clean end

    def clean_up(self):
        self.batch([[what[0], "del", *words] for what, words in self.written.items()])
        names = ("endpoint", "internal-ip", "key", "last-seen", "wireguard-ip", "discovered-endpoints", "granularity")
        there = self.list()[self.options.node]["metadata"].get("annotations") or {}
        patch = [{"op": "remove", "path": "/metadata/annotations/" + (PREFIX + n).replace("/", "~1")}
                 for n in names if PREFIX + n in there]
        self.call("PATCH", f"/api/v1/nodes/{self.options.node}", patch, "application/json-patch+json")
        if self.options.tunnel_kind != "none":
            self.ip("link", "del", self.options.tunnel, check=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="http://ADDRESS:PORT or unix:PATH")
    parser.add_argument("--token", required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--internal-ip", help="ADDRESS/LENGTH that Kilo would find on an interface")
    parser.add_argument("--external-ip", help="the same, a public one")
    parser.add_argument("--compatibility-ip", help="ADDRESS/LENGTH of cilium_host")
    parser.add_argument("--key", required=True, help="file of the private key; made where it is missing")
    parser.add_argument("--state", help="file that says what the topology is, as JSON")
    parser.add_argument("--device", choices=("none", "veth", "wireguard", "wireguard-go"), default="none")
    parser.add_argument("--tunnel", default="tunl0", help="the name of the tunnel's device")
    parser.add_argument("--tunnel-kind", choices=("none", "ipip", "vxlan"), default="none")
    parser.add_argument("--port", type=int, default=51820)
    parser.add_argument("--subnet", default="10.4.0.0/16")
    parser.add_argument("--granularity", choices=("location", "full"), default="location")
    parser.add_argument("--topology-label", default="topology.kubernetes.io/region")
    kilo = Kilo(parser.parse_args())

    def stop(*_):
        kilo.end = True
    # Whoever starts this may have blocked it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    kilo.run()


if __name__ == "__main__":
    main()
