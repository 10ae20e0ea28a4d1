#!/usr/bin/env python3
"""A strict stand-in for a Kubernetes API server, for tests of clients. Python 3.11 and PyYAML, nothing else.

It imitates what the Kubernetes documentation says of the API ("Kubernetes API Concepts", "Server-Side Apply"):
one resource version over everything, consistent chunked lists, watches with bookmarks and streaming lists, selectors,
410 Gone, optimistic concurrency, the four kinds of patch, managedFields, dry runs, PartialObjectMetadata, Status
errors, discovery without aggregation, bearer tokens, client certificates and RBAC. As in the real one, items of lists
of built-in kinds have no kind and apiVersion, and those of custom resources do.

It does not imitate: schemas (no validation, defaulting or pruning beyond metadata; CEL is not evaluated; OpenAPI is
404), Tables and protobuf (nor as a body: typed clients of Go must be
told JSON), HTTP/2, admission, controllers, garbage collection, graceful deletion of pods (they go at
once; finalizers are honoured), conversion (core events and events.k8s.io events are separate stores), stringData, pod
subresources but status, the seconds a real server waits before "Too large resource version", closing watches of slow
readers. Strategic merge patch merges lists only where LIST_KEYS names a key, and finalizers; other lists are replaced.
Server-side apply keys lists of built-in kinds by LIST_KEYS, lists named "conditions" of custom resources by type, and
takes other lists as one value. Custom resources are served without a CRD object; the control command groupOff hides
them (the objects stay). Metadata fields a /status write may change: all for built-in kinds, none for custom resources.

Control for tests, always allowed, without TLS and authentication, on every listener: see `Control` below.
"""
import argparse, base64, bisect, collections, datetime, json, os, random, re, resource as limits, select, socket
import socketserver, ssl, struct, sys, threading, time, traceback, uuid, zlib
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Resource = collections.namedtuple("Resource", "group version plural kind namespaced status short")
RESOURCES = [Resource(*row) for row in [
    ("", "v1", "nodes", "Node", False, True, "no"),
    ("", "v1", "pods", "Pod", True, True, "po"),
    ("", "v1", "namespaces", "Namespace", False, True, "ns"),
    ("", "v1", "configmaps", "ConfigMap", True, False, "cm"),
    ("", "v1", "secrets", "Secret", True, False, ""),
    ("", "v1", "events", "Event", True, False, "ev"),
    ("", "v1", "serviceaccounts", "ServiceAccount", True, False, "sa"),
    ("events.k8s.io", "v1", "events", "Event", True, False, "ev"),
    ("apps", "v1", "daemonsets", "DaemonSet", True, True, "ds"),
    ("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", False, False, ""),
    ("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", False, False, ""),
    ("rbac.authorization.k8s.io", "v1", "roles", "Role", True, False, ""),
    ("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", True, False, ""),
    ("coordination.k8s.io", "v1", "leases", "Lease", True, False, ""),
    ("networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR", False, True, ""),
    ("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False, True, ""),
    ("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding",
     False, False, ""),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False, True, "crd"),
    ("cilium.io", "v2", "ciliumnodes", "CiliumNode", False, False, "cn"),
    ("cilium.io", "v2", "ciliumegressgatewaypolicies", "CiliumEgressGatewayPolicy", False, False, "cegp"),
    ("culvert.dev", "v1alpha1", "egresspolicies", "EgressPolicy", False, True, ""),
    ("kilo.squat.ai", "v1alpha1", "peers", "Peer", False, False, ""),
]]
BY_PATH = {(r.group, r.version, r.plural): r for r in RESOURCES}
BY_KIND = {(r.group, r.version, r.kind): r for r in RESOURCES}
NAMESPACES, PODS = BY_PATH["", "v1", "namespaces"], BY_PATH["", "v1", "pods"]
CRDS = BY_PATH["apiextensions.k8s.io", "v1", "customresourcedefinitions"]
CUSTOM_GROUPS = {"cilium.io", "culvert.dev", "kilo.squat.ai"}
LIST_KEYS = {"conditions": "type", "addresses": "type", "containers": "name", "initContainers": "name", "env": "name",
             "volumes": "name", "ownerReferences": "uid"}
EVENT_FIELDS = {"reason", "type"}
FIELDS = {("", "pods"): {"spec.nodeName", "spec.hostNetwork", "status.phase"}, ("", "namespaces"): {"status.phase"},
          ("", "secrets"): {"type"}, ("", "nodes"): {"spec.unschedulable"},
          ("", "events"): EVENT_FIELDS | {f"involvedObject.{f}" for f in ("kind", "name", "namespace", "uid")},
          ("events.k8s.io", "events"): EVENT_FIELDS | {f"regarding.{f}" for f in ("kind", "name", "namespace", "uid")}}
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED = re.compile(r"([a-zA-Z0-9.-]{1,253}/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", re.ASCII)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
MAX_BODY, CONTROL = 3 << 20, (b"GET /_standin/", b"POST /_standin/")
SNAPSHOT_SECONDS, MAX_SNAPSHOTS = 300, 256


def custom(resource): return resource.group in CUSTOM_GROUPS
def api_version(resource): return f"{resource.group}/{resource.version}".lstrip("/")
def qualified(resource): return f"{resource.plural}.{resource.group}".rstrip(".")
def dump(value): return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
def now(): return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
def true(text): return text is not None and text.lower() not in ("0", "false")


def without_nulls(value):
    """As a custom resource's fields that are not nullable: null there is the same as nothing. (A null in a list stays.)"""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


class Problem(Exception):
    """An answer that is a metav1.Status."""
    def __init__(self, code, reason, message, headers=None, **details):
        super().__init__(message)
        self.code, self.headers = code, headers or {}
        self.status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                       **({"reason": reason} if reason else {}), **({"details": details} if details else {}),
                       "code": code}


class Abort(Exception):
    """Ends the connection with a reset."""


class PlainAnswer(Exception):
    def __init__(self, code, text, headers=None):
        self.code, self.text, self.headers = code, text, headers or {}


def bad_request(message): return Problem(400, "BadRequest", message)
def page_not_found(): return PlainAnswer(404, "404 page not found\n")


def about(resource, name, **more):
    return {"name": name, **({"group": resource.group} if resource.group else {}), "kind": resource.plural, **more}


def not_found(resource, name):
    return Problem(404, "NotFound", f'{qualified(resource)} "{name}" not found', **about(resource, name))


def conflict(resource, name, why="the object has been modified; please apply your changes to the latest version and "
             "try again"):
    return Problem(409, "Conflict", f'Operation cannot be fulfilled on {qualified(resource)} "{name}": {why}',
                   **about(resource, name))


def invalid(kind, group, name, field, why):
    cause = {"reason": "FieldValueInvalid", "message": why, "field": field}
    return Problem(422, "Invalid", f'{f"{kind}.{group}".rstrip(".")} "{name}" is invalid: {field}: {why}', name=name,
                   **({"group": group} if group else {}), kind=kind, causes=[cause])


def bad_option(kind, field, why): return invalid(kind, "meta.k8s.io", "", field, why)


def expired(message, token=None):
    problem = Problem(410, "Expired", message)
    if token:
        problem.status["metadata"]["continue"] = token
    return problem


def too_large(asked, current):
    return Problem(504, "Timeout", f"Too large resource version: {asked}, current: {current}", {"Retry-After": "1"},
                   causes=[{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                   retryAfterSeconds=1)


# ---- Manifests and patches. Objects are never changed in place: new ones share unchanged parts with old ones. ----

class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML as Kubernetes reads it: timestamps are strings."""


Loader.yaml_implicit_resolvers = {first: [r for r in rs if r[0] != "tag:yaml.org,2002:timestamp"]
                                  for first, rs in Loader.yaml_implicit_resolvers.items()}


def manifests(path):
    """All objects of a file or directory, Lists flattened."""
    if os.path.isdir(path):
        return [o for name in sorted(os.listdir(path)) if name.endswith((".yaml", ".yml", ".json"))
                for o in manifests(os.path.join(path, name))]
    with open(path) as file:
        text = file.read()
    documents = [json.loads(text)] if path.endswith(".json") else yaml.load_all(text, Loader)
    return [o for document in documents if document for o in flattened(document)]


def flattened(document):
    if document.get("kind", "").endswith("List") and isinstance(document.get("items"), list):
        return [o for item in document["items"] for o in flattened(item)]
    return [document]


def keyed(items, key):
    """The items of a list by their key, or None where the list cannot be merged by it."""
    if not isinstance(items, list) or not all(isinstance(i, dict) and key in i for i in items):
        return None
    by_key = {i[key]: i for i in items}
    return by_key if len(by_key) == len(items) else None


def overlay(base, patch, keys):
    """base with patch merged in: RFC 7386 where keys is empty; else lists named in keys merge, and $directives work."""
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) and not (keys and patch.get("$patch") == "replace") else {}
    for name, value in patch.items():
        if keys and name.startswith("$"):
            if name.startswith("$deleteFromPrimitiveList/"):
                field = name.partition("/")[2]
                result[field] = [v for v in result.get(field) or [] if v not in value]
        elif value is None:
            result.pop(name, None)
        elif name in keys and (new := keyed(value, keys[name])) is not None:
            merged = dict(keyed(result.get(name) or [], keys[name]) or {})
            for key, item in new.items():
                if item.get("$patch") == "delete":
                    merged.pop(key, None)
                else:
                    merged[key] = overlay(merged.get(key), item, keys)
            result[name] = list(merged.values())
        elif keys and name == "finalizers" and isinstance(value, list):
            result[name] = list(dict.fromkeys((result.get(name) or []) + value))
        else:
            result[name] = overlay(result.get(name), value, keys)
    return result


def json_patched(document, operations):
    """RFC 6902."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document = json.loads(dump(document))

    def parent(pointer):
        if not isinstance(pointer, str) or not pointer.startswith("/"):
            raise LookupError("pointer")
        parts = [p.replace("~1", "/").replace("~0", "~") for p in pointer[1:].split("/")]
        node = document
        for part in parts[:-1]:
            node = node[int(part)] if isinstance(node, list) else node[part]
        return node, int(parts[-1]) if isinstance(node, list) and parts[-1] != "-" else parts[-1]

    def value(pointer):
        node, last = parent(pointer)
        return node[last]

    def add(pointer, new):
        node, last = parent(pointer)
        if isinstance(node, list):
            if last != "-" and not 0 <= last <= len(node):
                raise LookupError("index")
            node.insert(len(node) if last == "-" else last, new)
        else:
            node[last] = new

    try:
        for operation in operations:
            op, path = operation["op"], operation["path"]
            if op == "test" and value(path) != operation["value"]:
                raise LookupError("test")
            if op in ("copy", "move"):
                operation["value"] = json.loads(dump(value(operation["from"])))
            if op in ("remove", "replace", "move"):
                node, last = parent(operation["from"] if op == "move" else path)
                del node[last]
            if op in ("add", "replace", "copy", "move"):
                add(path, operation["value"])
            if op not in ("test", "remove", "add", "replace", "copy", "move"):
                raise LookupError("operation")
    except (LookupError, TypeError, ValueError):
        raise Problem(422, "Invalid", "the server rejected our request due to an error in our request") from None
    return document


# ---- Ownership of fields, for server-side apply. A path is a tuple of elements as FieldsV1 writes them. ----

UNOWNED = {"name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generation", "managedFields",
           "deletionTimestamp", "deletionGracePeriodSeconds", "generateName", "selfLink"}


def leaves(obj, keys):
    """What can be owned in an object: its leaf fields, by path. The path of a keyed list's item ends with "."."""
    found = {}

    def visit(value, path):
        if isinstance(value, dict) and value:
            for name, child in value.items():
                by_key = keyed(child, keys[name]) if name in keys else None
                if by_key:
                    for key, item in by_key.items():
                        element = path + ("f:" + name, "k:" + dump({keys[name]: key}).decode())
                        found[element + (".",)] = True
                        visit(item, element)
                else:
                    visit(child, path + ("f:" + name,))
        else:
            found[path] = value

    visit({**{k: v for k, v in obj.items() if k not in ("apiVersion", "kind", "metadata")},
           "metadata": {k: v for k, v in obj.get("metadata", {}).items() if k not in UNOWNED}}, ())
    found.pop(("f:metadata",), None)
    return found


def without(obj, path):
    """obj without a path, and without maps and lists that are empty thereby."""
    name, rest = path[0][2:], path[1:]
    if path[0].startswith("k:"):
        if not isinstance(obj, list):
            return obj
        (key, value), = json.loads(name).items()
        items = [i if i.get(key) != value else None if rest == (".",) else without(i, rest) for i in obj]
        return [i for i in items if i]
    if not isinstance(obj, dict) or name not in obj:
        return obj
    child = without(obj[name], rest) if rest else None
    return {k: v if k != name else child for k, v in obj.items() if k != name or child}


class Owners:
    """metadata.managedFields, as sets of paths."""
    def __init__(self, obj):
        self.paths, self.known = {}, {}
        for entry in obj.get("metadata", {}).get("managedFields", []):
            key = entry["manager"], entry["operation"], entry["apiVersion"], entry.get("subresource")
            self.paths[key] = set(self.flat(entry["fieldsV1"]))
            self.known[key] = set(self.paths[key]), entry

    def flat(self, fields, path=()):
        for name, inner in fields.items():
            if inner:
                yield from self.flat(inner, path + (name,))
            else:
                yield path + (name,)

    def updated(self, key, before, after):
        """A write without apply: its changes are the writer's (key None: nobody's), what is gone is nobody's."""
        changed = {p for p, v in after.items() if p not in before or before[p] != v}
        for other in self.paths:
            self.paths[other] = self.paths[other] & after.keys() - changed
        if key and changed:
            self.paths.setdefault(key, set()).update(changed)

    def applied(self, key, config, live, force):
        """Paths to remove from the object, once key has applied config to it."""
        conflicts = []
        for other, paths in self.paths.items():
            if other != key:
                taken = sorted(p for p in paths & config.keys() if live.get(p) != config[p])
                conflicts += [(other, p) for p in taken]
                if force:
                    paths.difference_update(taken)
        if conflicts and not force:
            self.refuse(conflicts)
        others = set().union(*(paths for other, paths in self.paths.items() if other != key))
        gone = self.paths.get(key, set()) - config.keys() - others
        self.paths[key] = set(config)
        return gone

    def refuse(self, conflicts):
        causes, told = [], {}
        for (manager, _, version, _), path in conflicts:
            field = "".join("." + e[2:] if e.startswith("f:") else f"[{e[2:]}]" for e in path if e != ".")
            causes.append({"reason": "FieldManagerConflict", "message": f'conflict with "{manager}" using {version}',
                           "field": field})
            told.setdefault(f'"{manager}" using {version}', []).append(field)
        text = ", ".join(f"conflict with {who}: {fields[0]}" if len(fields) == 1 else
                         f"conflicts with {who}:\n" + "\n".join("- " + f for f in fields)
                         for who, fields in told.items())
        raise Problem(409, "Conflict", f"Apply failed with {len(conflicts)} conflict"
                      f"{'s' if len(conflicts) > 1 else ''}: {text}", causes=causes)

    def managed_fields(self):
        result = []
        for key, paths in self.paths.items():
            manager, operation, version, sub = key
            if key in self.known and self.known[key][0] == paths:
                result.append(self.known[key][1])
            elif paths or operation == "Apply":
                tree = {}
                for path in sorted(paths):
                    node = tree
                    for element in path:
                        node = node.setdefault(element, {})
                result.append({"manager": manager, "operation": operation, "apiVersion": version, "time": now(),
                               "fieldsType": "FieldsV1", "fieldsV1": tree, **({"subresource": sub} if sub else {})})
        return result


# ---- Selectors ----

REQUIREMENT = re.compile(r"(?P<no>!?)\s*(?P<key>[\w./-]+)\s*(?:(?P<op>==|=|!=|<|>)\s*(?P<value>[\w.-]*)"
                         r"|\s(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?", re.ASCII)


class Selector:
    """The labelSelector and fieldSelector of a request."""
    def __init__(self, resource, query):
        labels, fields = query.get("labelSelector") or "", query.get("fieldSelector") or ""
        self.labels = [self.requirement(part.strip(), labels) for part in re.split(r",(?![^(]*\))", labels) if labels]
        self.fields = []
        known = {"metadata.name"} | ({"metadata.namespace"} if resource.namespaced or custom(resource) else set())
        for part in fields.split(",") if fields else []:
            match = re.fullmatch(r"\s*([^=!\s]+)\s*(==|=|!=)\s*(.*?)\s*", part)
            if not match:
                raise bad_request(f"invalid field selector: '{fields}'; can't understand '{part}'")
            name, operator, value = match.groups()
            if name not in known | FIELDS.get((resource.group, resource.plural), set()):
                raise bad_request(f'Unable to find "{resource.group}/{resource.version}, Resource={resource.plural}" '
                                  f'that match label selector "{labels}", field selector "{fields}": '
                                  f"field label not supported: {name}")
            self.fields.append((name.split("."), operator != "!=", value))

    def requirement(self, text, whole):
        match = REQUIREMENT.fullmatch(text)
        if not match or match["no"] and (match["op"] or match["set"]):
            raise bad_request(f"unable to parse requirement: couldn't parse the selector string \"{whole}\"")
        key, op = match["key"], match["op"]
        if match["set"]:
            values = {v.strip() for v in match["values"].split(",")}
            return key, (lambda v: v in values) if match["set"] == "in" else (lambda v: v not in values)
        if op in ("<", ">"):
            if not match["value"].lstrip("-").isdigit():
                raise bad_request(f"values[0][{key}]: Invalid value: for 'Gt', 'Lt' operators, the value must be an "
                                  "integer")
            bound, sign = int(match["value"]), 1 if op == ">" else -1
            return key, lambda v: bool(v) and v.lstrip("-").isdigit() and (int(v) - bound) * sign > 0
        if op:
            return key, (lambda v: v != match["value"]) if op == "!=" else (lambda v: v == match["value"])
        return key, (lambda v: v is None) if match["no"] else (lambda v: v is not None)

    def __bool__(self): return bool(self.labels or self.fields)

    def matches(self, entry):
        labels = entry.obj["metadata"].get("labels") or {}
        return (all(test(labels.get(key)) for key, test in self.labels)
                and all((self.field(entry.obj, path) == value) == equal for path, equal, value in self.fields))

    def field(self, obj, path):
        if path == ["spec", "hostNetwork"]:
            return "true" if (obj.get("spec") or {}).get("hostNetwork") else "false"
        for name in path:
            obj = obj.get(name) if isinstance(obj, dict) else None
        return str(obj).lower() if isinstance(obj, bool) else "" if obj is None else obj

    def exact_name(self):
        return next((value for path, equal, value in self.fields if path == ["metadata", "name"] and equal), "")


# ---- The store ----

class Entry:
    """An object at one resource version, with its encodings: as such, as an item of a list, its metadata only."""
    __slots__ = "resource", "key", "obj", "encodings"

    def __init__(self, resource, key, obj):
        self.resource, self.key, self.obj, self.encodings = resource, key, obj, {}

    def encoded(self, form):
        if form == "item" and custom(self.resource):
            form = "full"
        if form not in self.encodings:
            obj = {"kind": self.resource.kind, "apiVersion": api_version(self.resource)}
            if form == "meta":
                obj = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                       "metadata": self.obj["metadata"]}
            elif form == "item":
                obj = {k: v for k, v in self.obj.items() if k not in obj}
            else:
                obj.update({k: v for k, v in self.obj.items() if k not in obj})
            self.encodings[form] = dump(obj)
        return self.encodings[form]


class Event:
    def __init__(self, rv, entry, previous):
        self.rv, self.entry, self.previous, self.last = rv, entry, previous, None

    def seen_through(self, selector):
        """Type and entry for a watch, or None: coming to match is ADDED, ceasing to match DELETED."""
        matches = self.entry is not None and selector.matches(self.entry)
        matched = self.previous is not None and selector.matches(self.previous)
        if matches:
            return "MODIFIED" if matched else "ADDED", self.entry
        if matched:
            if not self.last:  # The previous state, at the version of the event.
                old = self.previous
                self.last = Entry(old.resource, old.key, versioned(old.obj, self.rv))
            return "DELETED", self.last


def versioned(obj, rv): return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(rv)}}


class Watch:
    """An open watch: what is to be sent, and a pipe that wakes its thread. Guarded by the store's lock."""
    def __init__(self, namespace, selector, start):
        self.namespace, self.selector, self.start = namespace, selector, start
        self.queue, self.commands, (self.wake_end, self.pipe) = [], [], os.pipe()
        os.set_blocking(self.pipe, False)
        os.set_blocking(self.wake_end, False)

    def offer(self, event):
        entry = event.entry or event.previous
        if event.rv > self.start and self.namespace in (None, entry.key[0]):
            if seen := event.seen_through(self.selector):
                self.queue.append(seen)
                if len(self.queue) == 1:
                    self.wake()

    def wake(self):
        try:
            os.write(self.pipe, b"!")
        except OSError:
            pass  # Full: it wakes anyway.

    def command(self, what):
        self.commands.append(what)
        self.wake()

    def close(self):
        os.close(self.pipe)
        os.close(self.wake_end)


class Table:
    def __init__(self):
        self.objects, self.history, self.compacted, self.watches = {}, collections.deque(), 0, set()
        self.in_order = None  # Entries by key, made when needed.

    def entries(self):
        if self.in_order is None:
            self.in_order = [entry for _, entry in sorted(self.objects.items())]
        return self.in_order


class Store:
    def __init__(self, history):
        self.lock, self.rv, self.history = threading.RLock(), 1, history
        self.tables = {r: Table() for r in RESOURCES}
        self.snapshots, self.epoch = collections.OrderedDict(), 0  # First pages' states, for their continue tokens.
        for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            self.create(NAMESPACES, "", {"metadata": {"name": name}}, None)

    def get(self, resource, key):
        entry = self.tables[resource].objects.get(key)
        if not entry:
            raise not_found(resource, key[1])
        return entry

    def commit(self, resource, key, obj):
        """The one place where state changes. obj None removes."""
        table = self.tables[resource]
        self.rv += 1
        previous, entry = table.objects.get(key), None
        if obj is None:
            del table.objects[key]
        else:
            entry = table.objects[key] = Entry(resource, key, versioned(obj, self.rv))
        table.in_order = None
        event = Event(self.rv, entry, previous)
        table.history.append(event)
        while len(table.history) > self.history:
            table.compacted = table.history.popleft().rv
        for watch in table.watches:
            watch.offer(event)
        return entry or Entry(resource, key, versioned(previous.obj, self.rv))

    def create(self, resource, namespace, obj, owner, dry=False, bulk=False):
        meta = obj["metadata"] = dict(obj.get("metadata") or {})
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        validate(resource, obj)
        name = meta["name"]
        if not bulk and meta.get("resourceVersion"):
            raise Problem(500, "", "resourceVersion should not be set on objects to be created")
        for field in UNOWNED - {"name", "generateName"}:
            meta.pop(field, None)
        meta.update(uid=str(uuid.uuid4()), creationTimestamp=now())
        if resource.namespaced:
            meta["namespace"] = namespace
        if custom(resource) or resource is CRDS:
            meta["generation"] = 1
        if resource is NAMESPACES:
            meta["labels"] = {**(meta.get("labels") or {}), "kubernetes.io/metadata.name": name}
            obj = {**obj, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
        elif resource is CRDS:
            obj = {**obj, "status": {"conditions": [{"type": t, "status": "True", "lastTransitionTime": now()}
                                                    for t in ("NamesAccepted", "Established")]}}
        elif not bulk and resource is PODS:
            obj = {**obj, "status": {"phase": "Pending"}}
        elif not bulk and resource.status and custom(resource):
            obj = {k: v for k, v in obj.items() if k != "status"}
        if custom(resource):
            obj = without_nulls(obj)
        with self.lock:
            if resource.namespaced and (("", namespace) not in self.tables[NAMESPACES].objects):
                if not bulk:
                    raise not_found(NAMESPACES, namespace)
                self.create(NAMESPACES, "", {"metadata": {"name": namespace}}, None)
            if (namespace, name) in self.tables[resource].objects:
                raise Problem(409, "AlreadyExists", f'{qualified(resource)} "{name}" already exists',
                              **about(resource, name))
            if owner:
                owners = Owners({})
                owners.paths[owner] = set(leaves(obj, list_keys(resource)))
                meta["managedFields"] = owners.managed_fields()
            obj = {**obj, "metadata": meta}
            return Entry(resource, (namespace, name), obj) if dry else self.commit(resource, (namespace, name), obj)

    def update(self, resource, key, change, owner, sub=None, dry=False, bulk=False):
        """change(old) gives the new object, or that and the Owners after an apply. owner: who changes, for Owners."""
        with self.lock:
            entry = self.get(resource, key)
            old = entry.obj
            new, owners = change(old), None
            if isinstance(new, tuple):
                new, owners = new
            if not isinstance(new, dict) or not isinstance(new.get("metadata", {}), dict):
                raise bad_request("the object is not a JSON object with metadata")
            meta = dict(new.get("metadata") or {})
            if meta.get("name", key[1]) != key[1]:
                raise bad_request(f"the name of the object ({meta['name']}) does not match the name on the URL "
                                  f"({key[1]})")
            if meta.get("namespace", key[0]) != key[0]:
                raise bad_request(f"the namespace of the object ({meta['namespace']}) does not match the namespace on "
                                  f"the request ({key[0]})")
            if meta.get("resourceVersion") and meta["resourceVersion"] != old["metadata"]["resourceVersion"]:
                raise conflict(resource, key[1])
            if meta.get("uid") and meta["uid"] != old["metadata"]["uid"]:
                raise conflict(resource, key[1], f"Precondition failed: UID in precondition: {meta['uid']}, UID in "
                               f"object meta: {old['metadata']['uid']}")
            for field in UNOWNED:
                meta.pop(field, None)
                if field in old["metadata"]:
                    meta[field] = old["metadata"][field]
            new = {**new, "metadata": meta}
            if sub == "status":
                status = {"status": new["status"]} if "status" in new else {}
                new = {**{k: v for k, v in old.items() if k != "status"}, **status,
                       "metadata": dict(old["metadata"]) if custom(resource) else meta}
            elif resource.status and not bulk:
                new = {k: v for k, v in new.items() if k != "status"}
                new.update({"status": old["status"]} if "status" in old else {})
            for part in ("kind", "apiVersion"):
                new.pop(part, None)
                new.update({part: old[part]} if part in old else {})
            if custom(resource):
                new = without_nulls(new)
            validate(resource, new)
            if not owners and new != old and (owner or old["metadata"].get("managedFields")):
                keys, owners = list_keys(resource), Owners(old)
                owners.updated(owner, leaves(old, keys), leaves(new, keys))
            if owners and (fields := owners.managed_fields()) != old["metadata"].get("managedFields", []):
                new["metadata"]["managedFields"] = fields
            if new == old:
                return entry
            skipped = ("metadata", "status") if resource.status else ("metadata",)
            if "generation" in old["metadata"] and any(old.get(k) != new.get(k) for k in (old.keys() | new.keys())
                                                       if k not in skipped):
                new["metadata"]["generation"] += 1
            if dry:
                return Entry(resource, key, new)
            gone = old["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers")
            return self.commit(resource, key, None if gone else new)

    def delete(self, resource, key, options, dry=False):
        with self.lock:
            entry = self.get(resource, key)
            meta = entry.obj["metadata"]
            for field, value in (options.get("preconditions") or {}).items():
                if value and value != meta.get(field):
                    raise conflict(resource, key[1], f"Precondition failed: {field} in precondition: {value}, {field} "
                                   f"in object meta: {meta.get(field)}")
            if dry:
                return entry
            if meta.get("finalizers"):
                if meta.get("deletionTimestamp"):
                    return entry
                return self.commit(resource, key, {**entry.obj, "metadata": {
                    **meta, "deletionTimestamp": now(), "deletionGracePeriodSeconds": 0}})
            if resource is NAMESPACES:
                for inner, table in self.tables.items():
                    for other in [k for k in table.objects if inner.namespaced and k[0] == key[1]]:
                        self.commit(inner, other, None)
            return self.commit(resource, key, None)

    def upsert(self, document, merge=False):
        """A manifest of a test: created, or replaced as a whole with its status (merge: merged in)."""
        resource, key = reference(document)
        with self.lock:
            if key not in self.tables[resource].objects:
                return self.create(resource, key[0], dict(document), None, bulk=True)

            def change(old):
                meta = {k: v for k, v in (document.get("metadata") or {}).items()
                        if k not in UNOWNED or k in ("name", "namespace")}
                return overlay(old, {**document, "metadata": meta}, {}) if merge else {**document, "metadata": meta}
            return self.update(resource, key, change, None, bulk=True)

    def list(self, resource, namespace, selector, query):
        """The entries of a page, its metadata."""
        limit = integer(query, "limit")
        token, wanted, match = query.get("continue"), query.get("resourceVersion"), query.get("resourceVersionMatch")
        if true(query.get("sendInitialEvents")):
            raise bad_option("ListOptions", "sendInitialEvents", "Forbidden: sendInitialEvents is forbidden for list")
        if match and (token or not wanted or match not in ("Exact", "NotOlderThan") or match == "Exact" and
                      wanted == "0"):
            raise bad_option("ListOptions", "resourceVersionMatch",
                             f"Forbidden: resourceVersionMatch {match} is forbidden with this resourceVersion/continue")
        if token and wanted not in (None, "", "0"):
            raise bad_request("specifying resource version is not allowed when using continue")
        with self.lock:
            table, start, rv, epoch = self.tables[resource], 0, self.rv, self.epoch
            asked = integer(query, "resourceVersion")
            if asked > self.rv:
                raise too_large(asked, self.rv)
            entries = table.entries()
            if token:
                try:
                    pinned, epoch, after = json.loads(base64.urlsafe_b64decode(token))
                    after = tuple(after)
                except (ValueError, TypeError):
                    raise bad_request("continue key is not valid") from None
                if pinned >= 0:
                    rv = pinned
                    self.drop_old_snapshots()
                    if (resource, rv, epoch) not in self.snapshots or epoch != self.epoch:
                        raise expired("The provided continue parameter is too old to display a consistent list result. "
                                      "You can start a new list without the continue parameter, or use the continue "
                                      "token in this response to retrieve the remainder of the results. Continuing "
                                      "with the provided token results in an inconsistent list - objects that were "
                                      "created, modified, or deleted between the time the first chunk was returned "
                                      "and now may show up in the list.", self.token(-1, after))
                    entries = self.snapshots[resource, rv, epoch][1]
                else:
                    epoch = self.epoch
                start = bisect.bisect_right(entries, after, key=lambda e: e.key)
            elif asked and (match == "Exact" or limit and not match):
                entries, rv = self.at(table, asked), asked
            elif wanted == "0":
                limit = 0  # As from the watch cache.
            page, more = [], None
            for index in range(start, len(entries)):
                entry = entries[index]
                if namespace in (None, entry.key[0]) and (not selector or selector.matches(entry)):
                    if limit and len(page) == limit:
                        more = index
                        break
                    page.append(entry)
            meta = {"resourceVersion": str(rv)}
            if more is not None:
                self.snapshots[resource, rv, self.epoch] = time.monotonic(), entries
                self.snapshots.move_to_end((resource, rv, self.epoch))
                self.drop_old_snapshots()
                meta["continue"] = self.token(rv, page[-1].key)
                if not selector:
                    meta["remainingItemCount"] = sum(namespace in (None, e.key[0]) for e in entries[more:])
            return page, meta

    def token(self, rv, key): return base64.urlsafe_b64encode(dump([rv, self.epoch, key])).decode()

    def drop_old_snapshots(self):
        while self.snapshots:
            first = next(iter(self.snapshots.values()))
            if len(self.snapshots) <= MAX_SNAPSHOTS and first[0] > time.monotonic() - SNAPSHOT_SECONDS:
                break
            self.snapshots.popitem(last=False)

    def at(self, table, rv):
        """The entries of an earlier resource version: from now, history backwards."""
        if rv < table.compacted:
            raise expired(f"The resourceVersion for the provided list is too old: {rv} ({table.compacted})")
        objects = dict(table.objects)
        for event in reversed(table.history):
            if event.rv <= rv:
                break
            if event.previous:
                objects[event.previous.key] = event.previous
            else:
                del objects[event.entry.key]
        return [entry for _, entry in sorted(objects.items())]

    def watch(self, resource, namespace, selector, query, bookmark):
        """Registers a watch. Raises 410 where its resource version is gone."""
        asked, table = integer(query, "resourceVersion"), self.tables[resource]
        initial, match = query.get("sendInitialEvents"), query.get("resourceVersionMatch")
        if match != ("NotOlderThan" if initial is not None else None):
            raise bad_option("ListOptions", "resourceVersionMatch",
                             "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
                             if initial is not None else
                             "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is "
                             "provided")
        with self.lock:
            if true(initial) and asked > self.rv:
                raise too_large(asked, self.rv)
            if true(initial) or initial is None and not asked:
                watch = Watch(namespace, selector, self.rv)
                watch.queue = [("ADDED", e) for e in table.entries()
                               if namespace in (None, e.key[0]) and selector.matches(e)]
                if true(initial) and true(query.get("allowWatchBookmarks")):
                    watch.queue.append(("BOOKMARK", bookmark(self.rv, end=True)))
            elif asked and asked < table.compacted:
                raise expired(f"too old resource version: {asked} ({table.compacted})")
            else:
                watch = Watch(namespace, selector, asked or self.rv)
                for event in table.history:
                    watch.offer(event)
            table.watches.add(watch)
        return watch

    def taken(self, watch):
        """Commands and events for a watch's thread, and the version up to which it has then seen everything."""
        with self.lock:
            commands, watch.commands = watch.commands, []
            events, watch.queue = watch.queue, []
            return commands, events, max(self.rv, watch.start)

    def unregister(self, resource, watch):
        with self.lock:
            self.tables[resource].watches.discard(watch)
            watch.close()

    def command(self, what, group=None):
        with self.lock:
            for resource, table in self.tables.items():
                for watch in table.watches if group in (None, resource.group) else ():
                    watch.command(what)

    def restart(self):
        """What a server knows after a restart: the newest state, and nothing of what came before. A watch that goes on from
        any version that was seen before is told 410."""
        with self.lock:
            self.rv += 1
            self.forget(history=True)

    def forget(self, history):
        """Expires continue tokens, and history too."""
        with self.lock:
            self.epoch += 1
            self.snapshots.clear()
            for table in self.tables.values() if history else ():
                table.history.clear()
                table.compacted = self.rv


def list_keys(resource): return {"conditions": "type"} if custom(resource) else LIST_KEYS


def integer(query, name):
    text = query.get(name) or "0"
    if not text.isdecimal():
        raise bad_request(f'{name}: Invalid value: "{text}"')
    return int(text)


def reference(document):
    """Resource and key of a manifest, or of {apiVersion, kind, namespace, name}."""
    group, _, version = document.get("apiVersion", "").rpartition("/")
    resource = BY_KIND.get((group, version, document.get("kind")))
    if not resource:
        raise bad_request(f'no kind "{document.get("kind")}" in version "{document.get("apiVersion")}"')
    meta = document.get("metadata") or document
    return resource, (meta.get("namespace") or "default" if resource.namespaced else "", meta.get("name"))


def validate(resource, obj):
    meta, name = obj["metadata"], obj["metadata"].get("name")

    def refuse(field, why): raise invalid(resource.kind, resource.group, name or "", field, why)
    if not name:
        refuse("metadata.name", "Required value: name or generateName is required")
    if not isinstance(name, str) or len(name) > 253 or not SUBDOMAIN.fullmatch(name):
        refuse("metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 subdomain must consist of lower case '
               "alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character")
    for field in ("labels", "annotations"):
        values = meta.get(field)
        if values is None:
            meta.pop(field, None)
        elif not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
            raise bad_request(f"json: cannot unmarshal into Go struct field ObjectMeta.metadata.{field} of type string")
        else:
            for key, value in values.items():
                if not QUALIFIED.fullmatch(key):
                    refuse(f"metadata.{field}", f'Invalid value: "{key}": name part must consist of alphanumeric '
                           "characters, '-', '_' or '.'")
                if field == "labels" and not LABEL_VALUE.fullmatch(value):
                    refuse("metadata.labels", f'Invalid value: "{value}": a valid label must be an empty string or '
                           "consist of alphanumeric characters, '-', '_' or '.', at most 63")
    if resource.plural == "events" and not resource.group and meta.get("namespace"):
        about_what = (obj.get("involvedObject") or {}).get("namespace") or ""
        if about_what != meta.get("namespace") and (about_what or meta.get("namespace") != "default"):
            refuse("involvedObject.namespace", f'Invalid value: "{about_what}": does not match event.namespace')
    if sum(len(k.encode()) + len(v.encode()) for k, v in (meta.get("annotations") or {}).items()) > 256 << 10:
        refuse("metadata.annotations", "Too long: may not be more than 262144 bytes")


# ---- Who may do what ----

class Access:
    def __init__(self, token_file, client_ca, rbac):
        self.required, self.tokens, self.expired = bool(token_file or client_ca), {}, set()
        for line in open(token_file) if token_file else ():
            if (words := line.split()) and not line.startswith("#"):
                self.tokens[words[0]] = words[1], words[2].split(",") if len(words) > 2 else []
        self.bindings = None if rbac is None else self.bound(manifests(rbac))

    def bound(self, documents):
        """(namespace or None, subjects, rules) of every binding."""
        rules = {(d["kind"], d["metadata"].get("namespace") if d["kind"] == "Role" else None, d["metadata"]["name"]):
                 d.get("rules") or [] for d in documents if d["kind"] in ("Role", "ClusterRole")}
        bindings = []
        for document in documents:
            if document["kind"] in ("RoleBinding", "ClusterRoleBinding"):
                scope = None
                if document["kind"] == "RoleBinding":
                    scope = document["metadata"].get("namespace", "default")
                ref, subjects = document["roleRef"], set()
                for s in document.get("subjects") or []:
                    name = f'system:serviceaccount:{s.get("namespace", scope)}:{s["name"]}'
                    subjects.add((s["kind"], s["name"]) if s["kind"] != "ServiceAccount" else ("User", name))
                where = scope if ref["kind"] == "Role" else None
                bindings.append((scope, subjects, rules.get((ref["kind"], where, ref["name"]), [])))
        return bindings

    def user(self, authorization, certificate):
        """(name, groups), or None where unauthenticated."""
        kind, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if kind.lower() == "bearer" and token:
            if token in self.tokens:
                return self.with_groups(*self.tokens[token])
            if self.required or token in self.expired:
                return None
        if certificate:
            subject = [pair for part in certificate.get("subject", ()) for pair in part]
            name = next((v for k, v in subject if k == "commonName"), "")
            return self.with_groups(name, [v for k, v in subject if k == "organizationName"])
        return None if self.required else ("system:admin", {"system:masters", "system:authenticated"})

    def with_groups(self, name, groups):
        groups = {*groups, "system:authenticated"}
        if name.startswith("system:serviceaccount:"):
            groups |= {"system:serviceaccounts", "system:serviceaccounts:" + name.split(":")[2]}
        return name, groups

    def allows(self, user, verb, group, resource, namespace, name):
        who, groups = user
        if self.bindings is None or "system:masters" in groups:
            return True
        plural, _, sub = resource.partition("/")
        names = {"*", resource} | ({"*/" + sub} if sub else set())
        identities = {("User", who)} | {("Group", g) for g in groups}
        for scope, subjects, rules in self.bindings:
            if (scope is None or namespace and scope == namespace) and subjects & identities:
                for rule in rules:
                    if ({"*", verb} & set(rule.get("verbs") or []) and {"*", group} & set(rule.get("apiGroups") or [])
                            and names & set(rule.get("resources") or [])
                            and (not rule.get("resourceNames") or name in rule["resourceNames"])):
                        return True
        return False


class Counters:
    def __init__(self):
        self.lock, self.clients, self.watching = threading.Lock(), {}, {}
        self.reset()

    def reset(self):
        with self.lock:
            self.denials, self.unauthenticated, self.refused = [], 0, 0
            for client, old in list(self.clients.items()):
                open_now = {k: v for k, v in old["openWatches"].items() if v}
                self.clients[client] = {**self.blank(), "openWatches": open_now, "maxOpenWatches": dict(open_now)}

    def blank(self): return {"requests": {}, "openWatches": {}, "maxOpenWatches": {}, "bytesSent": 0}
    def of(self, client): return self.clients.setdefault(client, self.blank())

    def request(self, client, verb, resource):
        with self.lock:
            verbs = self.of(client)["requests"].setdefault(verb, {})
            verbs[resource] = verbs.get(resource, 0) + 1

    def sent(self, client, count):
        with self.lock:
            self.of(client)["bytesSent"] += count

    def watch(self, client, resource, handler, ends=False):
        with self.lock:
            handlers, counts = self.watching.setdefault((client, resource), set()), self.of(client)
            handlers.discard(handler) if ends else handlers.add(handler)
            counts["openWatches"][resource] = len(handlers)
            # One that is over is not open, although its thread may not have come to know it yet.
            count = sum(not handler.is_over() for handler in handlers)
            counts["maxOpenWatches"][resource] = max(count, counts["maxOpenWatches"].get(resource, 0))

    def report(self):
        with self.lock:
            return {"clients": [{"userAgent": agent, "user": user, **counts}
                                for (agent, user), counts in self.clients.items()],
                    "denials": list(self.denials), "unauthenticated": self.unauthenticated,
                    "refusedConnections": self.refused}


class Control:
    """Control for tests. GET /_standin/counters, /_standin/faults; POST /_standin/reset;
    POST /_standin/apply LIST or {"items": LIST, "merge": BOOL}; POST /_standin/delete LIST of manifests or references;
    POST /_standin/faults with any of
      {"status": {"code": N, "count": N, "retryAfter": S, "match": SUBSTRING}}   next answers; null: none any more
      {"slow": {"secondsPerByte": S, "count": N, "match": SUBSTRING}}            bodies of the next answers, watches too
      {"truncateLists": N}             the next N lists end in the middle of their bodies
      {"breakWatches": "reset" | "truncate" | "garbage" | "close"}               now, all open ones
      {"stallWatches": BOOL}           open and new watches are silent, and do not time out
      {"compact": true}                history and continue tokens are gone
      {"expireContinue": true}
      {"disconnect": BOOL}             every connection but for control is closed, as are new ones
      {"restart": SECONDS}             every watch is reset, the history is gone, and for so long lists and watches are answered
                                       429 "storage is (re)initializing"; a watch from before is told 410 in its stream
      {"groupOff": GROUP}, {"groupOn": GROUP}
      {"expireToken": TOKEN}, {"addToken": {"token": T, "user": U, "groups": [G]}}
      {"rbac": DOCUMENTS or null}      instead of --rbac's; null: all is allowed
      {"refuseSendInitialEvents": BOOL}, {"goneAsStatus": BOOL}                  422; HTTP 410 rather than an event
    """
    def __init__(self, store, access, counters):
        self.store, self.access, self.counters = store, access, counters
        self.lock, self.limited, self.off, self.connections = threading.Lock(), {}, set(), {}
        self.initialized = 0  # time.monotonic(); until then lists and watches are refused.
        self.flags = dict.fromkeys(("stallWatches", "disconnect", "refuseSendInitialEvents", "goneAsStatus"), False)

    def take(self, kind, path):
        """The fault of a kind for this request, and one less of it, or None."""
        with self.lock:
            fault = self.limited.get(kind)
            if not fault or fault.get("count", 1) <= 0 or fault.get("match", "") not in path:
                return None
            fault["count"] = fault.get("count", 1) - 1
            return fault

    def set_fault(self, name, value):
        if name in ("status", "slow", "truncateLists"):
            with self.lock:
                self.limited[name] = {"count": value} if isinstance(value, int) else dict(value or {"count": 0})
        elif name in self.flags:
            self.flags[name] = bool(value)
            if name == "stallWatches":
                self.store.command("look")
            elif name == "disconnect" and value:
                self.store.command("reset")
                for connection, for_control in list(self.connections.items()):
                    if not for_control:
                        reset_on_close(connection)
                        shut(connection)
        elif name == "breakWatches" and value in ("reset", "truncate", "garbage", "close"):
            self.store.command(value)
        elif name == "restart":
            self.initialized = time.monotonic() + float(value)
            self.store.restart()
            self.store.command("reset")
        elif name in ("compact", "expireContinue"):
            self.store.forget(history=name == "compact")
        elif name == "groupOff":
            self.off.add(value)
            self.store.command("close", value)
        elif name == "groupOn":
            self.off.discard(value)
        elif name == "expireToken":
            self.access.tokens.pop(value, None)
            self.access.expired.add(value)
        elif name == "addToken":
            self.access.tokens[value["token"]] = value["user"], value.get("groups") or []
            self.access.expired.discard(value["token"])
        elif name == "rbac":
            self.access.bindings = None if value is None else self.access.bound(value)
        else:
            raise bad_request(f"no such fault: {name} {value}")

    def serve(self, method, path, body):
        what = path.removeprefix("/_standin/")
        if method == "GET" and what == "counters":
            return {**self.counters.report(), "resourceVersion": str(self.store.rv),
                    "openConnections": sum(not c for c in list(self.connections.values()))}
        if method == "POST" and what == "reset":
            self.counters.reset()
        elif method == "POST" and what == "faults":
            for name, value in json.loads(body).items():
                self.set_fault(name, value)
        elif method == "POST" and what in ("apply", "delete"):
            documents = json.loads(body)
            merge, missing = isinstance(documents, dict) and documents.get("merge", False), 0
            if isinstance(documents, dict):
                documents = documents.get("items", [documents])
            documents = [o for document in documents for o in flattened(document)]
            for document in documents:
                try:
                    self.store.upsert(document, merge) if what == "apply" else \
                        self.store.delete(*reference(document), {})
                except Problem as problem:
                    if what == "apply" or problem.code != 404:
                        raise
                    missing += 1
            return {"done": len(documents) - missing, "missing": missing, "resourceVersion": str(self.store.rv)}
        elif not (method == "GET" and what == "faults"):
            raise page_not_found()
        return {**self.flags, **self.limited, "groupsOff": sorted(self.off)}


# ---- HTTP ----

def reset_on_close(connection):
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass


def shut(connection):
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counters_key, pace, code = ("", ""), None, 0

    def setup(self):
        self.disable_nagle_algorithm = self.request.family != socket.AF_UNIX
        self.plain_on_tls = bool(self.server.tls) and not isinstance(self.request, ssl.SSLSocket)
        super().setup()

    def log_message(self, *_): pass

    def do_GET(self):
        server, began = self.server, time.monotonic()
        self.counters_key, self.pace, self.code = (self.headers.get("User-Agent", ""), ""), None, 0
        try:
            self.serve()
        except Problem as problem:
            self.respond(problem.code, dump(problem.status), headers=problem.headers)
        except PlainAnswer as answer:
            self.respond(answer.code, answer.text.encode(), "text/plain; charset=utf-8", answer.headers)
        except Abort:
            reset_on_close(self.connection)
            self.close_connection = True
        except OSError:
            self.close_connection = True
        except Exception as error:
            traceback.print_exc()
            self.respond(500, dump(Problem(500, "InternalError", f"Internal error occurred: {error!r}").status))
        if server.verbose:
            print(f"{self.command} {self.path} {self.code} {self.counters_key} {time.monotonic() - began:.4f}s",
                  file=sys.stderr, flush=True)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = do_GET

    def read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b"\n", b""):
            pass
        return body

    def transmit(self, data):
        if self.pace:
            for byte in data:
                self.connection.sendall(bytes([byte]))
                time.sleep(self.pace["secondsPerByte"])
        else:
            self.connection.sendall(data)
        if self.counters_key:
            self.server.counters.sent(self.counters_key, len(data))

    def head(self, code, headers):
        self.code = code
        lines = [f"HTTP/1.1 {code} {HTTPStatus(code).phrase}", "Cache-Control: no-cache, private",
                 f"Date: {self.date_time_string()}", *(f"{k}: {v}" for k, v in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def respond(self, code, body, content_type="application/json", headers=None, truncate=False):
        headers = {"Content-Type": content_type, **(headers or {})}
        if len(body) > 128 << 10 and re.search(r"\bgzip\b", self.headers.get("Accept-Encoding", "")):
            gzip = zlib.compressobj(1, wbits=31)
            body = gzip.compress(body) + gzip.flush()
            headers.update({"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})
        headers["Content-Length"] = len(body)
        if self.close_connection:
            headers["Connection"] = "close"
        head = self.head(code, headers)
        if truncate:
            body, self.close_connection = body[:len(body) // 2], True
        if self.command == "HEAD":
            body = b""
        if self.pace:
            self.connection.sendall(head)
            self.transmit(body)
        else:
            self.transmit(head + body)

    def serve(self):
        server, url = self.server, urlsplit(self.path)
        path, self.body = url.path, self.read_body()
        self.query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        if path.startswith("/_standin/"):
            server.control.connections[self.connection], self.counters_key = True, None
            return self.respond(200, dump(server.control.serve(self.command, path, self.body)))
        if self.plain_on_tls:
            raise PlainAnswer(400, "Client sent an HTTP request to an HTTPS server.\n")
        if server.control.flags["disconnect"]:
            raise Abort
        self.parse(path)
        certificate = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        self.user = server.access.user(self.headers.get("Authorization"), certificate)
        if not self.user:
            public = re.match(r"/(healthz|livez|readyz|version)(/|$)", path)
            if not public:
                server.counters.unauthenticated += 1
                raise Problem(401, "Unauthorized", "Unauthorized")
            self.user = "system:anonymous", {"system:unauthenticated"}
        self.counters_key = self.counters_key[0], self.user[0]
        server.counters.request(self.counters_key, self.verb, self.counted)
        if fault := server.control.take("status", self.path):
            self.fail(fault)
        self.pace = server.control.take("slow", self.path)
        if len(self.body) > MAX_BODY:
            raise Problem(413, "RequestEntityTooLarge", f"limit is {MAX_BODY}")
        if self.plural is None:
            return self.discover(path)
        self.authorize(self.verb, self.name)
        self.resource = resource = BY_PATH.get((self.group, self.version, self.plural))
        if (not resource or self.group in server.control.off or self.sub and (self.sub != "status" or
                not resource.status) or (resource.namespaced and self.name and not self.namespace)
                or (self.namespace and not resource.namespaced)):
            raise page_not_found()
        methods = {"GET", "PUT", "PATCH"} if self.sub else {"GET", "PUT", "PATCH", "DELETE"} if self.name else \
            {"GET", "POST", "DELETE"} if self.namespace or not resource.namespaced else {"GET"}
        if self.command not in methods:
            raise Problem(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        self.key = self.namespace or "", self.name
        if self.verb in ("list", "watch") and time.monotonic() < server.control.initialized:
            raise Problem(429, "TooManyRequests", "storage is (re)initializing", {"Retry-After": "1"}, retryAfterSeconds=1)
        getattr(self, "serve_" + self.verb)()

    def parse(self, path):
        """Group, version, resource, namespace, name, subresource and verb of a request."""
        self.plural = self.namespace = self.name = self.sub = None
        parts = [unquote(p) for p in path.strip("/").split("/")]
        self.group, self.version, rest = ("", *parts[1:2], parts[2:]) if parts[0] == "api" and len(parts) > 2 else \
            (*parts[1:3], parts[3:]) if parts[0] == "apis" and len(parts) > 3 else ("", "", [])
        if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in ("status", "finalize"):
            self.namespace, rest = rest[1], rest[2:]
        self.verb, self.counted = self.command.lower(), path
        if rest:
            self.plural, self.name, self.sub = (rest + [None, None])[:3]
            if len(rest) > 3:
                self.sub = "/".join(rest[2:])
            self.full = self.plural + (f"/{self.sub}" if self.sub else "")
            self.counted = self.plural + (f".{self.group}" if self.group else "") + (f"/{self.sub}" if self.sub else "")
            self.verb = {"GET": "get" if self.name else "watch" if true(self.query.get("watch")) else "list",
                         "POST": "create", "PUT": "update", "PATCH": "patch",
                         "DELETE": "delete" if self.name else "deletecollection"}.get(self.command, self.verb)

    def fail(self, fault):
        code = fault["code"]
        headers = {"Retry-After": fault["retryAfter"]} if "retryAfter" in fault else {}
        if code == 429:  # As priority and fairness does.
            raise PlainAnswer(429, "Too many requests, please try again later.\n", headers)
        reason = {500: "InternalError", 503: "ServiceUnavailable"}.get(code, "")
        message = "the server is currently unable to handle the request" if code == 503 else \
            "Internal error occurred: a fault of the stand-in"
        details = {"retryAfterSeconds": fault["retryAfter"]} if "retryAfter" in fault else {}
        raise Problem(code, reason, message, headers, **details)

    def authorize(self, verb, name):
        if not name and verb in ("list", "watch", "deletecollection"):
            match = re.search(r"(?:^|,)metadata\.name==?([^,]+)", self.query.get("fieldSelector") or "")
            name = match[1] if match else None
        if not name and self.plural == "namespaces":
            name = self.namespace
        scope = self.namespace or (self.name if self.plural == "namespaces" and not self.group else None)
        if not self.server.access.allows(self.user, verb, self.group, self.full, scope, name):
            where = f'in the namespace "{scope}"' if scope else "at the cluster scope"
            what = f"{self.plural}.{self.group}".rstrip(".") + (f' "{name}"' if name else "")
            message = (f'{what} is forbidden: User "{self.user[0]}" cannot {verb} resource "{self.full}" in API group '
                       f'"{self.group}" {where}')
            self.server.counters.denials.append(
                {"user": self.user[0], "userAgent": self.counters_key[0], "verb": verb, "group": self.group,
                 "resource": self.full, "namespace": scope or "", "name": name or "", "message": message})
            raise Problem(403, "Forbidden", message, **({"name": name} if name else {}),
                          **({"group": self.group} if self.group else {}), kind=self.plural)

    def form(self, kind):
        """How objects are wanted: "full", or "meta". kind: what PartialObjectMetadata must be called here."""
        ranges = []
        for part in (self.headers.get("Accept") or "*/*").split(","):
            media, *parameters = [p.strip() for p in part.split(";")]
            parameters = dict(p.partition("=")[::2] for p in parameters)
            ranges.append((-float(parameters.get("q") or 1), media.lower(), parameters))
        for _, media, parameters in sorted(ranges, key=lambda r: r[0]):
            wanted = parameters.get("as")
            if media in ("application/json", "*/*", "application/*"):
                if not wanted:
                    return "full"
                if wanted.startswith("PartialObjectMetadata") and parameters.get("g") == "meta.k8s.io" \
                        and parameters.get("v") == "v1":
                    if wanted == kind:
                        return "meta"
                    break
        raise Problem(406, "NotAcceptable", "only the following media types are accepted: application/json, "
                      f"application/json;as={kind};g=meta.k8s.io;v=v1")

    def options(self, kind):
        """Manager and dry run of a write."""
        dry = self.query.get("dryRun")
        if dry and dry != "All":
            raise bad_option(kind, "dryRun", f'Unsupported value: "{dry}": supported values: "All"')
        manager = self.query.get("fieldManager") or self.counters_key[0].split("/")[0][:128] or "unknown"
        if len(manager) > 128 or not manager.isprintable():
            raise bad_option(kind, "fieldManager", "Too long: may not be more than 128 bytes")
        return manager, bool(dry)

    def owner(self, manager, operation="Update"): return manager, operation, api_version(self.resource), self.sub

    def decoded(self, as_yaml=False):
        try:
            return json.loads(self.body)
        except ValueError as error:
            if not as_yaml:
                raise bad_request(f"invalid character in the body of the request: {error}") from None
        try:
            return yaml.load(self.body, Loader)
        except yaml.YAMLError as error:
            raise bad_request(f"error decoding YAML: {error}") from None

    def manifest(self, as_yaml=False):
        """The object in the body."""
        obj = self.decoded(as_yaml)
        if not isinstance(obj, dict) or not isinstance(obj.get("metadata", {}), dict):
            raise bad_request("the body of the request is not an object")
        kind, version = obj.get("kind"), obj.get("apiVersion")
        if not (kind and version) and (custom(self.resource) or as_yaml):
            raise bad_request("Object 'Kind' is missing in the body of the request")
        if (kind or self.resource.kind, version or api_version(self.resource)) != (self.resource.kind,
                                                                                   api_version(self.resource)):
            raise bad_request(f'{kind} in version "{version}" cannot be handled as a {self.resource.kind}')
        space = (obj.get("metadata") or {}).get("namespace")
        if space and space != self.key[0]:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        return obj

    def media_type(self, *accepted):
        kind = (self.headers.get("Content-Type") or accepted[0]).split(";")[0].strip().lower()
        if kind not in accepted:
            raise Problem(415, "UnsupportedMediaType", "the body of the request was in an unknown format - accepted "
                          f"media types include: {', '.join(accepted)}")
        return kind

    def serve_get(self):
        form, asked = self.form("PartialObjectMetadata"), integer(self.query, "resourceVersion")
        store = self.server.store
        if asked > store.rv:
            raise too_large(asked, store.rv)
        self.respond(200, store.get(self.resource, self.key).encoded(form))

    def serve_list(self):
        form = self.form("PartialObjectMetadataList")
        page, meta = self.server.store.list(self.resource, self.namespace, Selector(self.resource, self.query),
                                            self.query)
        kind, version = ("PartialObjectMetadataList", "meta.k8s.io/v1") if form == "meta" else \
            (self.resource.kind + "List", api_version(self.resource))
        head = dump({"kind": kind, "apiVersion": version, "metadata": meta})
        items = b",".join(e.encoded("item" if form == "full" else form) for e in page)
        self.respond(200, head[:-1] + b',"items":[' + items + b"]}",
                     truncate=bool(self.server.control.take("truncateLists", self.path)))

    def serve_create(self):
        form = self.form("PartialObjectMetadata")
        manager, dry = self.options("CreateOptions")
        obj = self.manifest(self.media_type("application/json", "application/yaml") == "application/yaml")
        entry = self.server.store.create(self.resource, self.key[0], obj, self.owner(manager), dry)
        self.respond(201, entry.encoded(form))

    def serve_update(self):
        form = self.form("PartialObjectMetadata")
        manager, dry = self.options("UpdateOptions")
        obj = self.manifest(self.media_type("application/json", "application/yaml") == "application/yaml")
        meta = obj.get("metadata") or {}
        if not meta.get("name"):
            raise bad_request("the name of the object ( based on URL) was undeterminable: name must be provided")
        if not meta.get("resourceVersion") and self.group:
            self.server.store.get(self.resource, self.key)
            raise invalid(self.resource.kind, self.group, self.name, "metadata.resourceVersion",
                          "Invalid value: 0x0: must be specified for an update")
        entry = self.server.store.update(self.resource, self.key, lambda old: obj, self.owner(manager), self.sub, dry)
        self.respond(200, entry.encoded(form))

    def serve_patch(self):
        form, store = self.form("PartialObjectMetadata"), self.server.store
        manager, dry = self.options("PatchOptions")
        strategic = [] if custom(self.resource) else ["application/strategic-merge-patch+json"]
        kind = self.media_type("application/json-patch+json", "application/merge-patch+json",
                               "application/apply-patch+yaml", *strategic)
        if kind == "application/apply-patch+yaml":
            return self.apply(form, dry)
        if self.query.get("force") is not None:
            raise bad_option("PatchOptions", "force", "Forbidden: may not be specified for non-apply patch")
        patch = self.decoded()
        if kind != "application/json-patch+json" and not isinstance(patch, dict):
            raise bad_request("the patch is not an object")

        def change(old):
            base = {"kind": self.resource.kind, "apiVersion": api_version(self.resource), **old}
            new = json_patched(base, patch) if kind == "application/json-patch+json" else \
                overlay(base, patch, LIST_KEYS if "strategic" in kind else {})
            if isinstance(new, dict) and (new.get("kind"), new.get("apiVersion")) != (base["kind"],
                                                                                     base["apiVersion"]):
                raise bad_request("the patch changes kind or apiVersion")
            return new
        entry = store.update(self.resource, self.key, change, self.owner(manager), self.sub, dry)
        self.respond(200, entry.encoded(form))

    def apply(self, form, dry):
        if not self.query.get("fieldManager"):
            raise bad_option("PatchOptions", "fieldManager", "Required value: is required for apply patch")
        config, store, keys = self.manifest(as_yaml=True), self.server.store, list_keys(self.resource)
        meta = config.get("metadata") or {}
        if meta.get("managedFields") is not None:
            raise bad_request("metadata.managedFields must be nil")
        if meta.get("name", self.name) != self.name:
            raise bad_request(f"the name of the object ({meta['name']}) does not match the name on the URL "
                              f"({self.name})")
        if self.sub:
            config = {"metadata": {} if custom(self.resource) else meta, "status": config.get("status") or {}}
        elif self.resource.status:
            config = {k: v for k, v in config.items() if k != "status"}
        owner = self.owner(self.query["fieldManager"], "Apply")
        force = true(self.query.get("force"))

        def change(old):
            owners = Owners(old)
            gone = owners.applied(owner, leaves(config, keys), leaves(old, keys), force)
            new = overlay(old, config, keys)
            for path in sorted(gone, key=lambda p: (p[-1] != ".", -len(p))):
                new = without(new, path)
            if meta.get("resourceVersion"):
                new["metadata"] = {**new["metadata"], "resourceVersion": meta["resourceVersion"]}
            return new, owners

        with store.lock:
            if self.key in store.tables[self.resource].objects or self.sub:
                code, entry = 200, store.update(self.resource, self.key, change, owner, self.sub, dry)
            else:
                self.authorize("create", self.name)
                if meta.get("resourceVersion") or meta.get("uid"):
                    raise conflict(self.resource, self.name)
                new = {**config, "metadata": {**meta, "name": self.name}}
                code, entry = 201, store.create(self.resource, self.key[0], new, owner, dry)
        self.respond(code, entry.encoded(form))

    def delete_options(self):
        options = self.decoded() if self.body else {}
        dry = self.options("DeleteOptions")[1] or (options.get("dryRun") or []) == ["All"]
        return options, dry

    def serve_delete(self):
        self.form("PartialObjectMetadata")
        options, dry = self.delete_options()
        entry = self.server.store.delete(self.resource, self.key, options, dry)
        if self.resource is PODS or entry.obj["metadata"].get("finalizers"):
            return self.respond(200, entry.encoded("full"))
        details = about(self.resource, self.name, uid=entry.obj["metadata"]["uid"])
        self.respond(200, dump({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                                "details": details}))

    def serve_deletecollection(self):
        options, dry = self.delete_options()
        store = self.server.store
        with store.lock:
            page, _ = store.list(self.resource, self.namespace, Selector(self.resource, self.query), {})
            gone = [store.delete(self.resource, entry.key, options, dry) for entry in page]
        head = dump({"kind": self.resource.kind + "List", "apiVersion": api_version(self.resource),
                     "metadata": {"resourceVersion": str(store.rv)}})
        self.respond(200, head[:-1] + b',"items":[' + b",".join(e.encoded("item") for e in gone) + b"]}")

    def serve_watch(self):
        form, control, store = self.form("PartialObjectMetadata"), self.server.control, self.server.store
        if self.query.get("sendInitialEvents") is not None and control.flags["refuseSendInitialEvents"]:
            raise bad_option("ListOptions", "sendInitialEvents", "Forbidden: sendInitialEvents is forbidden for watch "
                             "unless the WatchList feature gate is enabled")
        kind, version = ("PartialObjectMetadata", "meta.k8s.io/v1") if form == "meta" else \
            (self.resource.kind, api_version(self.resource))

        def bookmark(rv, end=False):
            ended = {"annotations": {"k8s.io/initial-events-end": "true"}} if end else {}
            return dump({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": str(rv), **ended}})
        seconds = integer(self.query, "timeoutSeconds") or random.uniform(1800, 3600)
        try:
            selector = Selector(self.resource, self.query)
            watch = store.watch(self.resource, self.namespace, selector, self.query, bookmark)
        except Problem as problem:
            if problem.code != 410 or control.flags["goneAsStatus"]:
                raise
            self.begin_stream()
            self.events([("ERROR", dump(problem.status))], form)
            return self.transmit(b"0\r\n\r\n")
        counters, counted = self.server.counters, (self.counters_key, self.counted)
        self.has_ended = False
        counters.watch(*counted, self)
        try:
            self.begin_stream()
            self.stream(watch, form, bookmark, seconds)
        finally:
            counters.watch(*counted, self, ends=True)
            store.unregister(self.resource, watch)

    def begin_stream(self):
        self.transmit(self.head(200, {"Content-Type": "application/json", "Transfer-Encoding": "chunked",
                                      **({"Connection": "close"} if self.close_connection else {})}))

    def chunk(self, data): return b"%x\r\n%b\r\n" % (len(data), data)

    def events(self, events, form):
        for first in range(0, len(events), 500):
            self.transmit(b"".join(
                self.chunk(b'{"type":"%b","object":%b}\n' % (kind.encode(), what if isinstance(what, bytes) else
                                                            what.encoded(form)))
                for kind, what in events[first:first + 500]))

    def stream(self, watch, form, bookmark, seconds):
        """Sends a watch's events until it ends."""
        store, flags, period = self.server.store, self.server.control.flags, self.server.bookmark_seconds
        bookmarks = true(self.query.get("allowWatchBookmarks"))
        deadline, due, held = time.monotonic() + seconds, time.monotonic() + period, []
        poll = select.poll()
        poll.register(watch.wake_end, select.POLLIN)
        poll.register(self.connection, select.POLLIN)
        while True:
            commands, events, seen = store.taken(watch)
            held += events
            for command in commands:
                self.has_ended = command != "garbage"
                if command == "reset":
                    raise Abort
                if command == "truncate":
                    self.close_connection = True
                    return self.transmit(self.chunk(b'{"type":"MODIFIED","object":{"kind":"') + b"0\r\n\r\n")
                if command == "garbage":
                    self.transmit(self.chunk(b"\x00\xff<html>not an event</html>\n"))
                if command == "close":
                    return self.transmit(b"0\r\n\r\n")
            wait = None
            if not flags["stallWatches"]:
                sending, held = held, []
                self.events(sending, form)
                moment = time.monotonic()
                if bookmarks and moment >= min(due, deadline):
                    self.events([("BOOKMARK", bookmark(seen))], form)
                    due = moment + period
                if moment >= deadline:
                    self.has_ended = True
                    return self.transmit(b"0\r\n\r\n")
                wait = max(0, (min(due, deadline) if bookmarks else deadline) - moment) * 1000 + 1
            for descriptor, _ in poll.poll(wait):
                if descriptor == watch.wake_end:
                    os.read(watch.wake_end, 4096)
                elif self.client_gone():
                    self.close_connection = True
                    return

    def is_over(self):
        """Whether the watch was ended, or the client has closed."""
        if self.has_ended or (descriptor := self.connection.fileno()) < 0:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLRDHUP)
        return bool(poll.poll(0))

    def client_gone(self):
        """Whether the client has closed. One that sends a request before the watch's end is taken for such, too."""
        self.connection.setblocking(False)
        try:
            self.connection.recv(1)
            return True
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        finally:
            self.connection.setblocking(True)

    def discover(self, path):
        if re.fullmatch(r"/(healthz|livez|readyz)(/[\w-]+)?", path):
            raise PlainAnswer(200, "ok")
        parts = path.strip("/").split("/")
        served = [r for r in RESOURCES if r.group not in self.server.control.off]
        groups = {}
        for resource in served:
            if resource.group:
                version = {"groupVersion": api_version(resource), "version": resource.version}
                groups[resource.group] = {"name": resource.group, "versions": [version], "preferredVersion": version}
        if path == "/version":
            answer = {"major": "1", "minor": "32", "gitVersion": "v1.32.4", "gitCommit": "0" * 40,
                      "gitTreeState": "clean", "buildDate": "2025-04-22T00:00:00Z", "goVersion": "go1.23.6",
                      "compiler": "gc", "platform": "linux/amd64"}
        elif parts == ["api"]:
            answer = {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        elif parts == ["apis"]:
            answer = {"kind": "APIGroupList", "apiVersion": "v1", "groups": list(groups.values())}
        elif len(parts) == 2 and parts[0] == "apis" and parts[1] in groups:
            answer = {"kind": "APIGroup", "apiVersion": "v1", **groups[parts[1]]}
        else:
            version = parts[1] if len(parts) == 2 and parts[0] == "api" else \
                "/".join(parts[1:]) if len(parts) == 3 and parts[0] == "apis" else None
            resources = [r for r in served if api_version(r) == version]
            if not resources:
                raise page_not_found()
            described = []
            for r in resources:
                common = {"namespaced": r.namespaced, "kind": r.kind}
                described.append({"name": r.plural, "singularName": r.kind.lower(), **common,
                                  "shortNames": r.short.split(), "verbs": ["create", "delete", "deletecollection", "get",
                                                                           "list", "patch", "update", "watch"]})
                if r.status:
                    described.append({"name": r.plural + "/status", "singularName": "", **common,
                                      "verbs": ["get", "patch", "update"]})
            answer = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": described}
        if self.command != "GET":
            raise Problem(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        self.respond(200, dump(answer))


class Server(socketserver.ThreadingTCPServer):
    """One listener. Attributes that all listeners share are set by main."""
    daemon_threads, allow_reuse_address, request_queue_size, block_on_close = True, True, 4096, False
    tls = None

    def process_request_thread(self, connection, address):
        """A connection, in its thread. Peeks where what comes may be control in plain text."""
        connections = self.control.connections
        for_control = False
        try:
            if self.tls or self.control.flags["disconnect"]:
                connection.settimeout(10)
                head = self.peeked(connection)
                for_control = head.startswith(CONTROL)
                if self.control.flags["disconnect"] and not for_control:
                    self.counters.refused += 1
                    reset_on_close(connection)
                    return
                if self.tls and head[:1] == b"\x16":
                    connection = self.tls.wrap_socket(connection, server_side=True)
                connection.settimeout(None)
            connections[connection] = for_control
            Handler(connection, address, self)
        except OSError:
            pass
        finally:
            connections.pop(connection, None)
            self.close_request(connection)

    def peeked(self, connection):
        """The first bytes of a connection, as many as it takes to know control in plain text."""
        for _ in range(200):
            head = connection.recv(max(map(len, CONTROL)), socket.MSG_PEEK)
            if not head or head.startswith(CONTROL) or not any(start.startswith(head) for start in CONTROL):
                break
            time.sleep(0.005)
        return head


class UnixServer(Server):
    address_family = socket.AF_UNIX


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--ready-file", help="gets the URL once it listens")
    parser.add_argument("--unix", metavar="PATH", help="listens there too, without TLS")
    for name in ("--tls-cert", "--tls-key", "--client-ca", "--token-file", "--rbac", "--objects"):
        parser.add_argument(name)
    parser.add_argument("--history", type=int, default=1000, help="events kept per resource")
    parser.add_argument("--bookmark-seconds", type=float, default=60)
    parser.add_argument("--before-1.28", action="store_true", dest="before_1_28",
                        help="pods cannot be selected by spec.hostNetwork")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()

    if arguments.before_1_28:
        FIELDS["", "pods"].discard("spec.hostNetwork")
    hard = limits.getrlimit(limits.RLIMIT_NOFILE)[1]
    limits.setrlimit(limits.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(512 << 10)
    sys.setswitchinterval(0.05)  # An event to hundreds of watches costs half as much as with the default.
    store, counters = Store(arguments.history), Counters()
    for document in manifests(arguments.objects) if arguments.objects else []:
        store.upsert(document)
    access = Access(arguments.token_file, arguments.client_ca, arguments.rbac)
    Server.store, Server.counters, Server.access = store, counters, access
    Server.control = Control(store, access, counters)
    Server.bookmark_seconds, Server.verbose = arguments.bookmark_seconds, arguments.verbose

    host, _, port = arguments.listen.rpartition(":")
    server = Server((host.strip("[]"), int(port)), Handler)
    if arguments.tls_cert:
        server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.tls.load_cert_chain(arguments.tls_cert, arguments.tls_key)
        if arguments.client_ca:
            server.tls.load_verify_locations(arguments.client_ca)
            server.tls.verify_mode = ssl.CERT_OPTIONAL
    if arguments.unix:
        if os.path.exists(arguments.unix):
            os.unlink(arguments.unix)
        threading.Thread(target=UnixServer(arguments.unix, Handler).serve_forever, daemon=True).start()
    if arguments.ready_file:
        with open(arguments.ready_file + ".new", "w") as file:
            file.write(f"{'https' if server.tls else 'http'}://{host}:{server.server_address[1]}")
        os.replace(arguments.ready_file + ".new", arguments.ready_file)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
