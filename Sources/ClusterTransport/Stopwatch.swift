extension Clock where Duration == Swift.Duration {
    /// Measures the time from now on. (Instants of a clock that is only known as `any Clock<Duration>` cannot be
    /// subtracted.)
    public func stopwatch() -> @Sendable () -> Swift.Duration {
        let start = now
        return { start.duration(to: self.now) }
    }
}
