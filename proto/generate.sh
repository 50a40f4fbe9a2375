#!/usr/bin/env bash
# Regenerates client/pixvec/v1 and server/pixvec_server/oip from proto/. The generator lives in a virtual
# environment of its own: grpcio-tools 1.73.1 makes stubs that run under protobuf 6 and 7, newer ones refuse
# protobuf 6. Another folder than the checkout's may be named, to compare.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
client=${1:-$root/client}
server=${1:-$root/server}
venv=$root/.tools/protoc-1.73.1
if [ ! -x "$venv/bin/python" ] || [ ! -f "$venv/ready" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q grpcio-tools==1.73.1
  touch "$venv/ready"
fi
protoc() { "$venv/bin/python" -m grpc_tools.protoc -I "$root/proto" "$@"; }
protoc --python_out="$client" --pyi_out="$client" --grpc_python_out="$client" pixvec/v1/embedding.proto
protoc --python_out="$server" --pyi_out="$server" pixvec_server/oip/inference.proto
