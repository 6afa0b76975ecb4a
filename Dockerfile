# syntax=docker/dockerfile:1
# A server of pixellm. For a CPU:
#   docker build -t pixellm .
#   docker run --rm -p 8000:8000 pixellm
# For an NVIDIA GPU (the container needs the driver of its host alone):
#   docker build -t pixellm:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
#   docker run --rm --gpus all -p 8000:8000 -v "$HOME/models:/models" pixellm:cuda --model /models/7b
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build

ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/pixellm \
 && /opt/pixellm/bin/python -m pip install --index-url "${TORCH_INDEX}" "${TORCH}"
COPY pyproject.toml README.md LICENSE THIRD_PARTY.md ./
COPY src ./src
RUN /opt/pixellm/bin/python -m pip install ".[serve]"

FROM python:${PYTHON}-slim

# The server writes nothing but the cache of models that are fetched.
RUN useradd --create-home --uid 1000 pixellm
COPY --from=build /opt/pixellm /opt/pixellm
ENV PATH=/opt/pixellm/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/pixellm
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["pixellm", "serve", "--host", "0.0.0.0"]
