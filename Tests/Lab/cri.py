#!/usr/bin/env python3
"""What a kubelet does with pods, through the container runtime interface (CRI) of a containerd. It needs no gRPC library:
curl speaks HTTP/2, and messages are encoded here.

  cri.py SOCKET daemonset MANIFEST NODE LOGS VOLUME=DIRECTORY...  starts the pod of a DaemonSet's manifest on this node, waits
                                                  for its probes, and prints what its containers' processes may do, as JSON
  cri.py SOCKET chained PLUGIN                    waits until the runtime knows a network that calls this plugin
  cri.py SOCKET pod NAME UID IMAGE COMMAND...     runs a pod with one container to its end, takes it away again, and prints
                                                  the container's exit code
  cri.py SOCKET exec CONTAINER COMMAND...         runs a command in a container
  cri.py SOCKET stop [POD]                        ends a pod as a kubelet does, or every pod; prints each container's exit code

VOLUME=DIRECTORY says where a volume of the manifest is on this machine. LOGS is a directory; the log of the container
culvertd is written there as NODE.log. The variable CRI_CGROUP names the control group that all pods are in. Messages are
those of CRI v1 (api.proto of kubernetes/cri-api), by their field numbers.
"""
import json
import os
import subprocess
import sys
import time
import urllib.parse

import yaml

POD, CONTAINER, NODE = 0, 1, 2  # NamespaceMode
RUNNING, EXITED = 1, 2  # ContainerState


def varint(number):
    out = bytearray()
    while True:
        out.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(out)


def encode(fields):
    """A protobuf message. A dictionary is a message, a list a repeated field, None a field that is not set."""
    out = b""
    for field, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            if value is None:
                continue
            if isinstance(value, int):
                out += varint(field << 3) + varint(int(value))
                continue
            data = encode(value) if isinstance(value, dict) else value.encode()
            out += varint(field << 3 | 2) + varint(len(data)) + data
    return out


def decode(data):
    """Field numbers to lists of values: integers, or bytes for strings and messages."""
    fields, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                return value

    while at < len(data):
        key = number()
        value = number()
        if key & 7 == 2:
            value, at = data[at : at + value], at + value
        fields.setdefault(key >> 3, []).append(value)
    return fields


class Runtime:
    def __init__(self, socket):
        self.socket = socket

    def call(self, method, fields):
        message = encode(fields)
        curl = ["curl", "-sS", "--http2-prior-knowledge", "--unix-socket", self.socket, "-D", "/dev/stderr",
                "-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "@-",
                f"http://localhost/runtime.v1.RuntimeService/{method}"]
        result = subprocess.run(curl, input=b"\0" + len(message).to_bytes(4, "big") + message, capture_output=True, check=False)
        told = dict(line.split(": ", 1) for line in result.stderr.decode().splitlines() if ": " in line)
        if told.get("grpc-status", "").strip() != "0":
            reason = urllib.parse.unquote(told.get("grpc-message", result.stderr.decode()))
            sys.exit(f"{method}: {reason.strip()}")
        return decode(result.stdout[5:])

    def listed(self, call, filters):
        """Ids and names of pods or containers."""
        items = [decode(item) for item in self.call(call, {1: filters}).get(1, [])]
        metadata = 3 if call == "ListContainers" else 2
        return [(item[1][0].decode(), decode(item[metadata][0])[1][0].decode()) for item in items]

    def run_sandbox(self, name, uid, namespace, security, logs=""):
        config = {1: {1: name, 2: uid, 3: namespace}, 3: logs, 8: {1: "/" + os.environ["CRI_CGROUP"], 2: security}}
        return self.call("RunPodSandbox", {1: config})[1][0].decode(), config

    def start(self, sandbox, sandbox_config, config):
        container = self.call("CreateContainer", {1: sandbox, 2: config, 3: sandbox_config})[1][0].decode()
        self.call("StartContainer", {1: container})
        return container

    def status(self, container):
        """The state, the exit code, and the process id while it runs."""
        answer = self.call("ContainerStatus", {1: container, 2: True})
        status = decode(answer[1][0])
        info = [decode(entry) for entry in answer.get(2, [])]
        pid = next((json.loads(entry[2][0])["pid"] for entry in info if entry[1][0] == b"info"), 0)
        return status.get(3, [0])[0], status.get(7, [0])[0], pid

    def exec(self, container, command, timeout=20):
        answer = self.call("ExecSync", {1: container, 2: command, 3: timeout})
        return answer.get(3, [0])[0], (answer.get(1, [b""])[0] + answer.get(2, [b""])[0]).decode()

    def stop(self, sandbox, seconds=0):
        """Ends the containers of a pod, then the pod. Names and exit codes."""
        codes = {}
        for container, name in self.listed("ListContainers", {3: sandbox}):
            self.call("StopContainer", {1: container, 2: seconds})
            codes[name] = self.status(container)[1]
        self.call("StopPodSandbox", {1: sandbox})
        self.call("RemovePodSandbox", {1: sandbox})
        return codes


def seccomp(context):
    return {"RuntimeDefault": {}, "Unconfined": {1: 1}}[context["seccompProfile"]["type"]]


def selinux(context):
    options = context.get("seLinuxOptions")
    return options and {1: options.get("user"), 2: options.get("role"), 3: options.get("type"), 4: options.get("level")}


def container_config(container, pod, namespaces, node, volumes):
    """A container of a pod's manifest, as the kubelet words it for the runtime."""
    context = {**pod["securityContext"], **container["securityContext"]}
    environment = [
        {1: entry["name"], 2: entry.get("value") or {"spec.nodeName": node}[entry["valueFrom"]["fieldRef"]["fieldPath"]]}
        for entry in container.get("env", [])
    ]
    mounts = [
        {1: mount["mountPath"], 2: volumes[mount["name"]], 3: mount.get("readOnly", False), 4: False}
        for mount in container["volumeMounts"]
    ]
    assert not (context["runAsNonRoot"] and context["runAsUser"] == 0)
    security = {
        1: {1: context["capabilities"].get("add", []), 2: context["capabilities"].get("drop", [])},
        2: context["privileged"],
        3: namespaces,
        4: selinux(context),
        5: {1: context["runAsUser"]},
        7: context["readOnlyRootFilesystem"],
        11: not context["allowPrivilegeEscalation"],
        12: {1: context["runAsGroup"]},
        15: seccomp(context),
    }
    return {
        1: {1: container["name"]}, 2: {1: container["image"]}, 3: container["command"], 4: container["args"], 6: environment,
        7: mounts, 11: f"{node}.log" if container["name"] == "culvertd" else container["name"] + ".log", 15: {2: security},
    }


def probe(runtime, container, what, name):
    """Runs a container's probe until it succeeds, at most 20 seconds."""
    end = time.monotonic() + 20
    while True:
        code, text = runtime.exec(container, what["exec"]["command"], what["timeoutSeconds"])
        if code == 0:
            return text
        if time.monotonic() > end or runtime.status(container)[0] != RUNNING:
            sys.exit(f"{name}: exit {code}: {text}")
        time.sleep(0.1)


def daemonset(runtime, manifest, node, logs, *volumes):
    with open(manifest, encoding="utf-8") as file:
        document = yaml.safe_load(file)
    pod = document["spec"]["template"]["spec"]
    volumes = dict(volume.split("=", 1) for volume in volumes)
    namespaces = {1: NODE if pod["hostNetwork"] else POD, 2: CONTAINER, 3: POD}
    security = {1: namespaces, 2: selinux(pod["securityContext"]), 9: seccomp(pod["securityContext"])}
    name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
    sandbox, sandbox_config = runtime.run_sandbox(name, name + "-" + node, namespace, security, logs)
    told = {}
    for container in pod["containers"]:
        config = container_config(container, pod, namespaces, node, volumes)
        identifier = runtime.start(sandbox, sandbox_config, config)
        for key in ("startupProbe", "readinessProbe"):
            if key in container:
                told[key] = probe(runtime, identifier, container[key], f"{key} of {container['name']}").strip()
        state, _, pid = runtime.status(identifier)
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            process = dict(line.rstrip("\n").split(":\t", 1) for line in file)
        told[container["name"]] = {
            "running": state == RUNNING, "rootIsReadOnly": bool(os.statvfs(f"/proc/{pid}/root").f_flag & os.ST_RDONLY),
            **{key: process[key] for key in ("Uid", "Gid", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")},
        }
    print(json.dumps(told))


def run_pod(runtime, name, uid, image, *command):
    namespaces = {1: POD, 2: CONTAINER, 3: POD}
    sandbox, sandbox_config = runtime.run_sandbox(name, uid, "default", {1: namespaces, 9: {}})
    config = {1: {1: name}, 2: {1: image}, 3: list(command), 15: {2: {3: namespaces, 15: {}}}}
    container = runtime.start(sandbox, sandbox_config, config)
    for _ in range(200):
        state, code, _ = runtime.status(container)
        if state == EXITED:
            break
        time.sleep(0.05)
    else:
        code = "still running"
    runtime.stop(sandbox)
    print(f"exit {code}")


def chained(runtime, plugin):
    for _ in range(200):
        for entry in runtime.call("Status", {1: True}).get(2, []):
            if plugin in (item["Network"]["type"] for network in networks(decode(entry)) for item in network):
                return
        time.sleep(0.05)
    sys.exit(f"the runtime knows no network that calls {plugin}")


def networks(entry):
    """The lists of plugins of what containerd says of itself."""
    if entry[1][0] == b"cniconfig":
        for network in json.loads(entry[2][0])["Networks"]:
            yield network["Config"]["Plugins"]


def main(socket, what, *arguments):
    runtime = Runtime(socket)
    if what == "daemonset":
        daemonset(runtime, *arguments)
    elif what == "chained":
        chained(runtime, *arguments)
    elif what == "pod":
        run_pod(runtime, *arguments)
    elif what == "exec":
        container = next(identifier for identifier, name in runtime.listed("ListContainers", {}) if name == arguments[0])
        code, text = runtime.exec(container, list(arguments[1:]))
        print(text, end="")
        sys.exit(code)
    elif what == "stop":
        for sandbox, name in runtime.listed("ListPodSandbox", {}):
            if name in arguments or not arguments:
                print(json.dumps(runtime.stop(sandbox, 20), sort_keys=True))


main(*sys.argv[1:])
