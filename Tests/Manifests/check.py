#!/usr/bin/env python3
"""Holds the manifests of install/kubernetes and the chart of install/helm against what they are meant to be.

  check.py KUBECTL [--write]   KUBECTL: the program. --write: renders docs/examples anew instead of comparing.

What is real here: kubectl's own kustomize; Helm's own engine (PyPI's helm-python-sdk is a C library over Helm's Go SDK);
the schemas of the Kubernetes API (PyPI's kubernetes-validate). What is not: no API server and no kubelet judges anything.
"""
import base64, copy, glob, hashlib, json, os, re, shutil, subprocess, sys, tempfile

import jsonschema, kubernetes_validate, yaml
from helm_python import chart as helm, errors as helm_errors

here = os.path.dirname(os.path.abspath(__file__))
root = os.path.normpath(os.path.join(here, "../.."))
kubernetes, chart_directory = f"{root}/install/kubernetes", f"{root}/install/helm/culvert"
OVERLAYS = ["cilium", "talos", "hetzner", "kilo-interop"]
VERSIONS = ["1.31.0", "1.36.0"]
UID = 47110
kubectl, write = sys.argv[1], "--write" in sys.argv[2:]
checks = failed = 0


def check(name, problem):
    global checks, failed
    checks += 1
    failed += bool(problem)
    print(f"FAIL  {name}: {problem}" if problem else f"ok    {name}")


def same(name, found, wanted):
    check(name, None if found == wanted else f"{found!r} instead of {wanted!r}")


def kustomize(directory):
    return subprocess.run([kubectl, "kustomize", directory], check=True, capture_output=True, text=True).stdout


def objects(text):
    return {(o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]): o
            for o in yaml.safe_load_all(text) if o}


def only(documents, kind):
    found = [o for key, o in documents.items() if key[0] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def schema_errors(document):
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {error.message} at {list(error.path)}"


# ---- what each container is meant to be ----

NO_CAPABILITY = {"drop": ["ALL"]}
NET_ADMIN = {"drop": ["ALL"], "add": ["NET_ADMIN"]}
# name: command, user, capabilities, mounts (path: writable)
CONTAINERS = {
    "installer": (["/usr/local/bin/culvertd", "install", "--plugin=/usr/local/lib/culvert/culvert", "--after-defeat=rest"]
                  + [f"--runtime=/host/usr/{path}" for path in ("bin/containerd", "local/bin/containerd", "bin/crio", "local/bin/crio")],
                  0, NO_CAPABILITY,
                  {"/run/culvert": True, "/var/lib/culvert": True, "/etc/cni/net.d": True, "/opt/cni/bin": True,
                   "/host/usr": False}),
    "culvertd": (["/usr/local/bin/culvertd", "run"], UID, NET_ADMIN,
                 {"/run/culvert": True, "/var/lib/culvert": True, "/etc/culvert": False,
                  "/var/run/secrets/kubernetes.io/serviceaccount": False}),
    "uninstall": (["/usr/local/bin/culvertd", "uninstall"], 0, NO_CAPABILITY,
                  {"/var/lib/culvert": True, "/etc/cni/net.d": True, "/opt/cni/bin": True}),
    "cleanup": (["/usr/local/bin/culvertd", "cleanup"], UID, NET_ADMIN,
                {"/run/culvert": True, "/etc/culvert": False, "/var/run/secrets/kubernetes.io/serviceaccount": False}),
    "done": (["sleep", "infinity"], UID, NO_CAPABILITY, {}),
}
HOST_PATHS = {"run": "/run/culvert", "state": "/var/lib/culvert", "cni-conf": "/etc/cni/net.d", "cni-bin": "/opt/cni/bin",
              "host-usr": "/usr"}
NODE_NAME = [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]


def container_problems(container):
    command, user, capabilities, mounts = CONTAINERS[container["name"]]
    security = container["securityContext"]
    wanted = {"runAsUser": user, "runAsGroup": UID, "runAsNonRoot": user != 0, "readOnlyRootFilesystem": True,
              "allowPrivilegeEscalation": False, "privileged": False, "capabilities": capabilities}
    if security != wanted:
        yield f"securityContext {security}"
    if container["command"] != command:
        yield f"command {container['command']}"
    found = {m["mountPath"]: not m.get("readOnly", False) for m in container.get("volumeMounts", [])}
    if found != mounts:
        yield f"mounts {found}"
    if "cpu" in container["resources"].get("limits", {}):
        yield "a CPU limit"
    if set(container["resources"]["requests"]) != {"cpu", "memory"}:
        yield "no requests"
    if "ports" in container:
        yield "ports, which Kubernetes would reserve on the host"


def pod_problems(pod):
    wanted = {"hostNetwork": True, "dnsPolicy": "Default", "priorityClassName": "system-node-critical",
              "automountServiceAccountToken": False, "tolerations": [{"operator": "Exists"}],
              "securityContext": {"seccompProfile": {"type": "RuntimeDefault"},
                                  "seLinuxOptions": {"type": "spc_t", "level": "s0"}}}
    for key, value in wanted.items():
        if pod.get(key) != value:
            yield f"{key} is {pod.get(key)}"
    for key in ("hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.get(key):
            yield key
    for volume in pod["volumes"]:
        if "hostPath" in volume and volume["hostPath"]["path"] != HOST_PATHS.get(volume["name"]):
            yield f"the host's {volume['hostPath']['path']} as {volume['name']}"
    for container in pod.get("initContainers", []) + pod["containers"]:
        yield from (f"{container['name']}: {problem}" for problem in container_problems(container))


def tokens(pod):
    """Containers that can read a token of the service account."""
    holders = {v["name"] for v in pod["volumes"] for s in v.get("projected", {}).get("sources", []) if "serviceAccountToken" in s}
    return [c["name"] for c in pod.get("initContainers", []) + pod["containers"] if holders & {m["name"] for m in c.get("volumeMounts", [])}]


RIGHTS = {
    ("", "nodes"): {"get", "list", "watch", "patch"}, ("", "namespaces"): {"get", "list", "watch"},
    ("", "pods"): {"get", "list", "watch"}, ("cilium.io", "ciliumnodes"): {"list", "watch"},
    ("cilium.io", "ciliumegressgatewaypolicies"): {"list", "watch"}, ("culvert.dev", "egresspolicies"): {"list", "watch"},
    ("culvert.dev", "egresspolicies/status"): {"patch"}, ("kilo.squat.ai", "peers"): {"list", "watch"},
    ("networking.k8s.io", "servicecidrs"): {"list", "watch"}, ("", "events"): {"create"},
}


def rights(role):
    found = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def common(title, documents, args):
    """What holds for every way to install."""
    for (kind, _, name), document in documents.items():
        check(f"{title}: {kind} {name} is what the API takes", "; ".join(schema_errors(document)))
    daemonset = only(documents, "DaemonSet")
    pod = daemonset["spec"]["template"]["spec"]
    check(f"{title}: the pod", "; ".join(pod_problems(pod)))
    same(f"{title}: the containers", [c["name"] for c in pod["containers"]], ["installer", "culvertd"])
    same(f"{title}: the installer's arguments", pod["containers"][0]["args"], args)
    same(f"{title}: only the helper has a token", tokens(pod), ["culvertd"])
    same(f"{title}: the update", daemonset["spec"]["updateStrategy"],
         {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}})
    helper = pod["containers"][1]
    same(f"{title}: probes", {k: helper[k]["exec"]["command"][1:] for k in ("startupProbe", "livenessProbe", "readinessProbe")},
         {"startupProbe": ["ready", "--live"], "livenessProbe": ["ready", "--live"], "readinessProbe": ["ready"]})
    same(f"{title}: the installer is ready when the plugin is in the chain",
         pod["containers"][0]["readinessProbe"]["exec"]["command"], ["/usr/local/bin/culvertctl", "ready", "--chain"])
    same(f"{title}: NODE_NAME", helper["env"], NODE_NAME)
    same(f"{title}: the rights in the cluster", rights(only(documents, "ClusterRole")), RIGHTS)
    role = only(documents, "Role")
    same(f"{title}: the rights in kube-system", role["rules"], [{"apiGroups": [""], "resources": ["configmaps"],
         "resourceNames": ["cilium-config", "kubeadm-config"], "verbs": ["get"]}])
    account = only(documents, "ServiceAccount")
    subject = {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": account["metadata"]["namespace"]}
    for kind in ("ClusterRoleBinding", "RoleBinding"):
        same(f"{title}: the subject of the {kind}", only(documents, kind)["subjects"], [subject])
    same(f"{title}: the pod's account", (pod["serviceAccountName"], daemonset["metadata"]["namespace"]),
         (subject["name"], subject["namespace"]))
    user = f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
    for (kind, _, name), policy in documents.items():
        if kind == "ValidatingAdmissionPolicy":
            same(f"{title}: {name} looks at {user}", [c["expression"] for c in policy["spec"]["matchConditions"]],
                 [f"request.userInfo.username == '{user}'"])
    config = only(documents, "ConfigMap")
    volume = [v for v in pod["volumes"] if v["name"] == "config"][0]
    same(f"{title}: the configuration is mounted", volume["configMap"]["name"], config["metadata"]["name"])
    return yaml.safe_load(config["data"]["culvertd.yaml"]), pod


def overlays():
    settings = {}
    for overlay in OVERLAYS:
        text = kustomize(f"{kubernetes}/overlays/{overlay}")
        documents = objects(text)
        settings[overlay], pod = common(overlay, documents, ["--chain-after", "cilium"])
        labels = only(documents, "Namespace")["metadata"]["labels"]
        same(f"{overlay}: Pod Security", labels["pod-security.kubernetes.io/enforce"], "privileged")
        selector = {"kubernetes.io/os": "linux"} | ({"culvert.dev/node": "true"} if overlay == "kilo-interop" else {})
        same(f"{overlay}: which nodes", pod["nodeSelector"], selector)
        path = f"{root}/docs/examples/install-{overlay}.yaml"
        shown = f"# Rendered from install/kubernetes/overlays/{overlay}; change it there, then run Tests/Manifests/check.sh --write.\n{text}"
        if write:
            with open(path, "w") as file:
                file.write(shown)
        current = os.path.exists(path) and open(path).read() == shown
        check(f"docs/examples/install-{overlay}.yaml is current", None if current else "run Tests/Manifests/check.sh --write")
    prism = {"source": "kubernetes", "server": "https://localhost:7445"}
    same("cilium: the inventory", settings["cilium"]["inventory"], {"source": "kubernetes"})
    same("talos: KubePrism", settings["talos"]["inventory"], prism)
    same("hetzner: KubePrism", settings["hetzner"]["inventory"], prism)
    same("hetzner: the private network", settings["hetzner"]["cluster"]["nodeCIDRs"], ["10.0.0.0/16"])
    same("kilo-interop: the mesh", settings["kilo-interop"]["mesh"]["kiloInterop"], True)
    uninstalled = objects(kustomize(f"{kubernetes}/uninstall"))
    uninstall, config = only(uninstalled, "DaemonSet"), only(uninstalled, "ConfigMap")
    check("uninstall: what the API takes", "; ".join(e for o in (uninstall, config) for e in schema_errors(o)))
    pod = uninstall["spec"]["template"]["spec"]
    # The annotations of the Node go by the helper's own credentials.
    same("uninstall: who has a token", (pod["serviceAccountName"], tokens(pod)), ("culvertd", ["cleanup"]))
    same("uninstall: NODE_NAME", pod["initContainers"][1]["env"], NODE_NAME)
    same("uninstall: the configuration is mounted",
         [v["configMap"]["name"] for v in pod["volumes"] if v["name"] == "config"], [config["metadata"]["name"]])
    same("uninstall: the configuration", yaml.safe_load(config["data"]["culvertd.yaml"]), {"inventory": {"source": "kubernetes"}})
    check("uninstall: the pod", "; ".join(pod_problems(pod)))
    same("uninstall: first the chain, then the kernel", [c["name"] for c in pod["initContainers"]], ["uninstall", "cleanup"])
    # The kustomization's images: one release everywhere, that of the programs.
    release = re.search(r'version = "([^"]+)"', open(f"{root}/Sources/CNI/CulvertRelease.swift").read()).group(1)
    for path in glob.glob(f"{kubernetes}/*/daemonset.yaml"):
        found = set(re.findall(r"image: (culvert:\S+)", open(path).read()))
        same(f"{os.path.relpath(path, root)}: the release", found, {f"culvert:{release}"})
    # The kustomizations that docs/install.md prints, typed as printed.
    printed = re.search(r"```\n(mkdir -p mine/.*?)```", open(f"{root}/docs/install.md").read(), re.S).group(1)
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(kubernetes, f"{directory}/install/kubernetes")
        subprocess.run(["bash", "-ec", printed.replace("REGISTRY", "example.com/net")], check=True, cwd=directory)
        for name, count in (("install", 2), ("uninstall", 2)):
            images = re.findall(r"image: (\S+)", kustomize(f"{directory}/mine/{name}"))
            same(f"docs/install.md: the image of mine/{name}", [i for i in images if "culvert" in i],
                 [f"example.com/net/culvert:{release}"] * count)
        # The one of docs/migrating-from-kilo.md: only nodes that leave are cleaned.
        leave = re.search(r"( *mkdir -p mine/leave.*?)\n *kubectl", open(f"{root}/docs/migrating-from-kilo.md").read(), re.S).group(1)
        subprocess.run(["bash", "-ec", leave], check=True, cwd=directory)
        leaving = only(objects(kustomize(f"{directory}/mine/leave")), "DaemonSet")
        same("docs/migrating-from-kilo.md: nodes of mine/leave", leaving["spec"]["template"]["spec"]["nodeSelector"],
             {"kubernetes.io/os": "linux", "culvert.dev/node": "leaving"})
        # A configuration of one's own.
        own = re.search(r"```yaml\n(configMapGenerator:.*?)```", open(f"{root}/docs/install.md").read(), re.S).group(1)
        with open(f"{directory}/mine/install/culvertd.yaml", "w") as file:
            file.write("inventory: {source: etcd}\n")
        with open(f"{directory}/mine/install/kustomization.yaml", "a") as file:
            file.write(own)
        config = only(objects(kustomize(f"{directory}/mine/install")), "ConfigMap")
        same("docs/install.md: a configuration of one's own", config["data"], {"culvertd.yaml": "inventory: {source: etcd}\n"})
    metadata = yaml.safe_load(open(f"{chart_directory}/Chart.yaml"))
    same("the chart's release", (metadata["version"], metadata["appVersion"]), (release, release))
    return settings


def rendered(values=None, namespace="culvert"):
    with helm.Chart.load(chart_directory) as chart:
        files = chart.render(values or {}, name="culvert", namespace=namespace)
    return objects("\n---\n".join(text for name, text in files.items() if not name.endswith("NOTES.txt")))


def plain(document):
    """Without what the two ways to install have different on purpose."""
    document = copy.deepcopy(document)
    metadata = document["metadata"]
    metadata.get("annotations", {}).pop("helm.sh/resource-policy", None)
    if not metadata.get("annotations"):
        metadata.pop("annotations", None)
    if document["kind"] == "ConfigMap":
        metadata["name"] = "culvert-config"
        document["data"] = {k: yaml.safe_load(v) for k, v in document["data"].items()}
    if document["kind"] == "DaemonSet":
        annotations = document["spec"]["template"]["metadata"].setdefault("annotations", {})
        annotations.pop("culvert.dev/config", None)
        for volume in document["spec"]["template"]["spec"]["volumes"]:
            if "configMap" in volume:
                volume["configMap"]["name"] = "culvert-config"
    return document


def the_chart(settings):
    linted = helm.lint(chart_directory)
    check("helm lint", linted["errors"] or [m for m in linted["messages"] if m["severity"] > 1])
    documents = rendered()
    common("chart", documents, ["--chain-after", "cilium"])
    ours = {(k[0], k[1], "culvert-config" if k[0] == "ConfigMap" else k[2]): plain(o) for k, o in documents.items()}
    theirs = {(k[0], k[1], "culvert-config" if k[0] == "ConfigMap" else k[2]): plain(o)
              for k, o in objects(kustomize(f"{kubernetes}/overlays/cilium")).items() if k[0] != "Namespace"}
    same("chart: the objects are those of the overlay cilium", sorted(ours), sorted(theirs))
    for key in ours.keys() & theirs.keys():
        check(f"chart: {key[0]} {key[2]} is as in the overlay", None if ours[key] == theirs[key] else "it differs")
    same("chart: the CRD outlives the release",
         only(documents, "CustomResourceDefinition")["metadata"]["annotations"]["helm.sh/resource-policy"], "keep")
    elsewhere = rendered(namespace="net")
    common("chart in the namespace net", elsewhere, ["--chain-after", "cilium"])
    changed = rendered({
        "image": {"repository": "example.com/culvert", "digest": "sha256:" + "0" * 64}, "maxUnavailable": "10%",
        "imagePullSecrets": [{"name": "pull"}], "config": settings["hetzner"], "crd": {"install": False},
        "installer": {"chainAfter": "", "whenHelperUnavailable": "allow", "binDir": "/usr/libexec/cni"},
        "podLabels": {"team": "net"}, "resources": {"culvertd": {"limits": {"memory": "512Mi"}}}})
    daemonset = only(changed, "DaemonSet")
    pod = daemonset["spec"]["template"]["spec"]
    same("values: image", {c["image"] for c in pod["containers"]}, {"example.com/culvert@sha256:" + "0" * 64})
    same("values: arguments", pod["containers"][0]["args"], ["--when-helper-unavailable", "allow"])
    same("values: directory", [v["hostPath"]["path"] for v in pod["volumes"] if v["name"] == "cni-bin"], ["/usr/libexec/cni"])
    same("values: update", daemonset["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], "10%")
    same("values: memory", pod["containers"][1]["resources"]["limits"], {"memory": "512Mi"})
    same("values: pull secret", pod["imagePullSecrets"], [{"name": "pull"}])
    same("values: labels", daemonset["spec"]["template"]["metadata"]["labels"]["team"], "net")
    same("values: no CRD", [k for k in changed if k[0] == "CustomResourceDefinition"], [])
    same("values: configuration", yaml.safe_load(only(changed, "ConfigMap")["data"]["culvertd.yaml"]), settings["hetzner"])
    checksums = {d["spec"]["template"]["metadata"]["annotations"]["culvert.dev/config"]
                 for d in (daemonset, only(documents, "DaemonSet"))}
    same("values: a changed configuration rolls", len(checksums), 2)
    # Away again: the DaemonSet of install/kubernetes/uninstall, with the release's directories, image and namespace.
    plainly = only(rendered({"uninstall": True}), "DaemonSet")
    theirs = only(objects(kustomize(f"{kubernetes}/uninstall")), "DaemonSet")
    check("values: uninstall is as with kustomize", None if plain(plainly) == plain(theirs) else "it differs")
    away = rendered({"uninstall": True, "image": {"repository": "example.com/culvert", "tag": "1"},
                     "installer": {"confDir": "/etc/net.d", "binDir": "/usr/libexec/cni"}}, namespace="net")
    daemonset, pod = only(away, "DaemonSet"), only(away, "DaemonSet")["spec"]["template"]["spec"]
    check("values: uninstall: what the API takes", "; ".join(schema_errors(daemonset)))
    same("values: uninstall: name", (daemonset["metadata"]["name"], daemonset["metadata"]["namespace"]), ("culvert-uninstall", "net"))
    same("values: uninstall: images", [c["image"] for c in pod["initContainers"] + pod["containers"]],
         ["example.com/culvert:1"] * 2 + ["busybox:stable"])
    same("values: uninstall: directories", [v["hostPath"]["path"] for v in pod["volumes"] if v["name"].startswith("cni-")],
         ["/etc/net.d", "/usr/libexec/cni"])
    same("values: uninstall: the configuration", [v["configMap"]["name"] for v in pod["volumes"] if v["name"] == "config"],
         [only(away, "ConfigMap")["metadata"]["name"]])
    same("values: uninstall: the service account is still there", only(away, "ServiceAccount")["metadata"]["namespace"], "net")


WRONG_VALUES = [
    ("image.repository", {"image": {"repository": "Culvert Image"}}), ("image.tag", {"image": {"tag": "a b"}}),
    ("image.digest", {"image": {"digest": "sha256:12"}}), ("image.pullPolicy", {"image": {"pullPolicy": "Sometimes"}}),
    ("an unknown key", {"imagge": {}}), ("an unknown key of the configuration", {"config": {"encapsulaton": {}}}),
    ("inventory.source", {"config": {"inventory": {"source": "file"}}}),
    ("inventory.server", {"config": {"inventory": {"server": "localhost:7445"}}}),
    ("protocol", {"config": {"encapsulation": {"protocol": "geneve"}}}),
    ("overlay", {"config": {"encapsulation": {"overlay": "calico"}}}),
    ("mesh.port", {"config": {"mesh": {"port": 70000}}}), ("mesh.subnet", {"config": {"mesh": {"subnet": "10.4.0.0"}}}),
    ("a mesh.subnet of IPv6", {"config": {"mesh": {"subnet": "fd00::/64"}}}),
    ("a mesh.subnet of two addresses", {"config": {"mesh": {"subnet": "10.4.0.0/31"}}}),
    ("listen.metrics", {"config": {"listen": {"metrics": ":9100"}}}),
    ("no resources", {"resources": None}), ("no resources of the installer", {"resources": {"installer": None}}),
    ("uninstall", {"uninstall": "yes"}),
    ("mesh.interface", {"config": {"mesh": {"interface": "wg0"}}}),
    ("a name for all nodes", {"config": {"node": "n1"}}), ("log.level", {"config": {"log": {"level": "loud"}}}),
    ("excludedCIDRs", {"config": {"cluster": {"excludedCIDRs": ["10.0.0.0/40"]}}}),
    ("allowNone", {"config": {"egress": {"allowNone": ["Team A"]}}}),
    ("whenHelperUnavailable", {"installer": {"whenHelperUnavailable": "maybe"}}),
    ("binDir", {"installer": {"binDir": "opt/cni/bin"}}), ("chainAfter", {"installer": {"chainAfter": "a b"}}),
    ("maxUnavailable of none", {"maxUnavailable": 0}), ("maxUnavailable of 0%", {"maxUnavailable": "0%"}),
    ("a CPU limit", {"resources": {"culvertd": {"limits": {"cpu": "1"}}}}),
    ("a quantity", {"resources": {"culvertd": {"requests": {"memory": "much"}}}}),
    ("a toleration", {"tolerations": [{"operator": "Maybe"}]}), ("crd.install", {"crd": {"install": "yes"}}),
    ("a label that is no string", {"podLabels": {"a": 1}}),
]


def merged(base, over):
    return {k: merged(base.get(k), over[k]) if isinstance(over.get(k), dict) and isinstance(base.get(k), dict)
            else over.get(k, base.get(k)) for k in base | over}


def the_schema(settings):
    schema = json.load(open(f"{chart_directory}/values.schema.json"))
    defaults = yaml.safe_load(open(f"{chart_directory}/values.yaml"))
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    for name, values in [("the defaults", {})] + [(f"the configuration of {o}", {"config": c}) for o, c in settings.items()]:
        check(f"schema: {name} are right", [e.message for e in validator.iter_errors(merged(defaults, values))])
    known = yaml.safe_load(open(f"{root}/install/culvertd.yaml")) | {"inventory": {"source": "kubernetes"}}
    check("schema: it knows the keys of install/culvertd.yaml",
          [e.message for e in validator.iter_errors(merged(defaults, {"config": known}))])
    with helm.Chart.load(chart_directory) as chart:
        for name, values in WRONG_VALUES:
            problems = list(validator.iter_errors(merged(defaults, values)))
            try:
                chart.validate_schema(values)
                refused = False
            except helm_errors.HelmError:
                refused = True
            check(f"schema: {name} is refused", None if len(problems) == 1 and refused else
                  f"jsonschema: {[p.message for p in problems]}; Helm refused: {refused}")


def policies():
    crd = yaml.safe_load(open(f"{kubernetes}/base/crd-egresspolicies.yaml"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path in sorted(glob.glob(f"{root}/docs/examples/egress-*.yaml")):
        problems = []
        for policy in yaml.safe_load_all(open(path)):
            problems += [e.message for e in jsonschema.Draft7Validator(schema).iter_errors(policy)]
            unknown = set(policy["spec"]) - set(schema["properties"]["spec"]["properties"])
            problems += [f"{key} is not known" for key in unknown]
        check(f"{os.path.relpath(path, root)} fits the CRD", "; ".join(problems))


settings = overlays()
the_chart(settings)
the_schema(settings)
policies()
print(f"{checks - failed} of {checks} checks passed")
sys.exit(1 if failed else 0)
