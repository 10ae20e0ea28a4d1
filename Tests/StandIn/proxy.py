#!/usr/bin/env python3
"""A TCP proxy of the kind that stands before API servers (haproxy, KubePrism). While the file that --closed names exists, it
takes connections and closes them at once, and closes those that are open, as such a proxy does when no server is left. Stopped
with SIGSTOP it is one that stands still: the kernel goes on taking connections and what is sent, and nothing comes back.
"""
import argparse, os, select, socket, threading


def reset(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


def carry(client, target, closed):
    try:
        server = socket.create_connection(target)
    except OSError:
        return reset(client)
    try:
        while not os.path.exists(closed):
            for end in select.select([client, server], [], [], 0.1)[0]:
                data = end.recv(65536)
                if not data:
                    return
                (server if end is client else client).sendall(data)
    except OSError:
        pass
    finally:
        reset(client)
        reset(server)


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--to", required=True, metavar="HOST:PORT")
parser.add_argument("--closed", required=True, metavar="FILE")
parser.add_argument("--ready-file", required=True, help="gets the port once it listens")
arguments = parser.parse_args()
host, _, port = arguments.to.rpartition(":")
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
with open(arguments.ready_file + ".new", "w") as file:
    file.write(str(listener.getsockname()[1]))
os.replace(arguments.ready_file + ".new", arguments.ready_file)
while True:
    connection, _ = listener.accept()
    if os.path.exists(arguments.closed):
        reset(connection)
    else:
        threading.Thread(target=carry, args=(connection, (host, int(port)), arguments.closed), daemon=True).start()
