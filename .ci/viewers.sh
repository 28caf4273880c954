#!/usr/bin/env bash
# What others open our files with, for the tests: Chromium (reports), catapult's trace viewer and Perfetto's trace
# processor (timelines), tmux (the dashboard). Each is fetched where it can be reached; without it its test says SKIPPED. Prints exports.
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

# The viewer of the Trace Event Format, as PyTorch's profiler ships it.
viewer="$folder/trace_viewer_full.html"
if ! [ -f "$viewer" ] && command -v python3 >/dev/null; then
  echo "torch_tb_profiler==0.4.3 --hash=sha256:207a49b05572dd983e4ab29eb5e0fcadd60374a8f93c78ec638217e8d18788dc" >"$folder/viewer.txt"
  python3 -m pip download --quiet --no-deps --require-hashes -d "$folder" -r "$folder/viewer.txt" >/dev/null 2>&1 \
    && python3 -m zipfile -e "$folder"/torch_tb_profiler-0.4.3-*.whl "$folder/viewer" \
    && mv "$folder/viewer/torch_tb_profiler/static/trace_viewer_full.html" "$viewer"
fi
if [ -f "$viewer" ]; then
  echo "export MOEPLAN_TRACE_VIEWER='$viewer'"
else
  missing "torch_tb_profiler" "the timeline in the viewer of its format"
fi

# Version and hash are those of the pip package `perfetto` 0.59.1, which fetches the same file.
shell="$folder/trace_processor_shell"
url=https://commondatastorage.googleapis.com/perfetto-luci-artifacts/v59.1/linux-amd64/trace_processor_shell
sum=2434129a3af4dc9e2034a476f7b76447b490975213e301769310d3bd0d5d6458
if ! [ -x "$shell" ]; then
  curl -fsSL --max-time 120 -o "$shell.part" "$url" 2>/dev/null \
    && echo "$sum  $shell.part" | sha256sum --quiet -c - \
    && chmod +x "$shell.part" && mv "$shell.part" "$shell"
fi
if [ -x "$shell" ]; then
  echo "export TRACE_PROCESSOR='$shell'"
else
  missing "trace_processor_shell" "the timeline in Perfetto's own reader"
fi
