#!/usr/bin/env python3
"""Holds install/kubernetes/base/admission.yaml against what an API server asks of a ValidatingAdmissionPolicy (Kubernetes,
"Validating Admission Policy"), against install/kubernetes/base/rbac.yaml, and its CEL rules against requests that must be
let through or refused. CEL is PyPI's cel-python; no expression uses one of Kubernetes' own functions.
"""
import copy, os, sys

import celpy, yaml

here = os.path.dirname(os.path.abspath(__file__))
checks = failed = 0
NODE_NAME = "authentication.kubernetes.io/node-name"
USER = "system:serviceaccount:culvert:culvertd"


def check(name, problem):
    global checks, failed
    checks += 1
    failed += bool(problem)
    print(f"FAIL  {name}: {problem}" if problem else f"ok    {name}")


def load(name):
    with open(os.path.join(here, "../../install/kubernetes/base", name)) as file:
        return [document for document in yaml.safe_load_all(file) if document]


environment = celpy.Environment()


def evaluate(expression, values):
    return environment.program(environment.compile(expression)).evaluate(values)


KEYS = {
    "ValidatingAdmissionPolicy": {"failurePolicy", "matchConstraints", "matchConditions", "variables", "validations"},
    "ValidatingAdmissionPolicyBinding": {"policyName", "validationActions"},
}


def structure(document):
    """What an API server would refuse of one object, or a reader would miss."""
    spec = document["spec"]
    if document["apiVersion"] != "admissionregistration.k8s.io/v1":
        yield f"apiVersion {document['apiVersion']}"
    yield from (f"spec.{key} is not known" for key in spec.keys() - KEYS[document["kind"]])
    yield from (f"spec.{key} is missing" for key in KEYS[document["kind"]] - spec.keys())
    if document["kind"].endswith("Binding"):
        if spec["validationActions"] != ["Deny"]:
            yield f"validationActions {spec['validationActions']}"
        return
    if spec["failurePolicy"] != "Fail":
        yield "failurePolicy is not Fail"
    for rule in spec["matchConstraints"]["resourceRules"]:
        if rule.keys() != {"apiGroups", "apiVersions", "operations", "resources"}:
            yield f"a resource rule has {sorted(rule)}"
    for part in spec["matchConditions"] + spec["variables"] + spec["validations"]:
        yield from (f"{key} is not known" for key in part.keys() - {"name", "expression", "message", "messageExpression"})
        if "\n" in part.get("message", ""):
            yield "a message has more than one line"
        try:
            environment.compile(part["expression"])
        except Exception as error:  # Whatever the parser makes of it.
            yield f"{part['expression']}: {error}"


def refusal(policy, request, new, old):
    """The message of the first rule that a request breaks; None: it is let through, or is no business of the policy."""
    spec = policy["spec"]
    values = {"request": celpy.json_to_cel(request), "object": celpy.json_to_cel(new),
              "oldObject": celpy.json_to_cel(old)}
    if not all(evaluate(condition["expression"], values) for condition in spec["matchConditions"]):
        return None
    variables = celpy.celtypes.MapType()
    for variable in spec["variables"]:
        variables[celpy.celtypes.StringType(variable["name"])] = evaluate(
            variable["expression"], {**values, "variables": variables})
    for validation in spec["validations"]:
        if not evaluate(validation["expression"], {**values, "variables": variables}):
            if "messageExpression" in validation:
                return str(evaluate(validation["messageExpression"], {**values, "variables": variables}))
            return validation["message"]
    return None


def request(node, user=USER):
    extra = {} if node is None else {"extra": {NODE_NAME: [node]}}
    return {"userInfo": {"username": user, **extra}}


NODE = {"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n1", "labels": {"zone": "a"}, "annotations": {"other/x": "1", "kilo.squat.ai/key": "old"}},
        "spec": {"podCIDRs": ["10.244.1.0/24"]}}
BARE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}


def changed(base=NODE, **parts):
    new = copy.deepcopy(base)
    for path, value in parts.items():
        *way, last = path.split("__")
        inner = new
        for key in way:
            inner = inner.setdefault(key, {})
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = value
    return new


OURS = {"other/x": "1", "kilo.squat.ai/key": "new", "culvert.dev/egress-address": "10.0.0.11"}
OF_NODES = [
    ("its own annotations", request("n1"), changed(metadata__annotations=OURS), NODE, None),
    ("the first annotations of a bare Node", request("n1"), changed(BARE, metadata__annotations={"culvert.dev/a": "1"}), BARE, None),
    ("its own annotations taken away", request("n1"), changed(metadata__annotations={"other/x": "1"}), NODE, None),
    ("nothing", request("n1"), NODE, NODE, None),
    ("another Node", request("n2"), changed(metadata__annotations=OURS), NODE, "on node n2 may not write to another"),
    ("a token of no node", request(None), changed(metadata__annotations=OURS), NODE, "bound to no node"),
    ("an annotation of others", request("n1"), changed(metadata__annotations={**OURS, "other/x": "2"}), NODE, "only write annotations below"),
    ("a new annotation of others", request("n1"), changed(metadata__annotations={**OURS, "other/y": "2"}), NODE, "only write annotations below"),
    ("an annotation that only looks like ours", request("n1"), changed(metadata__annotations={**OURS, "culvert.dev.evil/y": "2"}), NODE, "only write annotations below"),
    ("another's annotation taken away", request("n1"), changed(metadata__annotations={"kilo.squat.ai/key": "old"}), NODE, "only write annotations below"),
    ("all annotations taken away", request("n1"), changed(metadata__annotations=None), NODE, "only write annotations below"),
    ("a taint", request("n1"), changed(spec__taints=[{"key": "a", "effect": "NoExecute"}]), NODE, "nothing of a Node but"),
    ("a spec of a bare Node", request("n1"), changed(BARE, spec__unschedulable=True), BARE, "nothing of a Node but"),
    ("a label", request("n1"), changed(metadata__labels={"zone": "a", "gateway": "yes"}), NODE, "nothing of a Node but"),
    ("the labels taken away", request("n1"), changed(metadata__labels=None), NODE, "nothing of a Node but"),
    ("a finalizer", request("n1"), changed(metadata__finalizers=["x/y"]), NODE, "nothing of a Node but"),
    ("an owner", request("n1"), changed(metadata__ownerReferences=[{"kind": "Pod", "name": "p"}]), NODE, "nothing of a Node but"),
    ("another user", request("n2", "system:node:n1"), changed(spec__unschedulable=True), NODE, None),
]


def policy(*gateways, status=True):
    return {"metadata": {"name": "p"}, "spec": {"destinationCIDRs": ["0.0.0.0/0"]}, **({"status": {"reason": "", "activeGateways": list(gateways)}} if status else {})}


OF_POLICIES = [
    ("itself", request("n1"), policy("n1"), policy("n2"), None),
    ("that there is no gateway", request("n1"), policy(), policy("n2"), None),
    ("no status yet", request("n1"), policy(status=False), policy(status=False), None),
    ("after a fail-over, another node", request("n1"), policy("n2"), policy("n3"), None),
    ("several other nodes (spread)", request("n1"), policy("n2", "n3"), policy(), None),
    ("its destinations", request("n1"), changed(policy("n1"), spec__destinationCIDRs=[]), policy("n1"), "nothing of a policy but its status"),
    ("its spec taken away", request("n1"), changed(policy("n1"), spec=None), policy("n1"), "nothing of a policy but its status"),
    ("a token of no node", request(None), policy(), policy(), "bound to no node"),
    ("another user", request(None, "admin"), policy("n2"), policy(), None),
]


def main():
    documents = load("admission.yaml")
    by_kind = {kind: {d["metadata"]["name"]: d for d in documents if d["kind"] == kind} for kind in KEYS}
    check("every object is read", len(documents) != sum(map(len, by_kind.values())) and "another kind, or a name twice")
    for document in documents:
        check(f"{document['kind']} {document['metadata']['name']}", "; ".join(structure(document)))
    policies, bindings = by_kind["ValidatingAdmissionPolicy"], by_kind["ValidatingAdmissionPolicyBinding"]
    check("every policy has its binding", sorted(b["spec"]["policyName"] for b in bindings.values()) != sorted(policies)
          and list(bindings))
    # Whatever RBAC lets the helper change is looked at (what it may only create says nothing of others).
    watched = {(group, resource) for p in policies.values() for rule in p["spec"]["matchConstraints"]["resourceRules"]
               for group in rule["apiGroups"] for resource in rule["resources"]}
    written = {(group, resource) for d in load("rbac.yaml") for rule in d.get("rules", [])
               if {"patch", "update", "delete", "*"} & set(rule["verbs"])
               for group in rule["apiGroups"] for resource in rule["resources"]}
    check("all that RBAC lets the helper change is judged", written - watched)
    subjects = {f"system:serviceaccount:{s['namespace']}:{s['name']}" for d in load("rbac.yaml") for s in d.get("subjects", [])}
    check("the user is the one of rbac.yaml", subjects != {USER} and subjects)
    for name, cases in (("culvertd-own-node", OF_NODES), ("culvertd-policy-status", OF_POLICIES)):
        for what, asked, new, old, wanted in cases:
            said = refusal(policies[name], asked, new, old)
            check(f"{name}: {what}", said != wanted if not wanted or not said else wanted not in said and said)
    print(f"{checks - failed} of {checks} checks passed")
    return 1 if failed else 0


sys.exit(main())
