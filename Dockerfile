# docker build -t reid . && docker run --rm -v "$PWD/output:/app/output" reid
# With GPUs and NAIC data: docker run --rm --gpus all --shm-size 8g -e RECIPE=naic -e DATA_ROOT=/data -v DIR:/data ...
# Your own pictures: docker run --rm -e RECIPE=own -e DATA_ROOT=/data -v DIR:/data -v "$PWD/output:/app/output" reid \
#     bash run.sh DATASETS.NAMES tree:people
# The gallery's service: docker build --target serve -t gallery . && docker run --rm -p 8000:8000 -e GALLERY_TOKEN=SECRET \
#     -v DIR:/gallery -v MODEL_FOLDER:/model:ro gallery        # once before, with the same -v: … gallery \
#     python tools/gallery.py create --gallery /gallery --model /model
FROM python:3.11-slim AS base
WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .

FROM base AS serve
RUN pip install --no-cache-dir -r requirements-serve.txt
EXPOSE 8000
CMD ["python", "tools/gallery.py", "serve", "--gallery", "/gallery", "--model", "/model", "--host", "0.0.0.0"]

FROM base
CMD ["bash", "run.sh"]
