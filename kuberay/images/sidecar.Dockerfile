# The promotion sidecar: a shell, jq and curl; some 15 MB. Context: kuberay/sidecar.
#   container build -t serve-app-sidecar:0.1.0 -f kuberay/images/sidecar.Dockerfile kuberay/sidecar
# Pin the base by digest where you can reach its registry, or take it from yours:
#   --build-arg BASE=alpine:3.20.3@sha256:...
ARG BASE=alpine:3.20.3
FROM ${BASE}

# The series of the base is what pins these; Alpine keeps only the newest build of each in it.
RUN apk add --no-cache curl=~8 jq=~1.7 && mkdir /models && chown 1000:1000 /models
COPY --chmod=0555 sidecar.sh generate_manifest.sh /sidecar/
COPY --chmod=0444 bundle.sh reload.sh manifest.awk /sidecar/
USER 1000:1000
VOLUME ["/models"]
ENTRYPOINT ["/sidecar/sidecar.sh"]
