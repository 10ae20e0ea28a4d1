#!/usr/bin/env python3
"""spoof_self.py SOURCE SPORT ADDRESS DPORT GATEWAY-MAC: in a pod, a UDP datagram from SOURCE to the pod itself, by way of its node."""
import socket
import struct
import sys

source, sport, address, dport, mac = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


payload = b"spoofed!"
udp = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(address))
ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0x0800))
own = link.getsockname()[4]
link.send(bytes.fromhex(mac.replace(":", "")) + own + b"\x08\x00" + ip + udp)
