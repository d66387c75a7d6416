#!/usr/bin/env bash
# Check of a GPU: every part of gpu_check.py within its own time limit, and one results file of what they wrote.
#
#   bash benchmarks/gpu_check.sh                        # on a machine with a GPU, under ten minutes in all
#   bash benchmarks/gpu_check.sh --device cpu --tiny    # smoke test: all parts at the smallest sizes; no number is of use
#
# Options:
#   --device cuda|cpu   where to run (default: cuda)
#   --tiny              smallest sizes
#   --parts "A B"       of correctness, losses, step, study (default: all, in this order)
#   --output FOLDER     of the results (default: $OUT where it is set, else build/gpu_check)
#   --seconds N         of all parts together (default: 570)
#   --carried FOLDER    wheels and data from gpu_prepare.sh (default: .gpu_carry, where it is there)
#
# PYTHON names the interpreter (default: python3). Results are merged after every part, so that a run that is cut keeps
# what it has. The exit status is 1 when a part was cut or a measurement failed.
set -uo pipefail
cd "$(dirname "$0")/.."

device=cuda tiny="" parts="correctness losses step study" output=${OUT:-build/gpu_check} seconds=570 carried=.gpu_carry
while [ $# -gt 0 ]; do
  case $1 in
    --tiny) tiny=--tiny; shift; continue ;;
    --help | -h) sed -n '2,18p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
    --device | --parts | --output | --seconds | --carried)
      [ $# -ge 2 ] || { echo "gpu_check.sh: error: $1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" '%s' "$2"; shift 2 ;;
    *) echo "gpu_check.sh: error: unknown option $1" >&2; exit 2 ;;
  esac
done

# Seconds that a part may take, its start included; the last one runs in what is left, when that is enough.
declare -A limits=([correctness]=150 [losses]=120 [step]=200 [study]=120)
least_for_study=60
for part in $parts; do
  [ -n "${limits[$part]:-}" ] || { echo "gpu_check.sh: error: unknown part $part" >&2; exit 2; }
done

python=${PYTHON:-python3} started=$SECONDS statuses=()
mkdir -p "$output"
log=$output/log.txt
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
if compgen -G "$carried/wheels/*.whl" > /dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" \
    "$carried"/wheels/*.whl 2>&1 | tee -a "$log"
  PYTHONPATH=$PYTHONPATH:$site
fi
[ -d "$carried/data" ] && export XMODAL_HF_DATA=$PWD/$carried/data

merge() {
  "$python" benchmarks/gpu_check.py merge --output "$output" --status ${statuses[@]+"${statuses[@]}"}
}

for part in $parts; do
  left=$((seconds - (SECONDS - started)))
  limit=$((limits[$part] < left ? limits[$part] : left))
  if [ "$limit" -le 0 ] || { [ "$part" = study ] && [ "$left" -lt "$least_for_study" ]; }; then
    statuses+=("$part=no time was left")
  else
    rm -f "$output/$part.json" # of an earlier run
    echo "== $part: $limit seconds at most, $left left" | tee -a "$log"
    timeout --kill-after=5 "$limit" "$python" benchmarks/gpu_check.py "$part" --device "$device" $tiny \
      --output "$output" --seconds "$limit" 2>&1 | tee -a "$log"
    statuses+=("$part=${PIPESTATUS[0]}")
  fi
  merge > /dev/null
done
merge
