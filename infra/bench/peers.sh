#!/usr/bin/env bash
# Install the peers that `compare_preparation.py` measures, each in an environment of its own, without GPU packages.
#
#   infra/bench/peers.sh FOLDER [axolotl] [trl] [llamafactory]      default: all three; some 2 GB and 5 minutes each
#
# PYTHON names the interpreter (python3.11); versions are those that the figures in infra/docs/benchmarks.md are of.
set -euo pipefail
FOLDER=${1:?usage: peers.sh FOLDER [axolotl] [trl] [llamafactory]}
shift
TORCH=torch==2.13.0

environment() { # name: make it, with torch
    "${PYTHON:-python3.11}" -m venv "$FOLDER/$1"
    install "$1" $TORCH
}

install() { # name, then what pip is told
    local pip="$FOLDER/$1/bin/pip"
    shift
    "$pip" --disable-pip-version-check install --quiet "$@"
}

axolotl() { # its wheel asks for Python 3.12 and for GPU packages; what is measured runs without either
    environment axolotl
    install axolotl "huggingface_hub>=1.31" peft==0.21.2 tokenizers==0.23.3 transformers==5.20.1 accelerate==1.15.0 \
        datasets==5.0.1 trl==1.14.1 "numba>=0.63.1" "numpy>=2.1" pydantic==2.13.5 addict fire PyYAML==6.0.3 requests \
        einops colorama click typer==0.25.1 scipy art python-dotenv==1.0.1 zstandard==0.22.0 packaging==26.0 \
        typing-extensions==4.15.0 posthog==6.7.11 sentencepiece psutil nvidia-ml-py==12.560.30 py-cpuinfo pillow \
        mistral-common==1.12.0 tensorboard fastcore wandb
    install axolotl --no-deps --ignore-requires-python axolotl==0.21.0 axolotl-contribs-lgpl==0.0.7 \
        axolotl-contribs-mit==0.0.6 evaluate==0.4.1 schedulefree==1.4.1 bitsandbytes==0.50.2 torchao==0.18.0 \
        liger-kernel==0.8.4
}

trl() {
    environment trl
    install trl trl==1.16.0 transformers==5.23.0 datasets==5.2.0 tokenizers==0.23.3 peft==0.21.2 accelerate==1.15.0
}

llamafactory() {
    environment llamafactory
    install llamafactory llamafactory==0.9.5
}

for peer in "${@:-axolotl trl llamafactory}"; do
    for one in $peer; do "$one"; done
done
