#!/bin/bash
# Removes the images that these tests made: stand-ins, and whatever was built on them. BuildKit keeps its own cache and clears it by itself.
set -euo pipefail
docker image prune -af --filter label=aegis.stand-in | tail -n 1
