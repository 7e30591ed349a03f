#!/usr/bin/env bash
# Subnets of a run against the same architectures trained alone: examples/trained_alone.sh RUN DATA OUT
#
# Finds the best subnet within each latency limit and the best uniform one (--strategy grid), measures both on the test
# images, trains each best one alone with the run's own schedule in OUT, and prints a line for each. What is finished
# is skipped and what was stopped resumes. OFA names another binary, LIMITS other limits in milliseconds. RUN must have
# been trained from random weights: a subnet alone cannot start from the supernet of --from.
set -euo pipefail
[ $# -eq 3 ] || { sed -n '2,7p' "$0"; exit 2; }
run=$1 data=$(realpath "$2") out=$3
ofa=${OFA:-ofa} limits=${LIMITS:-0.10 0.13 0.16 0.20 0.25}
mkdir -p "$out"

# The output of a command as a file, once it is whole: whole FILE COMMAND ...
whole() {
  "${@:2}" > "$1.part"
  mv "$1.part" "$1"
}

[ -e "$run/predictor/predictor.safetensors" ] || "$ofa" predictor --run "$run" --samples 300
[ -e "$run/devices/this.json" ] || "$ofa" profile --run "$run"
folders=()
for limit in $limits; do
  for strategy in memetic grid; do
    name=$strategy-$limit
    [ -e "$run/search/$name.json" ] ||
      "$ofa" search --run "$run" --limit "this:latency=${limit}ms" --strategy "$strategy" --name "$name" > "$out/search.log"
    folders+=("$run/models/$name")
  done
done
"$ofa" extract --run "$run" --search-results > "$out/extract.log"
subnets=$out/subnets-${limits// /_}.csv
[ -e "$subnets" ] || whole "$subnets" "$ofa" bench "${folders[@]}" --data "$data" --csv

# Accuracy of a model in a table of `ofa bench --csv`: accuracy FILE MODEL. The quoted text of the subnet has commas.
accuracy() {
  sed -E 's/"[^"]*"/-/' "$1" | awk -F, -v model="$2" '$1 == model { print $7 }'
}

for limit in $limits; do
  subnet=$(sed -nE '/"best": /{ s/.*"best": "([^"]*)".*/\1/p; q }' "$run/search/memetic-$limit.json")
  alone=$out/alone-$limit
  if [ ! -e "$alone/checkpoints/supernet.safetensors" ]; then
    if compgen -G "$alone/checkpoints/step-*" > /dev/null; then
      "$ofa" train --out "$alone" --resume
    else
      "$ofa" train --config "$run/config.toml" --data "$data" --subnet "$subnet" --out "$alone"
    fi
  fi
  [ -e "$alone/models/alone/config.json" ] || "$ofa" extract --run "$alone" --subnet "$subnet" --name alone > "$out/extract.log"
  [ -e "$alone/bench.csv" ] || whole "$alone/bench.csv" "$ofa" bench "$alone/models/alone" --data "$data" --csv
  seconds=$(sed -nE 's/.*"type":"finished".*"seconds":([0-9.]+).*/\1/p' "$alone/metrics.jsonl" | tail -1)
  printf '== %s ms: subnet %s, grid %s, alone %s after %.0f min; %s\n' "$limit" \
    "$(accuracy "$subnets" "memetic-$limit")" "$(accuracy "$subnets" "grid-$limit")" \
    "$(accuracy "$alone/bench.csv" alone)" "$(awk "BEGIN { print $seconds / 60 }")" "$subnet"
done
