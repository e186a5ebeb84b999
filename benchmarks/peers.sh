#!/usr/bin/env bash
# Environments of the programs that `benchmarks.runtime`, `benchmarks.training`, `benchmarks.coding` and `benchmarks.understand` compare with: one folder each, never Gossamer's own.
#   benchmarks/peers.sh [FOLDER]      (.peers by default)
# What cannot be installed is reported and left out. DeepSparse (Neural Magic licence) is run for evaluation only.
set -u
folder=${1:-.peers}
mkdir -p "$folder"
missing=()

# python_of 3.11 3.10 …: the first interpreter of these versions that is here
python_of() {
  local version found
  for version in "$@"; do
    for found in "$(command -v "python$version")" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
      if [ -x "$found" ] && "$found" -c 'import venv' 2>/dev/null; then
        echo "$found"
        return
      fi
    done
  done
}

# peer NAME "VERSIONS OF PYTHON" MODULE PACKAGES…
peer() {
  local name=$1 versions=$2 module=$3 python log
  shift 3
  log=$folder/$name.log
  if [ -x "$folder/$name/bin/python" ] && "$folder/$name/bin/python" -c "import $module" 2>/dev/null; then
    echo "$name: there"
    return
  fi
  # shellcheck disable=SC2086 # several words are meant
  python=$(python_of $versions)
  if [ -z "$python" ]; then
    echo "$name: no Python of $versions here"
    missing+=("$name")
    return
  fi
  rm -rf "${folder:?}/$name"
  if "$python" -m venv "$folder/$name" >"$log" 2>&1 &&
    "$folder/$name/bin/python" -m pip install --disable-pip-version-check "$@" >>"$log" 2>&1 &&
    "$folder/$name/bin/python" -c "import $module" >>"$log" 2>&1; then
    echo "$name: installed with $("$python" --version)"
  else
    echo "$name: cannot be installed, see $log: $(tail -n 1 "$log")"
    rm -rf "${folder:?}/$name"
    missing+=("$name")
  fi
}

peer onnxruntime "3.11 3.12 3.10 3.13" onnxruntime onnxruntime onnx numpy
peer openvino "3.11 3.12 3.10 3.13" openvino openvino numpy
# torch as Gossamer's own environment has it, so that both train with the same
peer sparselab "3.11 3.12 3.13" sparselab "sparselab==0.2.2" "torch==${TORCH:-2.13.0}" numpy
# nncodec needs torchvision to be importable; the benchmark puts a blank in its place, since none fits this torch
peer coding "3.11 3.12" zipnn "zipnn==0.5.4" "nncodec==2.1.3" zstandard blosc2 constriction safetensors "torch==${TORCH:-2.13.0}" numpy
# torchattacks without what it declares (an old requests, scipy, torchvision): the attacks that are raced need torch and
# numpy alone, and are imported one by one
peer attacks "3.11 3.12 3.13" torch "torch==${TORCH:-2.13.0}" numpy
if [ -x "$folder/attacks/bin/python" ] &&
  ! "$folder/attacks/bin/python" -m pip install --disable-pip-version-check --no-deps "torchattacks==3.5.1" >>"$folder/attacks.log" 2>&1; then
  echo "attacks: torchattacks cannot be installed, see $folder/attacks.log"
  missing+=(attacks)
fi
peer deepsparse "3.11 3.10 3.9 3.8" deepsparse "deepsparse==1.8.0" "numpy<2"

if [ ${#missing[@]} -gt 0 ]; then
  echo "left out: ${missing[*]}"
fi
