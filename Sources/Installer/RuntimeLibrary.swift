import CLinux
import Glibc

/// Which libcni a container runtime was built with. Go writes the modules of a program into the program
/// (`go version -m`), as lines `dep<TAB>module<TAB>version`, so it need not be run.
public enum RuntimeLibrary {
    /// Where distributions put the runtimes of Kubernetes nodes.
    public static let usualPrograms = [
        "/usr/bin/containerd", "/usr/local/bin/containerd", "/bin/containerd", "/usr/bin/crio", "/usr/local/bin/crio",
    ]
    private static let mark = Array("dep\tgithub.com/containernetworking/cni\tv".utf8)

    /// Major and minor version; nil: not known, because the program cannot be read or does not say.
    public static func version(program: String) -> (major: Int, minor: Int)? {
        let file = open(program, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { close(file) }
        var status = stat()
        guard fstat(file, &status) == 0, status.st_mode & S_IFMT == S_IFREG, status.st_size > 0,
            let start = mmap(nil, Int(status.st_size), PROT_READ, MAP_PRIVATE, file, 0), start != MAP_FAILED
        else { return nil }
        defer { munmap(start, Int(status.st_size)) }
        return version(in: UnsafeRawBufferPointer(start: start, count: Int(status.st_size)))
    }

    static func version(in program: UnsafeRawBufferPointer) -> (major: Int, minor: Int)? {
        let found = culvert_find(program.baseAddress, program.count, mark, mark.count)
        guard found >= 0 else { return nil }
        let place = found + mark.count
        let text = program[place...].prefix(20).prefix { $0 > 0x20 && $0 < 0x7F }
        let parts = String(decoding: text, as: UTF8.self).split(separator: ".")
        guard parts.count >= 3, let major = Int(parts[0]), let minor = Int(parts[1]) else { return nil }
        return (major, minor)
    }

    /// The runtime reads drop-ins: libcni does from 1.3 on. Not known is no.
    ///
    /// - Parameter programs: where its program may be; none: the usual places.
    public static func readsDropIns(programs: [String]) -> Bool {
        let versions = (programs.isEmpty ? usualPrograms : programs).compactMap { version(program: $0) }
        // With two runtimes on a node it is not known which one is in use.
        return !versions.isEmpty && versions.allSatisfy { ($0.major, $0.minor) >= (1, 3) }
    }
}
