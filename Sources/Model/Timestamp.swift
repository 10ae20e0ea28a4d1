/// Times as Kubernetes writes them (RFC 3339), in whole seconds since 1970.
public enum Timestamp {
    /// nil: it is not a time of that form.
    public static func seconds(_ text: String) -> Int64? {
        let bytes = Array(text.utf8)
        guard bytes.count >= 20 else { return nil }
        func number(_ range: Range<Int>) -> Int64? {
            bytes[range].allSatisfy { (48...57).contains($0) }
                ? bytes[range].reduce(0) { $0 * 10 + Int64($1 - 48) } : nil
        }
        guard let year = number(0..<4), let month = number(5..<7), let day = number(8..<10), let hour = number(11..<13),
            let minute = number(14..<16), let second = number(17..<19), bytes[4] == 45, bytes[7] == 45,
            [84, 116, 32].contains(bytes[10]), bytes[13] == 58, bytes[16] == 58, (1...12).contains(month),
            (1...31).contains(day), hour < 24, minute < 60, second <= 60
        else { return nil }
        var rest = bytes[19...]
        if rest.first == 46 { rest = rest.dropFirst().drop { (48...57).contains($0) } }
        var zone: Int64 = 0
        switch rest.first {
        case 90, 122: guard rest.count == 1 else { return nil }
        case 43, 45:
            let start = rest.startIndex
            guard rest.count == 6, bytes[start + 3] == 58, let hours = number(start + 1..<start + 3),
                let minutes = number(start + 4..<start + 6), hours < 24, minutes < 60
            else { return nil }
            zone = (hours * 60 + minutes) * (rest.first == 45 ? -60 : 60)
        default: return nil
        }
        // Years from March on, so that the leap day is the last one.
        let shifted = month > 2 ? year : year - 1
        let days =
            shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + (153 * ((month + 9) % 12) + 2) / 5 + day - 1
            - 719_468
        return days * 86400 + hour * 3600 + minute * 60 + second - zone
    }

    /// `2026-11-28T22:42:31Z`. Years after 9999 and before 1970 are not told.
    public static func text(_ seconds: Int64) -> String {
        guard (0..<253_402_300_800).contains(seconds) else { return "an impossible time" }
        let days = seconds / 86400 + 719_468
        let era = days / 146_097
        let dayOfEra = days % 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shifted = (5 * dayOfYear + 2) / 153
        let day = dayOfYear - (153 * shifted + 2) / 5 + 1
        let month = shifted < 10 ? shifted + 3 : shifted - 9
        let year = era * 400 + yearOfEra + (month <= 2 ? 1 : 0)
        func two(_ number: Int64) -> String { number < 10 ? "0\(number)" : "\(number)" }
        let clock = seconds % 86400
        return "\(year)-\(two(month))-\(two(day))T\(two(clock / 3600)):\(two(clock / 60 % 60)):\(two(clock % 60))Z"
    }
}
