import Jansson
import Model

/// Objects that say in which networks Services have their addresses.
enum ServiceNetworkManifests {
    /// `ServiceCIDR` (networking.k8s.io/v1, Kubernetes 1.33).
    static func serviceCIDR(_ reader: ManifestReader) throws(ManifestReader.Failure) -> ManifestObject {
        let name = try Manifests.metadata(reader).required("name")
        guard let spec = try reader.object("spec") else { throw reader.fail("spec", "is missing") }
        return .serviceCIDR(name: name, networks: try spec.serviceNetworks("cidrs", try spec.strings("cidrs") ?? []))
    }

    /// `networking.serviceSubnet` of the ClusterConfiguration (kubeadm.k8s.io) in kubeadm's ConfigMap: one network, or one of
    /// each family with a comma between.
    static func kubeadm(_ reader: ManifestReader) throws(ManifestReader.Failure) -> [IPNetwork] {
        guard let data = try reader.object("data"), let text = try data.string("ClusterConfiguration") else {
            return []
        }
        let documents: [(number: Int, value: JSON)]
        do { documents = try YAMLDocuments.parse(text) } catch {
            throw data.fail("ClusterConfiguration", error.message)
        }
        for document in documents where document.value.members != nil {
            let configuration = ManifestReader(document.value, path: "data.ClusterConfiguration")
            guard let networking = try configuration.object("networking"),
                let subnets = try networking.string("serviceSubnet")
            else { continue }
            let texts = subnets.split(separator: ",").map { part in String(part.filter { $0 != " " }) }
            return try networking.serviceNetworks("serviceSubnet", texts)
        }
        return []
    }

    /// - Returns: nil where it is another Service than the API server's.
    static func apiServer(_ reader: ManifestReader) throws(ManifestReader.Failure) -> [IPAddress]? {
        let metadata = try Manifests.metadata(reader)
        guard try metadata.required("name") == "kubernetes", try metadata.string("namespace") ?? "default" == "default",
            let spec = try reader.object("spec")
        else { return nil }
        var texts = try spec.strings("clusterIPs") ?? []
        if let text = try spec.string("clusterIP"), !texts.contains(text) { texts.append(text) }
        var addresses: [IPAddress] = []
        for text in texts where !text.isEmpty && text != "None" {
            guard let address = IPAddress(text) else {
                throw spec.fail("clusterIPs", "\"\(text)\" is not an IP address")
            }
            addresses.append(address)
        }
        return addresses
    }
}
