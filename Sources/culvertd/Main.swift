import Hummingbird
import ServiceLifecycle
import ArgumentParser
@main struct M { static func main() {} }
