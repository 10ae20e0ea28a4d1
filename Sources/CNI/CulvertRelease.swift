/// The release that this is: of the plugin, the helper and culvertctl.
public enum CulvertRelease {
    public static let version = "0.1.0"
}
