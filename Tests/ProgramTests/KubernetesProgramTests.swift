import CLinux
import Foundation
import Jansson
import TestSupport
import Testing

/// The helpers with the API (the stand-in) as their inventory, and nothing else.
@Suite(.serialized, .enabled(if: Lab.isPossible, "needs root and CULVERT_LAB=1"))
struct KubernetesProgramTests {
    /// A cluster whose objects are in the API server, with exactly the verbs of install/kubernetes/base/rbac.yaml.
    final class Cluster {
        let api: APIServer
        let lab: Lab

        init(_ name: String) throws {
            api = try APIServer.withRoles(name)
            lab = try Lab(
                name, configuration: "inventory: {source: kubernetes, kubeconfig: \(api.kubeconfig)}\n",
                extra: ["LAB_API": "\(api.socket)"])
            // What the lab knows as files goes into the server, and the files away.
            Shell.run(
                """
                cd \(lab.directory)/inventory && for f in *.yaml; do
                    /usr/bin/python3 -c 'import sys, json, yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))' $f |
                        curl -sf --unix-socket \(api.socket) --data-binary @- http://localhost/_standin/apply > /dev/null
                    rm $f
                done
                """)
        }

        func apply(yaml: String) {
            Shell.run(
                "/usr/bin/python3 -c 'import sys, json, yaml; print(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d]))' | curl -sf --unix-socket \(api.directory)/api.unix --data-binary @- http://localhost/_standin/apply",
                input: yaml)
        }

        /// Makes the Pod object, as the scheduler and the kubelet would have by the time of an ADD: it has no address yet.
        func makePod(_ name: String, on node: String, app: String) {
            api.apply([
                "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"namespace\":\"default\",\"name\":\"\(name)\",\"labels\":{\"app\":\"\(app)\"}},\"spec\":{\"nodeName\":\"\(node)\",\"containers\":[]},\"status\":{\"phase\":\"Pending\"}}"
            ])
        }
        func arguments(_ name: String, uid: String? = nil) -> [String: String] {
            let known = api.get("/api/v1/namespaces/default/pods/\(name)")?["metadata"]?["uid"]?.string
            return [
                "LAB_CNI_ARGS":
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=\(name);K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=\(uid ?? known ?? "none")"
            ]
        }
        /// A pod with its object, and its ADD.
        func pod(_ name: String, on node: String, last: Int, app: String, routing: Lab.Routing = .stack) throws {
            makePod(name, on: node, app: app)
            try lab.pod(name, on: node, last: last, routing: routing, extra: arguments(name))
        }
        func status(_ node: String) -> JSON? { lab.api(node, "/v1/status") }
    }

    /// What the first pod of a policy needs is there as soon as the scheduler has bound it, and goes with a pod that never comes.
    @Test(arguments: Lab.Routing.allCases)
    func whatAPodNeedsIsMadeWhenItIsBoundToTheNode(_ routing: Lab.Routing) throws {
        let cluster = try Cluster(routing == .stack ? "kxs" : "kxe")
        let lab = cluster.lab
        cluster.apply(yaml: Lab.policy("shop", app: "shop"))
        try lab.start("n1", "n3")
        /// Of policies: not the rules, and not what rules have besides.
        func made() -> String {
            lab.run(in: "n1", "bash -c 'ip route show table all proto 110; ip nexthop; ip -br link show type vxlan'")
                .output
        }
        func tables() -> [Substring] { made().split(separator: "\n").filter { $0.contains("table 47") } }
        func rules() -> String { lab.run(in: "n1", "ip rule show priority 106").output }
        #expect(tables().isEmpty)
        cluster.makePod("a", on: "n1", app: "shop")
        cluster.makePod("never", on: "n1", app: "shop")
        cluster.makePod("elsewhere", on: "n2", app: "shop")
        #expect(lab.eventually { !tables().isEmpty })
        #expect(rules() == "", "nothing leads there before the ADD")
        #expect(lab.ctl("n1", "attachments").output.contains("default/") == false, "they are no attachments yet")
        let before = made()
        try lab.pod("a", on: "n1", last: 10, routing: routing, extra: cluster.arguments("a"))
        #expect(lab.pings("a", "203.0.113.10", count: 3))
        #expect(lab.seen("pings") == ["10.0.0.13 > 203.0.113.10": 3])
        #expect(made() == before && rules() != "")
        // A pod that is gone before its ADD, like the last one of its policy, takes all of it along.
        #expect(lab.plugin("n1", "DEL", "a", extra: cluster.arguments("a")).status == 0)
        #expect(rules() == "" && made() == before, "another pod is still expected")
        cluster.api.delete([
            #"{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"default","name":"never"}}"#,
            #"{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"default","name":"a"}}"#,
        ])
        #expect(lab.eventually { tables().isEmpty })
        #expect(lab.ctl("n1", "diff").status == 0)
    }

    @Test func theClusterIsAllThatThePodNeeds() throws {
        let cluster = try Cluster("ka")
        let lab = cluster.lab
        cluster.apply(yaml: Lab.policy("shop", app: "shop"))
        try lab.start("n1", "n2", "n3")
        try cluster.pod("a", on: "n1", last: 10, app: "shop")
        try cluster.pod("b", on: "n1", last: 11, app: "shop", routing: .ebpf)
        try cluster.pod("c", on: "n1", last: 12, app: "other")
        for pod in ["a", "b", "c"] { #expect(lab.pings(pod, "203.0.113.10", count: 3)) }
        #expect(lab.seen("pings") == ["10.0.0.13 > 203.0.113.10": 6, "10.0.0.11 > 203.0.113.10": 3])
        // The gateway moves with a change of the policy, and with a label of a node.
        cluster.apply(yaml: Lab.policy("shop", app: "shop", zone: "z2"))
        #expect(
            lab.eventually {
                lab.forgetSeen()
                return lab.pings("a", "203.0.113.10") && lab.seen("pings") == ["10.0.0.12 > 203.0.113.10": 1]
            })
        // The gateway's own word on its address, which its CiliumNode does not say.
        func egress() -> String? {
            lab.api("n1", "/v1/attachments")?.elements?.first { $0["name"]?.string == "a" }?["policies"]?.elements?
                .first?[
                    "egressAddress"]?.string
        }
        #expect(lab.eventually { egress() == "10.0.0.12" }, "\(egress() ?? "none")")
        // The Node says what others need to know.
        let annotations = cluster.api.get("/api/v1/nodes/n1")?["metadata"]?["annotations"]
        #expect(annotations?["kilo.squat.ai/cilium-internal-ip"]?.string == "10.244.1.1")
        #expect(annotations?["culvert.dev/egress-address"]?.string == "10.0.0.11")
        // Exactly those verbs; one watch of everything.
        let counters = cluster.api.counters()
        #expect(counters.denials.isEmpty, "\(counters.denials)")
        #expect(counters.mostWatches.values.allSatisfy { $0 <= 1 })
        #expect(Set(counters.mostWatches.keys).count == 8)
        // How the pods were judged, in the status; the token nowhere.
        let lookups = cluster.status("n1")?["inventory"]?["podLookups"]
        let count = (lookups?.members ?? []).reduce(0) { $0 + ($1.value["count"]?.integer ?? 0) }
        #expect(count == 3, "\(lookups?.text() ?? "")")
        #expect(lab.ctl("n1", "status").output.contains("pods identified by"))
        for node in ["n1", "n2", "n3"] {
            let said = lab.log(node) + lab.ctl(node, "status -o json").output + lab.ctl(node, "plan").output
            #expect(!said.isEmpty && !said.contains("SECRET-T1"))
        }
    }

    @Test func aPolicySaysWhatBecameOfIt() throws {
        let cluster = try Cluster("kb")
        let lab = cluster.lab
        for (name, zone) in [("one", "z2"), ("two", "z9")] {
            cluster.apply(
                yaml: Lab.policy(name, app: "shop", zone: zone, kind: "EgressPolicy"))
        }
        // On a node without a helper: the status is of the whole cluster.
        for (pod, app) in [("a", "shop"), ("b", "shop"), ("c", "other")] { cluster.makePod(pod, on: "n3", app: app) }
        try lab.start("n1", "n2")
        func status(_ name: String) -> JSON? {
            cluster.api.get("/apis/culvert.dev/v1alpha1/egresspolicies/\(name)")?["status"]
        }
        #expect(
            lab.eventually { status("one")?["activeGateways"]?.elements?.first?.string == "n2" },
            "\(status("one")?.text() ?? "")")
        #expect(status("one")?["reason"]?.string == "")
        #expect(lab.eventually { status("one")?["selectedPods"]?.integer == 2 }, "\(status("one")?.text() ?? "")")
        #expect(
            lab.eventually { status("two")?["reason"]?.string?.isEmpty == false }, "\(status("two")?.text() ?? "")")
        #expect(lab.eventually { status("two")?["selectedPods"]?.integer == 2 })
        usleep(500_000)
        let writes = cluster.api.counters().requests["patch egresspolicies.culvert.dev/status"]
        usleep(3_000_000)
        #expect(cluster.api.counters().requests["patch egresspolicies.culvert.dev/status"] == writes)
        #expect(cluster.api.counters().denials.isEmpty)
    }

    /// Who uses the policy says which gateway is active: the one that was is dead, and says nothing any more.
    @Test func aPolicySaysWhichGatewayIsActiveAfterAFailOver() throws {
        let cluster = try Cluster("kf")
        let lab = cluster.lab
        cluster.apply(
            yaml: """
                apiVersion: culvert.dev/v1alpha1
                kind: EgressPolicy
                metadata: {name: shop}
                spec:
                  selectors: [{podSelector: {matchLabels: {app: shop}}}]
                  destinationCIDRs: [0.0.0.0/0]
                  egressGateways:
                  - {nodeSelector: {matchLabels: {zone: z2}}, egressIP: 192.0.2.21}
                  - {nodeSelector: {matchLabels: {zone: z3}}, egressIP: 192.0.2.31}
                """)
        func status() -> JSON? { cluster.api.get("/apis/culvert.dev/v1alpha1/egresspolicies/shop")?["status"] }
        func says(_ gateways: [String], _ candidates: String) -> Bool {
            status()?["activeGateways"]?.elements?.map { $0.string ?? "" } == gateways
                && status()?["candidates"]?.string == candidates
        }
        var text: Comment { "\(status()?.text() ?? "none")" }
        try lab.start("n1", "n2", "n3")
        // Nobody uses it yet: the preferred candidate says that it is there.
        #expect(lab.eventually(20) { says(["n2"], "? of 2") }, text)
        try cluster.pod("a", on: "n1", last: 10, app: "shop")
        #expect(lab.eventually(20) { says(["n2"], "2 of 2") }, text)
        #expect(lab.eventually(20) { status()?["selectedPods"]?.integer == 1 }, text)
        let since = status()?["since"]?.string
        #expect(since?.isEmpty == false)
        usleep(1_100_000)
        // The gateway is dead with its helper.
        lab.kill("n2", signal: SIGKILL)
        lab.run(in: "r", "ip link set to-n2 down")
        #expect(lab.eventually(20) { says(["n3"], "1 of 2") }, text)
        #expect(status()?["since"]?.string != since && status()?["reason"]?.string == "", text)
        #expect(status()?["selectedPods"]?.integer == 1, "it is carried on")
        // The other one too.
        lab.run(in: "r", "ip link set to-n3 down")
        #expect(lab.eventually(20) { says([], "0 of 2") }, text)
        #expect(status()?["reason"]?.string == "all its gateways are down: n2, n3", text)
        // Nobody says anything again.
        let writes = cluster.api.counters().requests["patch egresspolicies.culvert.dev/status"] ?? 0
        #expect(writes <= 10, "\(writes)")
        sleep(4)
        #expect(cluster.api.counters().requests["patch egresspolicies.culvert.dev/status"] ?? 0 == writes)
        #expect(cluster.api.counters().denials.isEmpty)
    }

    @Test func podsWithoutAnADDAreAdoptedAndAnEventSaysForWhichThePluginWasNotCalled() throws {
        let cluster = try Cluster("kc")
        let lab = cluster.lab
        // The plugin is in the chain for long.
        Shell.run(
            """
            mkdir -p \(lab.directory)/n1/state && chown 65534:65534 \(lab.directory)/n1/state
            echo '{"since": "2020-01-01T00:00:00Z", "found": false, "allowsWithoutHelper": false}' > \(lab.directory)/n1/state/chained.json
            """)
        cluster.apply(yaml: Lab.policy("shop", app: "shop"))
        cluster.api.apply(
            [
                ("old", "shop", "", "Running", "10.244.1.20"),
                ("host", "shop", "\"hostNetwork\":true,", "Running", "10.0.0.11"),
                ("done", "shop", "", "Succeeded", "10.244.1.21"),
            ].map { name, app, spec, phase, address in
                "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"namespace\":\"default\",\"name\":\"\(name)\",\"labels\":{\"app\":\"\(app)\"}},\"spec\":{\(spec)\"nodeName\":\"n1\",\"containers\":[]},\"status\":{\"phase\":\"\(phase)\",\"podIPs\":[{\"ip\":\"\(address)\"}]}}"
            })
        try lab.start("n1", "n3")
        let attachments = lab.api("n1", "/v1/attachments")?.elements ?? []
        #expect(attachments.count == 1 && attachments.first?["adopted"]?.bool == true, "\(attachments)")
        #expect(lab.run(in: "n1", "ip rule show").output.contains("from 10.244.1.20 lookup 47000"))
        #expect(attachments.first?["adoption"]?.string == "pluginNotCalled", "\(attachments)")
        func event() -> JSON? {
            cluster.api.get("/api/v1/namespaces/default/events")?["items"]?.elements?.first {
                $0["reason"]?.string == "PluginNotCalled"
            }
        }
        #expect(lab.eventually { event() != nil }, "\(lab.log("n1").suffix(1000))")
        #expect(event()?["involvedObject"]?["name"]?.string == "old")
        #expect(event()?["message"]?.string?.contains("on n1: the pod started without Culvert") == true)
    }

    /// The kubelet reports a pod's end some seconds after its DEL, and until then the API shows it running with its address.
    @Test func aPodThatWasDeletedHereIsNotAdopted() throws {
        let cluster = try Cluster("kg")
        let lab = cluster.lab
        cluster.apply(yaml: Lab.policy("shop", app: "shop"))
        try lab.start("n1", "n3")
        func setAddress(_ name: String, _ last: Int) {
            cluster.api.control(
                "apply",
                "{\"merge\":true,\"items\":[{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"namespace\":\"default\",\"name\":\"\(name)\"},\"status\":{\"phase\":\"Running\",\"podIPs\":[{\"ip\":\"10.244.1.\(last)\"}]}}]}"
            )
        }
        func listed() -> [String] {
            (lab.api("n1", "/v1/attachments")?.elements ?? []).map { $0["name"]?.string ?? "" }.sorted()
        }
        try cluster.pod("a", on: "n1", last: 10, app: "shop")
        setAddress("a", 10)
        // A pod that stays, by which it is seen that the watches have brought what came before.
        try cluster.pod("b", on: "n1", last: 11, app: "shop")
        #expect(listed() == ["a", "b"])
        #expect(lab.plugin("n1", "DEL", "a").status == 0)
        #expect(listed() == ["b"])
        cluster.makePod("c", on: "n1", app: "shop")
        setAddress("c", 12)
        #expect(lab.eventually { listed() == ["b", "c"] }, "c was never attached here: \(listed())")
        // Neither is it after a restart of the helper.
        lab.kill("n1")
        try lab.start("n1")
        #expect(lab.eventually { listed() == ["b", "c"] }, "\(listed())")
        usleep(500_000)
        #expect(listed() == ["b", "c"])
        #expect(!lab.run(in: "n1", "ip rule show").output.contains("from 10.244.1.10 "))
    }

    @Test func withoutTheServerNothingIsLost() throws {
        let cluster = try Cluster("kd")
        let lab = cluster.lab
        // A minute of the world's time. (Ten of a clock's own: KubernetesInventoryTests.)
        let seconds = 60.0
        // The nodes hear of a move at different times, which is no matter of this test: a's gateway stays.
        func shop(_ zone: String) -> String {
            Lab.policy("shop", app: "shop", zone: zone, kind: "EgressPolicy", more: "allowAnnotation: [default]")
        }
        cluster.apply(yaml: shop("z3") + Lab.policy("still", app: "still"))
        try lab.start("n1", "n2", "n3")
        try cluster.pod("a", on: "n1", last: 10, app: "still")
        try cluster.pod("b", on: "n1", last: 11, app: "shop")
        cluster.makePod("known", on: "n1", app: "shop")
        let known = cluster.arguments("known")
        #expect(lab.eventually { (cluster.status("n1")?["inventory"]?["podLookups"] != nil) })
        usleep(500_000)
        let outcome = "\(lab.directory)/ping"
        Shell.run(
            "ip netns exec \(lab.prefix)-a ping -n -q -i 0.2 -w \(Int(seconds) + 4) 203.0.113.10 > \(outcome) 2>&1 < /dev/null & sleep 0.5"
        )
        cluster.api.fault("{\"disconnect\":true}")
        let cut = Date()
        #expect(lab.eventually { cluster.status("n1")?["warnings"]?.elements?.isEmpty == false })
        // A pod that the watch knew, one that nobody knows, and one that decides by itself.
        try lab.pod("known", on: "n1", last: 12, extra: known)
        #expect(lab.pings("known", "203.0.113.10"))
        let refused = #expect(throws: Lab.Failure.self) {
            try lab.pod(
                "unknown", on: "n1", last: 13,
                extra: cluster.arguments("unknown", uid: "u").merging(["LAB_TIMEOUT": "3"]) { _, new in new })
        }
        #expect(
            refused?.description.contains("\"code\": 11") == true
                || refused?.description.contains("\"code\":11") == true, "\(refused?.description ?? "")")
        #expect(refused?.description.contains("cannot be identified") == true)
        // (The policy permits it; else its labels would have to be known.)
        try lab.pod(
            "decided", on: "n1", last: 14,
            extra: cluster.arguments("decided", uid: "v").merging([
                "LAB_RUNTIME_CONFIG":
                    "{\"io.kubernetes.cri.pod-annotations\": {\"culvert.dev/egress-policy\": \"shop\"}}"
            ]) { _, new in new })
        #expect(lab.pings("decided", "203.0.113.10"))
        #expect(lab.plugin("n1", "DEL", "b").status == 0)
        // A helper that starts now goes on from its disk, and says so.
        lab.kill("n1")
        try lab.start("n1")
        #expect(lab.ctl("n1", "status").output.contains("NOT REACHED: from disk"), "\(lab.ctl("n1", "status").output)")
        #expect(lab.ctl("n1", "diff").output == "[]\n")
        #expect(lab.pings("known", "203.0.113.10"))
        // What happens meanwhile is found when it comes back.
        cluster.apply(yaml: shop("z2"))
        let left = seconds - Date().timeIntervalSince(cut)
        if left > 0 { usleep(UInt32(left * 1_000_000)) }
        cluster.api.fault("{\"disconnect\":false}")
        #expect(lab.eventually(60) { lab.ctl("n1", "status").output.contains("NOT REACHED") == false })
        #expect(
            lab.eventually {
                lab.forgetSeen()
                return lab.pings("known", "203.0.113.10") && lab.seen("pings") == ["10.0.0.12 > 203.0.113.10": 1]
            })
        #expect(lab.eventually(60) { Shell.run("cat \(outcome)").output.contains("transmitted") })
        #expect(Shell.run("cat \(outcome)").output.contains(" 0% packet loss"), "\(Shell.run("cat \(outcome)").output)")
        func names() -> Set<String> {
            Set((lab.api("n1", "/v1/attachments")?.elements ?? []).compactMap { $0["name"]?.string })
        }
        #expect(lab.eventually { names() == ["a", "known", "decided"] }, "\(names())")
    }

    @Test func whatIsRefusedIsAnEvent() throws {
        let cluster = try Cluster("ke")
        let lab = cluster.lab
        cluster.apply(
            yaml: Lab.policy("shop", app: "shop", zone: "z9") + Lab.policy("bad", app: "bad", more: "mystery: 1"))
        cluster.apply(
            yaml:
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config, namespace: kube-system}\ndata: {enable-egress-gateway: \"true\", enable-endpoint-routes: \"true\"}\n---\n"
                + Lab.policy("here", app: "none", zone: "z1") + Lab.policy("idle", app: "none", zone: "z9"))
        try lab.start("n1")
        try cluster.pod("a", on: "n1", last: 10, app: "shop")
        #expect(throws: Lab.Failure.self) { try cluster.pod("b", on: "n1", last: 11, app: "bad") }
        func events() -> [String] {
            (cluster.api.get("/api/v1/events")?["items"]?.elements ?? []).map {
                "\($0["involvedObject"]?["kind"]?.string ?? "") \($0["involvedObject"]?["name"]?.string ?? "") \($0["reason"]?.string ?? "")"
            }.sorted()
        }
        #expect(
            lab.eventually {
                events() == [
                    "CiliumEgressGatewayPolicy here CiliumEgressGatewayActive",
                    // No pod uses it.
                    "CiliumEgressGatewayPolicy idle NoGateway",
                    "CiliumEgressGatewayPolicy shop NoGateway", "Pod b EgressRefused",
                ]
            },
            "\(events())")
        #expect(lab.ctl("n1", "status").output.contains("switch one off"))
    }

    /// In one of two starts the rules of all pods were taken away for some milliseconds, before this was mended: events were
    /// served before what was had been loaded.
    @Test func aHelperThatStartsWithTheAPITakesNoRuleAway() throws {
        let cluster = try Cluster("kr")
        let lab = cluster.lab
        cluster.apply(yaml: Lab.policy("shop", app: "shop"))
        try lab.start("n1", "n3")
        for number in 0..<4 { try cluster.pod("t\(number)", on: "n1", last: 10 + number, app: "shop") }
        let binary = "\(lab.directory)/traffic"
        #expect(Shell.run("gcc -O2 -o \(binary) \(Shell.packageRoot)/Tests/Lab/traffic.c").status == 0)
        let namespaces = (0..<4).map { "/run/netns/\(lab.prefix)-t\($0)" }.joined(separator: " ")
        Shell.run(
            "(exec \(binary) 500 600 203.0.113.10 9000 \(namespaces) > /dev/null 2>&1 < /dev/null) & echo $! > \(lab.directory)/traffic.pid"
        )
        usleep(300_000)
        lab.forgetSeen()
        let rounds = ProcessInfo.processInfo.environment["CULVERT_WHOLE"] == "1" ? 50 : 5
        for round in 0..<rounds {
            for signal in [SIGKILL, SIGTERM] {
                lab.kill("n1", signal: signal)
                try lab.start("n1")
                // The watches report, and other things change.
                cluster.apply(yaml: Lab.policy("other\(round)", app: "other"))
            }
        }
        let seen = lab.seen("datagrams")
        #expect(seen.keys.sorted() == ["10.0.0.13 > 203.0.113.10"], "\(seen)")
        #expect((seen["10.0.0.13 > 203.0.113.10"] ?? 0) > 1000)
        #expect(lab.ctl("n1", "diff").output == "[]\n")
    }
}
