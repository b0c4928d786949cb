#!/usr/bin/env bash
# Measure on this machine's GPU; the report and the log go to OUT.
# usage: run.sh FOLDER OUT [STEP...]     FOLDER: what collect.sh made
# GPU_PROVIDER=cpu rehearses without a GPU; GPU_SECONDS and GPU_LIMIT shorten it.
set -euo pipefail
cd "$(dirname "$0")/../.."
export GPU_FOLDER=$1
shift
export PYTHONPATH=$GPU_FOLDER/site
# NVIDIA's wheels of this Python: onnxruntime is not installed beside them.
LD_LIBRARY_PATH=$(python3 - <<'PYTHON'
import site, sys
from pathlib import Path
found = [p for s in [*site.getsitepackages(), *sys.path] for p in Path(s).glob("nvidia/*/lib")]
print(":".join(dict.fromkeys(map(str, found))))
PYTHON
)
export LD_LIBRARY_PATH
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
exec python3 -m tests.gpu "$@"
