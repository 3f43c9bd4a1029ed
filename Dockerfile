# docker build -t fedlib . && docker run --rm -v "$PWD/reports:/fedlib/reports" fedlib make study
# Without a command: JupyterLab at http://localhost:8888, with -p 8888:8888.
FROM python:3.11-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends chromium git make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /fedlib
COPY . .
RUN make .venv/.ready
EXPOSE 8888
CMD ["make", "lab", "LAB=--ip=0.0.0.0 --no-browser"]
