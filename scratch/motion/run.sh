#!/usr/bin/env bash
# bash run.sh OUT                      the 16 trainings of the first call, about four minutes
# bash run.sh OUT second               the 14 of the second
# bash run.sh OUT second NAME...       any others: names of study_gpu.RUNS, also with changes: r3+gp=20+seed=2
OUT=${1:?folder for results}
WHICH=${2:-first}
shift $(( $# < 2 ? $# : 2 ))
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd)
cd "$(dirname "$0")" || exit 1
export CUDA_DEVICE_MAX_CONNECTIONS=32 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
only=("$@")
if [ "$WHICH" = second ] && [ $# = 0 ]; then
  only=(noise spread no-flag diff-1/4 lr-2 no-gap-1 r3-diff-1 r3-no-gap r3-no-late r3-20 r3-500 r3-lr-2 var paper-start)
fi
[ ${#only[@]} -gt 0 ] && only=(--only "${only[@]}")
nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader
python=python3
python3 -c "import torch" 2>/dev/null || python=python
timeout -k 5 "${LIMIT:-255}" $python study_gpu.py codes.npz -o "$OUT" --no-rows --suffix="-$WHICH" --seconds "${TRAIN:-170}" \
  --total "${TOTAL:-210}" "${only[@]}" 2>&1 | tee "$OUT/log-$WHICH.txt"
