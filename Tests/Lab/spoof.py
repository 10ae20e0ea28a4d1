#!/usr/bin/env python3
"""Sends one tunnel packet with an echo request inside: spoof.py PROTOCOL OUTER-SRC OUTER-DST INNER-SRC INNER-DST.

For the lab's spoofing scenario only: it writes to a raw socket of a network namespace that the lab made."""
import socket
import struct
import sys

protocol, outer_source, outer_destination, inner_source, inner_destination = sys.argv[1:]


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(number, source, destination, payload):
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, number, 0,
        socket.inet_aton(source), socket.inet_aton(destination))
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def udp(port, payload):
    return struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload


echo = struct.pack("!BBHHH", 8, 0, 0, 7, 7)
echo = echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:]
inner = ipv4(1, inner_source, inner_destination, echo)
mac = bytes([0x02, 0xC7]) + socket.inet_aton(outer_destination)
if protocol == "ipip":
    packet = ipv4(4, outer_source, outer_destination, inner)
elif protocol == "fou":
    packet = ipv4(17, outer_source, outer_destination, udp(5555, inner))
else:
    frame = mac + bytes([2, 0, 0, 0, 0, 9]) + b"\x08\x00" + inner
    packet = ipv4(17, outer_source, outer_destination, udp(8475, b"\x08\0\0\0\0\0\x01\0" + frame))
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.sendto(packet, (outer_destination, 0))
