extension Clock where Duration == Swift.Duration {
    /// Tells the time since now. (Instants of a clock that is only known as `any Clock<Duration>` cannot be subtracted.)
    public func stopwatch() -> @Sendable () -> Swift.Duration {
        let start = now
        return { start.duration(to: self.now) }
    }
}
