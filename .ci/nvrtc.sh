#!/usr/bin/env bash
# Puts NVRTC, ptxas and NVIDIA's headers under target/nvrtc (about 320 MB unpacked), once.
# Pinned by version and hash; nothing of it is committed. Exit 0 also where the registry cannot be
# reached: the checks that need it then say SKIPPED.
set -euo pipefail
cd "$(dirname "$0")/.."

requirements=.ci/nvrtc-requirements.txt
wheels=${CARGO_TARGET_DIR:-target}/nvrtc
stamp=$wheels/.complete
if cmp -s "$requirements" "$stamp"; then
  exit 0
fi
if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
  echo "== NO NVRTC wheel is pinned for $(uname -s)-$(uname -m): compiling the kernels for sm_80 and sm_90 is SKIPPED"
  exit 0
fi
staging=$wheels.tmp
rm -rf "$staging" "$wheels"
python=$(command -v python3 || true)
if [ -z "$python" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
  echo "== NO python3 with pip: compiling the kernels for sm_80 and sm_90 is SKIPPED"
  exit 0
fi
if ! log=$("$python" -m pip install --quiet --no-deps --only-binary :all: --require-hashes \
    --target "$staging" --requirement "$requirements" 2>&1); then
  echo "$log" >&2
  rm -rf "$staging"
  # A file that is not what was pinned must stop the run; a registry out of reach must not.
  if grep -qi "do not match the hashes\|hashes are required" <<<"$log"; then
    exit 1
  fi
  echo "== NVRTC wheels could NOT be downloaded: compiling the kernels for sm_80 and sm_90 is SKIPPED"
  exit 0
fi
chmod +x "$staging"/nvidia/cuda_nvcc/bin/*
mv "$staging" "$wheels"
cp "$requirements" "$stamp"
