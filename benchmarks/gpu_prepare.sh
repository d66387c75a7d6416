#!/usr/bin/env bash
# Packages and data for gpu_check.sh on a machine that reaches no package index: downloaded here, carried there.
#
#   bash benchmarks/gpu_prepare.sh                    # for Python 3.12 on x86-64 Linux
#   bash benchmarks/gpu_prepare.sh --python 3.11
#
# Options:
#   --python VERSION    of the interpreter there (default: 3.12)
#   --output FOLDER     of the wheels and the data (default: .gpu_carry, which git ignores)
#   --most_mib N        what may be carried, working tree included (default: 64)
#
# The machine is expected to have torch, torchvision, torchaudio, accelerate, peft, timm, scikit-learn, scipy, pyarrow,
# pandas, matplotlib, Jinja2, PyYAML, tensorboard, and some release of transformers 5 with its needs. PYTHON names the interpreter here (default: python3).
# Flickr8k comes along where XMODAL_HF_DATA (default: ../shared/data) has it and there is room; the last part needs it.
set -euo pipefail
cd "$(dirname "$0")/.."

version=3.12 output=.gpu_carry most_mib=64
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || { echo "gpu_prepare.sh: error: $1 needs a value, or is unknown" >&2; exit 2; }
  case $1 in
    --python) version=$2 ;;
    --output) output=$2 ;;
    --most_mib) most_mib=$2 ;;
    *) echo "gpu_prepare.sh: error: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done

python=${PYTHON:-python3} data=${XMODAL_HF_DATA:-../shared/data}
# What the package needs, at the tested versions; then the peers.
packages=(transformers datasets evaluate dill multiprocess soundfile cffi pycparser)
peers=$(grep -E '^(open_clip_torch|ftfy|wcwidth|memeff)==' benchmarks/requirements.txt | cut -d';' -f1)

rm -rf "$output/wheels"
mkdir -p "$output/wheels"
platforms=()
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${platform}_x86_64")
done
# shellcheck disable=SC2086 # one word a peer
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
  "${platforms[@]}" --constraint constraints.txt --dest "$output/wheels" "${packages[@]}" $peers

mib_of() { du -cm --apparent-size "$@" | tail -1 | cut -f1; }
tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -c --apparent-size -k | awk '$2 == "total" { kib += $1 } END { print int(kib / 1024) + 1 }')
room=$((most_mib - tree - $(mib_of "$output/wheels")))
rm -rf "$output/data"
if [ -d "$data/flickr8k" ] && [ "$(mib_of "$data/flickr8k")" -le "$room" ]; then
  mkdir -p "$output/data"
  cp -r "$data/flickr8k" "$output/data/"
else
  echo "without Flickr8k (not in $data, or no room): the last part will be left out"
fi

ls -l "$output/wheels" | awk 'NR > 1 { print $5, $9 }'
echo "$output: $(mib_of "$output") MiB, the working tree $tree MiB, of $most_mib MiB that may be carried"
echo "Take $output along with the working tree, and run there: bash benchmarks/gpu_check.sh --carried $output"
echo "For example: tar -cf - \$(git ls-files) $output | ssh MACHINE 'mkdir -p check && cd check && tar -xf - && bash benchmarks/gpu_check.sh'"
