# A server for a model, on the CPU. For a GPU, build with
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
# and run with --gpus all ... --device cuda.
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" \
        --extra-index-url https://pypi.org/simple "$(grep '^torch==' constraints.txt)" \
    && pip install --no-cache-dir -c constraints.txt '.[serve]' \
    && rm -rf /app/* \
    && useradd --system --no-create-home unclip

USER unclip
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=10s --timeout=3s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["unclip-serve", "--host", "0.0.0.0"]
