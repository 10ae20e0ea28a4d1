import Logging

extension Logger {
    /// Says nothing but what ends a program.
    public static let quiet: Logger = {
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        return logger
    }()
}
