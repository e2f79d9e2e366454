#!/usr/bin/env bash
# Mosquitto with a subscriber slower than its messages: answers are dropped
#
# Guess: at `max_queued_messages` messages are dropped, as the documentation says. Answers (PINGRESP, SUBACK, UNSUBACK, PUBACK) are sent,
# late perhaps, or the connection is closed.
#
# Seen: the limit counts packets of every kind that wait for a client, and any further one is dropped. Requests that arrive meanwhile are
# carried out (the subscriptions hold), the log says `Sending PINGRESP`, and the answer never comes, unless a place has just become free. The
# connection stays open, and once the client has read what waits for it, new requests are answered.
#
# Versions: Mosquitto 2.0.11-1.2+deb12u2 (Debian 12), 2.0.21-1 (Debian 13), 2.1.2-3 (Debian sid). It came with the fix of CVE-2023-28366
# (upstream in 2.0.16): the commit before that one drops the same messages and sends every answer. Upstream issue 3542 is about UNSUBACK.
# Output: `max_queued_messages 0: 4100 of 4100 messages; PINGRESP 5 of 5, SUBACK 5 of 5, UNSUBACK 5 of 5, PUBACK 5 of 5`
#         `max_queued_messages 40: 1530 of 4100 messages; PINGRESP 0 of 5, SUBACK 0 of 5, UNSUBACK 0 of 5, PUBACK 0 of 5`
#         `the log has 'Sending PINGRESP to subscriber' 6 times, the last for the PINGREQ that was answered`
#
# Affected: clients that wait for each answer and subscribe to much over a slow link, such as `N/#` of a GX; retained messages count, and the
# limit is 1,000 by default. A lost PINGRESP ends their connection however long their keep-alive is. A client that reads as fast as the
# broker writes is not affected. With `max_queued_messages 0` every answer comes, but a client that does not read takes memory without bounds.
#
# Needs mosquitto and python3. Exit code 0: it is still so; 1: it is not; 2: it could not be tried.
set -euo pipefail

PATH=$PATH:/usr/sbin
for command in mosquitto python3; do
    command -v "$command" >/dev/null || { echo "missing: $command" >&2; exit 2; }
done
folder=$(mktemp -d)
pids=()
tidy_up() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap tidy_up EXIT
cd "$folder"

# exit code 0: every answer came; 3: some did not, on a connection that works; 4: the connection was closed
cat > try.py <<'PYTHON'
import collections, socket, struct, sys, time

port, limit = int(sys.argv[1]), sys.argv[2]
CONNACK, PUBLISH, PUBACK, SUBACK, UNSUBACK, PINGRESP = 0x20, 0x30, 0x40, 0x90, 0xB0, 0xD0
PINGREQ = b"\xc0\x00"


class Closed(Exception):
    pass


def text(value):
    return struct.pack("!H", len(value)) + value.encode()


def packet(kind, body):
    length, rest = b"", len(body)
    while rest > 127:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return bytes([kind]) + length + bytes([rest]) + body


class Client:
    def __init__(self, name, buffer=None):
        self.socket, self.unread = socket.socket(), b""
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect(("127.0.0.1", port))
        self.send(packet(0x10, text("MQTT") + b"\x04\x02\x00\x00" + text(name)))
        self.wait_for(CONNACK)

    def send(self, data):
        try:
            self.socket.sendall(data)
        except ConnectionError as error:
            raise Closed from error

    def read(self, count):
        while len(self.unread) < count:
            try:
                more = self.socket.recv(65536)
            except ConnectionError as error:
                raise Closed from error
            if not more:
                raise Closed
            self.unread += more
        data, self.unread = self.unread[:count], self.unread[count:]
        return data

    # the next packet's kind, or None after so many seconds of silence
    def receive(self, wait):
        self.socket.settimeout(wait)
        try:
            kind = self.read(1)[0] & 0xF0
        except TimeoutError:
            return None
        self.socket.settimeout(10)
        length = shift = 0
        while True:
            byte = self.read(1)[0]
            length, shift = length | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        self.read(length)
        return kind

    def wait_for(self, kind):
        got = self.receive(10)
        assert got == kind, (got, kind)


def publish(client, count):
    client.send(packet(0x30, text("load") + bytes(2000)) * count)
    client.send(PINGREQ)
    client.wait_for(PINGRESP)


for _ in range(100):
    try:
        publisher = Client("publisher")
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
subscriber = Client("subscriber", buffer=4096)
subscriber.send(packet(0x82, b"\x00\x01" + text("load") + b"\x00"))
subscriber.wait_for(SUBACK)

# more than the connection's buffers hold; the second portion takes the places that have become free since
publish(publisher, 4000)
time.sleep(1)
publish(publisher, 100)
got = collections.Counter()
try:
    for number in range(5):
        subscriber.send(PINGREQ)
        subscriber.send(packet(0x82, struct.pack("!H", 10 + number) + text(f"other/{number}") + b"\x00"))
        subscriber.send(packet(0xA2, struct.pack("!H", 20 + number) + text(f"none/{number}")))
        subscriber.send(packet(0x32, text("note") + struct.pack("!H", 30 + number)))
    time.sleep(1)
    while kind := subscriber.receive(5):
        got[kind] += 1
    # the requests were carried out, and the connection works: a subscription of theirs brings its message, a PINGREQ its answer
    publisher.send(packet(0x30, text("other/4")))
    subscriber.wait_for(PUBLISH)
    subscriber.send(PINGREQ)
    subscriber.wait_for(PINGRESP)
    closed = False
except Closed:
    closed = True
kinds = {"PINGRESP": PINGRESP, "SUBACK": SUBACK, "UNSUBACK": UNSUBACK, "PUBACK": PUBACK}
answers = ", ".join(f"{name} {got[kind]} of 5" for name, kind in kinds.items())
print(f"max_queued_messages {limit}: {got[PUBLISH]} of 4100 messages; {answers}" + ", and the connection was closed" * closed)
if closed:
    sys.exit(4)
assert limit == "0" or got[PUBLISH] < 4100, "the limit was not reached"
sys.exit(0 if all(got[kind] == 5 for kind in kinds.values()) else 3)
PYTHON

try() {
    local port code=0
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    printf 'listener %s 127.0.0.1\nallow_anonymous true\nmax_queued_messages %s\nlog_type all\n' "$port" "$1" > "$1.conf"
    mosquitto -c "$1.conf" > "$1.log" 2>&1 &
    pids+=($!)
    timeout 100 python3 try.py "$port" "$1" || code=$?
    return "$code"
}
# the same without the limit, where every answer comes
try 0 || exit 2
code=0
try 40 || code=$?
case $code in
    0 | 4) exit 1 ;;
    3) ;;
    *) exit 2 ;;
esac
sent=$(grep -c 'Sending PINGRESP to subscriber' 40.log || true)
echo "the log has 'Sending PINGRESP to subscriber' $sent times, the last for the PINGREQ that was answered"
