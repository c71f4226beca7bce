#!/usr/bin/env bash
# A Ray cluster of two nodes with a network between them, on one machine, and Efface on it.
#
#   sudo deploy/ray_two_nodes.sh [FOLDER]
#
# Each node is a network namespace with an address, a shared memory and one core of its own. Clients
# are trained and a class is forgotten on both; the weights must be those of one process
# (`--engine inline`), bit for bit. What two machines need as well: the same efface installed,
# and the home (and the data) under the same path on both, as on a shared disk. Needs root, for the
# namespaces, and iproute2. FOLDER must be new or empty. Everything that it starts it ends.
set -euo pipefail

folder=${1:-$(mktemp -d /tmp/efface-ray.XXXXXX)}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ -n "$(ls -A "$folder")" ]; then
  echo "FOLDER must be new or empty, got $folder; name another" >&2
  exit 2
fi
export RAY_TMPDIR
RAY_TMPDIR=$(mktemp -d /tmp/effray.XXXX) # short, for its sockets; and nobody joins this cluster later
START_SECONDS=${START_SECONDS:-180} # for each node
head=effray-head-$$ worker=effray-work-$$
head_address=10.213.77.1 worker_address=10.213.77.2 port=6379
pids=()

finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  for space in "$head" "$worker"; do
    ip netns pids "$space" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns del "$space" 2>/dev/null || true
  done
  rm -rf "$RAY_TMPDIR"
}
trap finish EXIT

# What two machines have: a wire, an address each, and memory that the other does not see.
ip netns add "$head"
ip netns add "$worker"
ip link add "eh$$" netns "$head" type veth peer name "ew$$" netns "$worker"
ip -n "$head" addr add "$head_address/24" dev "eh$$"
ip -n "$worker" addr add "$worker_address/24" dev "ew$$"
for space in "$head" "$worker"; do ip -n "$space" link set lo up; done
ip -n "$head" link set "eh$$" up
ip -n "$worker" link set "ew$$" up

export RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 OMP_NUM_THREADS=1
unset RAY_ADDRESS

node() { # NAMESPACE, options of `ray start`
  local space=$1
  shift
  ip netns exec "$space" unshare -m sh -c \
    'mount -t tmpfs -o size=512m tmpfs /dev/shm && exec ray start --block "$@"' sh \
    --num-cpus=1 --object-store-memory=200000000 "$@" >"$folder/$space.log" 2>&1 &
  pids+=($!)
}

on_the_wire() { # bytes so far, both ways
  ip -n "$head" -s -s link show "eh$$" | awk '/RX:|TX:/ {getline; sum += $1} END {print sum}'
}

echo "two nodes: $head_address (head) and $worker_address, one core each"
node "$head" --head --node-ip-address="$head_address" --port="$port" --include-dashboard=false
address=$head_address:$port
cluster() { # nodes that are alive
  timeout 60 ip netns exec "$head" python -c "
import ray
ray.init(address='$address', logging_level='ERROR', log_to_driver=False)
print(sum(node['Alive'] for node in ray.nodes()))" 2>/dev/null | tail -n 1 || echo 0
}
await() { # NODES, NAMESPACE of the one that was started last
  local limit=$((SECONDS + START_SECONDS)) found
  until found=$(cluster) && [ "${found:-0}" -ge "$1" ]; do
    if [ "$SECONDS" -ge "$limit" ]; then
      echo "Ray must start within $START_SECONDS s, got ${found:-0} of $1 nodes; its log:" >&2
      cat "$folder/$2.log" >&2
      exit 1
    fi
    sleep 1
  done
}
await 1 "$head"
node "$worker" --address="$address" --node-ip-address="$worker_address"
await 2 "$worker"

# Where clients are answered for, while a command runs: processes called ray::Clients.
watch_clients() {
  while sleep 0.5; do
    for space in "$head" "$worker"; do
      for pid in $(ip netns pids "$space"); do
        if grep -aq '^ray::Clients' "/proc/$pid/cmdline" 2>/dev/null; then echo "$space $pid"; fi
      done
    done
  done
}
watch_clients >"$folder/seen" &
watcher=$!
pids+=("$watcher")

job=(--dataset digits --num-clients 4 --model-width 8 --model-depth 2 --scale 20)
run() { # NAME, command of efface
  local home=$folder/$1 before seconds
  shift
  before=$(on_the_wire) seconds=$(date +%s)
  ip netns exec "$head" env EFFACE_HOME="$home" "$@" >"$folder/out" 2>&1 || {
    cat "$folder/out"
    exit 1
  }
  echo "  $(($(date +%s) - seconds)) s, $((($(on_the_wire) - before) / 1000)) kB on the wire"
}

for engine in ray inline; do
  [ $engine = ray ] && export RAY_ADDRESS=$address || unset RAY_ADDRESS
  echo "train on $engine"
  run "$engine" efface train --engine "$engine" --rounds 2 "${job[@]}"
  echo "forget class 3 on $engine"
  run "$engine" efface forget --class 3 --engine "$engine" --method quickdrop --trial
done

kill "$watcher"
for space in "$head" "$worker"; do
  echo "processes of clients in $space: $(grep "^$space" "$folder/seen" | sort -u | wc -l)"
done
grep -q "^$head" "$folder/seen" && grep -q "^$worker" "$folder/seen"
cd "$folder"
same=0
for file in $(cd inline/versions && find . -name '*.safetensors' | sort); do
  cmp "inline/versions/$file" "ray/versions/$file" && same=$((same + 1))
done
echo "versions with the same weights as in one process, bit for bit: $same"
[ "$same" -eq 2 ]
