#!/usr/bin/env python3
"""syn.py SOURCE SPORT DESTINATION DPORT [FLAGS]: one TCP segment by a raw socket, with these flags (letters of FSRA; S)."""
import socket
import struct
import sys

source, sport, destination, dport = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
letters = sys.argv[5] if len(sys.argv) > 5 else "S"
flags = sum({"F": 1, "S": 2, "R": 4, "A": 16}[c] for c in letters)


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


header = struct.pack("!HHIIBBHHH", sport, dport, 4242, 0, 5 << 4, flags, 1024, 0, 0)
pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, 6, len(header))
header = header[:16] + struct.pack("!H", checksum(pseudo + header)) + header[18:]
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.bind((source, 0))
raw.sendto(header, (destination, 0))
