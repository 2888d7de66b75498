# Sourced by the scripts beside this folder: finds or makes a Python environment that can run Shoal.
#
#   shoal_env [EXTRA...]   sets PYTHON; EXTRA is one of pyproject's extras (test, dev)
#
# By itself it keeps `.venv` at the root of the repository, and brings it up to date when pyproject.toml changes.
# SHOAL_PYTHON=python3 uses that interpreter as it is, with the packages it has, and this checkout on its path.
# All it has to say goes to stderr.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
MIN_PYTHON="3.11"
TORCH="torch==2.13.0" # installed if no torch that pyproject.toml allows is there; the plain CPU build will do

say() { printf 'shoal: %s\n' "$*" >&2; }

die() {
  say "$@"
  exit 1
}

# shoal_links PARENT: makes PARENT/shoal with a link to each package folder, so that PARENT on a path gives `shoal.*`.
shoal_links() {
  local folder
  mkdir -p "$1/shoal"
  for folder in blocks client dht peer routing; do
    ln -sfn "$ROOT/$folder" "$1/shoal/$folder"
  done
}

shoal_env() {
  if [ -n "${SHOAL_PYTHON:-}" ]; then
    _use_given
  else
    _use_venv "$@"
  fi
}

# _new_enough PYTHON [MODULE...]: it runs, is not too old, and has these modules.
_new_enough() {
  local python="$1"
  shift
  "$python" -c "import ${*:+$*, }sys; sys.exit(sys.version_info < tuple(map(int, '$MIN_PYTHON'.split('.'))))" \
    >/dev/null 2>&1
}

_use_given() {
  _new_enough "$SHOAL_PYTHON" || die "SHOAL_PYTHON=$SHOAL_PYTHON is not Python $MIN_PYTHON or newer."
  PYTHON="$("$SHOAL_PYTHON" -c 'import sys; print(sys.executable)')"
  shoal_links "$ROOT/build/path"
  _metadata "$ROOT/build/path"
  export PYTHONPATH="$ROOT/build/path${PYTHONPATH:+:$PYTHONPATH}"
  local missing
  missing="$("$PYTHON" - <<'PY'
from importlib.util import find_spec
needed = ("aiohttp", "bitsandbytes", "cryptography", "hivemind", "huggingface_hub", "jinja2", "llguidance", "msgpack",
          "multiaddr", "numpy", "prometheus_client", "psutil", "rich", "safetensors", "shtab", "tokenizers", "torch",
          "transformers")
print(" ".join(name for name in needed if find_spec(name) is None))
PY
)" || die "SHOAL_PYTHON=$SHOAL_PYTHON does not run."
  [ -z "$missing" ] || die "SHOAL_PYTHON=$SHOAL_PYTHON lacks: $missing. Install them, or unset SHOAL_PYTHON."
}

# _metadata PARENT: what an installation would tell about the version and the commands.
_metadata() {
  "$PYTHON" - "$ROOT/pyproject.toml" "$1" <<'PY'
import pathlib, sys, tomllib
project = tomllib.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
folder = pathlib.Path(sys.argv[2], "shoal-0.dist-info")
folder.mkdir(exist_ok=True)
folder.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: shoal\nVersion: {project['version']}\n")
commands = project["entry-points"]["shoal.commands"].items()
folder.joinpath("entry_points.txt").write_text("\n".join(["[shoal.commands]", *(f"{n} = {t}" for n, t in commands)]))
PY
}

_find_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3 python; do
    if _new_enough "$candidate" venv, ensurepip; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# One at a time: `scripts/demo` and `scripts/test` may be started together in a fresh clone.
_use_venv() {
  PYTHON="$ROOT/.venv/bin/python"
  local stamp="$ROOT/.venv/shoal-stamp" wanted extras
  mkdir -p "$ROOT/.venv"
  if command -v flock >/dev/null 2>&1; then
    exec 9>"$ROOT/.venv/lock"
    flock 9
  fi
  extras="$(_extras "$stamp" "$@")"
  wanted="$(cksum <"$ROOT/pyproject.toml") $extras"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ] || ! "$PYTHON" -c '' >/dev/null 2>&1; then
    rm -f "$stamp"
    _install "$extras"
    printf '%s\n' "$wanted" >"$stamp"
  fi
  { exec 9>&-; } 2>/dev/null || true
}

# The extras asked for and those already there, sorted, with commas between.
_extras() {
  local stamp="$1" had=""
  shift
  if [ -f "$stamp" ]; then
    had="$(cut -s -d' ' -f3- "$stamp")"
  fi
  printf '%s\n' ${had//,/ } "$@" | sort -u | sed '/^$/d' | paste -sd, -
}

_install() {
  local base target="$ROOT"
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    base="$(_find_python)" || die "Python $MIN_PYTHON or newer with its venv module is needed, and none was found." \
      "Install it, or name one with SHOAL_PYTHON."
    say "making an environment in .venv with $("$base" --version)"
    "$base" -m venv "$ROOT/.venv" >&2 || die "could not make .venv; the lines above say why."
  fi
  if ! _torch_will_do; then
    say "installing $TORCH (some hundred megabytes; only once)"
    _pip "$TORCH"
  fi
  say "installing Shoal and what it needs (a minute or two; only once)"
  _pip -e "$target${1:+[$1]}"
}

_pip() {
  "$PYTHON" -m pip install -qq --disable-pip-version-check "$@" >&2 ||
    die "could not install; the lines above say why. Run this again when that is mended."
}

_torch_will_do() {
  "$PYTHON" - "$ROOT/pyproject.toml" >/dev/null 2>&1 <<'PY'
import importlib.metadata, sys, tomllib
from pip._vendor.packaging.requirements import Requirement
with open(sys.argv[1], "rb") as file:
    needs = map(Requirement, tomllib.load(file)["project"]["dependencies"])
torch = next(need for need in needs if need.name == "torch")
sys.exit(not torch.specifier.contains(importlib.metadata.version("torch"), prereleases=True))
PY
}
