#!/usr/bin/env python3
"""Holds install/kubernetes/base/crd-egresspolicies.yaml against what an API server asks of a CustomResourceDefinition
(Kubernetes, "Extend the Kubernetes API with CustomResourceDefinitions": structural schemas, validation rules, printer
columns), and the policies of egresspolicies.yaml against its schema and its CEL rules. CEL is PyPI's cel-python, with
the two functions of Kubernetes' own that the rules use. The cost that an API server estimates for a rule is not worked
out; that everything a rule looks at has a limit is.
"""
import ipaddress, os, re, sys

import celpy, yaml
from celpy import celtypes

here = os.path.dirname(os.path.abspath(__file__))
checks = failed = 0


def check(name, problem):
    global checks, failed
    checks += 1
    failed += bool(problem)
    print(f"FAIL  {name}: {problem}" if problem else f"ok    {name}")


# ---- the definition ----

def structural(schema, path, bounded):
    """What an API server would refuse of a schema; `bounded`: every list and map on the way has a limit."""
    if "type" not in schema:
        yield f"{path}: has no type"
    if "properties" in schema and "additionalProperties" in schema:
        yield f"{path}: has properties and additionalProperties"
    for key in schema.keys() & {"$ref", "allOf", "anyOf", "oneOf", "not", "uniqueItems", "definitions", "dependencies"}:
        yield f"{path}: {key}"
    if schema.get("x-kubernetes-preserve-unknown-fields", True) is not True:
        yield f"{path}: x-kubernetes-preserve-unknown-fields may only be true"
    if schema.get("x-kubernetes-list-type") == "map" and not (set(schema.get("x-kubernetes-list-map-keys", [])) <= set(
            schema["items"].get("required", [])) and schema.get("x-kubernetes-list-map-keys")):
        yield f"{path}: a map by keys that items may lack"
    if schema.get("x-kubernetes-list-type") == "set" and schema["items"]["type"] not in ("string", "integer", "boolean"):
        yield f"{path}: a set of what is no scalar"
    for rule in schema.get("x-kubernetes-validations", []):
        if not bounded:
            yield f"{path}: a rule in a list or map without a limit: {rule['rule']}"
        if schema["type"] == "string" and "maxLength" not in schema:
            yield f"{path}: a rule on a string without a limit: {rule['rule']}"
        try:
            program(rule["rule"])
        except Exception as error:  # Whatever the parser makes of it.
            yield f"{path}: {rule['rule']}: {error}"
    for name, inner in schema.get("properties", {}).items():
        yield from structural(inner, f"{path}.{name}", bounded)
    if schema.get("type") == "array":
        if "items" not in schema:
            yield f"{path}: a list of no type"
        else:
            yield from structural(schema["items"], path + "[]", bounded and "maxItems" in schema)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from structural(schema["additionalProperties"], path + "{}", bounded and "maxProperties" in schema)


def at(schema, json_path):
    of_condition = re.fullmatch(r"(.*)\[\?\(@\.type=='\w+'\)\](\..*)", json_path)
    if of_condition:
        conditions = at(schema, of_condition[1])
        return conditions and at(conditions["items"], of_condition[2])
    for name in json_path.strip(".").split("."):
        if name == "metadata":
            return {"type": {"creationTimestamp": "date"}.get(json_path.rsplit(".", 1)[1], "string")}
        schema = schema.get("properties", {}).get(name)
        if schema is None:
            return None
    return schema


# ---- rules ----

def is_ip(text):
    try: ipaddress.ip_address(str(text))
    except ValueError: return celtypes.BoolType(False)
    return celtypes.BoolType("%" not in str(text) and not is_mapped(str(text)))


def is_mapped(text):
    """An IPv4 address in IPv6's clothes, ::ffff:10.0.0.0, which Kubernetes refuses as an address and in a network."""
    address = ipaddress.ip_interface(text).ip
    return address.version == 6 and address.ipv4_mapped is not None


def is_cidr(text):
    # As Go's netip.ParsePrefix: a length is needed, without zeros before it; host bits are allowed.
    try: ipaddress.ip_interface(str(text))
    except ValueError: return celtypes.BoolType(False)
    length = str(text).rsplit("/", 1)[1] if "/" in str(text) else ""
    return celtypes.BoolType(re.fullmatch("0|[1-9][0-9]*", length) is not None and "%" not in str(text) and not is_mapped(str(text)))


def without_nulls(value):
    """What is left of a value: null in a field that is not nullable is the same as nothing."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


environment = celpy.Environment()


def program(rule):
    return environment.program(environment.compile(rule), functions={"isIP": is_ip, "isCIDR": is_cidr})


TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}


def errors(schema, value, path):
    """What an API server says of a value, the schema's word first: rules are only asked of what has the right types."""
    kind = TYPES[schema["type"]]
    if not isinstance(value, kind) or kind is int and isinstance(value, bool):
        yield f"{path}: must be of type {schema['type']}"
        return
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: unsupported value {value}")
    for limit, measure, wrong in (("maxLength", len, int.__gt__), ("minLength", len, int.__lt__),
                                  ("maxItems", len, int.__gt__), ("minItems", len, int.__lt__),
                                  ("maxProperties", len, int.__gt__), ("minimum", int, int.__lt__), ("maximum", int, int.__gt__)):
        if limit in schema and wrong(measure(value), schema[limit]):
            found.append(f"{path}: {limit} {schema[limit]}")
    if kind is str and "pattern" in schema and not re.search(schema["pattern"], value, re.ASCII):
        found.append(f"{path}: does not match {schema['pattern']}")
    if kind is dict:
        found += [f"{path}.{name}: required value" for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            if name in schema.get("properties", {}):
                found += errors(schema["properties"][name], inner, f"{path}.{name}")
            elif isinstance(schema.get("additionalProperties"), dict):
                found += errors(schema["additionalProperties"], inner, f"{path}.{name}")
    elif kind is list:
        for index, inner in enumerate(value):
            found += errors(schema["items"], inner, f"{path}[{index}]")
    if not found:
        for rule in schema.get("x-kubernetes-validations", []):
            outcome = program(rule["rule"]).evaluate({"self": celpy.json_to_cel(value)})
            if not outcome:
                found.append(f"{path}: {rule['message']}")
    yield from found


def main():
    with open(os.path.join(here, "../../install/kubernetes/base/crd-egresspolicies.yaml")) as file:
        crd = yaml.safe_load(file)
    names = crd["spec"]["names"]
    check("its name", crd["metadata"]["name"] != f"{names['plural']}.{crd['spec']['group']}" and crd["metadata"]["name"])
    check("one version is stored", sum(v["storage"] for v in crd["spec"]["versions"]) != 1)
    version = crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    check("a structural schema", "; ".join(structural(schema, "", True)))
    columns = version["additionalPrinterColumns"]
    for column in columns:
        found = at(schema, column["jsonPath"])
        kind = found and ("date" if found.get("format") == "date-time" else found["type"])
        wrong = None if found is None else {"date": "date", "integer": "integer"}.get(column["type"], kind) != kind
        check(f"column {column['name']}", "no such field" if found is None else wrong and found["type"])
    check("status is a subresource", "status" not in version["subresources"])
    with open(os.path.join(here, "egresspolicies.yaml")) as file:
        for policy in yaml.safe_load(file):
            said = list(errors(schema, {"metadata": {"name": "p"}, "spec": without_nulls(policy["spec"])}, ""))
            wanted = policy["error"]
            problem = said if not wanted else None if any(wanted in s for s in said) else said or "is taken"
            check(f"{wanted or 'good'}: {policy['spec']}"[:140], problem)
    print(f"{checks - failed} of {checks} checks passed")
    return 1 if failed else 0


sys.exit(main())
