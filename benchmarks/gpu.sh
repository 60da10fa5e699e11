#!/usr/bin/env bash
# Every table that needs a GPU, as Markdown: benchmarks/gpu.sh [PART ...] [options of gpu.py]
#
# Where mmmask is not installed and nothing can be fetched, pack wheels on another machine and name their folder:
#     benchmarks/gpu.sh pack wheels
#     WHEELS=wheels benchmarks/gpu.sh --output tables
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
if [ "${1:-}" = pack ]; then  # what a machine with torch, numpy, pillow, transformers and pytest lacks
    "$python" -m pip wheel -q --no-deps -w "$2" "$here/.."
    "$python" -m pip download -q --no-deps --python-version 3.12 --implementation cp --only-binary=:all: \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$2" \
        torchdata==0.11.0 "pydantic>=2.12,<3" "av>=14" "ruamel.yaml>=0.18" "simplejpeg>=1.8" typing-inspection \
        annotated-types portalocker yacs tabulate termcolor
    "$python" -m pip wheel -q --no-deps -w "$2" fvcore==0.1.5.post20221221 iopath==0.1.10
    core=$(unzip -p "$2"/pydantic-*.whl '*/METADATA' | sed -n 's/^Requires-Dist: pydantic-core==/==/p' | head -1)
    exec "$python" -m pip download -q --no-deps --python-version 3.12 --implementation cp --only-binary=:all: \
        --platform manylinux_2_17_x86_64 -d "$2" "pydantic-core$core"
fi
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
exec "$python" "$here/gpu.py" "$@"
