#!/usr/bin/env bash
# rumqttc 0.25.1 with Mosquitto over a slow link
#
# Guess: a connection on which messages arrive all the time is alive; a PINGRESP that waits behind them in the broker's buffers does no harm.
#
# Seen: the client measures its keep-alive by PINGRESP alone. If one takes longer than an interval, the connection is closed with
# `MqttState(AwaitPingResp)`, although a message came a moment before. After the reconnect the broker sends its retained messages again, so
# that a link too slow for them within two intervals never gets to their end.
#
# Versions: rumqttc 0.25.1 (crates.io), Mosquitto 2.0.11 (Debian 12), a link of 4 KiB/s, keep-alive 5 s, 400 retained messages of 250 bytes.
# Output: `after 10 s and 149 messages, the last 82 ms ago: MqttState(AwaitPingResp)`
#
# Affected: clients on mobile links that subscribe to many retained topics, such as `N/#` of a GX. A keep-alive of a minute and more, or a
# subscription to few topics at a time, avoids it.
#
# Needs cargo, mosquitto, mosquitto-clients and python3. Exit code 0: it is still so; 1: it is not; 2: it could not be tried.
set -euo pipefail

for command in cargo mosquitto mosquitto_pub python3; do
    PATH=$PATH:/usr/sbin command -v "$command" >/dev/null || { echo "missing: $command" >&2; exit 2; }
done
PATH=$PATH:/usr/sbin
folder=$(mktemp -d)
pids=()
tidy_up() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap tidy_up EXIT
cd "$folder"

mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "subscriber"
version = "0.0.0"
edition = "2021"

[dependencies]
rumqttc = { version = "=0.25.1", default-features = false }
tokio = { version = "1", features = ["macros", "rt", "time"] }
TOML
cat > src/main.rs <<'RUST'
use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let port = std::env::args().nth(1).expect("a port").parse().expect("a number");
    let mut options = MqttOptions::new("subscriber", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = AsyncClient::new(options, 10);
    client.subscribe("slow/#", QoS::AtMostOnce).await.expect("the queue has room");
    let begin = Instant::now();
    let (mut messages, mut last) = (0, begin);
    while begin.elapsed() < Duration::from_secs(60) {
        match tokio::time::timeout(Duration::from_secs(60), events.poll()).await {
            Ok(Ok(Event::Incoming(Packet::Publish(_)))) => (messages, last) = (messages + 1, Instant::now()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                let (after, ago) = (begin.elapsed().as_secs(), last.elapsed().as_millis());
                println!("after {after} s and {messages} messages, the last {ago} ms ago: {error:?}");
                return;
            }
            Err(_) => break,
        }
    }
    println!("connected for {} s, with {messages} messages", begin.elapsed().as_secs());
}
RUST
# takes all from the client, and gives the bytes of the broker to it at a rate
cat > slow.py <<'PYTHON'
import socket, sys, threading, time

upstream, rate = int(sys.argv[1]), int(sys.argv[2])


def copy(source, sink, chunk, pause):
    while data := source.recv(chunk):
        sink.sendall(data)
        time.sleep(pause)
    sink.close()


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    client, _ = listener.accept()
    server = socket.create_connection(("127.0.0.1", upstream))
    threading.Thread(target=copy, args=(client, server, 65536, 0), daemon=True).start()
    threading.Thread(target=copy, args=(server, client, rate // 10, 0.1), daemon=True).start()
PYTHON
CARGO_TARGET_DIR=$folder/target cargo build --quiet || exit 2

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" > mosquitto.conf
mosquitto -c mosquitto.conf > mosquitto.log 2>&1 &
pids+=($!)
text=$(printf 'x%.0s' {1..250})
for number in {1..400}; do
    for _ in {1..50}; do
        mosquitto_pub -p "$port" -r -t "slow/$number" -m "$text" 2>/dev/null && continue 2
        sleep 0.1
    done
    echo "the broker does not take messages" >&2
    exit 2
done
mkfifo slow.port
python3 slow.py "$port" 4096 > slow.port &
pids+=($!)
read -r slow < slow.port
seen=$(target/debug/subscriber "$slow")
echo "$seen"
[[ $seen == *AwaitPingResp* ]]
