#!/usr/bin/env bash
# dbus-daemon 1.14: a reply with a file descriptor to a caller that takes none
#
# Guess: the bus refuses such a reply, and the caller gets an error in its place.
#
# Seen: the bus tells the service that answered (`org.freedesktop.DBus.Error.NotSupported`), and the caller nothing: its call is never
# answered. The place of the call (max_replies_per_connection) is free again, so the bus knows that no answer will come.
#
# Versions: dbus-daemon 1.14.10 (Debian 12), jeepney 0.9.0 (PyPI).
# Output: `WithFd: no answer in 2 s; the service was told org.freedesktop.DBus.Error.NotSupported`
#
# Affected: callers that have not negotiated file descriptors and wait without a deadline: jeepney by default, and any library over TCP,
# as with a GX's bus forwarded to a laptop. Whoever counts calls under way by their answers counts these for ever.
#
# Needs dbus-daemon and python3 with venv. Exit code 0: it is still so; 1: it is not; 2: it could not be tried.
set -euo pipefail

for command in dbus-daemon python3; do
    command -v "$command" >/dev/null || { echo "missing: $command" >&2; exit 2; }
done
folder=$(mktemp -d)
bus=
tidy_up() {
    [ -z "$bus" ] || kill "$bus" 2>/dev/null || true
    rm -rf "$folder"
}
trap tidy_up EXIT
cd "$folder"

python3 -m venv venv && venv/bin/pip --quiet --disable-pip-version-check install jeepney==0.9.0 || exit 2
# three places for calls, so that calls which keep theirs would be seen
cat > bus.conf <<XML
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=$folder/bus</listen>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
  <limit name="max_replies_per_connection">3</limit>
</busconfig>
XML
bus=$(dbus-daemon --config-file=bus.conf --fork --print-pid) || exit 2

cat > try.py <<'PYTHON'
import os, queue, sys, threading

from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call, new_method_return
from jeepney.io.blocking import open_dbus_connection

service = open_dbus_connection(sys.argv[1], enable_fds=True)
caller = open_dbus_connection(sys.argv[1], enable_fds=False)
told = queue.Queue()


def serve():
    while True:
        message = service.receive()
        if message.header.message_type == MessageType.error:
            told.put(message.header.fields[HeaderFields.error_name])
        elif message.header.message_type == MessageType.method_call:
            if message.header.fields[HeaderFields.member] == "Plain":
                service.send(new_method_return(message, "s", ("text",)))
            else:
                service.send(new_method_return(message, "h", (os.open("/dev/null", os.O_RDONLY),)))


threading.Thread(target=serve, daemon=True).start()
address = DBusAddress("/", bus_name=service.unique_name, interface="org.example.Test")


def call(member):
    try:
        reply = caller.send_and_get_reply(new_method_call(address, member), timeout=2)
        return reply.header.message_type.name
    except TimeoutError:
        return "no answer in 2 s"


assert call("Plain") == "method_return"
for _ in range(4):
    answer, error = call("WithFd"), told.get(timeout=5)
    print(f"WithFd: {answer}; the service was told {error}")
    if answer != "no answer in 2 s" or not error.endswith(".NotSupported"):
        sys.exit(1)
answer = call("Plain")
print(f"Plain, after four of them: {answer}")
sys.exit(answer != "method_return")
PYTHON
timeout 60 venv/bin/python -u try.py "unix:path=$folder/bus"
