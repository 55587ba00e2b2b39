#!/bin/sh
# Make the image of a release, look at it, publish and sign it: sh deploy/release.sh REPOSITORY
#
#   sh deploy/release.sh registry.example/tollkeeper
#
# Its version is that of pyproject.toml, as everything else that says one.
# Needs docker with buildx, grype and cosign, and a login to the registry. Nothing is published unless two builds are the
# same to the byte and have no known weakness of severity HIGH or worse that a newer package mends. Nothing is signed
# unless what the registry has is what was looked at. PLATFORM, EXTRAS, FAIL_ON, COSIGN_KEY (else: keyless, by OIDC) and SNAPSHOT (the
# moment of Debian's packages, else that of the commit) may be set.
set -eu
repository=${1:?the repository of the image, such as registry.example/tollkeeper}
platform=${PLATFORM:-linux/amd64} fail_on=${FAIL_ON:-high}
cd -- "$(dirname -- "$0")/.."
out=build/release

say() { echo "release: $*" >&2; }
give_up() { say "$*"; exit 1; }

version=$(sed -n 's/^version = "\([0-9a-z.]*\)"$/\1/p' pyproject.toml)
[ -n "$version" ] || give_up "pyproject.toml says no version"
[ -z "$(git status --porcelain)" ] || give_up "the tree has changes that are in no commit"
revision=$(git rev-parse HEAD)
moment=$(git log -1 --format=%ct)
snapshot=${SNAPSHOT:-$(TZ=UTC git log -1 --date=format-local:%Y%m%dT%H%M%SZ --format=%cd)}
tag=$(sed -n 's/^ARG PYTHON=//p' deploy/Dockerfile)
base=$(docker buildx imagetools inspect "python:$tag" --format '{{.Manifest.Digest}}')
case $base in sha256:*) ;; *) give_up "the base python:$tag has no digest: $base" ;; esac

# build NAME OPTION…: what was made says its digest in $out/NAME.json
build() {
    name=$1
    shift
    docker buildx build -f deploy/Dockerfile --platform "$platform" \
        --build-arg "PYTHON=$tag@$base" --build-arg "SNAPSHOT=$snapshot" --build-arg "SOURCE_DATE_EPOCH=$moment" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "EXTRAS=${EXTRAS:-}" \
        --metadata-file "$out/$name.json" "$@" .
}
digest_of() { sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]*\)".*/\1/p' "$out/$1.json"; }

rm -rf "$out"
mkdir -p "$out"
for name in first second; do
    build "$name" --no-cache --provenance=false --sbom=false \
        --output "type=oci,dest=$out/$name.tar,rewrite-timestamp=true"
done
digest=$(digest_of first)
[ -n "$digest" ] || give_up "the build does not say its digest"
[ "$digest" = "$(digest_of second)" ] || give_up "two builds differ: $digest and $(digest_of second)"
say "two builds are $digest, of base $base"

grype "oci-archive:$out/first.tar" --only-fixed --fail-on "$fail_on" || give_up "it has weaknesses that can be mended"

build published --provenance=mode=max --sbom=true \
    --output "type=image,name=$repository:$version,push=true,rewrite-timestamp=true"
published=$(digest_of published)
[ -n "$published" ] || give_up "the registry does not say a digest"
docker buildx imagetools inspect "$repository@$published" --raw >"$out/index.json"
grep -q "\"$digest\"" "$out/index.json" || give_up "$repository@$published is not $digest: it is not signed"

docker buildx imagetools inspect "$repository@$published" --format '{{json .Provenance.SLSA}}' >"$out/provenance.json"
docker buildx imagetools inspect "$repository@$published" --format '{{json .SBOM.SPDX}}' >"$out/sbom.json"
set -- --yes ${COSIGN_KEY:+--key "$COSIGN_KEY"}
cosign sign "$@" "$repository@$published"
cosign attest "$@" --type slsaprovenance1 --predicate "$out/provenance.json" "$repository@$published"
cosign attest "$@" --type spdxjson --predicate "$out/sbom.json" "$repository@$published"
say "published and signed: $repository:$version, $published"
