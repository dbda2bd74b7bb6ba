#!/bin/sh
# An operator: from an empty directory to two nodes that serve a BEAM, as a service manager starts
# and stops them. Pages: "Deployment", "Operations", "Troubleshooting".
#
# SNEX_NODE is what pip installs.
set -eu

python3 -m venv venv
venv/bin/pip install --quiet "${SNEX_NODE:-snex-node}"
PATH="$PWD/venv/bin:$PATH"

# The cookie, in a file that nobody else can read.
python3 -c "import secrets; print(secrets.token_hex(32), end='')" > cookie
chmod 400 cookie
cp -p cookie .erlang.cookie # this directory is the home of the BEAM below

snex-node doctor --cookie-file cookie

# A service manager is told when each can be called, and when it stops.
cat > manager.py <<'PYTHON'
"""Starts a node as `Type=notify` has it, and writes what it is told to the file `NAME.told`."""
import os, signal, socket, subprocess, sys

name, *command = sys.argv[1:]
address = os.path.abspath(f"{name}.notify")
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, open(f"{name}.told", "wb", 0) as file:
    told.bind(address)
    log = open(f"{name}.log", "wb")
    process = subprocess.Popen(command, env={**os.environ, "NOTIFY_SOCKET": address}, stderr=log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.terminate())
    message = b""
    while message != b"STOPPING=1":
        message = told.recv(4096)
        file.write(message + b"\n")
    file.write(b"status %d\n" % process.wait())
PYTHON

trap 'kill $(cat ./*.pid) 2> /dev/null || true' EXIT

start() { # NAME OPTIONS...
    node=$1
    shift
    python3 manager.py "$node" snex-node start --name "$node@127.0.0.1" --cookie-file cookie "$@" \
        > "$node.out" &
    echo $! > "$node.pid"
    until grep -q READY=1 "$node.told" 2> /dev/null; do
        kill -0 "$(cat "$node.pid")" || { cat "$node.log"; exit 1; }
        sleep 0.05
    done
}

stop() { # NAME
    kill "$(cat "$1.pid")"
    wait "$(cat "$1.pid")"
    grep -q STOPPING=1 "$1.told"
    grep -qx "status 0" "$1.told"
}

start "$SMALL" --log-format json --slow 50
start "$LARGE" --workers 2

for node in "$SMALL" "$LARGE"; do
    test "$(snex-node ping "$node@127.0.0.1" --cookie-file cookie)" = pong
    snex-node doctor "$node@127.0.0.1" --cookie-file cookie
done
snex-node names

# A BEAM uses both; one of its calls takes long, and one fails.
cat > use.exs <<'ELIXIR'
[small, large] = for name <- System.argv(), do: {:snex, :"#{name}@127.0.0.1"}
{:ok, 42} = GenServer.call(small, {:eval, "return 6 * x", %{"x" => 7}})
{:ok, 42} = GenServer.call(large, {:eval, "return 6 * x", %{"x" => 7}})
{:ok, nil} = GenServer.call(small, {:eval, "import time; time.sleep(0.1)", %{}})
{:error, %{code: :python_runtime_error}} = GenServer.call(small, {:eval, "1 / 0", %{}})
{:ok, env} = GenServer.call(large, {:make_env, %{"words" => ["to", "be"]}})
{:ok, 2} = GenServer.call(env, {:eval, "return len(words)", %{}})
IO.puts("used")
ELIXIR
test "$(HOME=$PWD elixir --name "$USER_NAME@127.0.0.1" use.exs "$SMALL" "$LARGE")" = used

# What they did.
snex-node info "$SMALL@127.0.0.1" --cookie-file cookie
snex-node top "$LARGE@127.0.0.1" --cookie-file cookie --count 1
snex-node info "$LARGE@127.0.0.1" --cookie-file cookie --json > large.json
python3 -c "import json; told = json.load(open('large.json')); print(told['info']['version'])"
python3 - "$SMALL.log" <<'PYTHON'
import json, sys

lines = [json.loads(line) for line in open(sys.argv[1])]
(slow,) = [line for line in lines if line["logger"] == "snex_runtime.requests"]
assert slow["level"] == "warning"
assert slow["message"].startswith("eval of #PID<"), slow
PYTHON

# What a wrong cookie looks like, and what it is to be repaired by.
python3 -c "print('another', end='')" > wrong
chmod 400 wrong
if snex-node doctor "$SMALL@127.0.0.1" --cookie-file wrong > wrong.txt; then exit 1; fi
grep -i cookie wrong.txt

stop "$SMALL"
stop "$LARGE"
if snex-node ping "$SMALL@127.0.0.1" --cookie-file cookie; then exit 1; fi
echo "both have served and stopped"
