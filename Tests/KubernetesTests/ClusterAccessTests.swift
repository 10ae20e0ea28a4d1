import ClusterTransport
import Foundation
import TestSupport
import Testing

@testable import Kubernetes

@Suite struct ClusterAccessTests {
    /// A directory of this test's own.
    final class Folder {
        let path = NSTemporaryDirectory() + "\(Shell.prefix)-\(UUID().uuidString)"
        init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }
        deinit { try? FileManager.default.removeItem(atPath: path) }
        func write(_ name: String, _ text: String, mode: Int = 0o600) throws -> String {
            let file = path + "/" + name
            guard mode & 0o100 != 0 else {
                try text.write(toFile: file, atomically: true, encoding: .utf8)
                try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: file)
                return file
            }
            // A program is written by another process: a child that another test forks meanwhile would have our file open for
            // writing, and the kernel does not execute such a file (ETXTBSY).
            try text.write(toFile: file + ".text", atomically: true, encoding: .utf8)
            let copy = try Process.run(
                URL(fileURLWithPath: "/usr/bin/install"),
                arguments: ["-m", String(mode, radix: 8), file + ".text", file])
            copy.waitUntilExit()
            return file
        }
    }

    static func config(user: String, cluster: String = "server: https://10.0.0.1:6443/") -> String {
        """
        apiVersion: v1
        kind: Config
        current-context: one
        contexts:
          - {name: one, context: {cluster: c, user: u}}
          - {name: two, context: {cluster: d, user: u}}
        clusters:
          - name: c
            cluster: {\(cluster)}
          - name: d
            cluster: {server: "https://other:443", insecure-skip-tls-verify: true}
        users:
          - name: u
            user: {\(user)}
        """
    }

    @Test func tokensContextsAndServers() throws {
        let folder = try Folder()
        let path = try folder.write("config", Self.config(user: "token: T"))
        let first = try ClusterAccess.kubeconfig(path)
        #expect(first.server == "https://10.0.0.1:6443" && first.credential == .token("T"))
        let second = try ClusterAccess.kubeconfig(path, context: "two")
        #expect(second.server == "https://other:443" && second.skipsVerification)
        #expect(try ClusterAccess.kubeconfig(path, server: "https://localhost:7445").server == "https://localhost:7445")
    }

    @Test func filesAreRelativeToTheKubeconfig() throws {
        let folder = try Folder()
        _ = try folder.write("ca.pem", "CA", mode: 0o644)
        _ = try folder.write("chain.pem", "CHAIN", mode: 0o644)
        _ = try folder.write("key.pem", "KEY")
        let path = try folder.write(
            "config",
            Self.config(
                user: "client-certificate: chain.pem, client-key: key.pem",
                cluster: "server: https://s, certificate-authority: ca.pem"))
        let access = try ClusterAccess.kubeconfig(path)
        #expect(access.certificateAuthority == Array("CA".utf8))
        #expect(access.credential == .certificate(chain: Array("CHAIN".utf8), key: Array("KEY".utf8)))
        let data = try folder.write(
            "data", Self.config(user: "client-certificate-data: Q0hBSU4=, client-key-data: S0VZ"))
        #expect(try ClusterAccess.kubeconfig(data).credential == access.credential)
    }

    @Test(arguments: [
        ("no: thing", "has no current-context"), ("- a list", "is not a kubeconfig"), ("{", "config"),
        ("current-context: x", "there is no context \"x\""),
    ])
    func whatIsNoKubeconfig(_ text: String, _ message: String) throws {
        let folder = try Folder()
        let path = try folder.write("config", text)
        let error = #expect(throws: ClusterAccess.Failure.self) { try ClusterAccess.kubeconfig(path) }
        #expect(error?.description.contains(message) == true, "\(error?.description ?? "")")
    }

    @Test(arguments: [
        "users: [{name: u, user: {token: SECRET-T}}\ncurrent-context: x: y", "token: 'SECRET-T", "SECRET-T: [",
        "SECRET-T: a\nSECRET-T: b",
    ])
    func anErrorNeverShowsALineOfTheKubeconfig(_ text: String) throws {
        let folder = try Folder()
        let path = try folder.write("config", text)
        let error = #expect(throws: ClusterAccess.Failure.self) { try ClusterAccess.kubeconfig(path) }
        #expect(error?.description.contains("SECRET") == false, "\(error?.description ?? "")")
        #expect(error?.description.contains("is not YAML") == true)
    }

    @Test func secretsThatEverybodyCanReadAreRefused() throws {
        let folder = try Folder()
        let open = try folder.write("config", Self.config(user: "token: T"), mode: 0o644)
        let error = #expect(throws: ClusterAccess.Failure.self) { try ClusterAccess.kubeconfig(open) }
        #expect(error?.description.contains("chmod 600") == true && error?.description.contains("T\"") == false)
        _ = try folder.write("key.pem", "KEY", mode: 0o644)
        _ = try folder.write("chain.pem", "CHAIN")
        let path = try folder.write(
            "other", Self.config(user: "client-certificate: chain.pem, client-key: key.pem"))
        #expect(throws: ClusterAccess.Failure.self) { try ClusterAccess.kubeconfig(path) }
    }

    @Test func inThePod() throws {
        let folder = try Folder()
        _ = try folder.write("token", "T\n", mode: 0o644)
        let variables = ["KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"]
        let access = try ClusterAccess.inCluster(environment: variables, directory: folder.path)
        #expect(access.server == "https://[fd00::1]:6443" && access.credential == .tokenFile(folder.path + "/token"))
        let local = try ClusterAccess.inCluster(
            server: "https://localhost:7445", environment: [:], directory: folder.path)
        #expect(local.server == "https://localhost:7445")
        #expect(throws: ClusterAccess.Failure.self) {
            try ClusterAccess.inCluster(environment: [:], directory: folder.path)
        }
        #expect(throws: ClusterAccess.Failure.self) {
            try ClusterAccess.inCluster(environment: variables, directory: folder.path + "/none")
        }
    }

    @Test func execPlugins() async throws {
        let folder = try Folder()
        let program = try folder.write(
            "plugin",
            """
            #!/bin/sh
            echo "$KUBERNETES_EXEC_INFO" | grep -q '"interactive":false' || exit 3
            echo "{\\"kind\\":\\"ExecCredential\\",\\"status\\":{\\"token\\":\\"$1-$EXTRA\\",\\"expirationTimestamp\\":\\"2030-01-01T00:00:00Z\\"}}"
            """, mode: 0o700)
        let path = try folder.write(
            "config",
            Self.config(
                user:
                    "exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, args: [a], env: [{name: EXTRA, value: b}]}"
            ))
        guard case .exec(let plugin) = try ClusterAccess.kubeconfig(path).credential else {
            Issue.record("no exec credential")
            return
        }
        let credential = try await plugin.run()
        #expect(credential.token == "a-b" && credential.expires != nil)
        try FileManager.default.removeItem(atPath: program)
        await #expect(throws: (any Error).self) { try await plugin.run() }
    }

    @Test func proxiesAndNamesOfServers() throws {
        let folder = try Folder()
        func access(_ cluster: String) throws -> ClusterAccess {
            try ClusterAccess.kubeconfig(
                try folder.write("config", Self.config(user: "token: T", cluster: "server: https://s, \(cluster)")))
        }
        let one = try access("tls-server-name: kubernetes, proxy-url: \"http://p:3128\"")
        #expect(one.tlsServerName == "kubernetes" && one.proxy?.host == "p" && one.proxy?.port == 3128)
        #expect(one.proxy?.isSOCKS == false)
        let two = try access("proxy-url: \"socks5://127.0.0.1\"").proxy
        #expect(two?.isSOCKS == true && two?.port == 1080)
        for bad in ["ftp://p:1", "https://p:1", "http://u:pw@p:1", "p:1", "http://"] {
            let error = #expect(throws: ClusterAccess.Failure.self) { try access("proxy-url: \"\(bad)\"") }
            #expect(error?.description.contains("proxy") == true)
            #expect(error?.description.contains("pw@") == false)
        }
    }

    /// Certificates for a name that is not the address's own, a client certificate, a proxy on the way, and all of it
    /// renewed under a running client.
    @Test func aServerByAnotherNameThroughAProxyWithCertificatesThatAreRenewed() async throws {
        let folder = try Folder()
        func certificates() {
            Shell.run(
                """
                cd \(folder.path) && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca 2> /dev/null
                sign() {
                    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $1.key -out $1.csr -subj "$2" 2> /dev/null
                    printf 'subjectAltName=DNS:kubernetes\nextendedKeyUsage=serverAuth,clientAuth\n' > $1.ext
                    openssl x509 -req -in $1.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out $1.crt -days 2 -extfile $1.ext 2> /dev/null
                }
                sign server /CN=server && sign client /O=system:masters/CN=admin && chmod 600 *.key
                """)
        }
        certificates()
        let options =
            "--tls-cert \(folder.path)/server.crt --tls-key \(folder.path)/server.key --client-ca \(folder.path)/ca.crt"
        var server: APIServer? = try APIServer("tls", arguments: options)
        let url = server?.url ?? ""
        let port = Int(url.split(separator: ":").last ?? "") ?? 0
        func write(_ name: String, _ cluster: String) throws -> ClusterAccess {
            try ClusterAccess.kubeconfig(
                try folder.write(
                    name,
                    Self.config(
                        user: "client-certificate: client.crt, client-key: client.key",
                        cluster: "server: \"\(url)\", certificate-authority: ca.crt\(cluster)")))
        }
        let proxy = try Proxy()
        let named = try KubernetesClient(
            access: write("named", ", tls-server-name: kubernetes"), userAgent: "t", renewal: .milliseconds(100))
        let nameless = try KubernetesClient(access: write("nameless", ""), userAgent: "t")
        let proxied = try KubernetesClient(
            access: write("proxied", ", tls-server-name: kubernetes, proxy-url: \"http://127.0.0.1:\(proxy.port)\""),
            userAgent: "t")
        func works(_ client: KubernetesClient) async -> Bool {
            (try? await client.get(.namespaces, name: "default")) != nil
        }
        #expect(await works(named))
        #expect(await works(nameless) == false, "the certificate is for another name")
        #expect(await works(proxied) && proxy.connections >= 1)
        // Another authority altogether.
        server = nil
        certificates()
        server = try APIServer("tls", arguments: options, port: port)
        try await Task.sleep(for: .milliseconds(200))
        #expect(await works(named))
        #expect(named.renewalProblem.isEmpty)
        #expect(await works(proxied) == false, "it has not looked yet")
        for client in [named, nameless, proxied] { await client.shutdown() }
        withExtendedLifetime((server, proxy)) {}
    }

    /// A proxy that speaks CONNECT, on loopback.
    final class Proxy {
        let port: Int
        private let directory = NSTemporaryDirectory() + "\(Shell.prefix)-proxy"
        init() throws {
            Shell.run(
                """
                mkdir -p \(directory) && cat > \(directory)/proxy.py && cd \(directory)
                /usr/bin/python3 proxy.py > log 2>&1 < /dev/null &
                echo $! > pid
                for _ in $(seq 100); do [ -s port ] && break; sleep 0.05; done
                """,
                input: """
                    import socket, threading
                    listener = socket.create_server(("127.0.0.1", 0))
                    open("port", "w").write(str(listener.getsockname()[1]))
                    def copy(a, b):
                        while data := a.recv(65536): b.sendall(data)
                        b.shutdown(socket.SHUT_WR)
                    def serve(client):
                        head = b""
                        while b"\\r\\n\\r\\n" not in head: head += client.recv(4096)
                        method, target, _ = head.split(b" ", 2)
                        print(method.decode(), flush=True)
                        target = target.decode().rsplit(":", 1)
                        server = socket.create_connection(("127.0.0.1", int(target[1])))
                        client.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
                        threading.Thread(target=copy, args=(server, client), daemon=True).start()
                        copy(client, server)
                    while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
                    """)
            port = Int((try? String(contentsOfFile: "\(directory)/port", encoding: .utf8)) ?? "") ?? 0
        }
        var connections: Int {
            Shell.run("grep -c CONNECT \(directory)/log").output.split(separator: "\n").first.flatMap { Int($0) } ?? 0
        }
        // What posix_spawn was called with blocked, SIGTERM too, stays blocked.
        deinit { Shell.run("kill -9 $(cat \(directory)/pid); rm -rf \(directory)") }
    }

    @Test func linesOfAWatch() throws {
        var reader = LineReader(limit: 10)
        #expect(try reader.take(Array("{1".utf8)).isEmpty)
        #expect(try reader.take(Array("}\n\n{2}\n{3".utf8)) == [Array("{1}".utf8), Array("{2}".utf8)])
        #expect(!reader.isEmpty)
        #expect(throws: LineReader.TooLong.self) { try reader.take([UInt8](repeating: 65, count: 20)) }
    }

    @Test func waitingTimesGrowToACeilingAndAreNeverTheSame() {
        var backoff = Backoff(first: 0.2, ceiling: 5)
        let waits = (0..<200).map { _ in backoff.wait() }
        #expect(waits.allSatisfy { $0 <= .seconds(5) && $0 >= .milliseconds(100) })
        #expect(Set(waits).count > 100 && waits.suffix(100).allSatisfy { $0 >= .milliseconds(2500) })
        #expect(backoff.wait(atLeast: 60) >= .seconds(60))
        backoff.reset()
        #expect(backoff.wait() <= .milliseconds(200))
    }
}
