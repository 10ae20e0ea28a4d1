import ControlCommands

@main
enum Main {
    static func main() async { await Culvertctl.main() }
}
