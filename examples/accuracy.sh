#!/usr/bin/env bash
# The experiments of docs/accuracy.md: examples/accuracy.sh DATA OUT [NAME ...]
#
# Trains, extracts the probes' subnets and measures them on all test images; prints time and accuracies of each. What is
# finished is skipped and what was stopped resumes. OFA names another binary, SEED another seed, EPOCHS other epochs,
# VALIDATION another number of validation images.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,6p' "$0"; exit 2; }
data=$(realpath "$1") out=$2 examples=$(realpath "$(dirname "$0")")
shift 2
ofa=${OFA:-ofa} seed=${SEED:-0}
mkdir -p "$out"
all=(preset-short stages preset alone-largest alone-middle alone-smallest one-schedule labels no-ramp alpha full-size mbv3 plain
  preset-hour long long-ricap long-muon night)
[ $# -gt 0 ] || set -- "${all[@]}"

# The configuration of an experiment, edited: variant EXAMPLE SED-SCRIPT.
variant() {
  local changed
  changed=$(sed -E "$2" "$examples/$1.toml")
  [ -z "$2" ] || [ "$changed" != "$(cat "$examples/$1.toml")" ] || { echo "$2: changes nothing" >&2; exit 1; }
  printf '%s\n' "$changed"
}

# The output of a command as a file, once it is whole: whole FILE COMMAND ...
whole() {
  "${@:2}" > "$1.part"
  mv "$1.part" "$1"
}

new=cifar10-one-schedule old=cifar10 long=cifar10-long
# Flags and configuration of an experiment.
settings() {
  flags=(--config "$out/$1.toml")
  local length=()
  local edit="" base=$new
  case $1 in
    preset) ;;
    preset-short) length=(--epochs 20) ;;
    preset-hour) length=(--hours 1) ;;
    alone-*) flags+=(--subnet "${1#alone-}") ;;
    stages) base=$old ;;
    one-schedule)
      base=$old
      edit='/^(learning_rate|warmup_epochs) /d; s/^probe = /schedule = { learning_rate = 0.1, warmup_epochs = 0.6, decay = "linear" }\n&/'
      ;;
    labels) edit='s/labels = 0\.0/labels = 1.0/' ;;
    no-ramp) edit='s/ramp_epochs = [0-9.]+/ramp_epochs = 0.0/' ;;
    alpha) edit='s/ramp_epochs = [0-9.]+/&, divergence = "alpha"/' ;;
    full-size) edit='s/epochs = 16\.0/epochs = 9.0/; s/resolutions = \[24\] /resolutions = [32] /' ;;
    mbv3)
      edit='s/"cifar-k5"/"cifar-mbv3"/; s/kernel_sizes = \[3, 5\]/kernel_sizes = [3, 5, 7]/; s/channels = 32,/channels = 24,/; s/channels = 64,/channels = 48,/; s/channels = 112,/channels = 80,/'
      ;;
    plain) edit='s/, border = "reflect"//; s/"alternating"/true/; s/, cutout = 0\.25//' ;;
    long) length=(--epochs 120) ;;
    long-ricap)
      length=(--epochs 120)
      edit='s/cutout = 0\.25/&, mix = { method = "ricap", beta = 0.3, probability = 0.5 }/'
      ;;
    long-muon)
      length=(--epochs 120)
      edit='s/^momentum = 0\.9/optimizer = "muon"\n&/'
      ;;
    night) base=$long ;;
    *) echo "$1: no such experiment; known are ${all[*]}" >&2; exit 2 ;;
  esac
  variant $base "$edit" > "$out/$1.toml"
  [ -z "${EPOCHS:-}" ] || length=(--epochs "$EPOCHS")
  flags+=(--data "$data" --validation "${VALIDATION:-2500}" --seed "$seed" "${length[@]}")
}

for name in "$@"; do
  run=$out/$name-$seed${EPOCHS:+-$EPOCHS}
  if [ ! -e "$run/checkpoints/supernet.safetensors" ]; then
    settings "$name"
    if compgen -G "$run/checkpoints/step-*" > /dev/null; then
      "$ofa" train --out "$run" --resume
    else
      "$ofa" train "${flags[@]}" --out "$run"
    fi
  fi
  # The last line of each probe: its name and its subnet's text.
  probes=$(sed -nE 's/.*"type":"probe".*"probe":"([a-z]+)","subnet":"([^"]*)".*/\1\t\2/p' "$run/metrics.jsonl" | tail -3 | sort -u)
  while IFS=$'\t' read -r probe subnet; do
    [ -e "$run/models/$probe/config.json" ] || "$ofa" extract --run "$run" --subnet "$subnet" --name "$probe" > "$run/extract.log"
  done <<< "$probes"
  [ -e "$run/bench.csv" ] || whole "$run/bench.csv" "$ofa" bench "$run"/models/* --data "$data" --csv
  seconds=$(sed -nE 's/.*"type":"finished".*"seconds":([0-9.]+).*/\1/p' "$run/metrics.jsonl" | tail -1)
  printf '== %s, seed %s, %.0f min\n' "$name" "$seed" "$(awk "BEGIN { print ${seconds:-0} / 60 }")"
  # Model, accuracy and multiply-adds; the quoted text of the subnet has commas.
  sed -E 's/"[^"]*"/-/' "$run/bench.csv" | cut -d, -f1,7,9
done
