#!/usr/bin/env bash
# Lets mypy see the folders under their installed names: build/typing/cnnviz/<folder> links.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build/typing/cnnviz
for folder in cli core occlusion filters embeddings gradients trust reasons audit diff report; do
    ln -sfn "../../../$folder" "build/typing/cnnviz/$folder"
done
