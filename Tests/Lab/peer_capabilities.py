"""peer_capabilities.py SOCKET: listens there, and prints the sets of capabilities of the first process that connects, in the
order of /proc: inheritable, permitted, effective, bounding, ambient."""
import os, socket, struct, sys

server = socket.socket(socket.AF_UNIX)
server.settimeout(20)
server.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
server.listen()
connection, _ = server.accept()
process, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
with open(f"/proc/{process}/status", encoding="utf-8") as file:
    print(*[line.split()[1] for line in file if line.startswith("Cap")])
