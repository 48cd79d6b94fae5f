#!/usr/bin/env bash
# The steps of the Dockerfile's build stage: the service with what it needs, and nothing else, into one folder.
#   deploy/build_image.sh SOURCE TARGET
# SOURCE is this repository, TARGET becomes a virtual environment without torch and without a compiler's leftovers.
set -euo pipefail
source_dir=${1:?usage: build_image.sh SOURCE TARGET}
target=${2:?usage: build_image.sh SOURCE TARGET}

python3 -m venv "$target"
"$target/bin/python" -m pip --disable-pip-version-check install --quiet --no-cache-dir \
  --constraint "$source_dir/constraints.txt" "$source_dir[serve,redis]"
"$target/bin/python" - <<'PY'
import importlib.util
assert importlib.util.find_spec("torch") is None, "torch has no place in the serving image"
PY
"$target/bin/hfh" --version
