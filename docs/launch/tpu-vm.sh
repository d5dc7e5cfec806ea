#!/usr/bin/env bash
# Pretraining on all machines of a Cloud TPU slice:
#     NAME=my-slice ZONE=europe-west4-b docs/launch/tpu-vm.sh gpt3-1.3b --data jsonl:/mnt/shared/corpus
# /mnt/shared is a file system that all machines mount (Filestore, say): runs lie in it, and so
# may the data. The same line again goes on where the run was. LIBTPU_INIT_ARGS, where it is set
# here, is set there: `aludel plan` prints the one to take.
set -euo pipefail
: "${NAME:?the name of the slice}" "${ZONE:?its zone}"
SHARED=${SHARED:-/mnt/shared}
words=$(printf '%q ' "$@")
options=$(printf '%q' "${LIBTPU_INIT_ARGS:-}")
exec gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
    --command="cd $SHARED/aludel && export LIBTPU_INIT_ARGS=$options && exec .venv/bin/aludel pretrain $words --out $SHARED/runs/$NAME"
