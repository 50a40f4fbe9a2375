#!/usr/bin/env bash
# Regenerates client/pixvec/v1 from proto/. The generator lives in a virtual environment of its own:
# grpcio-tools 1.73.1 makes stubs that run under protobuf 6 and 7, newer ones refuse protobuf 6.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/client}
venv=$root/.tools/protoc-1.73.1
if [ ! -x "$venv/bin/python" ] || [ ! -f "$venv/ready" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q grpcio-tools==1.73.1
  touch "$venv/ready"
fi
"$venv/bin/python" -m grpc_tools.protoc -I "$root/proto" \
  --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
  pixvec/v1/embedding.proto
