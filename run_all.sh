#!/usr/bin/env bash
# Reproduce everything from one command.
#
#   ./run_all.sh [SPEC...]       run notebooks 01-06 for each spec (default: 8x8 16x16 32x32)
#   ./run_all.sh --from 05 8x8   start at a notebook
#   ./run_all.sh smoke           the whole pipeline at toy size
#   ./run_all.sh study [SPEC...] the regressor, the experiment and the ladder on further layouts (an hour)
#   ./run_all.sh test            lint, tests, and a re-run of every committed notebook
#   ./run_all.sh notebooks       re-execute the committed notebooks in place, at the 8x8 spec
#
# Everything is installed into .venv on the first call.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with another shell
set -euo pipefail
for name in $(compgen -A function); do unset -f "$name"; done # of the environment, by names of what is called here
unset CDPATH # or `cd` may go somewhere else
unset PYTHONPATH # or the sources of another checkout may come first
unset PYTHONINSPECT # or Python asks for more instead of ending
case ${LEVER_OUTPUTS:-/} in
  /*) ;;
  *) LEVER_OUTPUTS=$PWD/$LEVER_OUTPUTS ;; # before moving away
esac
here=$(readlink -f "${BASH_SOURCE[0]}")
cd "$(dirname "$here")"

trap 'echo "run_all.sh: interrupted; run the same command again to go on" >&2; exit 130' INT
die() { echo "run_all.sh: ${1//[^[:print:]]/ }" >&2; exit 2; }

usage() { sed -n '2,11s/^# \{0,1\}//p' "$here"; }

# A copied or moved checkout brings a .venv that still points to the old place.
installed_here() {
  local root
  root=$(pwd -P)
  # Found, not imported: an error in the sources is none of .venv.
  (cd / && "$root/.venv/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("lever_lib").submodule_search_locations[0] != sys.argv[1])' "$root/lever_lib" 2>/dev/null)
}

set_up() {
  local stamp=.venv/requirements.sha256 wanted python=${PYTHON:-python3}
  command -v "$python" >/dev/null || die "no $python found; install Python 3.11 or newer"
  "$python" -c 'import sys; sys.exit(3 * (sys.version_info < (3, 11)))' || {
    (($? == 3)) && die "$("$python" --version) is too old; needs 3.11 or newer"
    die "$python does not start; does PYTHONHOME or the like in the environment mislead it?"
  }
  wanted=$(cat requirements.txt pyproject.toml | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
  ready() { [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && installed_here; }
  if ready; then return; fi
  # Two first calls at once would each clear what the other installs.
  { exec 9>.venv.lock; } 2>/dev/null || die "cannot write to $PWD to set up .venv"
  "$python" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for the process that sets up .venv", file=sys.stderr, flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)'
  if ready; then exec 9>&-; return; fi
  if [[ -L .venv ]]; then
    rm .venv # what it leads to is another checkout's
  elif [[ -e .venv && ! -d .venv ]]; then
    die "$PWD/.venv is no folder; move it away"
  fi
  echo "setting up .venv (a few minutes, once)" >&2
  "$python" -m venv --clear .venv || die "could not make .venv; on Debian: apt install python3-venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
    || die "installing requirements.txt failed; is the network there? Run the same command again."
  echo "$wanted" >"$stamp"
  exec 9>&-
}

# One thread per process: the work is spread over processes, and two thread pools on one core fight.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYDEVD_DISABLE_FILE_VALIDATION=1

run_tests() {
  LEVER_OUTPUTS=$(mktemp -d)
  export LEVER_OUTPUTS
  trap 'rm -rf "$LEVER_OUTPUTS"' EXIT
  .venv/bin/shellcheck run_all.sh .ci/run
  .venv/bin/python -m ruff check --no-cache .
  .venv/bin/python -m ruff format --no-cache --check .
  .venv/bin/python -m pytest -p no:cacheprovider -n 2 --dist loadfile tests # two at once are fast enough, more disturb Ctrl-C
  .venv/bin/python -m pytest -p no:cacheprovider --nbval --nbval-current-env --nbval-cell-timeout 600 \
    --nbval-sanitize-with tests/nbval_sanitize.cfg notebooks
}

run_notebooks_in_place() {
  LEVER_OUTPUTS=$(mktemp -d)
  export LEVER_OUTPUTS
  trap 'rm -rf "$LEVER_OUTPUTS"' EXIT
  TQDM_DISABLE=1 .venv/bin/python -m nbconvert --log-level WARN --to notebook --execute --inplace notebooks/[0-9]*.ipynb
  .venv/bin/python -m nbstripout --keep-output --keep-count --keep-id \
    --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info" notebooks/[0-9]*.ipynb
  .venv/bin/python -m lever_lib.pictures notebooks/[0-9]*.ipynb
}

published=(8x8 16x16 32x32)
specs=()
from=01
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --from) [[ ${2:-} =~ ^[0-9][0-9]$ ]] || die "--from needs the two digits of a notebook, e.g. --from 05"; from=$2; shift ;;
    --from=*) [[ ${1#*=} =~ ^[0-9][0-9]$ ]] || die "--from needs the two digits of a notebook, e.g. --from 05"; from=${1#*=} ;;
    -*) die "unknown option $1; see ./run_all.sh --help" ;;
    *) specs+=("$1") ;;
  esac
  shift
done

case ${specs[0]:-} in
  test | notebooks) ((${#specs[@]} == 1)) || die "${specs[0]} takes no further words" ;;
esac
set_up
case ${specs[0]:-} in
  test) run_tests ;;
  notebooks) run_notebooks_in_place ;;
  study)
    [[ $from == 01 ]] || die "--from is for notebooks, not for study"
    specs=("${specs[@]:1}")
    ((${#specs[@]})) || specs=("${published[@]}")
    exec .venv/bin/python -m lever_lib.start study "${specs[@]}"
    ;;
  *)
    ((${#specs[@]})) || specs=("${published[@]}")
    exec .venv/bin/python -m lever_lib.start notebooks --from "$from" "${specs[@]}"
    ;;
esac
