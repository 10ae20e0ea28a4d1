import CYAML
import Jansson

/// A JSON value as YAML, by libyaml: texts in double quotes, so that none of them is taken for something else.
public enum YAMLText {
    /// The value as a document.
    public static func render(_ value: JSON) -> String {
        var emitter = yaml_emitter_t()
        yaml_emitter_initialize(&emitter)
        defer { yaml_emitter_delete(&emitter) }
        var bytes: [UInt8] = []
        withUnsafeMutablePointer(to: &bytes) { bytes in
            yaml_emitter_set_output(
                &emitter,
                { target, buffer, size in
                    target?.assumingMemoryBound(to: [UInt8].self).pointee.append(
                        contentsOf: UnsafeBufferPointer(start: buffer, count: size))
                    return 1
                }, bytes)
            emit(&emitter) { yaml_stream_start_event_initialize($0, YAML_UTF8_ENCODING) }
            emit(&emitter) { yaml_document_start_event_initialize($0, nil, nil, nil, 1) }
            write(value, &emitter)
            emit(&emitter) { yaml_document_end_event_initialize($0, 1) }
            emit(&emitter) { yaml_stream_end_event_initialize($0) }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// The emitter takes the event over, and fails only where there is no memory.
    private static func emit(_ emitter: inout yaml_emitter_t, _ make: (UnsafeMutablePointer<yaml_event_t>) -> Int32) {
        var event = yaml_event_t()
        if make(&event) == 1 { yaml_emitter_emit(&emitter, &event) }
    }

    private static func write(_ value: JSON, _ emitter: inout yaml_emitter_t) {
        switch value {
        case .null: scalar("null", &emitter)
        case .bool(let flag): scalar(flag ? "true" : "false", &emitter)
        case .integer(let number): scalar("\(number)", &emitter)
        case .real(let number): scalar("\(number)", &emitter)
        case .string(let text): scalar(text, &emitter, YAML_DOUBLE_QUOTED_SCALAR_STYLE)
        case .array(let elements):
            let style = elements.isEmpty ? YAML_FLOW_SEQUENCE_STYLE : YAML_BLOCK_SEQUENCE_STYLE
            emit(&emitter) { yaml_sequence_start_event_initialize($0, nil, nil, 1, style) }
            for element in elements { write(element, &emitter) }
            emit(&emitter) { yaml_sequence_end_event_initialize($0) }
        case .object(let members):
            let style = members.isEmpty ? YAML_FLOW_MAPPING_STYLE : YAML_BLOCK_MAPPING_STYLE
            emit(&emitter) { yaml_mapping_start_event_initialize($0, nil, nil, 1, style) }
            for member in members {
                scalar(member.key, &emitter)
                write(member.value, &emitter)
            }
            emit(&emitter) { yaml_mapping_end_event_initialize($0) }
        }
    }

    private static func scalar(
        _ text: String, _ emitter: inout yaml_emitter_t, _ style: yaml_scalar_style_t = YAML_ANY_SCALAR_STYLE
    ) {
        let bytes = [UInt8](text.utf8)
        emit(&emitter) { yaml_scalar_event_initialize($0, nil, nil, bytes, Int32(bytes.count), 1, 1, style) }
    }
}
