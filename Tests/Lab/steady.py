"""steady.py ADDRESS PORT SECONDS: one TCP connection on which a line goes and comes back every 50 ms. Prints how many did;
exits 1 where the connection breaks or a line does not come back within 10 s."""
import socket, sys, time

address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
connection = socket.create_connection((address, port), timeout=10)
connection.settimeout(10)
end, number = time.time() + seconds, 0
while time.time() < end:
    line = b"%d\n" % number
    connection.sendall(line)
    answer = b""
    while not answer.endswith(b"\n"):
        part = connection.recv(100)
        if not part:
            sys.exit("closed after %d lines" % number)
        answer += part
    if answer != line:
        sys.exit("%r came back for %r" % (answer, line))
    number += 1
    time.sleep(0.05)
print("%d lines" % number)
