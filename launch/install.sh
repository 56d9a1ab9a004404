#!/usr/bin/env bash
# Installs the repository for some hardware into the environment of `python`: in the image, on the workers of a pod.
#
#   launch/install.sh cpu|gpu|tpu [--dry_run]    as in launch/install.sh tpu
#
#   --dry_run          prints what would be run, and runs nothing
#   --help             prints this text
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

case ${1-} in
  --help) show_help "$here/install.sh" ;;
  cpu) extra= ;;
  gpu | tpu) extra="[$1]" ;;
  *) die "hardware '${1-}': give one of cpu, gpu, tpu" ;;
esac
case ${2-} in
  '') ;;
  --dry_run) dry_run=1 ;;
  *) die "$2: unknown flag; known is --dry_run" ;;
esac
run python -m pip install --disable-pip-version-check --editable "${here%/*}$extra"
