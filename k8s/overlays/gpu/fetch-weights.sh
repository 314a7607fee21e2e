#!/bin/sh
# Fill the weights' volume with one revision of the model, whole or not at all. Running it again does nothing.
#
#   /weights/<revision>/<model>          appears by a rename, once everything is there and was found servable
#   /weights/<revision>/<model>.partial  what an interrupted download left; the next run goes on from it
set -eu
root=${WEIGHTS_DIR:-/weights}
case $FARM_MODEL__REVISION in
*[!0-9a-f]* | '') revision= ;;
*) revision=$FARM_MODEL__REVISION ;;
esac
if [ "${#revision}" != 40 ]; then
    echo "fetch-weights: FARM_MODEL__REVISION=$FARM_MODEL__REVISION is no commit; write its 40 digits in model.env" >&2
    exit 1
fi
final=$root/$revision/${FARM_MODEL__ID##*/}
partial=$final.partial
if [ -d "$final" ]; then
    echo "fetch-weights: $final is there"
    exit 0
fi
mkdir -p "$partial"
hf download "$FARM_MODEL__ID" --revision "$revision" --local-dir "$partial" --quiet \
    --include '*.safetensors' --include '*.safetensors.index.json' --include config.json \
    --include generation_config.json --include tokenizer.json
# The same check that a worker makes: right architecture, safetensors, no shard missing.
found=$(FARM_MODEL__ID=$partial python -m workers.probe)
case $found in
*'"is_here": true'*) ;;
*)
    echo "fetch-weights: what was downloaded can't be served: $found" >&2
    exit 1
    ;;
esac
rm -rf "$partial/.cache"
mv "$partial" "$final"
echo "fetch-weights: $final is complete"
