# docker build -t reid . && docker run --rm -v "$PWD/output:/app/output" reid
# With GPUs and NAIC data: docker run --rm --gpus all --shm-size 8g -e RECIPE=naic -e DATA_ROOT=/data -v DIR:/data ...
# Your own pictures: docker run --rm -e RECIPE=own -e DATA_ROOT=/data -v DIR:/data -v "$PWD/output:/app/output" reid \
#     bash run.sh DATASETS.NAMES tree:people
FROM python:3.11-slim
WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
CMD ["bash", "run.sh"]
