#!/usr/bin/env python3
"""Asks containerd for pods over the CRI, as a kubelet does, with curl as the gRPC client.

  cri.py SOCKET run NAME UID          starts the sandbox of pod default/NAME, and prints its id
  cri.py SOCKET remove ID             stops the sandbox and removes it
  cri.py IMAGE-PROGRAM image FILE     writes an image "culvert.test/pod:1" with one static program, for `ctr images import`
"""
import hashlib, io, json, re, subprocess, sys, tarfile, tempfile, urllib.parse


def field(number, value):
    """A field of a protobuf message that holds bytes, text or another message."""
    value = value.encode() if isinstance(value, str) else value
    assert number < 16 and len(value) < 1 << 14
    size = bytes([len(value)]) if len(value) < 0x80 else bytes([len(value) & 0x7F | 0x80, len(value) >> 7])
    return bytes([number << 3 | 2]) + size + value


def call(socket, method, message):
    request = b"\0" + len(message).to_bytes(4, "big") + message
    with tempfile.NamedTemporaryFile("r") as headers:
        answer = subprocess.run(
            ["curl", "-sS", "--max-time", "60", "--http2-prior-knowledge", "--unix-socket", socket, "-D", headers.name,
             "-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "@-",
             f"http://localhost/runtime.v1.RuntimeService/{method}"],
            input=request, check=True, stdout=subprocess.PIPE).stdout
        said = headers.read()
    status = re.search(r"(?mi)^grpc-status: (\d+)", said)
    if not status or status[1] != "0":
        reason = re.search(r"(?mi)^grpc-message: (.*)", said)
        sys.exit(f"{method}: {urllib.parse.unquote(reason[1]) if reason else said}")
    return answer[5:]


def run(socket, name, uid):
    metadata = field(1, name) + field(2, uid) + field(3, "default")
    config = field(1, metadata) + field(2, name) + field(3, "/var/log/pods")
    # RunPodSandboxResponse has the id as its only field.
    answer = call(socket, "RunPodSandbox", field(1, config))
    print(answer[2:2 + answer[1]].decode())


def remove(socket, sandbox):
    for method in ("StopPodSandbox", "RemovePodSandbox"):
        call(socket, method, field(1, sandbox))


def archive(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def image(program, file):
    """In the format of `docker save`, which names nothing by a registry."""
    with open(program, "rb") as opened:
        layer = archive({"pod": opened.read()})
    config = json.dumps({
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[subprocess.check_output(["uname", "-m"], text=True).strip()],
        "os": "linux", "config": {"Entrypoint": ["/pod"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}}).encode()
    manifest = [{"Config": "config.json", "RepoTags": ["culvert.test/pod:1"], "Layers": ["layer.tar"]}]
    with open(file, "wb") as out:
        out.write(archive({"config.json": config, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}))


{"run": run, "remove": remove, "image": image}[sys.argv[2]](sys.argv[1], *sys.argv[3:])
