#!/bin/sh
# Builds the images without a daemon, by buildah, and saves them as archives that k3s imports:
#   kuberay/images/build.sh [app] [sidecar]
# Environment: TAG (0.1.0), OUT (dist/images), BUILDAH_OPTIONS (for all of buildah, say "--storage-driver vfs"),
# BUILD_OPTIONS (for the build, say "--isolation chroot" where namespaces are not to be had), PIP_INDEX_URL and
# TORCH_INDEX_URL (package indexes of the app's image; torch's decides between CPU and CUDA), APP_BASE and SIDECAR_BASE
# (base images by digest, or from a registry of your own), ARCHIVE (docker-archive, which names an image as manifests do;
# or oci-archive).
set -eu
cd "$(dirname "$0")/../.."

TAG=${TAG:-0.1.0}
OUT=${OUT:-dist/images}
ARCHIVE=${ARCHIVE:-docker-archive}
command -v buildah >/dev/null || {
    echo "expected buildah, found none; on Debian: apt-get install buildah" >&2
    exit 2
}

# build NAME DOCKERFILE CONTEXT [OPTION ...]
build() {
    name=$1 file=$2 context=$3
    shift 3
    # shellcheck disable=SC2086  # lists of options, split on purpose
    buildah ${BUILDAH_OPTIONS-} build ${BUILD_OPTIONS-} "$@" --format oci --tag "localhost/$name:$TAG" \
        --file "$file" "$context"
    rm -f "$OUT/$name-$TAG.tar"
    # The name in the archive is the one of the manifests, so that an import needs no renaming.
    # shellcheck disable=SC2086
    buildah ${BUILDAH_OPTIONS-} push "localhost/$name:$TAG" "$ARCHIVE:$OUT/$name-$TAG.tar:$name:$TAG"
    ls -lh "$OUT/$name-$TAG.tar"
}

mkdir -p "$OUT"
[ "$#" -gt 0 ] || set -- app sidecar
for image; do
    case $image in
        app)
            build serve-app kuberay/images/app.Dockerfile . \
                --ignorefile kuberay/images/app.Dockerfile.dockerignore \
                ${APP_BASE:+--build-arg "BASE=$APP_BASE"} \
                ${PIP_INDEX_URL:+--build-arg "PIP_INDEX_URL=$PIP_INDEX_URL"} \
                ${TORCH_INDEX_URL:+--build-arg "TORCH_INDEX_URL=$TORCH_INDEX_URL"}
            ;;
        sidecar)
            build serve-app-sidecar kuberay/images/sidecar.Dockerfile kuberay/sidecar \
                ${SIDECAR_BASE:+--build-arg "BASE=$SIDECAR_BASE"}
            ;;
        *)
            echo "expected app or sidecar, found $image" >&2
            exit 2
            ;;
    esac
done
