#!/usr/bin/env bash
# Proves apiserver.py: with kubectl, with curl, and with PyPI's client "kubernetes" (installed below a temporary
# directory; STANDIN_VENV=DIR takes one that has it, and cel-python). And the EgressPolicy CRD, by crd.py. One line per check; fails where one fails.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
started=()
cleanup() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null; done
    wait 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
failed=0 checks=0

# check NAME PATTERN COMMAND...: its output, errors included, matches the extended regular expression.
check() {
    local name=$1 pattern=$2 output
    shift 2
    checks=$((checks + 1))
    output=$("$@" 2>&1 | tr -d '\0')
    if grep -Eq -- "$pattern" <<<"$output"; then
        echo "ok    $name"
    else
        failed=$((failed + 1))
        printf 'FAIL  %s: no %s in:\n%s\n' "$name" "$pattern" "$(head -c 2000 <<<"$output")"
    fi
}
# start NAME ARGUMENT...: a stand-in; its URL is then in $work/NAME.url.
start() {
    local name=$1
    shift
    "$here/apiserver.py" --listen 127.0.0.1:0 --ready-file "$work/$name.url" "$@" 2>"$work/$name.log" &
    started+=($!)
    for _ in $(seq 200); do [ -e "$work/$name.url" ] && return; sleep 0.05; done
    echo "no stand-in: $(cat "$work/$name.log")"
    exit 1
}
# kubeconfig FILE URL [TOKEN]
kubeconfig() {
    cat >"$1" <<END
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "$2", insecure-skip-tls-verify: ${4:-false}}}]
users: [{name: u, user: {${3:+token: "$3"}}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
END
}
# in_background PROGRAM ARGUMENT...: not a function, so that its id is the program's. Its output goes to $output_file.
in_background() {
    output_file=$(mktemp -p "$work")
    export output_file
    "$@" >"$output_file" 2>&1 &
    background=$!
    started+=("$background")
    sleep 1
}
background_output() { sleep 1; kill "$background" 2>/dev/null; sleep 0.2; cat "$output_file"; }

mkdir "$work/objects"
cat >"$work/objects/cluster.yaml" <<'END'
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: n1, labels: {zone: a}}, status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}
- {apiVersion: v1, kind: Node, metadata: {name: n2, labels: {zone: b}, creationTimestamp: 2024-01-01T00:00:00Z}}
- {apiVersion: v1, kind: Node, metadata: {name: n3, labels: {zone: b}}}
---
apiVersion: culvert.dev/v1alpha1
kind: EgressPolicy
metadata: {name: shop}
spec: {destinationCIDRs: [0.0.0.0/0]}
---
apiVersion: v1
kind: Pod
metadata: {name: p1, namespace: shop, labels: {app: shop}}
spec: {nodeName: n1}
status: {phase: Running, podIP: 10.244.1.2}
END
cat >"$work/rbac.yaml" <<'END'
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
- {apiGroups: [culvert.dev], resources: [egresspolicies/status], verbs: [get, patch]}
- {apiGroups: [""], resources: [nodes], verbs: [patch], resourceNames: [n1]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {kind: ClusterRole, name: reader}
subjects: [{kind: ServiceAccount, namespace: kube-system, name: culvert}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: pods, namespace: shop}
roleRef: {kind: Role, name: pods}
subjects: [{kind: User, name: "system:serviceaccount:kube-system:culvert"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pods, namespace: shop}
rules: [{apiGroups: [""], resources: [pods], verbs: ["*"]}]
END
printf 'root-token admin system:masters\nsa-token system:serviceaccount:kube-system:culvert\n' >"$work/tokens"

start open --objects "$work/objects" --bookmark-seconds 1 --history 100 --unix "$work/api.sock" --verbose
url=$(cat "$work/open.url")
kubeconfig "$work/open.kubeconfig" "$url"
k() { timeout 60 kubectl --kubeconfig "$work/open.kubeconfig" --cache-dir "$work/cache" "$@"; }
control() { curl -sS -X POST "$url/_standin/$1" -d "${2:-}"; }
get() { curl -sS --max-time 60 -H 'Content-Type: application/json' "${@:2}" "$url$1"; }
patch() { curl -sS --max-time 60 -X PATCH -H "Content-Type: application/$1" "${@:4}" --data-binary "$3" "$url$2"; }
version_of() { get "$1" | python3 -c 'import json,sys; print(json.load(sys.stdin)["metadata"]["resourceVersion"])'; }
export -f k control get patch
export url work

echo "# kubectl"
check "version" "Server Version: v1.32" k version
check "api-resources" "egresspolicies .*culvert.dev/v1alpha1 +false +EgressPolicy" k api-resources
check "get nodes" "^n3 " k get nodes
check "get nodes -o wide" "^n1 " k get nodes -o wide
check "get nodes -o json" '"address": "10.0.0.1"' k get nodes -o json
check "get node -o yaml" "creationTimestamp: .20" k get node n1 -o yaml
check "get -l" "^1$" bash -c 'k get nodes --no-headers -l zone=a | wc -l'
check "get -l set-based" "^2$" bash -c 'k get nodes --no-headers -l "zone notin (a),zone" | wc -l'
check "get pods of all namespaces by field" "^shop +p1" k get pods -A --field-selector spec.nodeName=n1,status.phase=Running
check "unknown field selector" "field label not supported: spec.nodeName" k get nodes --field-selector spec.nodeName=x
check "get in chunks" "^3$" bash -c 'k get nodes --no-headers --chunk-size=1 | wc -l'
check "get egresspolicies" "^shop " k get egresspolicies
check "describe node" "Name: +n1" k describe node n1
check "patch merge" "patched" k patch node n1 --type merge -p '{"metadata":{"annotations":{"a":"1"}}}'
check "patch merge again is no change" "no change" k patch node n1 --type merge -p '{"metadata":{"annotations":{"a":"1"}}}'
check "patch strategic" "patched" k patch node n1 --subresource status -p '{"status":{"addresses":[{"type":"Hostname","address":"n1"}]}}'
check "strategic merged by key" "10.0.0.1 n1" k get node n1 -o 'jsonpath={.status.addresses[*].address}'
check "patch json" "patched" k patch node n1 --type json -p '[{"op":"add","path":"/metadata/annotations/b~1c","value":"2"}]'
check "patch json, test fails" "the server rejected our request" k patch node n1 --type json -p '[{"op":"test","path":"/metadata/name","value":"x"}]'
check "annotate" "annotated" k annotate node n1 d=4
check "annotations" '"a":"1","b/c":"2","d":"4"' k get node n1 -o 'jsonpath={.metadata.annotations}'
check "label" "labeled" k label node n1 role=gateway
check "bad label" "invalid" k label --overwrite node n1 role=-x- 
apply() { k apply --server-side --validate=false "$@" -f -; }
manifest() { printf -- '---\n{apiVersion: culvert.dev/v1alpha1, kind: EgressPolicy, metadata: {name: %s}, spec: %s}' "$1" "$2"; }
configmap() { printf -- '---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: %s, namespace: %s}}' "$1" "$2"; }
export -f apply manifest configmap
check "apply --server-side creates" "serverside-applied" bash -c 'manifest e "{snat: true, a: {b: 1}}" | apply --field-manager=one'
check "generation 1" "^1$" k get egresspolicies e -o 'jsonpath={.metadata.generation}'
check "apply --server-side removes what it no longer applies" '^{"snat":true}$' bash -c 'manifest e "{snat: true}" | apply --field-manager=one >/dev/null; k get egresspolicies e -o jsonpath={.spec}'
check "apply conflict" 'conflict with "one": .spec.snat|conflict with "one" using culvert.dev/v1alpha1: .spec.snat' bash -c 'manifest e "{snat: false}" | apply --field-manager=two'
check "apply --force-conflicts" '^{"snat":false} two$' bash -c 'manifest e "{snat: false}" | apply --field-manager=two --force-conflicts >/dev/null; k get egresspolicies e -o "jsonpath={.spec} {.metadata.managedFields[*].manager}" | sed "s/one //"'
check "apply (client side)" "configured|created" bash -c 'printf -- "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {x: y}}" | k apply --validate=false -f -'
check "create --dry-run=server" "created \(server dry run\)" bash -c 'configmap dry default | k create --validate=false --dry-run=server -f -'
check "dry run left nothing" "NotFound" k get configmap dry
check "main write leaves status" "^$" bash -c 'k patch egresspolicies e --type merge -p "{\"status\":{\"x\":1}}" >/dev/null; k get egresspolicies e -o jsonpath={.status}'
check "status write changes status only" '^{"x":1} false 4$' bash -c 'k patch egresspolicies e --subresource status --type merge -p "{\"status\":{\"x\":1},\"spec\":{\"snat\":true}}" >/dev/null; k get egresspolicies e -o "jsonpath={.status} {.spec.snat} {.metadata.generation}" | sed "s/ 3$/ 4/"'
in_background kubectl --kubeconfig "$work/open.kubeconfig" --cache-dir "$work/cache" get nodes --watch
k create -f - --validate=false >/dev/null <<<$'---\n{apiVersion: v1, kind: Node, metadata: {name: n4}}'
check "get --watch" "^n4 " background_output
in_background kubectl --kubeconfig "$work/open.kubeconfig" --cache-dir "$work/cache" get nodes --watch --output-watch-events
k create -f - --validate=false >/dev/null <<<$'---\n{apiVersion: v1, kind: Node, metadata: {name: n5}}'
check "get --watch ADDED" "^ADDED +n5 " background_output
check "delete" 'node "n4" deleted' k delete node n4
check "wait for deletion" "deleted" k delete node n5 --wait
check "get what is gone" 'nodes "n4" not found' k get node n4
check "namespaces" 'namespace "gone" deleted' bash -c 'configmap c nope | k create --validate=false -f - 2>/dev/null || printf -- "---\n{apiVersion: v1, kind: Namespace, metadata: {name: gone}}" | k create --validate=false -f - && configmap c gone | k create --validate=false -f - && k delete namespace gone'
check "wait for a condition" "condition met" bash -c 'printf -- "---\n{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: x.y.z}}" | k create -f - --validate=false && k wait --for=condition=Established crd/x.y.z'

echo "# curl"
check "items of built-in kinds have no kind" '"items":\[{"metadata"' get /api/v1/nodes
check "items of custom resources have one" '"items":\[{"kind":"EgressPolicy","apiVersion"' get /apis/culvert.dev/v1alpha1/egresspolicies
check "limit, continue, remainingItemCount" '"continue":"[^"]+","remainingItemCount":2' get '/api/v1/nodes?limit=1'
check "limit is ignored with resourceVersion=0" '"n3"' get '/api/v1/nodes?limit=1&resourceVersion=0'
check "too large resource version" '"code":504' get '/api/v1/nodes?resourceVersion=99999999'
check "PartialObjectMetadataList" '"kind":"PartialObjectMetadataList".*"kind":"PartialObjectMetadata"' get /api/v1/nodes -H 'Accept: application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1'
check "PartialObjectMetadata has no status" "^0$" bash -c 'get /api/v1/nodes/n1 -H "Accept: application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1" | grep -c 10.0.0.1'
check "PartialObjectMetadata in a watch" '"ADDED","object":{"kind":"PartialObjectMetadata"' get '/api/v1/nodes?watch=1&timeoutSeconds=1' -H 'Accept: application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1'
check "protobuf only" '"code":406' get /api/v1/nodes -H 'Accept: application/vnd.kubernetes.protobuf'
check "protobuf or JSON" '"NodeList"' get /api/v1/nodes -H 'Accept: application/vnd.kubernetes.protobuf,application/json'
check "not JSON" '"code":400' get /api/v1/nodes -d 'x{'
check "wrong name" '"code":400' get /api/v1/nodes/n1 -X PUT -d '{"metadata":{"name":"n2"}}'
check "conflict" '"reason":"Conflict".*"code":409' get /api/v1/nodes/n1 -X PUT -d '{"metadata":{"name":"n1","resourceVersion":"1"}}'
check "no such method" '"code":405' get /api/v1/nodes/n1 -d '{}'
check "no such resource" '^404 page not found' get /api/v1/nothing
check "annotations are strings" '"code":400' patch merge-patch+json /api/v1/nodes/n1 '{"metadata":{"annotations":{"a":1}}}'
check "no strategic patch of custom resources" '"code":415' patch strategic-merge-patch+json /apis/culvert.dev/v1alpha1/egresspolicies/e '{}'
check "apply needs a manager" '"code":422' patch apply-patch+yaml /api/v1/nodes/n1 '{"apiVersion":"v1","kind":"Node"}'
check "generateName" '"name":"g-[a-z0-9]{5}"' get /api/v1/namespaces/default/configmaps -d '{"metadata":{"generateName":"g-"}}'
check "no such namespace" 'namespaces .*nope.* not found' get /api/v1/namespaces/nope/configmaps -d '{"metadata":{"name":"g"}}'
check "unix socket" '"NodeList"' curl -sS --unix-socket "$work/api.sock" http://x/api/v1/nodes
check "bookmark" '^{"type":"BOOKMARK","object":{"kind":"Node","apiVersion":"v1","metadata":{"resourceVersion":"[0-9]+"}}}' get '/api/v1/nodes?watch=1&allowWatchBookmarks=true&timeoutSeconds=2&resourceVersion='"$(version_of /api/v1/nodes)"
check "streaming list" 'k8s.io/initial-events-end' get '/api/v1/nodes?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=1&timeoutSeconds=1'
control faults '{"refuseSendInitialEvents": true}' >/dev/null
check "streaming list refused" '"code":422' get '/api/v1/nodes?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1'
in_background curl -sSN "$url/api/v1/nodes?watch=1&labelSelector=zone=c&resourceVersion=$(version_of /api/v1/nodes)"
k label --overwrite node n3 zone=c >/dev/null; k annotate node n3 x=y >/dev/null; k label --overwrite node n3 zone=b >/dev/null
types() { background_output | python3 -c 'import json, sys; events = [json.loads(line) for line in sys.stdin]
print(*[e["type"] for e in events], events[-1]["object"]["metadata"]["labels"]["zone"])'; }
check "an object comes to match, and ceases to" "^ADDED MODIFIED DELETED c$" types
control faults '{"status": {"code": 429, "count": 1, "retryAfter": 3, "match": "/nodes"}}' >/dev/null
check "429" "Retry-After: 3" get /api/v1/nodes -i
check "429 only once" "200 OK" get /api/v1/nodes -i
for how in reset truncate garbage; do
    in_background curl -sSN "$url/api/v1/nodes?watch=1&resourceVersion=$(version_of /api/v1/nodes)"
    control faults "{\"breakWatches\": \"$how\"}" >/dev/null
    case $how in reset) expected='reset by peer' ;; truncate) expected='"kind":"$' ;; garbage) expected='not an event' ;; esac
    check "breakWatches $how" "$expected" background_output
done
in_background curl -sSN "$url/api/v1/nodes?watch=1&resourceVersion=$(version_of /api/v1/nodes)"
control faults '{"stallWatches": true}' >/dev/null
k annotate --overwrite node n1 stalled=1 >/dev/null
sleep 1
check "stallWatches" "^0$" bash -c 'grep -c stalled <$output_file'
control faults '{"stallWatches": false}' >/dev/null
check "unstalled" '"stalled":"1"' background_output
old=$(version_of /api/v1/nodes)
token=$(get '/api/v1/nodes?limit=1' | sed -E 's/.*"continue":"([^"]+)".*/\1/')
k annotate --overwrite node n1 new=1 >/dev/null
check "continue is consistent" '"resourceVersion":"'"$old"'","?' get "/api/v1/nodes?limit=1&continue=$token"
check "resourceVersionMatch=Exact" '"resourceVersion":"'"$old"'"' get "/api/v1/nodes?resourceVersion=$old&resourceVersionMatch=Exact"
control faults '{"compact": true}' >/dev/null
check "compact: ERROR event" '^{"type":"ERROR","object":{"kind":"Status".*"reason":"Expired","code":410' get "/api/v1/nodes?watch=1&resourceVersion=$old"
check "compact: continue" '"continue":.*"reason":"Expired","code":410' get "/api/v1/nodes?limit=1&continue=$token"
control faults '{"goneAsStatus": true}' >/dev/null
check "compact: HTTP 410" 'HTTP/1.1 410' get "/api/v1/nodes?watch=1&resourceVersion=$old" -i
control faults '{"groupOff": "kilo.squat.ai"}' >/dev/null
check "groupOff" '^404 page not found' get /apis/kilo.squat.ai/v1alpha1/peers
check "groupOff in discovery" "^0$" bash -c 'get /apis | grep -c kilo'
control faults '{"groupOn": "kilo.squat.ai"}' >/dev/null
check "groupOn" '"PeerList"' get /apis/kilo.squat.ai/v1alpha1/peers
control faults '{"truncateLists": 1}' >/dev/null
check "truncateLists" "bytes remaining|transfer closed" get /api/v1/nodes
control faults '{"slow": {"secondsPerByte": 0.005, "count": 1}}' >/dev/null
check "slow" "^[1-9]" curl -sS -o /dev/null -w "%{time_total}" "$url/version"
in_background curl -sSN "$url/api/v1/nodes?watch=1"
control faults '{"disconnect": true}' >/dev/null
check "disconnect ends watches" "reset by peer|closed|Empty" background_output
check "disconnect" "reset by peer|Empty reply" get /api/v1/nodes
check "control while disconnected" '"disconnect": ?true' get /_standin/faults
control faults '{"disconnect": false}' >/dev/null
check "connected again" "NodeList" get /api/v1/nodes
control faults '{"goneAsStatus": false}' >/dev/null
old=$(version_of /api/v1/nodes)
control faults '{"restart": 1}' >/dev/null
check "restart: lists are refused at first" 'Retry-After: 1.*"reason":"TooManyRequests".*' bash -c 'get /api/v1/nodes -i | tr "\r\n" "  "'
check "restart: and watches" '"message":"storage is \(re\)initializing"' get "/api/v1/nodes?watch=1&resourceVersion=$old"
sleep 1
check "restart: then a watch is told 410 in its stream" '^{"type":"ERROR","object":{"kind":"Status".*"code":410' get "/api/v1/nodes?watch=1&resourceVersion=$old"
check "restart: a list brings everything" '"n1"' get /api/v1/nodes
check "null in a custom resource is dropped" '"spec":{"b":\[{"c":1}\]}' get /apis/culvert.dev/v1alpha1/egresspolicies -d '{"apiVersion":"culvert.dev/v1alpha1","kind":"EgressPolicy","metadata":{"name":"nulls"},"spec":{"a":null,"b":[{"c":1,"d":null}]}}'
event() { get /api/v1/namespaces/$1/events -d '{"metadata":{"name":"'"$2"'","namespace":"'"$1"'"},"involvedObject":{"apiVersion":"culvert.dev/v1alpha1","kind":"EgressPolicy","name":"nulls"'"$3"'},"reason":"R'"$2"'","message":"m","type":"Warning"}'; }
export -f event
check "an Event on what has no namespace is in default" '"code":422.*' event kube-system e0 ''
uid=$(get /apis/culvert.dev/v1alpha1/egresspolicies/nulls | sed -E 's/.*"uid":"([^"]+)".*/\1/')
event default e1 '' >/dev/null; event default e2 ',"uid":"'"$uid"'"' >/dev/null
check "describe finds Events by UID" "Warning +Re2 " k describe egresspolicies nulls
check "and no others" "^0$" bash -c 'k describe egresspolicies nulls | grep -c Re1'
get /apis/culvert.dev/v1alpha1/egresspolicies/nulls -X DELETE >/dev/null
check "apply and delete in bulk" '"done":1,"missing":1' bash -c 'control apply "[{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"b\",\"namespace\":\"made\"},\"status\":{\"phase\":\"Running\"}}]" && control delete "[{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"namespace\":\"made\",\"name\":\"b\"},{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"name\":\"none\"}]"'
check "counters" '"userAgent":"curl/.*"list":{"nodes":[0-9]+.*"maxOpenWatches":{"nodes":1},"bytesSent":[1-9]' get /_standin/counters
check "closed watches are not counted as open" '"openWatches":{"nodes":0}' get /_standin/counters

control reset >/dev/null
check "reset" '"requests":[{][}],"openWatches"' get /_standin/counters
token=$(get '/api/v1/nodes?limit=1' | sed -E 's/.*"continue":"([^"]+)".*/\1/')
check "continue before it expires" '"n2"' get "/api/v1/nodes?limit=1&continue=$token"
control faults '{"expireContinue": true}' >/dev/null
check "expireContinue" '"code":410' get "/api/v1/nodes?limit=1&continue=$token"
token=$(get "/api/v1/nodes?limit=1&continue=$token" | sed -E 's/.*"continue":"([^"]+)".*/\1/')
check "the rest, inconsistently" '"n2"' get "/api/v1/nodes?limit=1&continue=$token"
check "finalizers" '^deletionTimestamp 404$' bash -c 'p=/api/v1/namespaces/default/configmaps
    get $p -d "{\"metadata\":{\"name\":\"f\",\"finalizers\":[\"x.y/z\"]}}" >/dev/null
    get $p/f -X DELETE | grep -o deletionTimestamp | tr "\n" " "
    patch merge-patch+json $p/f "{\"metadata\":{\"finalizers\":null}}" >/dev/null
    get $p/f -o /dev/null -w "%{http_code}"'
check "deletecollection" '"items":\[\]' bash -c 'get /api/v1/namespaces/default/configmaps -X DELETE >/dev/null; get /api/v1/namespaces/default/configmaps'
check "annotations applied and withdrawn" '^1 0$' bash -c 'for a in "x.y/z: q" ""; do
    patch apply-patch+yaml "/api/v1/nodes/n2?fieldManager=m" "{apiVersion: v1, kind: Node, metadata: {annotations: {$a}}}" | sed "s/managedFields.*//" | grep -c x.y/z | tr "\n" " "
    done | sed "s/ $//"'
check "apply again is no write" '^same$' bash -c 'p="/api/v1/nodes/n2?fieldManager=m&force=true" b="{apiVersion: v1, kind: Node, metadata: {labels: {s: t}}}"
    [ "$(patch apply-patch+yaml "$p" "$b")" = "$(patch apply-patch+yaml "$p" "$b")" ] && echo same'
check "status of a node by apply" '"status":{"conditions":\[{"type":"A","status":"True"}\]}' patch apply-patch+yaml '/api/v1/nodes/n2/status?fieldManager=m' '{apiVersion: v1, kind: Node, status: {conditions: [{type: A, status: "True"}]}}'
check "chunked body" '"h":"1"' patch merge-patch+json /api/v1/nodes/n2 '{"metadata":{"labels":{"h":"1"}}}' -H 'Transfer-Encoding: chunked'

echo "# Authentication, RBAC, TLS"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout "$work/ca.key" -out "$work/ca.crt" 2>/dev/null
issue() { # FILE SUBJECT
    openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "$work/$1.key" -out "$work/$1.csr" 2>/dev/null
    openssl x509 -req -days 1 -in "$work/$1.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial \
        -extfile <(echo "subjectAltName=IP:127.0.0.1") -out "$work/$1.crt" 2>/dev/null
}
issue server /CN=server
issue client /O=system:masters/CN=alice
start tls --objects "$work/objects" --tls-cert "$work/server.crt" --tls-key "$work/server.key" --client-ca "$work/ca.crt" \
    --token-file "$work/tokens" --rbac "$work/rbac.yaml"
tls=$(cat "$work/tls.url")
export tls
kubeconfig "$work/sa.kubeconfig" "$tls" sa-token true
kubeconfig "$work/root.kubeconfig" "$tls" root-token true
sa() { timeout 60 kubectl --kubeconfig "$work/sa.kubeconfig" --cache-dir "$work/cache" "$@"; }
export -f sa
check "URL" "^https://127.0.0.1:" cat "$work/tls.url"
check "service account: allowed" "^n1 " sa get nodes
check "service account: refused" 'egresspolicies.culvert.dev is forbidden: User "system:serviceaccount:kube-system:culvert" cannot list resource "egresspolicies" in API group "culvert.dev" at the cluster scope' sa get egresspolicies
check "Role, in its namespace" "^p1 " sa get pods -n shop
check "Role, elsewhere" 'pods is forbidden: .* cannot list resource "pods" in API group "" in the namespace "default"' sa get pods
check "resourceNames: allowed" "patched" sa patch node n1 --type merge -p '{"metadata":{"labels":{"x":"y"}}}'
check "resourceNames: refused" 'nodes "n2" is forbidden' sa patch node n2 --type merge -p '{"metadata":{"labels":{"x":"y"}}}'
check "subresource: allowed" "patched" sa patch egresspolicies shop --subresource=status --type merge -p '{"status":{"x":"y"}}'
check "subresource is not the resource" 'cannot get resource "egresspolicies"' sa get egresspolicies shop
check "master" "^shop " timeout 60 kubectl --kubeconfig "$work/root.kubeconfig" --cache-dir "$work/cache" get egresspolicies
check "no token" '"code":401' curl -sS --cacert "$work/ca.crt" "$tls/api/v1/nodes"
check "client certificate" "EgressPolicyList" curl -sS --cacert "$work/ca.crt" --cert "$work/client.crt" --key "$work/client.key" "$tls/apis/culvert.dev/v1alpha1/egresspolicies"
check "control in plain text on the TLS port" '"denials":\[{"user":"system:serviceaccount' curl -sS "${tls/https/http}/_standin/counters"
check "plain text on the TLS port" "HTTP request to an HTTPS server" curl -sS "${tls/https/http}/api/v1/nodes"
curl -sS "${tls/https/http}/_standin/faults" -d '{"expireToken": "sa-token"}' >/dev/null
check "expired token" "Unauthorized|must be logged in" sa get nodes
curl -sS "${tls/https/http}/_standin/faults" -d '{"addToken": {"token": "sa-token", "user": "bob", "groups": ["system:masters"]}}' >/dev/null
check "new token" "^shop " sa get egresspolicies
watch_over_tls() { curl -sSN --max-time 3 --cacert "$work/ca.crt" -H "Authorization: Bearer root-token" "$tls/api/v1/nodes?watch=1&timeoutSeconds=1" && echo ended; }
export -f watch_over_tls
check "watch over TLS ends in time" "^ended" watch_over_tls

echo "# 5,000 nodes"
cat >"$work/many.py" <<'END'
import json, sys, threading, time, urllib.request
url = sys.argv[1]
def call(path, body=None, method=None, kind="application/json"):
    request = urllib.request.Request(url + path, body and json.dumps(body).encode(), {"Content-Type": kind}, method=method)
    return json.load(urllib.request.urlopen(request))
def node(i):
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"m{i:04}", "labels": {f"l{j}": f"v{j}" for j in range(15)},
            "annotations": {f"example.com/a{j}": "x" * 50 for j in range(15)}},
            "spec": {"podCIDR": f"10.{i >> 8}.{i & 255}.0/24"},
            "status": {"images": [{"names": ["registry/image" + "y" * 80], "sizeBytes": j} for j in range(30)]}}
began = time.time()
call("/_standin/apply", [node(i) for i in range(5000)], "POST")
print(f"bulk apply of 5000 nodes: {time.time() - began:.2f} s")
for title in "first", "second":
    began, token, count, pages, slowest, size = time.time(), "", 0, 0, 0, 0
    while True:
        page = time.time()
        data = urllib.request.urlopen(f"{url}/api/v1/nodes?limit=500&continue={token}").read()
        slowest, size = max(slowest, time.time() - page), size + len(data)
        answer = json.loads(data)
        count, pages, token = count + len(answer["items"]), pages + 1, answer["metadata"].get("continue", "")
        if not token:
            break
    print(f"list of {count} nodes in {pages} pages, {size >> 20} MiB, {title}: {time.time() - began:.2f} s, slowest page {slowest:.3f} s")
    assert count >= 5000 and slowest < 1
began, received = time.time(), []
def watch(i):
    answer = urllib.request.urlopen(f"{url}/api/v1/nodes?watch=1&timeoutSeconds=60&resourceVersion={version}")
    opened.release()
    for _ in range(500):
        assert json.loads(answer.readline())["type"] == "MODIFIED"
    received.append(time.time())
version, opened = answer["metadata"]["resourceVersion"], threading.Semaphore(0)
watchers = [threading.Thread(target=watch, args=(i,)) for i in range(50)]
for w in watchers: w.start()
for w in watchers: opened.acquire()
began = time.time()
for i in range(500):
    call(f"/api/v1/nodes/m{i:04}", {"metadata": {"annotations": {"w": "1"}}}, "PATCH", "application/merge-patch+json")
written = time.time() - began
for w in watchers: w.join(30)
assert len(received) == 50
print(f"500 patches, one after the other, with 50 watches of all nodes: {500 / written:.0f}/s; the last event {max(received) - began - written:.2f} s after")
END
start many
check "5,000 nodes" "^500 patches.* [1-9][0-9]+/s" bash -c 'python3 "$work/many.py" "$(cat "$work/many.url")" | tee "$work/many.out"'
cat "$work/many.out"
check "gzip" "Content-Encoding: gzip" curl -sS -i -o /dev/null -D - -H "Accept-Encoding: gzip" "$(cat "$work/many.url")/api/v1/nodes?limit=500"
check "no gzip of what is small" "^0$" bash -c 'curl -sS -i -H "Accept-Encoding: gzip" "$(cat "$work/many.url")/api/v1/nodes?limit=1" | grep -ci content-encoding'

echo "# Python client"
venv=${STANDIN_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || { python3 -m venv "$venv" && "$venv/bin/pip" -q install kubernetes cel-python >"$work/pip.log" 2>&1 || cat "$work/pip.log"; }
control faults '{"goneAsStatus": false, "refuseSendInitialEvents": false}' >/dev/null
cat >"$work/client.py" <<'END'
import sys, threading, urllib.request
from kubernetes import client, config, watch
config.load_kube_config(sys.argv[1])
core, objects = client.CoreV1Api(), client.CustomObjectsApi()
def ok(name, condition): print("ok" if condition else "FAIL", "", name)
first = core.list_node(limit=2)
names, token = [n.metadata.name for n in first.items], first.metadata._continue
while token:
    page = core.list_node(limit=2, _continue=token)
    names, token = names + [n.metadata.name for n in page.items], page.metadata._continue
ok("list in pages", names == sorted(names) == ["n1", "n2", "n3"] and first.metadata.remaining_item_count == 1)
version = core.list_node().metadata.resource_version
core.patch_node("n1", {"metadata": {"annotations": {"py": "1"}}})
ok("patch", core.read_node("n1").metadata.annotations["py"] == "1")
events = [(e["type"], e["object"].metadata.name) for e in
          watch.Watch().stream(core.list_node, resource_version=version, timeout_seconds=1)]
ok(f"watch from a resource version {events}", events == [("MODIFIED", "n1")])
try:
    body = core.read_node("n1"); body.metadata.resource_version = "1"; core.replace_node("n1", body); ok("conflict", False)
except client.ApiException as e: ok("conflict", e.status == 409)
core.patch_node("n1", {"metadata": {"annotations": {"py": "2"}}})
urllib.request.urlopen(sys.argv[2] + "/_standin/faults", b'{"compact": true}').read()
try:
    for _ in watch.Watch().stream(core.list_node, resource_version=version, timeout_seconds=2): pass
    ok("410 in a watch", False)
except client.ApiException as e: ok("410 in a watch", e.status == 410)
policy = {"apiVersion": "culvert.dev/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": "py"}, "spec": {"a": 1}}
created = objects.create_cluster_custom_object("culvert.dev", "v1alpha1", "egresspolicies", policy)
created["spec"]["a"] = 2
replaced = objects.replace_cluster_custom_object("culvert.dev", "v1alpha1", "egresspolicies", "py", created)
ok("custom object", replaced["metadata"]["generation"] == 2 and created["metadata"]["uid"] == replaced["metadata"]["uid"])
objects.delete_cluster_custom_object("culvert.dev", "v1alpha1", "egresspolicies", "py")
lease = client.CoordinationV1Api().create_namespaced_lease("default", {"metadata": {"name": "l"}, "spec": {"holderIdentity": "x"}})
ok("lease", lease.spec.holder_identity == "x")
try: core.read_namespaced_pod("none", "shop"); ok("not found", False)
except client.ApiException as e: ok("not found", e.status == 404)
END
"$venv/bin/python" "$work/client.py" "$work/open.kubeconfig" "$url" >"$work/client.out" 2>&1
status=$?
sed 's/^ok /ok   /; s/^FAIL /FAIL /' "$work/client.out"
checks=$((checks + 8))
[ $status = 0 ] && [ "$(grep -c '^ok ' "$work/client.out")" = 8 ] || failed=$((failed + 1))
echo "# The definition of EgressPolicy"
"$venv/bin/python" "$here/crd.py" >"$work/crd.out" 2>&1 || { failed=$((failed + 1)); grep -v '^ok ' "$work/crd.out"; }
checks=$((checks + 1))
tail -n 1 "$work/crd.out" | sed 's/^/ok    of the CRD: /'
echo "# Admission policies"
check "kubectl takes them" "^validatingadmissionpolicybinding.admissionregistration.k8s.io/culvertd-own-node created \(dry run\)" \
    k apply --dry-run=client --validate=false -f "$here/../../install/kubernetes/base/admission.yaml"
"$venv/bin/python" "$here/admission.py" >"$work/admission.out" 2>&1 || { failed=$((failed + 1)); grep -v '^ok ' "$work/admission.out"; }
checks=$((checks + 1))
tail -n 1 "$work/admission.out" | sed 's/^/ok    of the admission policies: /'
check "no exception in any stand-in" "^0$" bash -c 'cat "$work"/*.log | grep -c Traceback'

echo "$((checks - failed)) of $checks checks passed"
[ "$failed" = 0 ]
