#!/bin/sh
# Print the farm's Secrets with new random passwords:
#
#   k8s/secrets.sh | kubectl apply -f -
#
# Once, for a new farm: another run changes every password, and everything has to be started again. Where an operator
# such as External Secrets keeps them, docs/deploy/kubernetes.md has the names.
set -eu
namespace=${1:-bloomfarm}
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

echo "apiVersion: v1"
echo "kind: Secret"
echo "metadata: {name: bloomfarm-redis, namespace: $namespace}"
echo "stringData:"
for user in producer api worker operator flower monitor replica sentinel; do
    echo "  $user: \"$(random)\""
done
echo "---"
echo "apiVersion: v1"
echo "kind: Secret"
echo "metadata: {name: bloomfarm-flower, namespace: $namespace}"
echo "stringData: {basic-auth: \"flower:$(random)\"}"
